"""A style from dropped pictures to an adapter in the library, in the browser; the text page, the bare base beside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from browser.visits import (
    ROOT,
    SCREENSHOTS,
    Studio,
    choose,
    hang_voice,
    keyed,
    press,
    settle,
    shoot,
    type_into,
    unfold,
)  # fmt: skip
from studio.app.views.text import FIRST
from trainers.lora.adapter import Adapter

sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
expect = sync.expect
Visit = Callable[..., "sync.Page"]
PICTURES = sorted((ROOT / "sample_data" / "styles" / "watercolour").glob("*.png"))[:8]


def dropped() -> list[Path]:
    """Pictures with captions, as they are dropped."""
    return [path for picture in PICTURES for path in (picture, picture.with_suffix(".txt"))]


def test_dropped_pictures_become_an_adapter_in_the_library(visit: Visit, studio: Studio) -> None:
    page = visit("train")
    page.locator('input[type="file"]').first.set_input_files(dropped())
    cards = page.locator('[class*="st-key-picture_"]')
    expect(cards).to_have_count(len(PICTURES))
    expect(cards.first.locator("textarea")).to_have_value(PICTURES[0].with_suffix(".txt").read_text("utf-8").strip())
    keyed(page, "w.train.preset.pictures").get_by_text("Quick").click()
    settle(page)
    word = page.get_by_role("textbox", name="Trigger word")
    word.fill("aquastyle")
    word.press("Enter")
    expect(page.locator('[data-testid="stToast"]')).to_have_count(0)
    shoot(page, "train-data")
    if not SCREENSHOTS:  # three steps show little
        unfold(page, "All settings")
        type_into(page, "form.pictures.train.steps", "3")
    press(page, "train.start")
    expect(page.get_by_text("is in the library").first).to_be_visible()
    settle(page)
    shoot(page, "train")
    page.get_by_role("link", name="Library").click()
    expect(page.locator('[class*="st-key-entry_"]').filter(has_text="aquastyle")).to_be_visible()
    (file,) = studio.home.glob("*.safetensors")
    assert Adapter.load(file).info.trigger == "aquastyle"


def test_a_text_is_written_beside_the_bare_bases(visit: Visit, studio: Studio) -> None:
    page = visit("text")
    press(page, "begin.write")
    keyed(page, "text.download").wait_for()
    sheets = page.locator(".written:not(.small)")
    expect(sheets).to_have_count(1)
    assert sheets.inner_text().startswith(FIRST)
    assert len(sheets.inner_text()) > 60
    name = hang_voice(studio.home)
    visit("library").locator('[class*="st-key-entry_"]').filter(has_text=name).wait_for()
    page.reload()
    choose(page, "w.text.rack.add", name)
    press(page, "text.go")
    expect(sheets).to_have_count(2)
    keyed(page, "text.download").wait_for()
    settle(page)
    styled, bare = sheets.all_inner_texts()
    assert styled != bare
    assert len(bare) > 60
    expect(page.get_by_text("The bare base", exact=True)).to_be_visible()
    expect(page.locator('[class*="st-key-past_"]')).to_have_count(2)
    shoot(page, "text")
