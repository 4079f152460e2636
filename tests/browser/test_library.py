"""Adapters in the browser: a file that is uploaded, a broken one, two that are blended to a file to load."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from browser.visits import Studio, choose, hang_adapters, keyed, press, settle, shoot
from studio.merge.weights import open_base
from tests.checkpoints import random_adapter
from trainers.lora.adapter import Adapter

sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
expect = sync.expect
Visit = Callable[..., "sync.Page"]


def test_a_file_is_uploaded_and_a_broken_one_told_in_words(visit: Visit, studio: Studio, tmp_path: Path) -> None:
    good, bad = tmp_path / "stripes.safetensors", tmp_path / "half.safetensors"
    random_adapter(Path("tiny-sd"), 3, kinds=("attn2",)).save(good)
    bad.write_bytes(good.read_bytes()[:5000])
    page = visit("library")
    expect(page.get_by_text("No adapters yet")).to_be_visible()
    page.locator('input[type="file"]').set_input_files([bad, good])
    expect(page.locator('[class*="st-key-entry_"]').filter(has_text="stripes")).to_be_visible()
    told = page.locator('[data-testid="stAlert"]')
    expect(told).to_have_count(1)
    expect(told).to_contain_text("half")
    assert [path.name for path in studio.home.glob("*.safetensors")] == ["stripes.safetensors"]
    page.get_by_role("button", name="Open stripes").click(force=True)
    expect(page.get_by_role("heading", name="stripes")).to_be_visible()


def test_two_are_blended_downloaded_and_loaded(visit: Visit, studio: Studio, tmp_path: Path) -> None:
    names = hang_adapters(studio.home)
    shelf = visit("library")
    expect(shelf.locator('[class*="st-key-entry_"]').filter(has_text=names[1]).first).to_be_visible()
    settle(shelf)
    shoot(shelf, "library")
    page = visit("blend")
    for name in names:
        choose(page, "w.blend.rack.add", name)
        expect(page.locator('[class*="st-key-card_blend_rack_"]').filter(has_text=name)).to_have_count(1)
    press(page, "blend.go")
    keyed(page, "blend.download").wait_for()
    settle(page)
    with page.expect_download() as started:
        press(page, "blend.download")
    file = tmp_path / started.value.suggested_filename
    started.value.save_as(file)
    blended = Adapter.load(file)
    parts = [Adapter.load(studio.home / f"{name}.safetensors") for name in names]
    assert {*blended.pairs} == {*parts[0].pairs} | {*parts[1].pairs}
    assert file.read_bytes() == (studio.home / file.name).read_bytes()
    press(page, "blend.compare")
    pictures = page.locator('[data-testid="stMain"] [data-testid="stColumn"] [data-testid="stColumn"] img')
    expect(pictures).to_have_count(8)
    settle(page)
    shoot(page, "blend")


def test_a_merged_base_is_proved_downloaded_and_drawn_with(visit: Visit, studio: Studio, tmp_path: Path) -> None:
    name = hang_adapters(studio.home)[0]
    visit("library").locator('[class*="st-key-entry_"]').filter(has_text=name).first.wait_for()
    page = visit("blend")
    keyed(page, "w.blend.what").get_by_text("Into a base").click()
    settle(page)
    choose(page, "w.blend.rack.add", name)
    press(page, "blend.merge")
    expect(page.get_by_text("Proved.", exact=True)).to_be_visible()
    keyed(page, "blend.get").wait_for()
    settle(page)
    shoot(page, "merge")
    with page.expect_download() as started:
        press(page, "blend.get")
    with zipfile.ZipFile(started.value.path()) as archive:
        archive.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    merged, bare = (open_base(str(base)) for base in (folder, "tiny-sd"))
    assert merged.shapes == bare.shapes
    changed = {path for path in bare.shapes if not merged.weight(path).equal(bare.weight(path))}
    assert changed == {*Adapter.load(studio.home / f"{name}.safetensors").pairs}
