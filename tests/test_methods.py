"""Each method against its formula, written out in numpy on dense deltas; and the table that names them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from studio.blend.factored import Factored
from studio.blend.methods import METHODS, Group, Options, Target, coins, told_apart, trimmed
from studio.blend.span import stored
from trainers.lora.algebra import matrices
from trainers.lora.pair import LoraPair

DOCS = Path(__file__).resolve().parents[1] / "docs/methods.md"
PATH = "unet.mid_block.attentions.0.proj_in"
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def pair(rank: int, seed: int) -> LoraPair:
    numbers = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, 11, generator=numbers, dtype=torch.float64)
    return LoraPair(down, torch.randn(13, rank, generator=numbers, dtype=torch.float64), rank * 0.7)


A, B = pair(4, 0), pair(3, 1)


def dense(one: LoraPair) -> Matrix:
    up, down = matrices(one)
    return np.asarray((up @ down).numpy())


def blended(pairs: list[LoraPair], weights: list[float], method: str, density: float = 1.0, seed: int = 0) -> Matrix:
    layers = Factored([{PATH: one} for one in pairs]).blend(weights, method, density=density, seed=seed)
    return dense(layers[PATH].cut.pair)


def left_vectors(*deltas: Matrix) -> Matrix:
    """U of the SVD of the deltas side by side, as far as its singular values aren't 0."""
    u, s, _ = np.linalg.svd(np.hstack(deltas), full_matrices=False)
    return np.asarray(u[:, s > 1e-10 * s[0]])


def trim(delta: Matrix, density: float) -> Matrix:
    """The largest entries in the basis of the delta's own left singular vectors."""
    u = left_vectors(delta)
    rows = u.T @ delta
    limit = np.sort(np.abs(rows), axis=None)[-math.ceil(density * rows.size)]
    return np.asarray(u @ np.where(np.abs(rows) >= limit, rows, 0))


def near(one: LoraPair, by: float, seed: int) -> LoraPair:
    """A copy whose every number is off by about `by` of its size."""
    numbers = torch.Generator().manual_seed(seed)
    off = 1 + by * torch.randn(one.up.shape, generator=numbers, dtype=torch.float64)
    return LoraPair(one.down, one.up * off, one.alpha)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("weights", [[0.6, 0.4], [1.0, -0.5]])
def test_ties_is_trim_elect_and_the_sum_of_those_that_agree(weights: list[float], density: float) -> None:
    parts = [(w, dense(one)) for w, one in zip(weights, (A, B), strict=True)]
    u = left_vectors(*(w * delta for w, delta in parts))
    votes = [w * u.T @ trim(delta, density) for w, delta in parts]
    merged = np.zeros_like(votes[0])
    for place in np.ndindex(*merged.shape):
        sign = np.sign(sum(vote[place] for vote in votes))
        merged[place] = sum(vote[place] for vote in votes if np.sign(vote[place]) == sign)
    assert np.allclose(blended([A, B], weights, "ties", density), u @ merged, atol=1e-12)


def test_ties_counts_a_missing_module_as_zeros() -> None:
    zero = LoraPair(B.down, torch.zeros_like(B.up), B.alpha)
    other = {"unet.conv_in": B}
    missing = Factored([{PATH: A}, other]).blend([0.6, 0.4], "ties", density=0.5)[PATH].cut.pair
    assert np.allclose(dense(missing), blended([A, zero], [0.6, 0.4], "ties", 0.5), atol=1e-12)


def test_magnitude_prune_is_the_sum_of_what_was_trimmed() -> None:
    wanted = 0.6 * trim(dense(A), 0.3) - 2 * trim(dense(B), 0.3)
    assert np.allclose(blended([A, B], [0.6, -2], "magnitude-prune", 0.3), wanted, atol=1e-12)


def test_dare_drops_and_rescales() -> None:
    u = left_vectors(dense(A))
    kept = u.T @ blended([A], [1.0], "dare", 0.4) / (u.T @ dense(A))
    assert np.allclose(kept * (kept - 1 / 0.4), 0, atol=1e-9)  # each entry is gone, or 1 / 0.4 times itself
    assert 0 < np.isclose(kept, 0, atol=1e-9).mean() < 1


