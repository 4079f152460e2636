"""generate, grid and again as a person types them: the same pixels again, and every way in which they couldn't be."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from drawing import largest, pixels, wild
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from test_console import on_terminal
from typer.testing import CliRunner

import studio.commands.draw
from studio.draw import recipe as recipes
from studio.draw.again import Difference, compare
from trainers.cli import app

assert studio.commands.draw
GAINS = ":0.8:te=0.4:blocks=IN00-IN05=0.5,MID=0:schedule=0@0,1@0.4"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two of them."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("ink", "neon")):
        wild(tiny_base, folder / f"{name}.safetensors", seed)
    return folder


@pytest.fixture
def common(place: Path, tiny_base: Path, adapters: Path) -> list[str]:
    """A base, two adapters in this folder, a prompt and numbers."""
    for name in ("ink", "neon"):
        shutil.copy(adapters / f"{name}.safetensors", place)
    return ["--base", str(tiny_base), "--adapter", f"ink.safetensors{GAINS}", "--adapter", "neon.safetensors:-0.3",
            "--prompt", "a red house", "--steps", "3", "--guidance", "4", "--seed", "7"]  # fmt: skip


def shown(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def carrying(text: str, picture: Image.Image) -> None:
    """b.png: the picture, with this text for its recipe."""
    info = PngInfo()
    info.add_text(recipes.CHUNK, text)
    picture.save("b.png", pnginfo=info)


# --- again -----------------------------------------------------------------------------------------------------------


def test_pictures_of_a_batch_again(common: list[str]) -> None:
    assert shown("generate", *common, "--count", "3", "--out", "a.png").stdout.splitlines() == [
        f"a-{k}.png seed {6 + k}" for k in (1, 2, 3)
    ]
    for k in (1, 2, 3):
        assert "same pixels" in shown("again", f"a-{k}.png").stdout
        assert Path(f"a-{k}.png").read_bytes() == Path(f"a-{k}-again.png").read_bytes()
    assert largest(Path("a-1.png"), Path("a-2.png")) > 10


def test_a_sheet_and_its_cells_again(common: list[str]) -> None:
    axes = ["--x", "adapter:A=0..1/3", "--y", "guidance=1.5,4", "--batch", "2", "--cells", "cells"]
    assert "sheet.png 6 pictures in 4 batches" in shown("grid", *common, *axes, "--out", "sheet.png").stdout
    assert "same pixels" in shown("again", "sheet.png").stdout
    for name in ("1-1", "1-2", "2-3"):
        assert "same pixels" in shown("again", f"cells/{name}.png").stdout
    message = shown("grid", *common, *axes, "--out", "other.png", code=1).stderr
    assert "cells/1-1.png exists" in message


def test_moved_adapters_are_found_by_their_digests(common: list[str], place: Path) -> None:
    shown("generate", *common, "--out", "a.png")
    (place / "shelf" / "deep").mkdir(parents=True)
    (place / "ink.safetensors").rename("shelf/deep/renamed.safetensors")
    tensors = load_file("neon.safetensors")
    Path("neon.safetensors").unlink()
    save_file(tensors, "shelf/neon.safetensors", {"other": "header"})  # other bytes, the same numbers
    (place / "shelf" / "broken.safetensors").write_bytes(b"x")
    message = shown("again", "a.png", code=1).stderr
    assert message.count("there is no such file; say where it is with --adapters FOLDER") == 2
    assert "same pixels" in shown("again", "a.png", "--adapters", "shelf").stdout
    assert Path("a.png").exists()
    (place / "empty").mkdir()
    assert "nor in empty an adapter of its digest" in shown("again", "a.png", "--adapters", "empty", code=1).stderr


def test_a_swapped_adapter_is_noticed(common: list[str]) -> None:
    shown("generate", *common, "--out", "a.png")
    shutil.copy("ink.safetensors", "kept.safetensors")
    shutil.copy("neon.safetensors", "ink.safetensors")
    message = shown("again", "a.png", code=1).stderr
    assert "ink.safetensors: not the adapter of the recipe: its digest is " in message
    assert not Path("a-again.png").exists()
    assert "same pixels" in shown("again", "a.png", "--adapters", ".").stdout


def test_another_base_is_noticed(common: list[str], place: Path, tiny_base: Path) -> None:
    shown("generate", *common, "--out", "a.png")
    shutil.copytree(tiny_base, place / "other")
    assert "same pixels" in shown("again", "a.png", "--base", "other").stdout
    weights = load_file(file := place / "other" / "unet" / "diffusion_pytorch_model.safetensors")
    weights["conv_in.bias"] += 1
    save_file(weights, file, {"format": "pt"})
    message = shown("again", "a.png", "--base", "other", "--out", "b.png", code=1).stderr
    assert "not the one of the recipe" in message
    assert "unet: sha256 is " in message


def test_other_pixels_are_told_and_the_new_picture_is_there(common: list[str]) -> None:
    shown("generate", *common, "--out", "a.png")
    with Image.open("a.png") as picture:
        text = picture.info[recipes.CHUNK]
        touched = picture.copy()
    ImageDraw.Draw(touched).rectangle((0, 0, 1, 1), fill="white")
    carrying(text.replace("threads", "hands"), touched)
    told = shown("again", "b.png", code=1).stdout
    assert re.search(r"b-again\.png 4 of 256 pixels differ, by \d+ of 255 at the most", told)
    assert re.search(r"drawn with .* hands\n.*and now with .* threads", told)
    assert largest(Path("a.png"), Path("b-again.png")) == 0


def test_a_picture_that_tells_names_alone(common: list[str], tiny_base: Path, place: Path) -> None:
    shown("generate", *common, "--out", "a.png")
    text = recipes.text_of(Path("a.png"))
    (place / "shelf").mkdir()
    for name in ("ink", "neon"):
        Path(f"{name}.safetensors").rename(f"shelf/{name}.safetensors")
    with Image.open("a.png") as picture:
        carrying(re.sub(r'base = ".*"', 'base = "./tiny-base"', text), picture)
    message = shown("again", "b.png", code=1).stderr
    assert "base ./tiny-base: not there, seen from the picture; say where it is with --base" in message
    assert message.count("say where it is with --adapters FOLDER") == 2
    assert message.count("no such file") == 2
    assert "Next: `stylora again --help`" in message
    assert "same pixels" in shown("again", "b.png", "--adapters", "shelf", "--base", str(tiny_base)).stdout


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ('["gone.safetensors:0.8"]', "gone.safetensors: there is no such file"),
        ("[{weight = 1}]", 'write file = "…"'),
        ("[{file = 3}]", "file: got 3"),
        ('[{file = "gone", sha256 = 3}]', "gone: there is no such file"),
        ("[3]", "adapter: got 3"),
        ('"ink.safetensors"', "adapter: got 'ink.safetensors', wanted a list"),
        ("3", "adapter: got 3, wanted a list"),
        ("{file = 3}", "wanted a list"),
    ],
)
def test_adapters_that_are_none_are_told(place: Path, adapter: str, said: str) -> None:
    carrying(f'prompt = "a"\nbase = 3\nadapter = {adapter}', Image.new("RGB", (8, 8)))
    message = shown("again", "b.png", "--adapters", ".", code=1).stderr
    assert said in message
    assert "base: got 3" in message


def test_adapters_written_as_text_are_drawn_again(common: list[str], tiny_base: Path) -> None:
    shown("generate", *common[:4], *common[6:], "--out", "a.png")
    text = recipes.text_of(Path("a.png"))
    head, made = text.split("[[adapter]]")[0], text[text.index("[digests]") :]
    rest = f'adapter = ["ink.safetensors{GAINS}"]\n\n'
    with Image.open("a.png") as picture:
        carrying(head + rest + made, picture)
    assert "same pixels" in shown("again", "b.png").stdout


def test_half_a_picture_is_told_before_anything_is_drawn(common: list[str]) -> None:
    shown("generate", *common, "--out", "a.png")
    Path("b.png").write_bytes(Path("a.png").read_bytes()[:-40])
    message = shown("again", "b.png", code=1).stderr
    assert message.startswith("Error: b.png: can't be read")
    assert not Path("b-again.png").exists()


def test_compare() -> None:
    one, other = Image.new("RGB", (4, 4), (9, 9, 9)), Image.new("RGB", (4, 4), (9, 9, 9))
    assert str(compare(one, other)) == "same pixels"
    other.putpixel((1, 2), (9, 12, 8))
    assert compare(one, other) == Difference(3, 1, 16)
    assert compare(one, Image.new("RGB", (4, 5))).pixels == 16


@pytest.mark.parametrize("name", ["gone.png", "plain.png", "notes.toml"])
def test_pictures_without_a_recipe(place: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    Path("notes.toml").write_text('prompt = "a"')
    assert shown("again", name, code=1).stderr.startswith(f"Error: {name}: ")


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_a_recipe_and_its_flags_draw_alike(common: list[str]) -> None:
    shown("generate", *common, "--count", "2", "--out", "a.png", "--save-recipe", "blend.toml")
    shown("generate", "--recipe", "blend.toml", "--out", "b.png", "--save-recipe", "deep/again.toml")
    for k in (1, 2):
        assert Path(f"a-{k}.png").read_bytes() == Path(f"b-{k}.png").read_bytes()
    assert recipes.read(Path("blend.toml")) == recipes.read(Path("deep/again.toml"))
    shown("generate", "--recipe", "a-1.png", "--out", "c.png", "--seed", "8")
    assert largest(Path("c.png"), Path("a-2.png")) <= 1
    assert (
        "blend.toml exists"
        in shown("generate", *common, "--out", "d.png", "--save-recipe", "blend.toml", code=1).stderr
    )


def test_every_option_does_something(common: list[str]) -> None:
    shown("generate", *common, "--out", "a.png")
    changed = ["--prompt", "a boat"], ["--negative", "night"], ["--seed", "8"], ["--steps", "2"], ["--guidance", "9"]
    for k, more in enumerate((*changed, ["--sampler", "euler-a"], ["--adapter", "ink.safetensors"])):
        shown("generate", "--recipe", "a.png", *more, "--out", f"{k}.png")
        assert largest(Path("a.png"), Path(f"{k}.png")) > 1, more
    shown("generate", "--recipe", "a.png", "--size", "24x16", "--out", "wide.png")
    assert pixels(Path("wide.png")).shape == (16, 24, 3)


def test_a_prompt_is_needed(common: list[str]) -> None:
    without = [word for word in common if word not in ("--prompt", "a red house")]
    assert "--prompt" in shown("generate", *without, "--out", "a.png", code=2).stderr
    shown("grid", *without, "--x", "prompt=a boat|a house", "--out", "a.png")
    assert "x: no axis" in shown("grid", *common, "--out", "b.png", code=1).stderr


def test_what_a_recipe_holds_too_much_is_told(common: list[str]) -> None:
    shown("grid", *common, "--x", "seed=1,2", "--out", "sheet.png", "--save-recipe", "grid.toml")
    assert "without its axes" in shown("generate", "--recipe", "grid.toml", "--count", "2", "--out", "a.png").stdout
    Path("many.toml").write_text(Path("grid.toml").read_text().replace("count = 1", "count = 2"))
    assert "count stays out" in shown("grid", "--recipe", "many.toml", "--out", "b.png").stdout
    assert largest(Path("sheet.png"), Path("b.png")) == 0


def test_on_a_terminal_a_bar_is_drawn(common: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["generate", *common, "--count", "2", "--out", "a.png"]
    text = on_terminal(monkeypatch, lambda: app(words, standalone_mode=False))
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert re.search(r"loading +━", plain)
    assert re.search(r"drawing +━+ +\d+%", plain)
    assert "a-2.png seed 8" in plain
