"""What keeps a blend from being written is told, each by its own line."""

from __future__ import annotations

from pathlib import Path

import torch

from studio.blend.faults import format_faults, mixed_families, name_faults, out_faults, plot_faults
from trainers.lora.adapter import Adapter, AdapterInfo
from trainers.lora.pair import LoraPair


def one(path: str, version: str = "") -> Adapter:
    pair = LoraPair(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    return Adapter({path: pair}, AdapterInfo({"ss_base_model_version": version}))


LLAMA, GPT2 = one("model.model.layers.0.mlp.up_proj"), one("model.transformer.h.0.mlp.c_fc")
INK, XL, SILENT = one("unet.conv_in", "sd_v1"), one("unet.conv_in", "sdxl_base_v1-0"), one("unet.conv_in")


def test_families_that_do_not_go_together() -> None:
    assert mixed_families([("a", INK), ("b", SILENT)]) == mixed_families([("a", LLAMA), ("b", LLAMA)]) == []
    for pair, words in (((INK, XL), "Diffusion XL"), ((LLAMA, INK), "a language model"),
                        ((LLAMA, SILENT), "b is for pictures"), ((LLAMA, GPT2), "of transformer.h")):  # fmt: skip
        (fault,) = mixed_families(list(zip("ab", pair, strict=True)))
        assert words in fault


def test_formats_and_names() -> None:
    assert len(format_faults([("a", LLAMA)], "kohya")) == 1
    assert format_faults([("a", LLAMA)], "peft") == format_faults([("a", INK)], "kohya") == []
    assert name_faults(Path("a"), "peft") == name_faults(Path("a.safetensors"), "kohya") == name_faults(None, "x") == []
    assert "name it a" in name_faults(Path("a.safetensors"), "peft")[0]
    assert "….safetensors" in name_faults(Path("a"), "kohya")[0]


def test_what_is_there_stays(tmp_path: Path) -> None:
    folder = LLAMA.save(tmp_path / "peft", "peft")
    assert "is a folder" in out_faults(tmp_path, True, "peft")[0]
    assert "is a folder" in out_faults(folder, True, "kohya")[0]
    assert "add --overwrite" in out_faults(folder, False, "peft")[0]
    assert out_faults(folder, True, "peft") == out_faults(tmp_path / "new", False) == []
    assert len(plot_faults(tmp_path / "a.jpg", False)) == 1
