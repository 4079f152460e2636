"""Recipes: what is written is read back equal, flags win over files, paths follow the file, all faults at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from studio.draw.axes import Axes
from studio.draw.recipe import Made, Recipe, parse_size, read, write
from studio.draw.use import Use, located
from trainers.errors import ConfigError
from trainers.lora.gains import Gain


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with adapters, a folder for recipes, and a folder that is a base."""
    for name in ("ink.safetensors", "neon.safetensors"):
        (tmp_path / name).write_bytes(b"")
    for name in ("recipes", "bases/mine"):
        (tmp_path / name).mkdir(parents=True)
    return located(tmp_path)


def full(place: Path) -> Recipe:
    ink = Use(
        place / "ink.safetensors", Gain(0.8, 0.4, {"IN01": 0.5, "MID": 0.1}, ((0.0, 0.0), (0.4, 1.0))), "ab", "cd"
    )
    return Recipe(
        'a "red" house\nby the sea, 海', "night", str(place / "bases" / "mine"),
        (ink, Use(place / "neon.safetensors", Gain(-0.3), name="my neon")), 3, 2, 12, 4.5, (512, 768), "ddim", True,
        {"unet": "01", "vae": "02"}, Axes("seed=1,2", "te:A=0,1", 4), Made(3, 2, "torch 2"),
    )  # fmt: skip


def test_what_is_written_is_read_back(place: Path) -> None:
    for recipe in (full(place), Recipe("a"), replace(full(place), base="tiny-sd", grid=None, made=None)):
        text = write(recipe, place / "recipes")
        (place / "recipes" / "a.toml").write_text(text)
        assert read(place / "recipes" / "a.toml") == recipe
    assert 'file = "../ink.safetensors"' in text  # so that the folders can move together


def test_a_base_in_a_folder_is_never_taken_for_a_hub_id(place: Path) -> None:
    recipe = Recipe("a", base=str(place / "bases" / "mine"))
    for folder, said in ((place, "./bases/mine"), (place / "bases", "./mine"), (place / "recipes", "../bases/mine")):
        assert f'base = "{said}"' in write(recipe, folder)


def test_a_recipe_by_hand(place: Path) -> None:
    file = place / "blend.toml"
    file.write_text(
        'prompt = "a boat"\nguidance = 4\nadapter = ["ink.safetensors:0.5:te=1"]\nbase = "bases/mine"\nsize = "64x32"'
    )
    ink = Use(place / "ink.safetensors", Gain(0.5, 1.0))
    assert read(file) == Recipe(
        "a boat", guidance=4.0, adapters=(ink,), base=str(place / "bases" / "mine"), size=(64, 32)
    )


def test_flags_win(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = place / "recipes" / "a.toml"
    file.write_text(write(full(place), file.parent))
    monkeypatch.chdir(place)
    assert read(file, {"steps": 3, "size": "8x8"}) == replace(full(place), steps=3, size=(8, 8))
    other = read(file, {"adapter": ["neon.safetensors:2"], "base": "tiny-sd", "y": "seed=4,5"})
    assert other.adapters == (Use(place / "neon.safetensors", Gain(2.0)),)
    assert other.digests == {}  # they were the other base's
    assert other.grid == Axes("seed=1,2", "seed=4,5", 4)


def test_pictures_have_seeds_of_their_own() -> None:
    assert [(one.seed, one.count) for one in Recipe("a", seed=5, count=3).pictures()] == [(5, 1), (6, 1), (7, 1)]


def test_all_faults_at_once(place: Path) -> None:
    file = place / "a.toml"
    file.write_text('promt = "a"\nsteps = "x"\nsize = "8"\n[[adapter]]\nwait = 1\n[grid]\nz = 1\n[made]\nplace = 1')
    with pytest.raises(ConfigError) as one:
        read(file, {"seed": -1})
    with pytest.raises(ConfigError) as other:
        read(file, {"adapter": ["gone:0.8", "ink:x"]})
    faults = "\n".join(one.value.faults + other.value.faults)
    assert "wait" not in "".join(other.value.faults)  # flags win
    for said in ("nearest is prompt", "steps: got 'x'", "size 8: wanted", "nearest is weight", 'write file = "…"',
                 "grid.z: no such key", "seed: got -1", "gone: there is no such file", "'x' is no weight",
                 "prompt: missing", "place 1 of 1"):  # fmt: skip
        assert said in faults


@pytest.mark.parametrize(
    ("key", "value"),
    [("count", 0), ("steps", -1), ("steps", 1001), ("seed", -1), ("seed", 2**63), ("guidance", -0.5),
     ("guidance", float("nan")), ("guidance", float("inf")), ("sampler", "ddmi")],
)  # fmt: skip
def test_each_number_has_its_limits(key: str, value: object) -> None:
    (fault,) = replace(Recipe("a"), **{key: value}).faults()  # type: ignore[arg-type]
    assert fault.startswith(f"{key}: got {value}, wanted ")


def test_bytes_that_are_no_text_are_told() -> None:
    assert "isn't Unicode text" in Recipe("a \udcff").faults()[0]


@pytest.mark.parametrize("name", ["gone.toml", "broken.toml", "latin.toml", "plain.png", "broken.png", "folder"])
def test_files_that_hold_no_recipe(place: Path, name: str) -> None:
    (place / "broken.toml").write_text("[prompt")
    (place / "latin.toml").write_bytes(b'prompt = "\xff"')
    (place / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (place / "folder").mkdir()
    Image.new("RGB", (8, 8)).save(place / "plain.png")
    with pytest.raises(ConfigError) as caught:
        read(place / name)
    assert [fault for fault in caught.value.faults if str(place / name) in fault] == list(caught.value.faults)


def test_parse_size() -> None:
    assert parse_size(None) is None
    assert parse_size("512x768") == (512, 768)
    assert parse_size("64X32") == (64, 32)
    for text in ("", "512", "512x", "x512", "512x512x512", "-8x8", "0x64", "8.5x8", "²x8", "a x b"):
        with pytest.raises(ConfigError, match="wanted WIDTHxHEIGHT"):
            parse_size(text)
    for text in ("8200x8", "64x100000"):
        with pytest.raises(ConfigError, match="sides of at most 8192"):
            parse_size(text)
