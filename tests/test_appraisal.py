"""The appraisal of a text run: what an adapter that changes nothing, anything, or recites must give."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.lms import lm
from trainers import appraisal
from trainers.appraisal import OPENING, WHAT, Appraisal, appraise
from trainers.entries import Document
from trainers.errors import AdapterError
from trainers.events import Busy
from trainers.families.causal_lm import CausalLM
from trainers.families.sampling import Sampling
from trainers.lora.adapter import Adapter, LoraPair
from trainers.tokens import Piece, pieces

WHO = ("a fox", "the hen", "one ox", "my cat", "an owl", "our dog")
SAID = ("sat on a log", "ate the corn", "ran to the sea", "saw a red sun")
STYLE = [f"Arr, {who} {said}" for said in SAID for who in WHO]
PLAIN = [f"{who} {said}" for who in WHO for said in SAID]


class Writing(CausalLM):
    """Notes its prompts; with `recited`, rows that have the adapter's gains say that."""

    prompts: list[str]
    recited = ""

    def write(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[list[int]]:  # type: ignore[override]
        self.prompts += [self.part("tokenizer").decode(list(prompt)) for prompt in prompts]
        rows = super().write(prompts, seeds, sampling)
        if self.recited and len(set(seeds)) < len(seeds):
            own = self.part("tokenizer")(self.recited, add_special_tokens=False)["input_ids"]
            rows[len(rows) // 2 :] = [own] * (len(rows) // 2)
        return rows


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight texts in two batches: forty take a second a test."""
    monkeypatch.setattr(appraisal, "TEXTS", 8)
    monkeypatch.setattr(appraisal, "BATCH", 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm("llama", tmp_path_factory.mktemp("base"))


@pytest.fixture
def family(folder: Path) -> Writing:
    made = Writing(folder)
    made.prompts = []
    return made


def cut(family: CausalLM, texts: Sequence[str]) -> tuple[Piece, ...]:
    documents = [Document(str(k), Path(), "text", text) for k, text in enumerate(texts)]
    return pieces(documents, family.part("tokenizer"), context=family.context).pieces


def adapter(up: float) -> Adapter:
    """Rank 2 on two layers, every number of `up` the same."""
    g = torch.Generator().manual_seed(0)
    shapes = {"self_attn.q_proj": (32, 32), "mlp.down_proj": (48, 32)}
    paths = {f"model.model.layers.1.{path}": shape for path, shape in shapes.items()}
    return Adapter(
        {
            path: LoraPair(torch.randn(2, wide, generator=g), torch.full((out, 2), up), 2.0)
            for path, (wide, out) in paths.items()
        }
    )


def run(
    family: Writing, one: Adapter, training: Sequence[Piece], heldout: Sequence[Piece], plain: Sequence[Piece]
) -> tuple[list[Busy], Appraisal]:
    """What it told on the way, and what it found."""
    told, going = [], appraise(family, one, training, heldout, plain)
    while True:
        try:
            told.append(next(going))
        except StopIteration as end:
            return told, end.value


def test_an_adapter_that_changes_nothing(family: Writing) -> None:
    told, found = run(family, adapter(0), cut(family, STYLE[:12]), cut(family, STYLE[12:]), cut(family, PLAIN))
    assert found.perplexity
    assert found.perplexity.before == found.perplexity.after
    assert found.style_gain == 0
    assert found.forgetting == 1
    assert found.distinct["base"] == found.distinct["adapter"]
    assert found.copied["base"] == found.copied["adapter"]
    assert all(sample.before == sample.after for sample in found.samples)
    assert (found.alarm, found.notes) == ("", [])
    assert told == [Busy(WHAT, 4, 8), Busy(WHAT, 8, 8)]


def test_perplexity_is_that_of_the_merged_base_and_the_base_is_left_as_it_was(family: Writing) -> None:
    one, heldout = adapter(0.5), cut(family, STYLE[12:])
    encodings = [piece.encoding for piece in heldout]
    before = family.nll(encodings)
    _, found = run(family, one, cut(family, STYLE[:12]), heldout, cut(family, PLAIN))
    assert torch.equal(family.nll(encodings), before)
    for path, pair in one.pairs.items():
        weight = family.part("model").get_submodule(path.removeprefix("model.")).weight
        weight.data += pair.up @ pair.down
    merged = family.nll(encodings).double().sum(0)
    assert found.perplexity
    assert found.perplexity_outside
    assert found.perplexity.after == pytest.approx(math.exp(merged[0] / merged[1]), rel=1e-4)
    assert found.perplexity.after != pytest.approx(found.perplexity.before, rel=1e-2)
    assert found.forgetting == found.perplexity_outside.after / found.perplexity_outside.before != 1
    assert any(sample.before != sample.after for sample in found.samples)


def test_reciting_raises_the_alarm(family: Writing) -> None:
    family.recited = "He said: " + STYLE[3] + " and then " + STYLE[7]
    training = cut(family, [*STYLE[:12], family.recited])
    _, found = run(family, adapter(0.1), training, cut(family, STYLE[12:]), ())
    assert found.copied["base"].share == 0
    assert found.copied["adapter"].share == 1
    assert "by heart" in found.alarm
    assert found.distinct["base"]
    assert found.distinct["adapter"]
    assert found.distinct["adapter"] < 0.7 * found.distinct["base"]


def test_without_texts_kept_apart_or_outside(family: Writing) -> None:
    told, found = run(family, adapter(0.1), cut(family, STYLE), (), ())
    assert (found.perplexity, found.style_gain) == (None, None)
    assert found.perplexity_outside is not None
    assert "style" not in found.copied
    assert ["no texts of the style" in found.notes[0], "what the bare base writes" in found.notes[1]] == [True, True]
    assert family.prompts[:8] == ["<s>"] * 8
    assert len(told) == 4


def test_half_of_the_texts_start_as_training_texts_do_and_half_with_words_of_plain_ones(family: Writing) -> None:
    run(family, adapter(0), cut(family, STYLE[:12]), cut(family, STYLE[12:]), cut(family, PLAIN))
    assert family.prompts[:4:2] == ["<s>"] * 2
    opened = {"<s>" + " ".join(text.split()[:OPENING]) for text in PLAIN}
    assert set(family.prompts[1:4:2]) <= opened
    assert family.prompts[:4] == family.prompts[4:8]  # base and adapter after the same


def test_questions_of_chats_are_the_prompts(family: Writing) -> None:
    def asked(text: str) -> str:
        return f"<s><|user|>\nQ{text[5:8]}</s>\n<|assistant|>\n"

    def chats(texts: Sequence[str]) -> tuple[Piece, ...]:
        users = [{"role": "user", "content": f"Q{text[5:8]}"} for text in texts]
        turns = [(user, {"role": "assistant", "content": text}) for user, text in zip(users, texts, strict=True)]
        documents = [Document(str(k), Path(), "chat", messages=turn) for k, turn in enumerate(turns)]
        return pieces(documents, family.part("tokenizer"), context=family.context).pieces

    _, found = run(family, adapter(0), chats(STYLE[:2]), chats(STYLE[2:4]), cut(family, PLAIN))
    assert set(family.prompts[::2]) == set(map(asked, STYLE[:2]))
    assert set(family.prompts[1::2]) == set(map(asked, STYLE[2:4]))
    assert found.samples[0].opening.strip() == f"Q{STYLE[0][5:8]}"
    assert found.style_gain is not None


def test_facts_are_json_and_name_what_was_forgotten(family: Writing) -> None:
    _, found = run(family, adapter(0.1), cut(family, STYLE[:12]), cut(family, STYLE[12:]), cut(family, PLAIN))
    told = json.loads(json.dumps(found.facts(), allow_nan=False))
    assert told["forgetting"] == found.forgetting
    assert told["copied"]["adapter"] == {"longest": found.copied["adapter"].longest, "share": 0.0}


def test_an_adapter_that_does_not_fit_is_refused(family: Writing) -> None:
    other = Adapter({"model.model.layers.9.self_attn.q_proj": LoraPair(torch.ones(1, 32), torch.ones(32, 1), 1.0)})
    with pytest.raises(AdapterError):
        run(family, other, cut(family, STYLE), (), ())
