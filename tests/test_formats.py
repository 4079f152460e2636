"""All formats against each other: other tools' key tables, detection, and tensors that come back bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import golden, hollow, shapes_of

from trainers.errors import AdapterError
from trainers.lora.fit import misfits
from trainers.lora.formats import FORMATS, Grouped, detect, peft
from trainers.lora.kinds import assemble
from trainers.lora.pair import LoraPair, Pairs

# table -> (format, modules, base)
TABLES: dict[str, tuple[str | None, int, str]] = {
    "kohya_sd15_attention_ff": ("kohya", 192 + 72, "sd15"),
    "kohya_sd15_locon": ("kohya", 278 + 72, "sd15"),
    "kohya_sdxl": ("kohya", 722 + 72 + 192, "sdxl"),
    "kohya_sdxl_locon": ("kohya", 788, "sdxl"),
    "kohya_sdxl_diffusers_names": ("kohya", 986, "sdxl"),
    "diffusers_newest": ("diffusers", 264, "sd15"),
    "diffusers_older": ("diffusers", 264, "sd15"),
    "diffusers_oldest": ("diffusers", 128, "sd15"),
    "peft_unet": ("peft", 192, "sd15"),
    "peft_text_encoder": ("peft", 72, "sd15"),
    "lycoris_loha": ("kohya", 350, "sd15"),
    "lycoris_lokr": ("kohya", 350, "sd15"),
    "lycoris_loha_tucker": ("kohya", 18, "sd15"),
    "lycoris_lokr_tucker": ("kohya", 18, "sd15"),
    "lycoris_locon_tucker": ("kohya", 18, "sd15"),
    "lycoris_dora": ("kohya", 18, "sd15"),
    "lycoris_full": ("kohya", 18, "sd15"),
    "cloneofsimo": (None, 0, "sd15"),
}
READ = [name for name, (format, *_) in TABLES.items() if format]
PLAIN = [name for name in READ if not name.startswith("lycoris")]
THEIRS = (
    Path(__file__).parents[2] / "shared" / "golden" / "kohya_sd15_unet_r8.json"
)  # made by kohya-ss/sd-scripts itself


def group(name: str) -> Grouped:
    tensors, row = hollow(golden(name)), TABLES[name][0] or ""
    if row == "peft":
        return peft.group_folder({"": (tensors, {"peft_type": "LORA", "lora_alpha": 8})})
    return FORMATS[row].group(tensors, {})


def pairs_of(name: str) -> Pairs:
    """Hollow pairs of a table of plain LoRA."""
    grouped = group(name)
    return {path: LoraPair(found["down"], found["up"], 8.0) for path, found in grouped.modules.items()}


def table(tensors: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {key: list(tensor.shape) for key, tensor in tensors.items()}


# --- other tools' tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_detected_as_its_own_format_and_no_other(name: str) -> None:
    keys = golden(name).keys()
    assert detect(keys) == TABLES[name][0]
    assert [format for format, row in FORMATS.items() if row.detect(keys)] == [f for f in [TABLES[name][0]] if f]
    assert all(detect([key]) in (TABLES[name][0], None) for key in keys)


@pytest.mark.parametrize("name", READ)
def test_every_key_of_a_table_finds_its_module_in_the_base(name: str) -> None:
    grouped, (_, count, base) = group(name), TABLES[name]
    assert (grouped.unknown, grouped.faults) == ([], [])
    assert len(grouped.modules) == count
    assert grouped.modules.keys() <= shapes_of(base).keys()
    assert sum(map(len, grouped.keys.values())) == len(golden(name))


@pytest.mark.parametrize("name", PLAIN)
def test_every_pair_of_a_table_has_the_shape_of_its_module(name: str) -> None:
    assert misfits(pairs_of(name), {path: tuple(shape) for path, shape in shapes_of(TABLES[name][2]).items()}) == {}


def test_lycoris_tables_have_the_roles_of_their_kinds() -> None:
    roles = {name: {role for found in group(name).modules.values() for role in found} for name in READ}
    hada = {"alpha", *(f"hada_w{n}_{half}" for n in (1, 2) for half in "ab")}
    assert roles["lycoris_loha"] == hada
    assert roles["lycoris_loha_tucker"] == hada | {"hada_t1", "hada_t2"}
    assert roles["lycoris_lokr"] == {"alpha", "lokr_w1", "lokr_w2_a", "lokr_w2_b"}
    assert {"lokr_t2", "lokr_w1"} < roles["lycoris_lokr_tucker"]
    assert roles["lycoris_locon_tucker"] == {"down", "up", "mid", "alpha"}
    assert roles["lycoris_dora"] == {"down", "up", "alpha", "dora_scale"}
    assert roles["lycoris_full"] == {"diff", "diff_b"}


@pytest.mark.parametrize("name", ["kohya_sd15_attention_ff", "kohya_sd15_locon", "kohya_sdxl", "kohya_sdxl_locon"])
def test_kohyas_keys_are_written_as_kohya_writes_them(name: str) -> None:
    tensors, extra = FORMATS["kohya"].write(pairs_of(name), torch.float16)
    assert table(tensors) == golden(name)
    assert extra == {}


def test_sdxl_in_diffusers_names_becomes_kohyas_original_ones() -> None:
    tensors, _ = FORMATS["kohya"].write(pairs_of("kohya_sdxl_diffusers_names"), torch.float16)
    assert table(tensors) == golden("kohya_sdxl")


def test_diffusers_keys_are_the_newest_ones_but_for_the_text_encoders_suffix() -> None:
    tensors, _ = FORMATS["diffusers"].write(pairs_of("kohya_sd15_attention_ff"), torch.float16)
    wanted = golden("diffusers_newest")
    for key in [key for key in wanted if key.startswith("text_encoder.")]:
        new = key.replace("lora_A", "lora_linear_layer.down").replace("lora_B", "lora_linear_layer.up")
        wanted[new] = wanted.pop(key)
    assert table(tensors) == wanted


def test_a_peft_folder_has_the_keys_that_peft_writes() -> None:
    parts = peft.write_folder(pairs_of("kohya_sd15_attention_ff"), torch.float16)
    written = {folder: table(tensors) for folder, (tensors, _) in parts.items()}
    assert written == {part: golden(f"peft_{part}") for part in ("unet", "text_encoder")}


def test_the_unet_part_is_what_kohya_itself_writes() -> None:
    if not THEIRS.exists():
        pytest.skip(f"no {THEIRS}: kohya's own key list isn't beside this checkout")
    ours = golden("kohya_sd15_attention_ff")
    assert {key: shape for key, shape in ours.items() if key.startswith("lora_unet_")} == json.loads(THEIRS.read_text())


@pytest.mark.parametrize(
    "key",
    [
        "blk.0.attn_q.weight.lora_a",
        "model.diffusion_model.input_blocks.0.0.weight",
        "down_blocks.0.resnets.0.conv1.weight",
        "unet.down_blocks.0.resnets.0.conv1.weight",
        "base_model.model.score.weight",
        "unet:0:up",
        "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
    ],
)
def test_no_format_claims_a_foreign_file(key: str) -> None:
    assert detect([key]) is None


# --- there and back ---------------------------------------------------------------------------------------------------

ALPHAS = (8.0, 1.0, 3.0, 8 * math.sqrt(32), 1 / 3)


def filled(name: str, dtype: torch.dtype) -> Pairs:
    """Pairs of a table with numbers in them and small sides, ranks and alphas taking turns."""
    g = torch.Generator().manual_seed(0)
    pairs = {}
    for n, (path, hollow_pair) in enumerate(sorted(pairs_of(name).items())):
        rank, kernel = (4, 2, 3)[n % 3], hollow_pair.down.shape[2:]
        down = torch.randn(rank, 3, *kernel, generator=g).to(dtype)
        up = torch.randn(2, rank, *[1] * len(kernel), generator=g).to(dtype)
        pairs[path] = LoraPair(down, up, float(torch.tensor(ALPHAS[n % 5])))
    return pairs


def through(format: str, pairs: Pairs, dtype: torch.dtype) -> Pairs:
    """Written and read again; entries and configs pass through JSON as they do in files."""
    if format == "peft":
        parts = peft.write_folder(pairs, dtype)
        grouped = peft.group_folder({part: (t, json.loads(json.dumps(config))) for part, (t, config) in parts.items()})
    else:
        grouped = FORMATS[format].group(*FORMATS[format].write(pairs, dtype))
    read, entries = assemble(grouped)
    assert {entry.verdict for entry in entries} == {"applied"}
    return read


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["kohya_sd15_locon", "kohya_sdxl"])
def test_kohya_to_diffusers_to_peft_to_kohya_is_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    pairs = filled(name, dtype)
    first, _ = FORMATS["kohya"].write(pairs, dtype)
    for format in ("kohya", "diffusers", "peft"):
        pairs = through(format, pairs, dtype)
    last, _ = FORMATS["kohya"].write(pairs, dtype)
    assert first.keys() == last.keys()
    assert all(first[key].dtype == last[key].dtype and torch.equal(first[key], last[key]) for key in first)
    assert {tensor.dtype for key, tensor in first.items() if key.endswith(".alpha")} == {dtype, torch.float32}


@pytest.mark.parametrize("format", ["diffusers", "peft"])
@pytest.mark.parametrize("alpha", [1 / 3, 8 * math.sqrt(32), 1e-30, 16777217.0])
def test_any_alpha_is_exact_where_json_carries_it(format: str, alpha: float) -> None:
    pairs = {
        f"unet.mid_block.resnets.{n}.conv1": LoraPair(torch.ones(2, 3), torch.ones(2, 2), alpha * n) for n in (1, 2)
    }
    assert {path: pair.alpha for path, pair in through(format, pairs, torch.float32).items()} == {
        path: pair.alpha for path, pair in pairs.items()
    }


@pytest.mark.parametrize("format", FORMATS)
def test_a_path_that_could_not_be_read_back_is_not_written(format: str) -> None:
    pairs = {"vision.tower": LoraPair(torch.ones(1, 2), torch.ones(2, 1), 1.0)}
    write: Any = peft.write_folder if format == "peft" else FORMATS[format].write
    with pytest.raises(AdapterError, match="vision"):
        write(pairs, torch.float16)
