"""Texts in one row: each sees itself alone, whatever stands beside it, in whatever order and however long."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainers.families import packing

CPU = torch.device("cpu")


def draws(tokens: int) -> list[Tensor]:
    """query, key, value of one row: (1, heads, tokens, width), 4 heads that share 2."""
    g = torch.Generator().manual_seed(tokens)
    return [torch.randn(1, heads, tokens, 8, generator=g, requires_grad=True) for heads in (4, 2, 2)]


def plain(q: Tensor, k: Tensor, v: Tensor, softcap: float | None, window: int | None) -> Tensor:
    """The formula, written out: (1, H, T, D) -> (1, T, H, D)."""
    k, v = (x.repeat_interleave(2, 1) for x in (k, v))
    scores = q @ k.mT * 0.3
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    back = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
    hidden = (back < 0) | (back >= (window or 1000))
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize(("softcap", "window"), [(None, None), (None, 3), (2.0, None), (2.0, 3)])
def test_each_text_gets_what_it_gets_alone(softcap: float | None, window: int | None) -> None:
    row = packing.packed([3, 7, 3, 1, 7], CPU)
    q, k, v = draws(21)
    told = {"scaling": 0.3, "softcap": softcap, "sliding_window": window}
    got, _ = packing.attend(nn.Module(), q, k, v, None, pieces=row.extras["pieces"], **told)
    ends = [7, 14, 17, 20, 21]
    cuts = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
    wanted = torch.cat([plain(*(x[:, :, cut] for x in (q, k, v)), softcap, window) for cut in cuts], 1)
    assert torch.allclose(got, wanted, atol=1e-6)
    slope = torch.randn_like(got)
    for a, b in zip(*(torch.autograd.grad(y, (q, k, v), slope) for y in (got, wanted)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_gives_the_same_up_to_its_rounding(autocast: bool, window: int | None) -> None:
    """There the formula and its gradient are written out: of two texts of 7 tokens and one of 3."""
    q, k, v = draws(17)
    pieces = packing.packed([7, 7, 3], CPU).extras["pieces"]
    cuts = [slice(0, 7), slice(7, 14), slice(14, 17)]
    wanted = torch.cat([plain(*(x[:, :, cut] for x in (q, k, v)), None, window) for cut in cuts], 1)
    halves = (q, k, v) if autocast else (x.bfloat16() for x in (q, k, v))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got, _ = packing.attend(nn.Module(), *halves, None, pieces=pieces, scaling=0.3, sliding_window=window)
    assert got.dtype == torch.bfloat16
    slope = torch.randn_like(wanted)
    grads = [torch.autograd.grad(y, (q, k, v), slope.to(y.dtype)) for y in (got, wanted)]
    for a, b in [(got, wanted), *zip(*grads, strict=True)]:
        assert float((a - b).detach().norm()) <= 0.01 * float(b.detach().norm())


def test_a_packed_row_goes_from_the_longest_on_and_begins_anew() -> None:
    row = packing.packed([2, 4, 2], CPU)
    assert row.order == [1, 0, 2]
    assert row.extras["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1]]
    assert row.extras["pieces"] == [packing.Group(1, 4), packing.Group(2, 2)]
    texts = [torch.full((n,), n) for n in (2, 4, 2)]
    assert row.lay(texts, CPU).tolist() == [[4, 4, 4, 4, 2, 2, 2, 2]]


def test_a_padded_batch_has_a_row_for_each() -> None:
    row = packing.padded([2, 3], CPU)
    assert row.lay([torch.tensor([5, 6]), torch.tensor([7, 8, 9])], CPU).tolist() == [[5, 6, 0], [7, 8, 9]]
    assert row.extras["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert row.lay([torch.ones(2, 4), torch.ones(3, 4)], CPU).shape == (2, 3, 4)


def test_without_texts_it_is_the_usual_attention() -> None:
    q, k, v = draws(6)
    module = nn.Module()
    module.num_key_value_groups = 2
    for softcap in (None, 2.0):
        got, _ = packing.attend(module, q, k, v, None, scaling=0.3, softcap=softcap)
        assert torch.allclose(got, plain(q, k, v, softcap, None), atol=1e-6)
        seen = packing.band(6, 3, CPU)
        got, _ = packing.attend(module, q, k, v, seen, scaling=0.3, softcap=softcap)
        assert torch.allclose(got, plain(q, k, v, softcap, 3), atol=1e-6)
