"""Drawing in the browser: the first picture, sliders, a sheet, two people at once, a reload and a killed server."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from browser.visits import (
    SCREENSHOTS,
    Studio,
    another_picture,
    choose,
    hang_adapters,
    keyed,
    natural_size,
    picture,
    press,
    settle,
    shoot,
    type_into,
    unfold,
)  # fmt: skip

sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
expect = sync.expect
Visit = Callable[..., "sync.Page"]


def recipe(page: sync.Page) -> str:
    """Of the picture on the canvas."""
    if not page.locator('[data-testid="stCode"]').is_visible():
        unfold(page, "Recipe")
    return str(page.locator('[data-testid="stCode"]').inner_text())


def test_one_click_gives_a_first_picture(visit: Visit) -> None:
    page = visit()
    press(page, "begin.draw")
    page.locator(".st-key-canvas_live img").wait_for()  # seen while it is drawn
    picture(page)
    assert natural_size(page) == (64, 64)
    assert "a blue boat at night" in recipe(page)


def test_two_browsers_each_see_their_own_picture_alone(visit: Visit) -> None:
    pages = {words: visit() for words in ("a red house", "a green tree")}
    for words, page in pages.items():
        type_into(page, "w.generate.prompt", words)
    for page in pages.values():
        press(page, "generate.go")
    shown = {words: picture(page) for words, page in pages.items()}
    assert len({*shown.values()}) == 2
    for words, page in pages.items():
        assert words in recipe(page)
        expect(page.locator('[class*="st-key-tile_history_"]')).to_have_count(1)


def test_a_moved_slider_gives_another_picture_and_moved_back_the_same(visit: Visit, studio: Studio) -> None:
    names = hang_adapters(studio.home)
    visit("library").locator('[class*="st-key-entry_"]').first.wait_for()  # looked through once
    page = visit()
    for name in names:
        choose(page, "w.generate.rack.add", name)
        expect(page.locator('[class*="st-key-card_generate_rack_"]').filter(has_text=name)).to_have_count(1)
    type_into(page, "w.generate.prompt", "a blue boat by the sea")
    if SCREENSHOTS:
        for _ in names:
            page.locator('[class*="-word"] button:enabled >> visible=true').first.click()
            settle(page)
    keyed(page, "w.generate.auto").locator("label").first.click()
    settle(page)
    press(page, "generate.go")
    first = picture(page)
    handle = page.get_by_role("slider", name=f"Weight of {names[0]}")
    expect(handle).to_have_value("1")
    for _ in range(8):
        handle.press("ArrowLeft")
    second = another_picture(page, first)
    page.wait_for_timeout(1500)  # the last wish
    second = picture(page)
    assert "weight = 0.6" in recipe(page)
    unfold(page, "Recipe")
    shoot(page, "generate")
    for _ in range(8):
        handle.press("ArrowRight")
    another_picture(page, second)
    page.locator(f'.st-key-canvas_one img[src="{first}"]').wait_for()


def test_block_weights_begin_at_one_and_act(visit: Visit, studio: Studio) -> None:
    name = hang_adapters(studio.home)[0]
    page = visit()
    choose(page, "w.generate.rack.add", name)
    press(page, "generate.go")
    first = picture(page)
    page.locator('[class*="st-key-generate-rack-"][class*="-more"] button').first.click()
    opened = page.locator('[data-testid="stPopoverBody"]')
    values = opened.locator('[data-testid="stSliderThumbValue"]')
    expect(values).to_have_text(["1.00"] * 3)
    for handle in opened.get_by_role("slider").all():
        handle.press("ArrowRight")
        settle(page)
    expect(values).to_have_text(["1.05"] * 3)
    page.keyboard.press("Escape")
    press(page, "generate.lock")
    press(page, "generate.go")
    another_picture(page, first)
    assert re.search(r"(?s)IN.*1\.05", recipe(page))


def test_a_sheet_of_two_settings(visit: Visit) -> None:
    page = visit()
    type_into(page, "w.generate.prompt", "a gold cat")
    unfold(page, "X/Y grid")
    type_into(page, "w.generate.x.seed", "1, 2, 3")
    choose(page, "w.generate.y", "guidance")
    type_into(page, "w.generate.y.guidance", "1, 6")
    press(page, "generate.sheet")
    picture(page)
    width, height = natural_size(page)
    assert width > 3 * 64
    assert 2 * 64 < height < width
    assert 'x = "seed=1, 2, 3"' in recipe(page)
    shoot(page, "sheet")


def test_a_job_outlives_a_reload_and_its_pictures_a_killed_server(visit: Visit, studio: Studio) -> None:
    page = visit()
    type_into(page, "w.generate.prompt", "a purple boat")
    type_into(page, "w.generate.count", "16")
    press(page, "generate.go")
    page.locator(".st-key-canvas_live img").first.wait_for()
    page.reload()
    page.locator('[data-testid="stProgress"]').wait_for()  # it goes on
    tiles = page.locator('[class*="st-key-tile_history_"]')
    expect(tiles).to_have_count(16)
    expect(keyed(page, "w.generate.prompt").locator("textarea")).to_have_value("a purple boat")
    address = page.url
    studio.kill()
    studio.start()
    for link in ("Text", "Generate"):  # the tab that stayed open finds its desk again
        page.get_by_role("link", name=link).click()
        page.wait_for_timeout(1500)
    expect(tiles).to_have_count(16)
    page.goto(address)
    expect(tiles).to_have_count(16)
    assert all(tile.evaluate("i => i.naturalWidth") == 64 for tile in tiles.locator("img").all())
