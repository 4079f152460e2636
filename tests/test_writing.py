"""The tests of trainers/families/writing.py: texts of a batch don't know of each other; draws are from the softmax."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import lms
from trainers import samples
from trainers.errors import ConfigError
from trainers.families import writing
from trainers.families.writing import Sampling, write
from trainers.lora import fit
from trainers.lora.adapter import Adapter
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair
from trainers.lora.rack import Rack

STARTS = ("Anna found", "On Monday, Rose walked to the market and", "My", "It snowed all")
EACH = (Sampling(25), Sampling(25, temperature=0), Sampling(9, 1.0, 1.0, 20, 1.3), Sampling(25, top_p=0.5))


@pytest.fixture(scope="module")
def lm() -> tuple[Any, Any]:
    folder = samples.base_folder("tiny-lm")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def prompts(lm: tuple[Any, Any]) -> list[list[int]]:
    return [lm[1](text)["input_ids"] for text in STARTS]


@pytest.fixture
def rack(lm: tuple[Any, Any]) -> Iterator[Rack]:
    """The model with two adapters of random numbers resident."""
    with Rack({"model": lm[0]}) as rack:
        for seed in (1, 2):
            g = torch.Generator().manual_seed(seed)
            pairs = {
                name: LoraPair(torch.randn(2, i, generator=g) * 0.3, torch.randn(o, 2, generator=g) * 0.3, 2.0)
                for name, (o, i) in fit.shapes({"model": lm[0]}).items()
                if name.endswith(("q_proj", "o_proj"))
            }
            rack.add(Adapter(pairs))
        yield rack


def test_a_row_alone_and_in_a_batch_gives_the_same_text(lm: tuple[Any, Any], prompts: list[list[int]]) -> None:
    together = write(*lm, prompts, [7, 8, 9, 7], EACH)
    alone = [write(*lm, [prompts[k]], [(7, 8, 9, 7)[k]], EACH[k])[0] for k in range(4)]
    assert together == alone
    assert all(len(row) > 4 for row in together)


def test_a_row_with_gains_of_its_own_too(lm: tuple[Any, Any], prompts: list[list[int]], rack: Rack) -> None:
    one, two = rack.resident
    cells = [{one: Gain(1.0)}, {two: Gain(0.7)}, {one: Gain(-0.5), two: Gain(1.0)}, {}]
    rack.set(cells)
    together = write(*lm, prompts, [1, 1, 1, 1], EACH)
    for k, cell in enumerate(cells):
        rack.set([cell])
        assert write(*lm, [prompts[k]], [1], EACH[k]) == [together[k]]
    rack.set([{}])
    assert write(*lm, prompts, [1, 1, 1, 1], EACH)[:3] != together[:3], "the gains do nothing"


def test_the_seed_decides_and_greedy_minds_none(lm: tuple[Any, Any], prompts: list[list[int]]) -> None:
    rows = write(*lm, [prompts[0]] * 4, [1, 1, 2, 3], [EACH[0]] * 4)
    assert rows[0] == rows[1]
    assert len({tuple(row) for row in rows}) == 3
    greedy = write(*lm, [prompts[0]] * 2, [1, 2], Sampling(12, temperature=0))
    ids = torch.tensor([prompts[0]])
    for token in greedy[0]:
        with torch.no_grad():
            assert lm[0](ids).logits[0, -1].argmax() == token
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    assert greedy[0] == greedy[1]


def test_draws_are_from_the_softmax() -> None:
    logits, n = torch.tensor([2.0, 0.0, 1.0, -1.0]), 4000
    choice = writing.Choice([Sampling(top_p=1.0, temperature=2.0)] * n, range(n), [0] * n, 1)
    drawn = choice(torch.zeros(n, 1, dtype=torch.long), logits.repeat(n, 1)).argmax(1)
    shares = drawn.bincount(minlength=4) / n
    torch.testing.assert_close(shares, (logits / 2).softmax(0), atol=0.03, rtol=0)
    one = writing.Choice([Sampling(top_p=1.0, temperature=2.0)], [0], [0], 0)  # one row, place after place
    places = [int(one(torch.zeros(1, place, dtype=torch.long), logits[None].clone()).argmax()) for place in range(n)]
    torch.testing.assert_close(
        torch.tensor(places).bincount(minlength=4) / n, (logits / 2).softmax(0), atol=0.03, rtol=0
    )


@pytest.mark.parametrize("sampling", [Sampling(top_k=2, top_p=1.0, temperature=5.0), Sampling(top_p=0.8)])
def test_only_likely_tokens_are_drawn(sampling: Sampling) -> None:
    n = 300
    logits = torch.tensor([3.0, 1.0, 2.9, 0.0]).repeat(n, 1)
    drawn = writing.Choice([sampling] * n, range(n), [0] * n, 1)(torch.zeros(n, 1, dtype=torch.long), logits).argmax(1)
    assert set(drawn.tolist()) == {0, 2}


def test_the_penalty_minds_the_text_and_not_the_padding() -> None:
    penalised = Sampling(temperature=0, repetition_penalty=2.0)
    choice = writing.Choice([penalised, penalised, Sampling(temperature=0)], [0] * 3, [2, 0, 0], 3)
    ids = torch.tensor([[0, 0, 1], [0, 0, 1], [0, 0, 1]])
    scores = choice(ids, torch.tensor([[4.0, 4.0, -4.0]] * 3))
    assert scores.tolist() == [[4, 2, -4], [2, 2, -4], [4, 4, -4]]


def test_it_ends_at_every_end_token_and_at_each_rows_most(lm: tuple[Any, Any], prompts: list[list[int]]) -> None:
    model, tokenizer = lm
    dot = tokenizer.convert_tokens_to_ids(".")
    free = write(model, tokenizer, prompts, [0] * 4, [Sampling(k, temperature=0) for k in (3, 5, 40, 1)])
    assert [len(row) for row in free[:2] + free[3:]] == [3, 5, 1]
    ends, model.generation_config.eos_token_id = model.generation_config.eos_token_id, [tokenizer.eos_token_id, dot]
    try:
        cut = write(model, tokenizer, [prompts[2]], [0], Sampling(40, temperature=0))[0]
    finally:
        model.generation_config.eos_token_id = ends
    assert cut == free[2][: free[2].index(dot)]


def test_tokens_are_told_as_they_come_and_false_stops_all(lm: tuple[Any, Any], prompts: list[list[int]]) -> None:
    told: list[list[int]] = [[], [], [], []]
    rows = write(*lm, prompts, [0] * 4, EACH, lambda row, token: told[row].append(token))
    assert told == rows
    count = 0

    def stop(row: int, token: int) -> bool:
        nonlocal count
        count += 1
        return count < 6

    assert write(*lm, prompts, [0] * 4, EACH, stop) == [rows[0][:2], rows[1][:2], rows[2][:1], rows[3][:1]]


def test_the_models_own_proposals_and_mode_stay_out_and_stay(lm: tuple[Any, Any], prompts: list[list[int]]) -> None:
    model = lm[0]
    plain = write(*lm, prompts, [0] * 4, EACH)
    before = model.generation_config
    before.repetition_penalty, before.top_k = 5.0, 1
    model.train()
    try:
        assert write(*lm, prompts, [0] * 4, EACH) == plain
        assert model.generation_config is before
        assert model.training
    finally:
        before.repetition_penalty, before.top_k = None, None
        model.eval()


def test_what_cant_be_written_is_told_at_once(lm: tuple[Any, Any], prompts: list[list[int]]) -> None:
    with pytest.raises(ConfigError) as caught:
        write(*lm, [prompts[0], [], [5] * 512], [0] * 3, Sampling(0, -1.0, 1.5, -1, 0.0))
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
        "max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "prompt 2", "prompt 3",
    ]  # fmt: skip
    assert write(*lm, [], [], Sampling()) == []


@pytest.mark.parametrize("kind", lms.KINDS)
def test_every_architecture_pads_alike(kind: str, tmp_path: Path) -> None:
    """GPT-2 has learned positions, every other layer of Gemma 2 sees 8 tokens only."""
    folder = lms.lm(kind, tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = [[5, 9, 40] * 5, [7], [8, 80, 90, 11]]
    together = write(model, tokenizer, prompts, [1, 2, 3], Sampling(12))
    assert together == [write(model, tokenizer, [p], [k], Sampling(12))[0] for k, p in enumerate(prompts, 1)]


def test_the_context_bounds_a_row(lm: tuple[Any, Any], prompts: list[list[int]]) -> None:
    long = (prompts[1] * 60)[:508]
    rows = write(*lm, [long, prompts[0]], [0, 0], Sampling(30, temperature=0))
    assert len(rows[0]) <= writing.room(long, Sampling(30), 512) == 4
    assert rows[1] == write(*lm, [prompts[0]], [0], Sampling(30, temperature=0))[0]
