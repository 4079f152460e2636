"""NF4 and int8 bases: how many bytes, whole heads, and gradients that don't end where the base was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lms import KINDS, lm
from tests.test_causal_lm import examples, injected
from trainers import samples
from trainers.families.causal_lm import CausalLM


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_it_learns_on_quantised_layers(kind: str, quantization: Any, tmp_path: Path) -> None:
    whole, family = (CausalLM(lm(kind, tmp_path), quantization=q) for q in ("none", quantization))
    wanted, texts = float(whole.loss(examples()).total.detach()), examples()
    gradients = []
    parameters = injected(family)
    for _ in range(2):
        loss = family.loss(texts)
        gradients.append(torch.autograd.grad(loss.total, [tensor for _, tensor in parameters]))
        family.nll([example.encoding for example in texts])  # measuring in between changes nothing
    assert family.prove() == []
    assert float(loss.total.detach()) == pytest.approx(wanted, rel=0.05)
    assert all(float(g.abs().sum()) > 0 for (name, _), g in zip(parameters, gradients[0], strict=True) if "up" in name)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(("quantization", "most"), [("nf4", 0.6), ("int8", 1.1)])
def test_bytes_a_parameter(quantization: Any, most: float) -> None:
    counts = CausalLM(samples.base_folder("tiny-lm"), quantization=quantization, dtype=torch.bfloat16).base_bytes()
    assert counts["quantized_bytes"] <= most * counts["quantized_parameters"]
    assert counts["quantized_parameters"] == 2_621_440
    assert counts["other_bytes"] == 2 * counts["other_parameters"] == 2 * (4051 * 256 + 9 * 256)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_only_the_base_is_counted(quantization: Any, tmp_path: Path) -> None:
    family = CausalLM(lm("llama", tmp_path), quantization=quantization)
    counts = family.base_bytes()
    assert (counts["quantized_bytes"] > 0) == (counts["quantized_parameters"] > 0) == (quantization != "none")
    injected(family)
    assert family.base_bytes() == counts  # LoRA isn't the base's