def test_dare_is_the_sum_on_average_and_a_function_of_its_seed() -> None:
    draws = np.stack([blended([A, B], [0.6, 0.4], "dare", 0.5, seed) for seed in range(300)])
    spread = draws.std(0) / math.sqrt(len(draws))
    far = np.abs(draws.mean(0) - 0.6 * dense(A) - 0.4 * dense(B)) / spread
    assert far.max() < 5  # standard errors
    assert far.mean() < 1.2
    assert np.array_equal(draws[7], blended([A, B], [0.6, 0.4], "dare", 0.5, 7))
    assert not np.allclose(draws[0], draws[1])


def test_coins_differ_by_seed_path_and_adapter_and_fall_as_often_as_asked() -> None:
    had = coins(Options(0.3, 1), "unet.a", "5 0", (200, 50))
    assert torch.equal(had, coins(Options(0.3, 1, (1, 2)), "unet.a", "5 0", (300, 50))[:200])
    for seed, path, name in ((2, "unet.a", "5 0"), (1, "unet.b", "5 0"), (1, "unet.a", "5 1")):
        assert not torch.equal(had, coins(Options(0.3, seed), path, name, (200, 50)))
    assert float(had.double().mean()) == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("by", [0.0, 1e-4, 1e-3])
def test_dare_tells_near_copies_apart_whatever_the_order_of_the_files(by: float) -> None:
    pairs, weights = [A, near(A, by, 1), near(A, by, 2)], [0.5, 0.5, 0.7]
    u = left_vectors(dense(A))
    for k in (1, 2):  # with one mask for all, an entry would be gone or twice itself
        kept = u.T @ blended([A, pairs[k]], [0.5, 0.5], "dare", 0.5) / (u.T @ dense(A))
        assert 0.3 < np.isclose(kept, 1, atol=0.2).mean() < 0.7
    had = blended(pairs, weights, "dare", 0.5)
    for order in itertools.permutations(range(3)):
        again = blended([pairs[k] for k in order], [weights[k] for k in order], "dare", 0.5)
        assert np.allclose(had, again, atol=1e-9)


def test_names_are_the_rounded_mark_and_the_place_by_weight_then_by_mark() -> None:
    assert told_apart([0.5, 0.5, -0.7, 0], [7.1, 7.2, 7.3, 9.8]) == ["7 2", "7 1", "7 0", "10 0"]
    assert told_apart([0.5, 0.7], [7.1, 7.2]) == ["7 1", "7 0"]


@pytest.mark.parametrize("method", ["svd", "concat", "ties", "dare", "magnitude-prune"])
@pytest.mark.parametrize("other", [pair(5, 2), near(A, 1e-3, 3)], ids=["another", "near copy"])
def test_an_adapter_whose_weight_goes_to_0_goes_away_with_it(method: str, other: LoraPair) -> None:
    density = 0.4 if "density" in METHODS[method].takes else 1.0
    had = blended([A, B], [0.6, -0.4], method, density)
    for weight in (0.0, 1e-9, -1e-9):
        got = blended([other, A, B], [weight, 0.6, -0.4], method, density)
        assert np.allclose(had, got, rtol=0, atol=1e-8), weight


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_that_stands_alone_counts_with_its_weight(method: str) -> None:
    layers = Factored([{PATH: A, "unet.x": A}, {PATH: B}]).blend([0.05, 1], method)
    assert np.allclose(dense(layers["unet.x"].cut.pair), 0.05 * dense(A), atol=1e-12)


def test_what_another_adapter_weighs_and_holds_changes_nothing_in_what_is_kept_of_one() -> None:
    for method in ("dare", "magnitude-prune"):
        alone = [blended([one], [1.0], method, 0.4) for one in (A, B)]
        assert np.allclose(blended([A, B], [1, -3], method, 0.4), alone[0] - 3 * alone[1], atol=1e-12)


