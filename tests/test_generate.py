"""From what the command line says to PNG files: weights, numbers, sizes, seeds, parameters, and all faults at once."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from studio import generate
from studio.generate import Request, Used, parse_size, parse_used, read, targets_of
from trainers.errors import AdapterError, ConfigError, RunError, StyloraError
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora import inject
from trainers.lora.adapter import Adapter, digest

QUICK = Request("a red house", seed=3, steps=3, guidance=4.0)


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA of random numbers, strong enough to be seen."""
    family, pairs = StableDiffusion(tiny_base), {}
    g = torch.Generator().manual_seed(1)
    for part, model in family.parts().items():
        inject.inject(part, model, inject.targets(part, model, "attention"), inject.Shape(4, 2.0), seed=0)
        for path, pair in inject.extract(part, model).items():
            pair.up.copy_(torch.randn(pair.up.shape, generator=g) * 0.5)
            pairs[path] = pair
    return Adapter(pairs).save(tmp_path_factory.mktemp("adapters") / "wild.safetensors", dtype=torch.float32)


def pixels(base: Path, *used: Used, request: Request = QUICK) -> np.ndarray[tuple[int, ...], np.dtype[np.int_]]:
    family = generate.load(str(base), used, "cpu")
    return np.stack([np.asarray(picture, dtype=int) for picture, _ in generate.pictures(family, request)])


def largest(one: object, other: object) -> int:
    return int(np.abs(np.subtract(one, other)).max())  # type: ignore[call-overload]


# --- adapters and weights --------------------------------------------------------------------------------------------


def test_weights(tiny_base: Path, adapter: Path) -> None:
    bare = pixels(tiny_base)
    made = {weight: pixels(tiny_base, Used(adapter, weight)) for weight in (0.0, 0.8, 1.0, -1.0)}
    assert np.array_equal(made[0.0], bare)
    for one, other in ((1.0, 0.0), (1.0, 0.8), (1.0, -1.0), (-1.0, 0.0)):
        assert largest(made[one], made[other]) > 2, (one, other)


def test_two_halves_are_one_whole(tiny_base: Path, adapter: Path) -> None:
    halves = pixels(tiny_base, Used(adapter, 0.5), Used(adapter, 0.5))
    assert largest(halves, pixels(tiny_base, Used(adapter, 1.0))) <= 1
    assert largest(halves, pixels(tiny_base, Used(adapter, 0.5))) > 2


def test_an_adapter_of_another_base_is_refused(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    pairs = Adapter.load(adapter).pairs
    odd = {f"unet.no_such_block.{number}": pair for number, pair in enumerate(list(pairs.values())[:2])}
    path = Adapter({**pairs, **odd}).save(tmp_path / "odd.safetensors", "diffusers")
    with pytest.raises(AdapterError, match="doesn't fit this base") as caught:
        generate.load(str(tiny_base), [Used(path, 1.0)], "cpu")
    assert len(caught.value.faults) == 2


@pytest.mark.parametrize(
    ("suffix", "weight"), [("", 1.0), (":0.8", 0.8), (":-1", -1.0), (":0", 0.0), (":1e-1", 0.1), (":2", 2.0)]
)
def test_an_adapter_and_its_weight(adapter: Path, suffix: str, weight: float) -> None:
    assert parse_used(f"{adapter}{suffix}") == Used(adapter, weight)


def test_a_run_folder_stands_for_its_adapter(tmp_path: Path, adapter: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"adapter": "wild.safetensors"}))
    (tmp_path / "wild.safetensors").write_bytes(adapter.read_bytes())
    assert parse_used(str(tmp_path)) == Used(tmp_path / "wild.safetensors", 1.0)
    assert parse_used(f"{tmp_path}:0.5") == Used(tmp_path / "wild.safetensors", 0.5)


def test_a_file_with_a_colon_in_its_name(tmp_path: Path) -> None:
    file = tmp_path / "ink:0.8"
    file.write_bytes(b"")
    assert parse_used(str(file)) == Used(file, 1.0)
    assert parse_used(f"{file}:0.3") == Used(file, 0.3)


@pytest.mark.parametrize("number", ["", "x", "nan", "inf", "0,8"])
def test_what_is_no_weight(adapter: Path, number: str) -> None:
    with pytest.raises(AdapterError, match="is no weight"):
        parse_used(f"{adapter}:{number}")


@pytest.mark.parametrize(
    "report", [None, "", "[]", "{}", '"text"', '{"adapter": 3}', '{"adapter": "gone.safetensors"}']
)
def test_a_folder_without_a_finished_run(tmp_path: Path, report: str | None) -> None:
    if report is not None:
        (tmp_path / "report.json").write_text(report)
    with pytest.raises(AdapterError) as caught:
        parse_used(str(tmp_path))
    assert caught.value.next_step


def test_no_such_adapter(tmp_path: Path) -> None:
    for text in (f"{tmp_path}/ink.safetensors", f"{tmp_path}/ink.safetensors:0.8"):
        with pytest.raises(AdapterError, match=r"ink\.safetensors: there is no such file"):
            parse_used(text)


# --- files to write --------------------------------------------------------------------------------------------------


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
    assert caught.value.faults == (f"{tmp_path}/boat-1.png exists", f"{tmp_path}/boat-3.png exists")
    assert len(targets_of(tmp_path / "boat.png", 3, True)) == 3
    assert targets_of(tmp_path / "ship.png", 1, False)


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


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "boat.png"
    file.write_bytes(b"mine")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="No space left on device"):
        generate.write(file, Image.new("RGB", (8, 8)), "")
    assert [path.name for path in tmp_path.iterdir()] == ["boat.png"]
    assert file.read_bytes() == b"mine"


# --- sizes and seeds -------------------------------------------------------------------------------------------------


