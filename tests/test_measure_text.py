"""Strength and disturbance on language models in miniature: equal to merged weights; probes of the base's own way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from studio.look import measure, measure_text
from studio.look.measure import disturbance, strength
from studio.look.measure_text import OWN, Contexts, Texts
from tests.lms import lm
from trainers.errors import AdapterError, ConfigError
from trainers.families.causal_lm import CausalLM
from trainers.lora.adapter import Adapter, content_digest
from trainers.lora.fit import is_transposed, shapes
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair

PROMPTS = ("the rain", "in the end, the sea")


def style(family: CausalLM, seed: int, size: float = 0.1) -> Adapter:
    """Random changes of every linear layer of the first decoder layer."""
    g = torch.Generator().manual_seed(seed)
    found = {path: shape for path, shape in shapes(family.parts()).items() if ".0." in path}
    return Adapter({
        path: LoraPair(torch.randn(2, into, generator=g), torch.randn(out, 2, generator=g) * size, 2.0)
        for path, (out, into) in found.items()
    })  # fmt: skip


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return CausalLM(lm(request.param, tmp_path_factory.mktemp("lms") / request.param))


@pytest.fixture
def base(family: CausalLM) -> Iterator[Texts]:
    made = Texts(family)
    with made.rack:
        yield made


@torch.no_grad()
def by_hand(asked: Contexts, *styles: Adapter) -> Tensor:
    """(positions, V) in float64: logits with the dense deltas added to the weights, centred."""
    model = asked.base.family.part("model")
    modules = {f"model.{name}": module for name, module in model.named_modules()}
    changed = [(modules[path], pair.delta()) for adapter in styles for path, pair in adapter.pairs.items()]
    for module, delta in changed:
        module.weight.data += delta.T if is_transposed(module) else delta
    said = torch.cat([model(input_ids=ids[None]).logits[0] for ids in asked.ids]).double()
    for module, delta in changed:
        module.weight.data -= delta.T if is_transposed(module) else delta
    return said - said.mean(1, keepdim=True)


def test_measured_is_what_merged_weights_say(base: Texts) -> None:
    one, other = style(base.family, 1), style(base.family, 2)
    keys = base.rack.add(one), base.rack.add(other)
    asked = base.probes(PROMPTS)
    found = disturbance(asked, (keys[0], Gain()), (keys[1], Gain(0.5)))
    effect = strength(asked, keys[0], [0.5, 1.0], 0.2)
    base.rack.close()
    half = Adapter({path: LoraPair(p.down, p.up, p.alpha / 2) for path, p in other.pairs.items()})
    bare, a, b, both = (by_hand(asked, *used) for used in ((), (one,), (half,), (one, half)))
    assert found.share == pytest.approx(float((both - a - b + bare).norm() / (both - bare).norm()), rel=1e-3)
    agreement = torch.cosine_similarity((a - bare).flatten(), (b - bare).flatten(), dim=0)
    assert found.agreement == pytest.approx(float(agreement), abs=1e-4)
    relative = float(((a - bare).norm(dim=1) / bare.norm(dim=1)).mean())
    assert found.effects[0] == pytest.approx(relative, rel=1e-4)
    assert effect.effects[1] == pytest.approx(relative, rel=1e-4)
    p, q = a.log_softmax(1), bare.log_softmax(1)
    apart = float((p.exp() * (p - q)).sum(1).mean())
    assert found.nats is not None
    assert effect.nats is not None
    assert (found.nats[0], effect.nats[1]) == pytest.approx((apart, apart), rel=1e-3)
    assert 0 < effect.nats[0] < effect.nats[1]
    assert found.by_timestep == {}


def test_probes_are_the_bare_bases_own_way_on(base: Texts) -> None:
    key = base.rack.add(style(base.family, 1))
    base.rack.set([{key: Gain(3.0)}])
    asked = base.probes(PROMPTS)
    tokens = base.family.part("tokenizer")(PROMPTS[0])["input_ids"]
    own = asked.ids[0].tolist()
    assert own[: len(tokens)] == tokens
    assert len(tokens) <= len(own) <= len(tokens) + OWN
    said = base.family.logits(asked.ids[0][None])[0]  # probes leave the rack at nothing
    assert own[len(tokens) :] == said.argmax(1)[len(tokens) - 1 : -1].tolist()


def test_answers_are_the_same_in_any_pieces(base: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    key = base.rack.add(style(base.family, 1))
    asked, cells = base.probes(PROMPTS), [{}, {key: Gain()}]
    whole = torch.cat(list(asked.answers(cells)))
    monkeypatch.setattr(measure_text, "MOST_NUMBERS", 1)
    parts = list(asked.answers(cells))
    assert len(parts) == len(whole) == sum(map(len, asked.ids))
    assert torch.equal(torch.cat(parts), whole)
    assert float(whole.mean(2).abs().max()) < 1e-12


def test_a_line_is_shown_for_each_cell(base: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    key = base.rack.add(style(base.family, 1, 0.5))
    cells = [{}, {key: Gain()}, {}]
    lines = base.show(cells, PROMPTS[0])
    assert lines[0] == lines[2] != lines[1]
    assert all(line.startswith(PROMPTS[0]) for line in lines)
    monkeypatch.setattr(measure_text, "MOST_AT_ONCE", 1)
    assert base.show(cells, PROMPTS[0]) == lines


def test_prompts_that_are_too_long_are_all_named(base: Texts) -> None:
    with pytest.raises(ConfigError, match="too long") as caught:
        base.probes(["the " * 60, PROMPTS[0], "a " * 60])
    assert len(caught.value.faults) == 2


def test_a_base_is_opened_by_its_kind(family: CausalLM) -> None:
    made = style(family, 1)
    base, keys = measure.on_base(str(family.folder), {"pirate": made}, "cpu")
    assert (base.kind, keys, len(base.digest())) == ("text", [content_digest(made)], 64)
    with pytest.raises(AdapterError) as caught:
        measure.on_base(str(family.folder), {"ink": Adapter({"unet.conv_in": next(iter(made.pairs.values()))})}, "cpu")
    assert caught.value.faults == ("ink: is an adapter for pictures",)
