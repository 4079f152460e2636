"""The shortcuts are taken where they give what the model gives, and only there; a note says what isn't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lms import CONTEXT, KINDS, lm
from trainers.families import packing, shortcuts
from trainers.families.causal_lm import CausalLM

CPU = torch.device("cpu")


def model_of(kind: str, folder: Path, **changes: Any) -> Any:
    return CausalLM(lm(kind, folder, **changes)).part("model")


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_are_packed_and_read_under_the_head(kind: str, tmp_path: Path) -> None:
    found = shortcuts.prove(model_of(kind, tmp_path), CONTEXT, True, CPU)
    assert found == shortcuts.Found(shortcuts.ENDLESS, True, [])


def test_a_base_that_mixes_texts_is_padded(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    model.set_attn_implementation("sdpa")  # it knows nothing of pieces
    found = shortcuts.prove(model, CONTEXT, True, CPU)
    assert (found.longest, found.head) == (0, True)
    assert found.notes == ["the base doesn't keep packed texts apart: they are padded instead"]
    assert shortcuts.prove(model, CONTEXT, False, CPU).notes == []  # nobody asked


def test_a_base_that_looks_at_the_row_is_padded(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    model.model.layers[0].register_forward_hook(lambda _, __, out: out + out.mean(1, keepdim=True))
    assert shortcuts.prove(model, CONTEXT, True, CPU).longest == 0


def test_another_head_than_thought_means_its_own_logits(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    model.register_forward_hook(lambda _, __, out: type(out)(logits=out.logits * 1.5))
    found = shortcuts.prove(model, CONTEXT, True, CPU)
    assert (found.longest, found.head) == (shortcuts.ENDLESS, False)
    assert "all are made" in found.notes[0]
    row, texts = packing.packed([5, 4], CPU), [torch.arange(5), torch.arange(4)]
    inputs = {"input_ids": row.lay(texts, CPU), **row.extras}
    got = shortcuts.losses(model, inputs, torch.tensor([1, 7]), torch.tensor([2, 3]), False)
    wanted = [-model(text[None]).logits[0, at].log_softmax(-1)[at + 1] for text, at in zip(texts, (1, 2), strict=True)]
    assert torch.allclose(got, torch.stack(wanted), atol=1e-5)


@pytest.mark.parametrize(("window", "longest"), [(8, shortcuts.ENDLESS), (5000, 5000)])
def test_a_window_too_long_to_try_bounds_what_is_packed(window: int, longest: int, tmp_path: Path) -> None:
    model = model_of("gemma", tmp_path, sliding_window=window)
    assert shortcuts.window_of(model) == window
    assert shortcuts.prove(model, CONTEXT, True, CPU).longest == longest


def test_factors_of_known_names_are_the_heads(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    assert shortcuts.head_of(model).factor == 1
    model.config.logits_scaling = 4.0
    assert shortcuts.head_of(model).factor == 0.25
    assert shortcuts.head_of(model_of("gemma", tmp_path / "g")).cap == 5
