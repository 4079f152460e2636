"""A browser, a studio for each file of tests, and visits to it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from browser.visits import PATIENCE, WIDE, Studio, sound

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, found by its path; none is loaded."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed (apt-get install chromium)")
    playwright.expect.set_options(timeout=1000 * PATIENCE)
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Studio]:
    """A studio with an empty library."""
    started = Studio(tmp_path_factory.mktemp("studio") / "home")
    started.start()
    yield started
    started.kill()


@pytest.fixture
def visit(browser: Browser, studio: Studio) -> Iterator[Callable[..., Page]]:
    """`visit("library")`: the page as a person sees who was never here. At the end, no page has a traceback on it."""
    contexts = []

    def open(page: str = "") -> Page:
        contexts.append(browser.new_context(viewport=WIDE, color_scheme="light", reduced_motion="reduce"))
        contexts[-1].set_default_timeout(1000 * PATIENCE)
        opened = contexts[-1].new_page()
        opened.goto(f"{studio.address}/{page}")
        opened.locator('[class*="st-key-"] >> visible=true').first.wait_for()
        return opened

    yield open
    pages = [page for context in contexts for page in context.pages]
    fine = all(sound(page) for page in pages)
    for context in contexts:
        context.close()
    assert fine, "a page shows a traceback"
