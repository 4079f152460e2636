"""How an adapter goes into a base, and what its header says of its training; more is in tests/test_merge.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from studio.draw.use import Use
from studio.merge.ingredients import Ingredient
from trainers.lora.adapter import Adapter, AdapterInfo
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair

PATH = "model.model.layers.1.mlp.up_proj"


def ingredient(header: dict[str, str], gain: Gain) -> Ingredient:
    pairs = {PATH: LoraPair(torch.ones(1, 2), torch.ones(3, 1), 1.0)}
    return Ingredient(Use(Path("a/ink.safetensors"), gain, sha256="12"), Adapter(pairs, AdapterInfo(header)))


def test_a_gain_is_nothing_where_the_adapter_has_nothing() -> None:
    one = ingredient({}, Gain(0.8, blocks={"L01": 0.5}))
    assert one.gain(PATH) == 0.4
    assert one.gain("model.model.layers.0.mlp.up_proj") == 0
    assert one.facts()["blocks"] == {"L01": 0.5}
    assert (one.facts()["name"], one.facts()["sha256"]) == ("ink", "12")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"train": {"quantization": "nf4"}}, "nf4"),
        ({"train": {"quantization": "int8"}}, "int8"),
        ({"train": {"quantization": "none"}}, "none"),
        ({"train": {"quantization": "fp3"}}, "none"),
        ({"train": {}}, "none"),
        ([], "none"),
    ],
)
def test_how_the_base_was_quantised(said: Any, meant: str) -> None:
    assert ingredient({"stylora.config": json.dumps(said)}, Gain()).quantization == meant
    assert ingredient({"stylora.config": "{"}, Gain()).quantization == "none"
    assert ingredient({}, Gain()).quantization == "none"
