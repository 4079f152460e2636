"""Strength and disturbance on a tiny base of pictures: equal to a computation by hand with merged weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from studio.look import measure_pictures
from studio.look.measure import disturbance, strength
from studio.look.measure_pictures import Latents, Pictures
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora.adapter import Adapter
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair

PROMPTS = ("a red house", "a cat")
ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn"
WORDS = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def style(seed: int, size: float = 0.4) -> Adapter:
    """Random changes of queries, keys and the text encoder, as a file would hold them."""
    g = torch.Generator().manual_seed(seed)
    paths = (f"{ATTENTION}1.to_q", f"{ATTENTION}2.to_k", WORDS)
    pairs = {
        path: LoraPair(torch.randn(4, 32, generator=g), torch.randn(32, 4, generator=g) * size, 4.0) for path in paths
    }
    return Adapter(pairs)


def scaled(adapter: Adapter, factor: float) -> Adapter:
    return Adapter({path: LoraPair(p.down, p.up, p.alpha * factor) for path, p in adapter.pairs.items()})


@pytest.fixture(scope="module")
def family(tiny_base: Path) -> StableDiffusion:
    return StableDiffusion(tiny_base)


@pytest.fixture
def base(family: StableDiffusion) -> Iterator[Pictures]:
    made = Pictures(family)
    with made.rack:
        yield made


@torch.no_grad()
def by_hand(asked: Latents, *styles: Adapter) -> Tensor:
    """(P * K, C * h * w): the prediction with the dense deltas added to the weights of the models."""
    family = asked.base.family
    modules = {**dict(family.part("unet").named_modules(prefix="unet"))}
    text = family.part("text_encoder")
    modules |= {f"text_encoder.text_model.{name.removeprefix('text_model.')}": m for name, m in text.named_modules()}
    changed = [(modules[path], pair.delta()) for adapter in styles for path, pair in adapter.pairs.items()]
    for module, delta in changed:
        module.weight.data += delta
    states = text(asked.ids).last_hidden_state
    rows = [
        family.part("unet")(asked.latents[p, k][None], t, states[p][None]).sample.double().flatten()
        for p in range(len(asked.ids))
        for k, t in enumerate(asked.places)
    ]
    for module, delta in changed:
        module.weight.data -= delta
    return torch.stack(rows)


def answers(asked: Latents, *cells: dict[str, Gain]) -> Tensor:
    return torch.cat(list(asked.answers(cells)))


def test_measured_is_what_merged_weights_say(base: Pictures) -> None:
    one, other = style(1), style(2)
    keys = base.rack.add(one), base.rack.add(other)
    asked = base.probes(PROMPTS)
    found = disturbance(asked, (keys[0], Gain()), (keys[1], Gain()))
    effect = strength(asked, keys[0], [1.0], 0.2)
    base.rack.close()
    bare, a, b, both = (by_hand(asked, *used) for used in ((), (one,), (other,), (one, other)))
    assert found.share == pytest.approx(float((both - a - b + bare).norm() / (both - bare).norm()), rel=1e-2)
    assert found.effects[0] == pytest.approx(effect.effects[0], rel=1e-3)
    assert effect.effects[0] == pytest.approx(float(((a - bare).norm(dim=1) / bare.norm(dim=1)).mean()), rel=1e-2)
    agreement = torch.cosine_similarity((a - bare).flatten(), (b - bare).flatten(), dim=0)
    assert found.agreement == pytest.approx(float(agreement), abs=1e-2)
    assert list(found.by_timestep) == [799, 499, 199]
    assert (found.nats, effect.nats) == (None, None)


def test_probes_are_the_bare_bases_and_always_the_same(base: Pictures) -> None:
    key = base.rack.add(style(1))
    base.rack.set([{key: Gain(3.0)}])
    asked, again = base.probes(PROMPTS), base.probes(PROMPTS[:1])
    assert asked.latents.shape == (2, 3, 4, 8, 8)
    assert torch.allclose(asked.latents[:1], again.latents, atol=1e-4)
    base.rack.close()
    assert torch.allclose(asked.latents, base.probes(PROMPTS).latents, atol=1e-5)


def test_rows_are_the_same_in_any_batch(base: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    key = base.rack.add(style(1))
    asked = base.probes(PROMPTS)
    whole = answers(asked, {}, {key: Gain(0.5)}, {key: Gain()})
    monkeypatch.setattr(measure_pictures, "MOST_PLACES", 1)
    parts = answers(asked, {}, {key: Gain(0.5)}, {key: Gain()})
    assert whole.shape == (6, 3, 4 * 8 * 8)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert torch.allclose(whole[:, 1:2], answers(asked, {key: Gain(0.5)}), atol=1e-5)


def test_strength_rises_from_zero_and_halves_for_the_double(base: Pictures) -> None:
    keys = base.rack.add(style(1)), base.rack.add(scaled(style(1), 2.0))
    asked = base.probes(PROMPTS)
    single = strength(asked, keys[0], [0, 0.25, 0.5, 0.75, 1], 0.01)
    double = strength(asked, keys[1], [0, 0.125, 0.25, 0.375, 0.5], 0.01)
    assert single.effects[0] == 0
    assert list(single.effects) == sorted(single.effects)
    assert double.effects == pytest.approx(single.effects, abs=1e-5)
    assert single.equal_feel is not None
    assert double.equal_feel == pytest.approx(single.equal_feel / 2, rel=1e-2)


def test_the_text_encoders_part_is_measured(base: Pictures) -> None:
    key = base.rack.add(Adapter({WORDS: style(1, 2.0).pairs[WORDS]}))
    assert strength(base.probes(PROMPTS), key, [0, 1], 0.2).effects[1] > 1e-5


def test_a_picture_is_shown_for_each_cell(base: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_pictures, "PICTURE_STEPS", 1)
    key = base.rack.add(style(1))
    assert [picture.size for picture in base.show([{}, {key: Gain()}], "a cat")] == [(16, 16)] * 2
