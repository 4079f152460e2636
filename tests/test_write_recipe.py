"""Recipes of texts: what is written is read back equal, flags win over files, all faults at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from studio.draw.axes import Axes
from studio.draw.use import Use, located
from studio.write.recipe import WritingRecipe, read, write
from trainers.errors import ConfigError
from trainers.families.sampling import Sampling
from trainers.lora.gains import Gain


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("pirate/adapter_config.json", "herald.safetensors", "recipes/x", "bases/mine/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return located(tmp_path)


def full(place: Path) -> WritingRecipe:
    pirate = Use(place / "pirate", Gain(0.8, blocks={"L00": 0.5}), "ab", "cd")
    return WritingRecipe(
        'Tell "me"\na tale, 海', True, "Be brief.", str(place / "bases" / "mine"),
        (pirate, Use(place / "herald.safetensors", Gain(-0.3), name="my herald")), 3, 2, 50, 0.5, 0.9, 40, 1.1, True,
        {"model": "01", "tokenizer": "02"}, Axes("seed=1,2", "adapter:A=0,1", 4),
    )  # fmt: skip


def test_what_is_written_is_read_back(place: Path) -> None:
    for recipe in (full(place), WritingRecipe("a"), replace(full(place), base="tiny-lm", grid=None, system="")):
        text = write(recipe, place / "recipes")
        (place / "recipes" / "a.toml").write_text(text)
        assert read(place / "recipes" / "a.toml") == recipe
    assert 'file = "../pirate"' in text  # so that the folders can move together


def test_a_recipe_by_hand(place: Path) -> None:
    (file := place / "tale.toml").write_text('prompt = "a"\ntemperature = 0\nadapter = ["pirate:0.5"]')
    assert read(file) == WritingRecipe("a", temperature=0.0, adapters=(Use(place / "pirate", Gain(0.5)),))


def test_flags_win(place: Path) -> None:
    file = place / "recipes" / "a.toml"
    file.write_text(write(full(place), file.parent))
    flags = {"top_k": 3, "chat": False, "system": "", "adapter": [], "base": "tiny-lm", "batch": 2}
    wanted = replace(full(place), top_k=3, chat=False, system="", adapters=(), base="tiny-lm", digests={})
    assert read(file, flags) == replace(wanted, grid=Axes("seed=1,2", "adapter:A=0,1", 2))


def test_texts_have_seeds_of_their_own(place: Path) -> None:
    assert [(one.seed, one.count, one.grid) for one in full(place).texts()] == [(3, 1, None), (4, 1, None)]
    assert full(place).sampling == Sampling(50, 0.5, 0.9, 40, 1.1)


def test_all_faults_at_once(place: Path) -> None:
    file = place / "a.toml"
    file.write_text('promt = "a"\nsteps = 3\ntop_k = 1.5\nseed = -1\n[[adapter]]\nfile = "gone"\n[grid]\nz = 1')
    with pytest.raises(ConfigError) as caught:
        read(file, {"system": "x", "count": 0, "top_p": 2.0})
    faults = "\n".join(caught.value.faults)
    for said in ("nearest is prompt", "steps: no such key", "top_k: got 1.5", "seed: got -1", "count: got 0",
                 "gone: there is no such file", "grid.z", "system: only a chat", "top_p: got 2.0",
                 "prompt: missing"):  # fmt: skip
        assert said in faults


def test_what_is_for_pictures_alone_is_told(place: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(None, {"prompt": "a", "adapter": [f"{place / 'pirate'}:te=1:schedule=0@0,1@1:blocks=MID=0"]})
    assert len(caught.value.faults) == 3
    assert all("pirate" in fault and "for pictures" in fault for fault in caught.value.faults)


def test_bytes_that_are_no_text_are_told() -> None:
    assert "isn't Unicode text" in WritingRecipe("a \udcff").faults()[0]
