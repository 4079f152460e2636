"""`stylora anatomy` and `stylora diff` as a person types them: tables, JSON, pictures, and every fault at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import studio.commands.look
from studio.commands.look import each, named
from tests.lms import lm
from trainers.cli import app
from trainers.errors import AdapterError, ConfigError
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora.adapter import Adapter
from trainers.lora.pair import LoraPair

PATHS = ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
         "text_encoder.text_model.encoder.layers.0.self_attn.q_proj")  # fmt: skip


def file(folder: Path, name: str, seed: int, rank: int = 4, sides: int = 32, format: str = "kohya") -> Path:
    g = torch.Generator().manual_seed(seed)
    pairs = {
        path: LoraPair(torch.randn(rank, sides, generator=g), torch.randn(sides, rank, generator=g), 4.0)
        for path in PATHS
    }
    return Adapter(pairs).save(folder / f"{name}.safetensors", format, torch.float32)


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def planted(path: Path) -> Path:
    """Rank 8 in the file, rank 3 in truth."""
    g = torch.Generator().manual_seed(0)
    down, up = torch.randn(8, 32, generator=g), torch.randn(32, 8, generator=g)
    up[:, 3:] *= 1e-4
    return Adapter({PATHS[0]: LoraPair(down, up, 8.0)}).save(path, dtype=torch.float32)


def test_anatomy_as_a_table_and_what_to_do_next(tmp_path: Path, tiny_base: Path) -> None:
    ink = planted(tmp_path / "ink.safetensors")
    output = run("anatomy", ink).output
    assert "IN01" in output
    assert f"Rank 3 of 8 keeps 99 % of the energy. Next: stylora resize {ink} --rank 3" in output
    assert "of the base" not in output
    assert "of the base" in run("anatomy", ink, "--base", tiny_base).output


def test_anatomy_as_json(tmp_path: Path, tiny_base: Path) -> None:
    out = tmp_path / "anatomy.png"
    found = json.loads(run("anatomy", file(tmp_path, "a", 1), "--base", tiny_base, "--json", "--out", out).stdout)
    assert [block["block"] for block in found["blocks"]] == ["BASE", "IN01", "TOTAL"]
    weights = StableDiffusion(tiny_base).part("unet").state_dict()[f"{PATHS[0].removeprefix('unet.')}.weight"]
    assert found["blocks"][1]["relative"] == pytest.approx(found["blocks"][1]["norm"] / float(weights.norm()), rel=1e-5)
    with Image.open(out) as sheet:
        assert sheet.format == "PNG"


def test_anatomy_of_a_language_models_adapter(tmp_path: Path) -> None:
    tiny_lm = lm("llama", tmp_path / "lm")
    pairs = {f"model.model.layers.{k}.self_attn.q_proj": LoraPair(torch.ones(2, 32), torch.ones(32, 2), 2.0)
             for k in range(2)}  # fmt: skip
    folder = Adapter(pairs).save(tmp_path / "pirate", "peft", torch.float32)
    assert "norm by kind" in run("anatomy", folder).output
    output = run("anatomy", folder, "--base", tiny_lm, "--out", tmp_path / "anatomy.png").output
    for word in ("change by kind", " q ", "L01"):
        assert word in output
    assert json.loads(run("anatomy", folder, "--json").stdout)["kinds"]["q"]["L00"] == pytest.approx(64)
    assert "TOTAL" in run("diff", folder, folder).output


def test_diff_of_two_formats_and_ranks(tmp_path: Path) -> None:
    one, other = file(tmp_path, "one", 1), file(tmp_path, "other", 2, rank=7, format="diffusers")
    output = run("diff", one, other).output
    assert all(word in output for word in ("BASE", "IN01", "TOTAL", "norm of one", "other only"))
    found = json.loads(run("diff", one, other, "--json").stdout)
    assert found["blocks"][-1]["modules"] == [2, 0, 0]
    assert abs(found["blocks"][-1]["cosine"]) < 0.3
    assert "the same adapter" in run("diff", one, one).output


def test_what_json_has_no_number_for_is_null(tmp_path: Path) -> None:
    still = Adapter({PATHS[0]: LoraPair(torch.ones(2, 32), torch.zeros(32, 2), 1.0)}).save(tmp_path / "s.safetensors")
    assert json.loads(run("diff", still, still, "--json").stdout)["blocks"][0]["cosine"] is None


def test_all_faults_at_once(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(b"mine")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no")
    output = run("anatomy", broken, "--out", tmp_path / "there.png", code=1).stderr
    assert "2 things are wrong" in output
    assert "broken.safetensors" in output
    assert "there.png exists" in output
    output = run("diff", broken, tmp_path / "gone.safetensors", code=1).stderr
    assert "broken.safetensors" in output
    assert "gone.safetensors" in output
    assert (tmp_path / "there.png").read_bytes() == b"mine"


def test_other_families_and_numbers_that_are_none(tmp_path: Path, tiny_base: Path) -> None:
    narrow, wide = file(tmp_path, "narrow", 1), file(tmp_path, "wide", 1, sides=64)
    output = run("diff", narrow, wide, code=1).stderr
    assert "different families" in output
    assert "32 x 32 (narrow), 64 x 64 (wide)" in output
    output = run("anatomy", wide, "--base", tiny_base, code=1).stderr
    assert output.count("the base has (32, 32)") == 2
    pair = Adapter.load(narrow).pairs[PATHS[0]]
    pair.down[0, 0] = torch.nan
    from safetensors.torch import save_file

    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{name}.lora_down.weight": pair.down, f"{name}.lora_up.weight": pair.up}, tmp_path / "nan.safetensors")
    assert "NaN" in run("anatomy", tmp_path / "nan.safetensors", code=1).stderr


def test_names_are_short_and_different() -> None:
    made = [Adapter({}) for _ in range(4)]
    files = [Path("a/ink.st"), Path("neon.st"), Path("b/ink.st"), Path("neon.st")]
    assert list(named(files, made)) == ["a/ink.st", "neon", "b/ink.st", "neon (2)"]


def test_one_error_keeps_its_own_words() -> None:
    def fail(error: AdapterError | ConfigError) -> None:
        raise error

    with pytest.raises(ConfigError, match="alone"):
        each([lambda: None, lambda: fail(ConfigError("alone"))])
    with pytest.raises(AdapterError) as caught:
        each([lambda: fail(ConfigError("one", ["a", "b"])), lambda: fail(AdapterError("two"))])
    assert caught.value.faults == ("one: a", "one: b", "two")


def test_no_torch_until_it_is_used() -> None:
    assert not hasattr(studio.commands.look, "torch")


def test_anatomy_reads_dora_where_the_base_is_given(tmp_path: Path, tiny_base: Path) -> None:
    path = file(tmp_path, "dora", 1)
    tensors = load_file(path)
    tensors |= {key.replace("lora_up.weight", "dora_scale"): torch.ones(32, 1) for key in tensors if "lora_up" in key}
    save_file(tensors, path)
    assert "no base was given" in run("anatomy", path, code=1).stderr
    assert "anatomy of dora" in run("anatomy", path, "--base", tiny_base).output


def test_anatomy_fits_a_terminal_of_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.console.PIPE_WIDTH", 80)
    assert "…" not in run("anatomy", planted(tmp_path / "ink.safetensors")).output
    names = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
             "mlp.down_proj")  # fmt: skip
    pairs = {f"model.model.layers.10.{name}": LoraPair(torch.ones(2, 32), torch.ones(32, 2), 2.0) for name in names}
    assert "…" not in run("anatomy", Adapter(pairs).save(tmp_path / "pirate", "peft")).output
