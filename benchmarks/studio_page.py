"""What a person at a browser feels of the studio: how soon its page can be used, how soon a moved slider is seen.

`python benchmarks/studio_page.py` takes about two minutes on two idle cores; `--append` adds its figures to RESULTS.md.
It needs Debian's Chromium and Playwright, as tests/browser does. A start is `stylora app` as a fresh process with a
home folder of its own; moves are timed by the page itself, from the key that moves the slider to the loaded preview.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import results

sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(2, str(Path(__file__).parents[1] / "tests"))

from benchmarks.studio import hung, latency  # first: it sees to it that `studio` is the package

try:
    from browser.conftest import BROWSERS
    from browser.visits import PATIENCE, WIDE, Studio, choose, keyed, picture, press, settle, type_into
    from playwright.sync_api import sync_playwright
except ImportError as error:
    raise SystemExit(f"{error.name} is not installed, and this needs a browser: pip install 'stylora[dev]'") from error

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ADAPTERS = ("one", "other", "third", "fourth", "fifth", "sixth")
WATCH = """
window.moved = {seconds: [], job: 0, from: null};
addEventListener("keydown", () => { moved.from = performance.now(); moved.before = moved.job; }, true);
function look() {
    for (const button of document.querySelectorAll('[class*="st-key-cancel-"]'))
        moved.job = Math.max(moved.job, Number(button.className.match(/st-key-cancel-(\\d+)/)[1]));
    if (moved.from === null || moved.job === moved.before) return;  // what is seen is still of an older wish
    const seen = document.querySelector(".st-key-canvas_live img, .st-key-canvas_one img");
    if (!seen || !seen.complete || !seen.naturalWidth) return;
    moved.seconds.push((performance.now() - moved.from) / 1000);
    moved.from = null;
}
addEventListener("load", look, true);
new MutationObserver(look).observe(document, {subtree: true, childList: true, attributeFilter: ["class", "src"]});
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--append", action="store_true", help="add the figures to RESULTS.md")
    parser.add_argument("--starts", type=int, default=5, help="with an empty library, and as many with a full one")
    parser.add_argument("--moves", type=int, default=40, help="of the slider")
    asked = parser.parse_args()
    chromium = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if chromium is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        figures = [
            *starts(browser, Path(folder), asked.starts),
            *latency(moves(browser, Path(folder) / "moves", asked.moves), "slider moved -> preview in the browser"),
        ]
        browser.close()
    results.report("studio_page.py", figures, asked.append)


# --- starts ----------------------------------------------------------------------------------------------------------


def starts(browser: Browser, folder: Path, count: int) -> list[results.Figure]:
    """Fresh starts, in turn with nothing in the library and with adapters that no studio has read before."""
    shelf = folder / "shelf"
    shelf.mkdir()
    hung(shelf, ADAPTERS)
    empty, full = [], []
    for k in range(count):
        with opened(browser, folder / f"empty{k}") as (_, seconds):
            empty.append(seconds)
        with opened(browser, Path(shutil.copytree(shelf, folder / f"full{k}"))) as (_, seconds):
            full.append(seconds)
    return [ready(empty, "empty library"), ready(full, f"{len(ADAPTERS)} new adapters")]


@contextmanager
def opened(browser: Browser, home: Path) -> Iterator[tuple[Page, float]]:
    """A studio's page, and how many seconds after its process began a prompt could be typed and Generate pressed."""
    studio, page = Studio(home), browser.new_page(viewport=WIDE)
    page.set_default_timeout(1000 * PATIENCE)
    begun = perf_counter()
    try:
        studio.start()
        page.goto(studio.address, wait_until="commit")
        keyed(page, "w.generate.prompt").locator("textarea").fill("a blue boat at night")
        keyed(page, "generate.go").locator("button").click(trial=True)  # all but the click
        yield page, perf_counter() - begun
    finally:
        page.close()
        studio.kill()


def ready(seconds: Sequence[float], library: str) -> results.Figure:
    number = f"{statistics.median(seconds):.1f} s (longest of {len(seconds)}: {max(seconds):.1f} s)"
    return results.Figure(f"page ready after `stylora app`, {library}", number, "≤ 8 s", max(seconds) <= 8)


# --- moves -----------------------------------------------------------------------------------------------------------


def moves(browser: Browser, home: Path, count: int) -> list[float]:
    """Seconds from each move of a weight to the first preview of what it asks for; most come while one is drawn."""
    chance = random.Random(0)
    home.mkdir()
    names = [use.path.stem for use in hung(home)]
    with opened(browser, home) as (page, _):
        prepare(page, names)
        handle = page.get_by_role("slider", name=f"Weight of {names[0]}")
        handle.focus()
        page.evaluate(WATCH)
        for k in range(count):
            page.keyboard.press("ArrowLeft" if k % 20 < 10 else "ArrowRight")
            page.wait_for_function(f"moved.seconds.length > {k}", polling=50)
            page.wait_for_timeout(1000 * chance.uniform(0.1, 0.6))
        return [float(seconds) for seconds in page.evaluate("moved.seconds")]


def prepare(page: Page, names: Sequence[str]) -> None:
    """A first picture, so that the models are there; the adapters in the rack, and drawing as sliders move."""
    type_into(page, "w.generate.prompt", "a blue boat at night")
    for name in names:
        choose(page, "w.generate.rack.add", name)
    keyed(page, "w.generate.auto").locator("label").first.click()
    settle(page)
    press(page, "generate.go")
    picture(page)
    settle(page)


if __name__ == "__main__":
    main()
