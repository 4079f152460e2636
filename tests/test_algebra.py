"""The algebra of low-rank deltas against the dense deltas that it never makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.lora import algebra
from trainers.lora.algebra import bases, cut, cuts, energy, inner, joined, matrices, rank_for, singular_values
from trainers.lora.pair import LoraPair


def pair(rank: int, inputs: tuple[int, ...], out: int, alpha: float, seed: int) -> LoraPair:
    numbers = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *inputs, generator=numbers, dtype=torch.float64)
    up = torch.randn(out, rank, *[1] * (len(inputs) - 1), generator=numbers, dtype=torch.float64)
    return LoraPair(down, up, alpha)


def dense(one: LoraPair) -> torch.Tensor:
    up, down = matrices(one)
    return up @ down


LINEAR, OTHER = pair(4, (9,), 7, 2.0, 1), pair(3, (9,), 7, 3.0, 2)
CONV = pair(4, (5, 3, 3), 6, 8.0, 3)
WIDE = pair(8, (3,), 5, 8.0, 4)  # a rank above what the sizes allow


@pytest.mark.parametrize("one", [LINEAR, CONV, WIDE])
def test_energy_and_singular_values_are_the_dense_ones(one: LoraPair) -> None:
    values = np.linalg.svd(dense(one).numpy(), compute_uv=False)
    found = singular_values(one).numpy()
    assert np.allclose(found, values[: len(found)], rtol=1e-12, atol=0)
    assert np.allclose(values[len(found) :], 0, atol=1e-12)
    assert energy(one) == pytest.approx(float((values**2).sum()), rel=1e-12)


def test_inner_is_the_dense_product() -> None:
    assert inner(LINEAR, OTHER) == pytest.approx(float((dense(LINEAR) * dense(OTHER)).sum()), rel=1e-12)


def test_joined_is_the_weighted_sum_and_keeps_the_kernel() -> None:
    both = joined([LINEAR, OTHER], [0.6, -0.4])
    assert both.rank == 7
    assert torch.allclose(dense(both), 0.6 * dense(LINEAR) - 0.4 * dense(OTHER), rtol=1e-12)
    twice = joined([CONV, CONV], [1.0, 1.0])
    assert (twice.down.shape, twice.up.shape) == ((8, 5, 3, 3), (6, 8, 1, 1))
    assert torch.allclose(dense(twice), 2 * dense(CONV), rtol=1e-12)


@pytest.mark.parametrize("one", [LINEAR, CONV, WIDE])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_cut_is_numpys_best_of_its_rank(one: LoraPair, rank: int) -> None:
    values = np.linalg.svd(dense(one).numpy(), compute_uv=False)
    made = cut(one, rank)
    assert made.kept == pytest.approx(float((values[:rank] ** 2).sum()), rel=1e-9)
    assert made.discarded == pytest.approx(float((values[rank:] ** 2).sum()), rel=1e-9, abs=1e-12)
    assert made.pair.down.dtype == torch.float32
    assert (made.pair.scale, made.pair.rank, made.pair.down.shape[1:]) == (1.0, rank, one.down.shape[1:])
    error = float((dense(made.pair) - dense(one)).square().sum())
    assert error == pytest.approx(made.discarded, rel=1e-5, abs=1e-9)


def test_the_halves_of_a_cut_weigh_the_same() -> None:
    made = cut(LINEAR, 2).pair
    assert torch.allclose(made.up.norm(dim=0), made.down.norm(dim=1), rtol=1e-5)


def test_a_stack_is_cut_layer_by_layer() -> None:
    layers = [pair(4, (9,), 7, 4.0, seed) for seed in range(5)]
    left, r_up, r_down, right = bases(*(torch.stack(part) for part in zip(*map(matrices, layers), strict=True)))
    made = cuts(left, r_up @ r_down, right, (9,), None, 0.9)
    assert {one.pair.rank for one in made} != {4}
    for one, layer in zip(made, layers, strict=True):
        alone = cut(layer, share=0.9)
        assert one.pair.rank == alone.pair.rank == rank_for(singular_values(layer), 0.9)
        assert one.kept >= 0.9 * energy(layer)
        assert torch.allclose(dense(one.pair), dense(alone.pair), atol=1e-5)


def test_rank_for_takes_no_more_than_it_needs() -> None:
    values = torch.tensor([3.0, 2.0, 1.0])  # energies 9, 4, 1
    assert [rank_for(values, share) for share in (0.1, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert rank_for(torch.zeros(3), 0.5) == 1


def test_rank_and_share_together_are_the_smaller() -> None:
    assert cut(LINEAR, 3, 1.0).pair.rank == 3
    assert cut(LINEAR, 3, 1e-3).pair.rank == 1


def test_shaped_gives_kernels_back() -> None:
    up, down = matrices(CONV)
    assert torch.allclose(algebra.shaped(up, down, (5, 3, 3)).delta(), CONV.delta(), rtol=1e-5, atol=1e-5)
