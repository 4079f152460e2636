"""PNG files: names, nothing written over, parameters as A1111 reads them, the recipe beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from studio.draw import recipe as recipes
from studio.draw.generate import Picture
from studio.draw.pictures import asked, targets_of, write, write_recipe
from studio.draw.recipe import Made, Recipe
from studio.draw.use import Use, located
from studio.outputs import check_free
from trainers.errors import ConfigError, RunError
from trainers.lora.adapter import digest
from trainers.lora.gains import Gain


def test_numbering(tmp_path: Path) -> None:
    assert targets_of(tmp_path / "boat.png", 1, False) == [tmp_path / "boat.png"]
    assert targets_of(tmp_path / "new" / "boat.PNG", 3, False) == [
        tmp_path / "new" / f"boat-{k}.PNG" for k in (1, 2, 3)
    ]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over_unasked(tmp_path: Path) -> None:
    for name in ("boat.png", "boat-1.png", "boat-3.png"):
        (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(RunError) as caught:
        targets_of(tmp_path / "boat.png", 3, False)
    said = "exists; add --overwrite to write over it"
    assert caught.value.faults == (f"{tmp_path}/boat-1.png {said}", f"{tmp_path}/boat-3.png {said}")
    assert len(targets_of(tmp_path / "boat.png", 3, True)) == 3
    assert targets_of(tmp_path / "ship.png", 1, False)
    with pytest.raises(RunError):
        check_free([tmp_path / "boat.png"], False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_places_that_cannot_be_written(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for out, said in (
        ("boat.jpg", "written as PNG"),
        ("boat", "written as PNG"),
        ("file/boat.png", "nothing can be written"),
        ("file/deeper/boat.png", "nothing can be written"),
        ("folder.png", "a folder is in the way"),
    ):
        with pytest.raises(RunError, match=said) as caught:
            targets_of(tmp_path / out, 1, overwrite)
        assert caught.value.next_step


def picture(place: Path, **more: object) -> Picture:
    uses = (
        Use(place / "ink.safetensors", Gain(0.8), "ab" * 32, "cd" * 32),
        Use(place / "b.safetensors", Gain(1.0, 0.4), sha256="ef" * 32),
    )
    recipe = Recipe("a blue boat, at night", "blurry, dark", "/bases/my-base", uses, 41, 1, 12, size=(16, 24),
                    digests={"unet": "0123456789abcdef"}, made=Made(3, 1, "torch 2"))  # fmt: skip
    return Picture(Image.new("RGB", (16, 24)), Recipe(**{**vars(recipe), **more}))  # type: ignore[arg-type]


def parsed(text: str) -> tuple[str, str, dict[str, str]]:
    """(prompt, negative prompt, fields) as A1111's `parse_generation_parameters` reads them."""
    *lines, last = text.strip().split("\n")
    prompt, negative, in_negative = "", "", False
    for line in (line.strip() for line in lines):
        if line.startswith("Negative prompt:"):
            in_negative, line = True, line.removeprefix("Negative prompt:").strip()
        if in_negative:
            negative += ("\n" if negative else "") + line
        else:
            prompt += ("\n" if prompt else "") + line
    fields = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    return prompt, negative, {name: value.strip('"') for name, value in fields}


def test_the_png_says_how_it_was_made(tmp_path: Path) -> None:
    place = located(tmp_path)
    for name in ("ink.safetensors", "b.safetensors"):
        (place / name).write_bytes(b"")
    (place / "my-base").mkdir()
    made = picture(place, base=str(place / "my-base"))
    write(place / "new" / "a.png", made)
    with Image.open(place / "new" / "a.png") as opened:
        prompt, negative, fields = parsed(opened.info["parameters"])
    assert prompt == "a blue boat, at night <lora:ink:0.8> <lora:b:0.4:1>"
    assert negative == "blurry, dark"
    assert fields == {
        "Steps": "12",
        "CFG scale": "7.5",
        "Seed": "41",
        "Size": "16x24",
        "Model hash": "0123456789",
        "Model": "my-base",
        "Lora hashes": "ink: cdcdcdcdcdcd, b: efefefefefef",
        "Version": "stylora",
    }
    assert recipes.read(place / "new" / "a.png") == made.recipe
    write_recipe(place / "a.toml", made.recipe)
    assert recipes.read(place / "a.toml") == Recipe(**{**vars(made.recipe), "made": None})


def test_no_png_tells_where_files_lie(tmp_path: Path) -> None:
    made = picture(Path("/elsewhere/person"))
    write(tmp_path / "a.png", made)
    with Image.open(tmp_path / "a.png") as opened:
        texts = "\n".join(map(str, opened.info.values()))
    assert 'file = "ink.safetensors"' in texts
    assert 'base = "./my-base"' in texts
    assert not [word for word in ("elsewhere", "person", "/bases", str(tmp_path)) if word in texts]
    write_recipe(tmp_path / "a.toml", made.recipe)
    assert 'file = "/elsewhere/person/ink.safetensors"' in (tmp_path / "a.toml").read_text()


def test_any_script_and_always_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write(tmp_path / name, picture(tmp_path, prompt="ein Häuschen am Meer, 海", adapters=(), negative=""))
    with Image.open(tmp_path / "a.png") as opened:
        prompt, negative, fields = parsed(opened.info["parameters"])
    assert (prompt, negative) == ("ein Häuschen am Meer, 海", "")
    assert "Lora hashes" not in fields
    assert digest(tmp_path / "a.png") == digest(tmp_path / "b.png")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "boat.png"
    file.write_bytes(b"mine")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="No space left on device"):
        write(file, picture(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["boat.png"]
    assert file.read_bytes() == b"mine"


def test_files_and_numbers_are_judged_together(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(b"mine")
    with pytest.raises(ConfigError) as caught:
        asked(None, {"prompt": "a", "steps": 0, "adapter": ["gone"]}, tmp_path / "there.png")
    faults = "\n".join(caught.value.faults)
    for said in ("steps", "gone: there is no such file", "there.png exists"):
        assert said in faults
    recipe, paths = asked(None, {"prompt": "a", "count": 2}, tmp_path / "a.png")
    assert (recipe.count, paths) == (2, [tmp_path / "a-1.png", tmp_path / "a-2.png"])
