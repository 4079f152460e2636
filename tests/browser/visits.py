"""What the browser tests share: a studio as a process of its own, and a page with words for what is on it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
SCREENSHOTS = os.environ.get("STYLORA_SCREENSHOTS") == "1"
SHOWN = os.environ.get("STYLORA_SCREENSHOT_LIBRARY", "")  # a folder of adapters that are nicer to look at
PATIENCE = 90.0  # seconds; a busy machine imports torch for half a minute
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
COMMAND = "from studio.cli import main; main()"


class Studio:
    """`stylora app` on a free port, in a process group of its own."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.home, self.address = home, f"http://127.0.0.1:{self.port}"
        home.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Raises AssertionError with what it said: it does not answer."""
        words = ["app", "--port", str(self.port), "--library", str(self.home), "--no-browser"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.log = self.home.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, *words],
                cwd=self.home, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + PATIENCE
        while not self.answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/_stcore/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """At once, as by a power cut."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


# --- what is on a page -----------------------------------------------------------------------------------------------


def keyed(page: Page, key: str) -> Locator:
    """The widget or container of this key."""
    return page.locator(f".st-key-{re.sub('[^A-Za-z0-9_-]', '-', key)}")


def press(page: Page, key: str) -> None:
    keyed(page, key).locator("button").first.click()


def type_into(page: Page, key: str, text: str) -> None:
    """Type and leave the field, then wait until the page has taken it."""
    field = keyed(page, key).locator("input, textarea").first
    field.fill(text)
    field.blur()
    settle(page)


def choose(page: Page, key: str, option: str) -> None:
    """One of a list of choices, by (the start of) its words."""
    field, wanted = keyed(page, key).locator("input"), page.get_by_role("option").filter(has_text=option).first
    from playwright.sync_api import TimeoutError as Late

    field.click()
    for _ in range(5):  # a rerun that comes late closes the list
        with contextlib.suppress(Late):
            wanted.click(timeout=3000)
            break
        field.press("ArrowDown")
    settle(page)


def unfold(page: Page, words: str) -> None:
    """Open an expander."""
    page.locator("summary").filter(has_text=words).click()


def settle(page: Page) -> None:
    """Wait until the page's script is no longer running."""
    page.wait_for_timeout(300)
    page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()


def picture(page: Page) -> str:
    """The address of the finished picture on the canvas, which is made of its bytes."""
    image = page.locator(".st-key-canvas_one img")
    image.wait_for()
    return str(image.get_attribute("src"))


def another_picture(page: Page, before: str) -> str:
    page.locator(f'.st-key-canvas_one img:not([src="{before}"])').wait_for()
    return picture(page)


def natural_size(page: Page) -> tuple[int, int]:
    """Of the picture on the canvas, in its own pixels."""
    width, height = page.locator(".st-key-canvas_one img").evaluate("i => [i.naturalWidth, i.naturalHeight]")
    return int(width), int(height)


def sound(page: Page) -> bool:
    """No traceback on it."""
    shown = page.locator("body").inner_text()
    return page.locator('[data-testid="stException"]').count() == 0 and "Traceback" not in shown


def shoot(page: Page, name: str) -> None:
    """Pictures of the page for the documents: light, dark, and at a phone's width."""
    if not SCREENSHOTS:
        return
    IMAGES.mkdir(parents=True, exist_ok=True)
    page.locator('[data-testid="stMain"]').evaluate("main => main.scrollTo(0, 0)")
    for look, scheme, size in (("light", "light", WIDE), ("dark", "dark", WIDE), ("phone", "light", PHONE)):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        page.set_viewport_size(size)  # type: ignore[arg-type]
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)
        with Image.open(io.BytesIO(page.screenshot())) as shot:  # in 256 colours it has a third of the bytes
            shot.convert("RGB").quantize(256).save(IMAGES / f"studio-{name}-{look}.png", optimize=True)
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]


def hang_adapters(home: Path) -> tuple[str, str]:
    """Two adapters for pictures in a library's folder; gives their names."""
    if SHOWN:
        shutil.copytree(SHOWN, home, dirs_exist_ok=True)
        one, *_, two = sorted(path.stem for path in Path(SHOWN).glob("*.safetensors"))
        return one, two
    from tests.checkpoints import random_adapter

    for seed, name in enumerate(("dots", "waves")):
        random_adapter(Path("tiny-sd"), seed, kinds=("attn2",)).save(home / f"{name}.safetensors")
    return "dots", "waves"


def hang_voice(home: Path) -> str:
    """An adapter for text in a library's folder; gives its name."""
    if SHOWN:
        shutil.copytree(SHOWN, home, dirs_exist_ok=True)
        return next(path.parent.name for path in sorted(home.glob("*/adapter_config.json")))
    from tests.texting import styled

    return styled(ROOT / "sample_data" / "bases" / "tiny-lm", home / "murmur").name
