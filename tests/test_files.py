"""info, check and export on the command line: every option does what it says, exit codes tell the outcome."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import studio.commands.files  # noqa: F401  (mounts the commands)
from studio.merge.weights import open_base
from trainers.cli import app
from trainers.lora.adapter import Adapter, AdapterInfo
from trainers.lora.fit import Shape
from trainers.lora.metadata import modelspec_metadata
from trainers.lora.pair import LoraPair


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def shapes() -> dict[str, Shape]:
    found = open_base("tiny-sd").shapes
    return {path: found[path] for path in sorted(found) if path.endswith((".to_q", ".fc1", "conv_in"))}


def pair(shape: Shape) -> LoraPair:
    ones = [1] * (len(shape) - 2)
    return LoraPair(torch.randn(2, *shape[1:]).half(), torch.randn(shape[0], 2, *ones).half(), 2.0)


@pytest.fixture
def path(shapes: dict[str, Shape], tmp_path: Path) -> Path:
    """An adapter that fits tiny-sd, with a thumbnail."""
    drawn = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(drawn, "JPEG")
    metadata = modelspec_metadata(base_version="sd_v1", title="[Ink]", trigger="inkstyle", thumbnail=drawn.getvalue())
    adapter = Adapter({name: pair(shape) for name, shape in shapes.items()}, AdapterInfo(metadata))
    return adapter.save(tmp_path / "ink.safetensors")


def change(path: Path, **tensors: torch.Tensor) -> None:
    save_file(load_file(path) | tensors, path)


# --- info -------------------------------------------------------------------------------------------------------------


def test_info_shows_the_facts_of_every_file(path: Path, shapes: dict[str, Shape]) -> None:
    result = run("info", path, path)
    assert result.exit_code == 0
    for word in ("[Ink]", "inkstyle", "kohya, float16", "Stable Diffusion 1.x", "IN00 1", "--header shows them"):
        assert result.output.count(word) >= 2
    assert "converted" not in result.output
    assert "modelspec.title" not in result.output
    assert "modelspec.title" in run("info", path, "--header").output


def test_info_of_an_adapter_for_text(tmp_path: Path) -> None:
    pairs = {f"model.model.layers.{k}.mlp.up_proj": pair((768, 768)) for k in range(12)}
    header = {"stylora.kind": "text", "stylora.base": "tiny-lm", "modelspec.architecture": "llama/lora"}
    folder = Adapter(pairs, AdapterInfo(header)).save(tmp_path / "pirate", "peft")
    output = run("info", folder).output
    for word in ("peft, float16", "a language model", "tiny-lm", "L00-L11 1 each"):
        assert word in output, word
    assert json.loads(run("info", folder, "--json").stdout)[0]["base"] == "tiny-lm"


def test_info_as_json_is_one_document_with_the_broken_ones_named(
    path: Path, shapes: dict[str, Shape], tmp_path: Path
) -> None:
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-1])
    result = run("info", path, tmp_path / "cut", tmp_path / "none", "--json")
    assert result.exit_code == 1
    good, cut, none = json.loads(result.stdout)
    assert (good["name"], good["ranks"], good["family"]) == ("[Ink]", {"2": len(shapes)}, "sd1")
    assert "not a whole safetensors file" in cut["error"]
    assert "there is no such file" in none["error"]
    assert result.stderr.count("Error:") == 2


def test_info_saves_the_thumbnail(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.png"
    assert run("info", path, "--thumbnail", out).exit_code == 0
    with Image.open(out) as picture:
        assert (picture.format, picture.size) == ("PNG", (8, 6))
    again = run("info", path, "--thumbnail", out)
    assert (again.exit_code, "--overwrite" in again.stderr) == (1, True)
    assert run("info", path, "--thumbnail", out, "--overwrite").exit_code == 0
    two = run("info", path, path, "--thumbnail", tmp_path / "u.png")
    assert (two.exit_code, "one picture" in two.stderr) == (1, True)


# --- check ------------------------------------------------------------------------------------------------------------


def test_a_whole_adapter_passes(path: Path) -> None:
    result = run("check", path, "--base", "tiny-sd")
    assert result.exit_code == 0
    assert "100.00% of the adapter's energy is applied." in result.output
    assert result.output.count("applied ") == 1


def test_a_foreign_tensor_fails_and_partial_lets_it_pass(path: Path) -> None:
    change(path, foreign=torch.ones(1))
    result = run("check", path, "--base", "tiny-sd")
    assert (result.exit_code, "only part of this adapter" in result.stderr) == (1, True)
    assert "an unknown name" in result.output
    assert "At most 100.00%" in result.output
    partial = run("check", path, "--base", "tiny-sd", "--partial")
    assert (partial.exit_code, "foreign: an unknown name (1 tensor)" in partial.stdout) == (0, True)


def test_check_as_json_and_verbose_speak_of_every_tensor(path: Path) -> None:
    change(path, foreign=torch.ones(1))
    result = run("check", path, "--base", "tiny-sd", "--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["whole"], told["unknown"], told["tensors"]["refused"]) == (1, False, 1, 1)
    assert sorted(key for entry in told["entries"] for key in entry["keys"]) == sorted(load_file(path))
    lines = run("check", path, "--base", "tiny-sd", "--verbose").output
    assert all(key in lines for key in load_file(path))


def test_modules_of_other_sizes_are_one_line(path: Path, shapes: dict[str, Shape], tmp_path: Path) -> None:
    other = {name: pair((shape[0] + 1, *shape[1:])) for name, shape in shapes.items() if "to_q" in name}
    mixed = Adapter(Adapter.load(path).pairs | other).save(tmp_path / "x")
    result = run("check", mixed, "--base", "tiny-sd")
    assert result.exit_code == 1
    assert (
        result.stdout.count("and the like")
        == result.stdout.count("made for (")
        == result.stderr.count("made for (")
        == 1
    )


def test_another_bases_adapter_is_called_so(tmp_path: Path) -> None:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    other = Adapter({name: LoraPair(torch.ones(1, 2048), torch.ones(640, 1), 1.0)}).save(tmp_path / "x")
    result = run("check", other, "--base", "tiny-sd", "--partial")
    assert result.exit_code == 1
    assert "made for another base, Stable Diffusion XL" in result.stderr


def test_check_with_a_rank_says_what_the_cut_loses(path: Path) -> None:
    result = run("check", path, "--base", "tiny-sd", "--rank", "1")
    assert result.exit_code == 0
    assert "LoRA, cut to rank 1:" in result.output
    assert "100.00%" not in result.output


# --- export -----------------------------------------------------------------------------------------------------------


def test_export_writes_beside_the_file(path: Path, tmp_path: Path) -> None:
    result = run("export", path, "--to", "peft")
    assert (result.exit_code, "ink.peft" in result.output) == (0, True)
    assert run("export", path, "--to", "peft").exit_code == 1
    assert run("export", path, "--to", "peft", "--overwrite").exit_code == 0
    back = run("export", tmp_path / "ink.peft", "--to", "kohya", "--out", tmp_path / "back.safetensors")
    assert (back.exit_code, (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()) == (0, True)


def test_export_with_dtype_and_rank(path: Path, tmp_path: Path) -> None:
    result = run(
        "export",
        path,
        "--to",
        "diffusers",
        "--dtype",
        "bf16",
        "--rank",
        "1",
        "--out",
        tmp_path / "new" / "x.safetensors",
    )
    assert "bfloat16" in result.output
    assert "converted: LoRA, cut to rank 1:" in result.output
    assert {t.dtype for t in load_file(tmp_path / "new" / "x.safetensors").values()} == {torch.bfloat16}


def test_export_converts_dora_with_the_base(path: Path, shapes: dict[str, Shape]) -> None:
    key = next(key for key in load_file(path) if "to_q.lora_up" in key)
    change(path, **{key.replace("lora_up.weight", "dora_scale"): torch.ones(len(load_file(path)[key]), 1)})
    refused = run("export", path, "--to", "kohya")
    assert (refused.exit_code, "name the base it is for" in refused.stderr) == (1, True)
    made = run("export", path, "--to", "kohya", "--base", "tiny-sd")
    assert (made.exit_code, "1 converted: DoRA, cut to rank 4:" in made.output) == (0, True)


def test_a_run_folder_stands_for_its_adapter(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"adapter": "ink.safetensors"}))
    (folder / "ink.safetensors").write_bytes(path.read_bytes())
    for words in (("info",), ("check", "--base", "tiny-sd"), ("export", "--to", "diffusers")):
        result = run(words[0], folder, *words[1:])
        assert result.exit_code == 0, result.output
        assert "ink" in result.output
    (folder / "report.json").unlink()
    assert "holds no finished run and no PEFT adapter" in run("info", folder).stderr


def test_an_adapter_file_is_called_so(path: Path, tmp_path: Path) -> None:
    result = run("export", path, "--to", "kohya", "--out", tmp_path / "x.txt")
    assert result.exit_code == 1
    assert "written as .safetensors" in result.stderr
    assert not (tmp_path / "x.txt").exists()
