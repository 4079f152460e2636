"""Ranks and alphas through LoraConfig's fields: as peft itself applies them, and exact on the way back."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from torch import nn

from trainers.lora.formats.loraconfig import alphas, fields_of, first_match
from trainers.lora.formats.names import live_names

PATHS = ("mid.0.to_q", "mid.1.to_q", "mid.1.to_k", "other.to_k")
PATTERNS: tuple[dict[str, float], ...] = (
    {},
    {"to_q": 6},
    {"^mid.1.to_q": 6, "to_q": 5},
    {"to_q": 5, "^mid.1.to_q": 6},  # the first that matches speaks
    {r"mid\.\d.to_[qk]": 6},
    {"q": 6, "^to_q": 7, "0.to_q": 9},
    {r"^mid\.1": 6, r"mid.*": 7, "to_k": 8},
)


def tree() -> nn.Module:
    model = nn.Module()
    for path in PATHS:
        parent, made = model, path.split(".")
        for word in made[:-1]:
            if not hasattr(parent, word):
                parent.add_module(word, nn.Module())
            parent = parent.get_submodule(word)
        parent.add_module(made[-1], nn.Linear(4, 4))
    return model


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
def test_scales_are_those_that_peft_computes(patterns: dict[str, float], rslora: bool) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    fields: dict[str, Any] = {"r": 4, "lora_alpha": 3, "alpha_pattern": patterns, "use_rslora": rslora}
    model = inject_adapter_in_model(LoraConfig(target_modules=["to_q", "to_k"], **fields), tree())
    alpha_of = alphas(fields)
    for path in PATHS:
        layer: Any = model.get_submodule(path)
        assert alpha_of([path], 4) / 4 == pytest.approx(layer.scaling["default"], rel=1e-15)


def test_silent_fields_mean_that_alpha_is_the_rank() -> None:
    assert alphas({})(["conv_in"], 5) == 5.0
    assert alphas({"use_rslora": True})(["conv_in"], 4) == 4 * math.sqrt(4)


def test_patterns_may_leave_the_text_encoders_upper_level_out() -> None:
    names = live_names("text_model.encoder.layers.0.fc1")
    for pattern in ("^encoder.layers.0.fc1", "^text_model.encoder.layers.0.fc1", "layers.0.fc1"):
        assert first_match({pattern: 2.0})(names) == 2.0
    assert first_match({"^layers.0.fc1": 2.0})(names) is None


@pytest.mark.parametrize("fields", [{"lora_alpha": "much"}, {"alpha_pattern": {"(": 1}}, {"alpha_pattern": [1]}])
def test_fields_of_another_form_are_errors(fields: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, re.error)):
        alphas(fields)


def test_fields_name_only_what_differs() -> None:
    scales = {"a": (4, 1.0), "b": (4, 1 / 3), "c": (2, 1.0)}
    fields = fields_of(scales)
    assert (fields["r"], fields["lora_alpha"], fields["target_modules"]) == (4, 1.0, ["a", "b", "c"])
    assert (fields["rank_pattern"], fields["alpha_pattern"]) == ({"^c": 2}, {"^b": 1 / 3})
    assert fields_of(scales, anchored=False)["rank_pattern"] == {"c": 2}