def test_trimmed_counts_within_each_deltas_own_rank() -> None:
    rows = torch.zeros(2, 1, 4, 5)
    rows[0] = torch.arange(1.0, 21).reshape(1, 4, 5)
    rows[1, :, :2] = torch.arange(1.0, 11).reshape(1, 2, 5)  # of rank 2: the other rows are nothing
    assert [int((layer != 0).sum()) for layer in trimmed(rows, 0.5, torch.tensor([[4], [2]]))] == [10, 5]


def test_orthogonal_keeps_every_adapters_singular_values() -> None:
    made = np.linalg.svd(blended([A, B], [0.6, -2], "orthogonal"), compute_uv=False)[:7]
    wanted = [w * np.linalg.svd(dense(p), compute_uv=False)[: p.rank] for w, p in ((0.6, A), (2.0, B))]
    assert np.allclose(made, np.sort(np.concatenate(wanted))[::-1], rtol=1e-9)


def test_orthogonal_is_the_formula_with_polar_factors() -> None:
    def polar(columns: Matrix) -> Matrix:
        p, _, q = np.linalg.svd(columns, full_matrices=False)
        return np.asarray(p @ q)

    parts = [(w, *np.linalg.svd(dense(p), full_matrices=False), p.rank) for w, p in ((0.6, A), (-2.0, B))]
    left = polar(np.hstack([u[:, :r] for _, u, _, _, r in parts]))
    right = polar(np.hstack([v[:r].T for _, _, _, v, r in parts]))
    sizes = np.concatenate([w * s[:r] for w, _, s, _, r in parts])
    assert np.allclose(blended([A, B], [0.6, -2], "orthogonal"), (left * sizes) @ right.T, atol=1e-10)


def test_orthogonal_leaves_what_is_orthogonal_and_averages_what_is_the_same() -> None:
    one = LoraPair(torch.eye(2, 6).double(), torch.eye(5, 2).double() * torch.tensor([3.0, 2.0]), 2.0)
    other = LoraPair(torch.eye(6)[3:5].double(), torch.eye(5)[:, 2:4].double() * torch.tensor([4.0, 1.0]), 2.0)
    assert np.allclose(blended([one, other], [1, 2], "orthogonal"), dense(one) + 2 * dense(other), atol=1e-12)
    assert np.allclose(blended([A, A], [0.5, 2.5], "orthogonal"), 1.5 * dense(A), atol=1e-10)


def test_orthogonal_takes_a_copy_rounded_to_half_precision_for_the_same() -> None:
    copy = LoraPair(A.down.half(), A.up.half(), A.alpha)
    assert np.allclose(blended([A, copy], [1, 1], "orthogonal"), dense(A), rtol=0, atol=0.01 * np.abs(dense(A)).max())


def test_missed_is_the_dense_distance() -> None:
    target = Factored([{PATH: A}]).blend([1.0])[PATH].target
    wanted = float(((dense(A) - dense(B)) ** 2).sum())
    assert target.missed(B) == pytest.approx(wanted, rel=1e-12)
    assert target.missed(A) == pytest.approx(0, abs=1e-12)
    assert target.energy() == pytest.approx(float((dense(A) ** 2).sum()), rel=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_a_group_and_give_orthonormal_targets(name: str) -> None:
    [group] = Factored([{PATH: A, "unet.x": A}, {PATH: B, "unet.x": B}]).groups
    assert isinstance(group, Group)
    target = METHODS[name].target(group, torch.ones(2, 2).double(), Options(0.5, 0, (1, 2)))
    assert isinstance(target, Target)
    for side, width in ((stored(target.left), 13), (stored(target.right), 11)):
        assert side.shape[:2] == (2, width)
        assert torch.allclose(side.mT @ side, torch.eye(side.shape[2]).double(), atol=1e-12)


def test_the_docs_speak_of_every_method_as_the_table_does() -> None:
    text = DOCS.read_text()
    for name, row in METHODS.items():
        for part in (f"| `{name}` |", row.about, row.formula, row.paper):
            assert part in text, f"{name}: docs/methods.md lacks {part!r}"