def test_parse_size() -> None:
    assert parse_size(None) is None
    assert parse_size("512x768") == (512, 768)
    assert parse_size("64X32") == (64, 32)
    for text in ("", "512", "512x", "x512", "512x512x512", "-8x8", "0x64", "8.5x8", "²x8", "a x b"):
        with pytest.raises(ConfigError, match="wanted WIDTHxHEIGHT"):
            parse_size(text)


def test_the_size_is_the_pictures(tiny_base: Path) -> None:
    family = generate.load(str(tiny_base), [], "cpu", (24, 16))
    assert generate.pictures(family, Request("a", steps=1, size=(24, 16)))[0][0].size == (24, 16)
    assert generate.pictures(family, Request("a", steps=1))[0][0].size == (16, 16)


def test_a_size_the_base_cannot_do_is_refused_before_it_is_loaded(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StableDiffusion, "part", lambda *_: pytest.fail("a part was loaded"))
    with pytest.raises(ConfigError) as caught:
        generate.load(str(tiny_base), [], "cpu", (18, 16))
    assert caught.value.faults == ("18 is none",)
    assert caught.value.next_step == "use 16x16"
    with pytest.raises(ConfigError):
        generate.load(str(tiny_base), [], "cpu", (16, 4))


def test_picture_k_is_the_same_whatever_the_count(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = generate.load(str(tiny_base), [], "cpu")
    many = generate.pictures(family, Request("a red house", seed=5, count=3, steps=3))
    assert [seed for _, seed in many] == [5, 6, 7]
    monkeypatch.setattr(generate, "MOST_AT_ONCE", 2)
    in_parts = generate.pictures(family, Request("a red house", seed=5, count=3, steps=3))
    alone = [generate.pictures(family, Request("a red house", seed=seed, steps=3))[0] for seed in (5, 6, 7)]
    for one, other, third in zip(many, in_parts, alone, strict=True):
        assert largest(one[0], other[0]) <= 1
        assert largest(one[0], third[0]) <= 1
    assert largest(many[0][0], many[1][0]) > 10


# --- parameters ------------------------------------------------------------------------------------------------------


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


def written(path: Path, request: Request, used: list[Used]) -> str:
    picture = Image.new("RGB", (16, 24))
    text = generate.parameters_text(request, 41, picture, "/bases/my-base/", "0123456789abcdef", used)
    generate.write(path, picture, text)
    with Image.open(path) as opened:
        stored = opened.info["parameters"]
        assert opened.size == (16, 24)
    assert isinstance(stored, str)
    return stored


def test_the_png_says_how_it_was_made(tmp_path: Path, adapter: Path) -> None:
    request = Request("a blue boat, at night", "blurry, dark", 40, 2, 12, 7.5, None, "dpm++2m-karras")
    prompt, negative, fields = parsed(written(tmp_path / "new" / "a.png", request, [Used(adapter, 0.8)]))
    assert prompt == "a blue boat, at night <lora:wild:0.8>"
    assert negative == "blurry, dark"
    assert fields == {
        "Steps": "12",
        "Sampler": "dpm++2m-karras",
        "CFG scale": "7.5",
        "Seed": "41",
        "Size": "16x24",
        "Model hash": "0123456789",
        "Model": "my-base",
        "Lora hashes": f"wild: {digest(adapter)[:12]}",
        "Version": "stylora",
    }


def test_parameters_of_a_plain_picture_in_any_script(tmp_path: Path) -> None:
    prompt, negative, fields = parsed(written(tmp_path / "a.png", Request("ein Häuschen am Meer, 海"), []))
    assert (prompt, negative) == ("ein Häuschen am Meer, 海", "")
    assert "Lora hashes" not in fields
    assert fields["Sampler"] == "the base's own"


def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        written(tmp_path / name, Request("a"), [])
    assert digest(tmp_path / "a.png") == digest(tmp_path / "b.png")


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"steps": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"guidance": -0.5},
        {"guidance": math.nan},
        {"guidance": math.inf},
        {"sampler": "ddmi"},
    ],
)
def test_each_number_has_its_limits(wrong: dict[str, object]) -> None:
    (fault,) = Request("a", **wrong).faults()  # type: ignore[arg-type]
    ((name, value),) = wrong.items()
    assert fault.startswith(f"{name}: got {value}, wanted ")


def test_all_faults_at_once(tmp_path: Path) -> None:
    request = Request("a", seed=-1, count=0, steps=0, guidance=-1, sampler="x")
    (tmp_path / "there.png").write_bytes(b"mine")
    with pytest.raises(StyloraError) as caught:
        read(request, "big", [f"{tmp_path}/a.safetensors", f"{tmp_path}/b.safetensors:0.8"], tmp_path / "there.png")
    faults = "\n".join(caught.value.faults)
    for part in ("count", "steps", "seed", "guidance", "sampler", "--size big", "a.safetensors", "b.safetensors"):
        assert part in faults
    assert "there.png exists" in faults
    assert len(caught.value.faults) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["there.png"]


def test_a_single_fault_keeps_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--size big: wanted WIDTHxHEIGHT"):
        read(Request("a"), "big", [], tmp_path / "a.png")
    with pytest.raises(RunError, match="written as PNG"):
        read(Request("a"), None, [], tmp_path / "a.jpg")


def test_what_is_right_is_read(tmp_path: Path, adapter: Path) -> None:
    request, used, paths = read(Request("a", count=2), "16x24", [f"{adapter}:0.5", str(adapter)], tmp_path / "a.png")
    assert request == Request("a", count=2, size=(16, 24))
    assert used == [Used(adapter, 0.5), Used(adapter, 1.0)]
    assert paths == [tmp_path / "a-1.png", tmp_path / "a-2.png"]
