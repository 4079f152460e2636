"""Blends against the dense deltas: exact sums, best truncations, and what must not matter: factors, order, weight 0."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from studio.blend import factored
from studio.blend.factored import Factored, Layer
from studio.blend.methods import METHODS
from trainers.errors import AdapterError
from trainers.lora.algebra import matrices
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair, Pairs

SHAPES = {  # path -> (out, in …): linear layers, a convolution, a layer smaller than the ranks
    "unet.down_blocks.0.attentions.0.proj_in": (12, 10),
    "unet.mid_block.attentions.0.proj_in": (12, 10),
    "unet.mid_block.resnets.0.conv1": (8, 5, 3, 3),
    "unet.up_blocks.1.attentions.0.proj_out": (4, 3),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (9, 6),
}
CONV = "unet.mid_block.resnets.0.conv1"
ONE_BY_ONE = "unet.mid_block.attentions.0.proj_in"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


def adapter(rank: int, seed: int, leave_out: tuple[str, ...] = ()) -> Pairs:
    numbers = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=numbers, dtype=torch.float64)

    return {
        path: LoraPair(random(rank, *inputs), random(out, rank, *[1] * (len(inputs) - 1)), rank * (1 + seed) / 3)
        for path, (out, *inputs) in SHAPES.items()
        if path not in leave_out
    }


A, B, C = adapter(4, 0), adapter(3, 1, (TEXT,)), adapter(2, 2, (CONV,))
WEIGHTS = (0.6, -0.4, 1.3)
METHOD_CASES = [(name, 1.0) for name in METHODS] + [
    (name, 0.4) for name, row in METHODS.items() if "density" in row.takes
]


def dense(pair: LoraPair) -> Tensor:
    up, down = matrices(pair)
    return up @ down


def dense_sum(path: str, adapters: tuple[Pairs, ...] = (A, B, C), weights: tuple[float, ...] = WEIGHTS) -> Tensor:
    return sum(
        (w * dense(pairs[path]) for pairs, w in zip(adapters, weights, strict=True) if path in pairs),
        torch.zeros(1, dtype=torch.float64),
    )


def deltas(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    return {path: dense(layer.cut.pair) for path, layer in layers.items()}


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest relative distance of two sets of deltas."""
    assert one.keys() == other.keys()
    return max(float((one[path] - other[path]).norm() / one[path].norm().clamp_min(1e-300)) for path in one)


def turned(pairs: Pairs, seed: int, condition: float | None = None) -> Pairs:
    """The same deltas from other factors: up M, M^-1 down, of any M or of one that is badly conditioned."""
    numbers = torch.Generator().manual_seed(seed)
    made = {}
    for path, pair in pairs.items():
        m = torch.randn(pair.rank, pair.rank, generator=numbers, dtype=torch.float64)
        if condition:
            ones = torch.ones_like(m)  # a shear: every column is far from those before it
            m = ones.triu() + (condition ** (1 / pair.rank) - 1) * ones.triu(1)
        up, down = pair.up.flatten(1) @ m, torch.linalg.solve(m, pair.down.flatten(1))
        made[path] = LoraPair(down.reshape(pair.down.shape), up.reshape(pair.up.shape), pair.alpha)
    return made


@pytest.mark.parametrize("method", ["svd", "concat"])
def test_at_full_rank_it_is_the_dense_sum(method: str) -> None:
    layers = Factored([A, B, C]).blend(WEIGHTS, method)
    assert layers.keys() == SHAPES.keys()
    for path, layer in layers.items():
        assert torch.allclose(
            dense(layer.cut.pair), dense_sum(path), rtol=0, atol=1e-12 * float(dense_sum(path).norm())
        )
        assert layer.cut.pair.down.shape[1:] == SHAPES[path][1:]
        assert layer.cut.kept == pytest.approx(float(dense_sum(path).square().sum()), rel=1e-9)
        assert layer.cut.discarded == pytest.approx(0, abs=1e-18 * layer.cut.kept)
    assert layers[CONV].cut.pair.rank == 7  # C has no such module


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_at_rank_r_its_error_is_that_of_numpys_truncated_svd(rank: int) -> None:
    for path, layer in Factored([A, B, C]).blend(WEIGHTS, rank=rank).items():
        whole = dense_sum(path).numpy()
        u, s, v = np.linalg.svd(whole, full_matrices=False)
        best = float(((whole - (u[:, :rank] * s[:rank]) @ v[:rank]) ** 2).sum())
        error = float((dense(layer.cut.pair) - torch.from_numpy(whole)).square().sum())
        scale = float((whole**2).sum())
        assert error == pytest.approx(best, rel=1e-9, abs=1e-24 * scale)
        assert layer.cut.discarded == pytest.approx(best, rel=1e-9, abs=1e-24 * scale)
        assert layer.target.missed(layer.cut.pair) == pytest.approx(best, rel=1e-9, abs=1e-13 * scale)


def test_energy_decides_the_rank_of_each_layer_and_rank_is_the_ceiling() -> None:
    both = Factored([A, B])
    layers = both.blend([1, 1], share=0.9)
    assert len({layer.cut.pair.rank for layer in layers.values()}) > 1
    for path, layer in layers.items():
        squares = torch.linalg.svdvals(dense_sum(path, (A, B), (1, 1))).square()
        assert layer.cut.kept >= 0.9 * squares.sum() > float(squares[: layer.cut.pair.rank - 1].sum())
    assert max(layer.cut.pair.rank for layer in both.blend([1, 1], rank=2, share=0.9).values()) == 2


@pytest.mark.parametrize(("method", "density"), METHOD_CASES)
def test_how_deltas_are_split_into_factors_changes_nothing(method: str, density: float) -> None:
    had = Factored([A, B, C]).blend(WEIGHTS, method, density=density)
    got = Factored([turned(A, 5), turned(B, 6), turned(C, 7)]).blend(WEIGHTS, method, density=density)
    assert apart(deltas(had), deltas(got)) < 1e-8


@pytest.mark.parametrize("size", [1e4, 1e8])
def test_factors_as_bad_as_may_be_lose_no_digits_that_matter(size: float) -> None:
    bad = turned(A, 5, size)
    for path, layer in Factored([bad, B]).blend([0.6, -0.4], rank=2).items():
        whole = dense_sum(path, (bad, B), (0.6, -0.4))
        squares = torch.linalg.svdvals(whole).square()
        assert layer.cut.kept == pytest.approx(float(squares[:2].sum()), rel=1e-14 * size)
        assert layer.cut.kept + layer.cut.discarded == pytest.approx(float(squares.sum()), rel=1e-14 * size)
        assert layer.target.missed(layer.cut.pair) == pytest.approx(layer.cut.discarded, rel=1e-12 * size, abs=1e-9)


@pytest.mark.parametrize(("method", "density"), METHOD_CASES)
def test_the_order_of_the_files_changes_nothing(method: str, density: float) -> None:
    had = deltas(Factored([A, B, C]).blend(WEIGHTS, method, density=density))
    for order in itertools.permutations(range(3)):
        files, weights = [(A, B, C)[k] for k in order], [WEIGHTS[k] for k in order]
        assert apart(had, deltas(Factored(files).blend(weights, method, density=density))) < 1e-8


@pytest.mark.parametrize("method", METHODS)
def test_weights_1_and_0_give_back_the_adapter(method: str) -> None:
    layers = Factored([A, B]).blend([1, 0], method)
    assert apart({path: dense(pair) for path, pair in A.items()}, deltas(layers)) < 1e-12
    if method == "concat":
        for path, layer in layers.items():
            pair = layer.cut.pair
            assert torch.equal(pair.down, A[path].down)
            assert torch.equal(pair.up, A[path].up)
            assert pair.alpha == pytest.approx(A[path].alpha, rel=1e-15)


@pytest.mark.parametrize(("method", "density"), METHOD_CASES)
def test_an_adapter_of_weight_0_is_as_if_it_were_not_there(method: str, density: float) -> None:
    had = Factored([A, C]).blend([0.5, 2], method, density=density)
    got = Factored([A, B, C]).blend([0.5, 0, 2], method, density=density)
    assert apart(deltas(had), deltas(got)) < 1e-9


@pytest.mark.parametrize(("method", "density"), METHOD_CASES)
def test_turning_all_weights_around_turns_the_blend_around(method: str, density: float) -> None:
    both = Factored([A, B])
    had, got = (both.blend([0.6 * sign, 0.9 * sign], method, density=density) for sign in (1, -1))
    assert apart(deltas(had), {path: -delta for path, delta in deltas(got).items()}) < 1e-9


def test_new_weights_need_no_new_factorisation(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Factored([A, B])
    monkeypatch.setattr(factored, "spanned", None)
    for weights in ((1.0, 0.0), (0.3, -2.0)):
        layers = both.blend(weights)
        for path, layer in layers.items():
            assert torch.allclose(dense(layer.cut.pair), dense_sum(path, (A, B), weights), atol=1e-10)


def test_a_gain_speaks_for_each_block_and_encoder() -> None:
    gain = Gain(0.5, text_encoder=2.0, blocks={"MID": 0.0, "IN01": 3.0})
    layers = Factored([A]).blend([gain])
    assert not {CONV, ONE_BY_ONE} & layers.keys()  # nothing acts there
    for path, layer in layers.items():
        assert torch.allclose(dense(layer.cut.pair), gain.at(path) * dense(A[path]), atol=1e-10)


def test_a_linear_layer_and_a_1x1_convolution_blend() -> None:
    conv = dict(A)
    pair = A[ONE_BY_ONE]
    conv[ONE_BY_ONE] = LoraPair(pair.down[..., None, None], pair.up[..., None, None], pair.alpha)
    for method in METHODS:
        made = Factored([conv, C]).blend([1, 1], method)[ONE_BY_ONE].cut.pair
        assert (made.down.shape[1:], made.up.shape[2:]) == ((10, 1, 1), (1, 1))
        same = Factored([A, C]).blend([1, 1], method)[ONE_BY_ONE].cut.pair
        assert torch.allclose(dense(made), dense(same), atol=1e-10)


def test_large_groups_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    had = Factored([A, B]).blend([1, 2], rank=2)
    monkeypatch.setattr(factored, "MOST", 1)
    pieces = Factored([A, B])
    assert {len(group.paths) for group in pieces.groups} == {1}
    assert apart(deltas(had), deltas(pieces.blend([1, 2], rank=2))) < 1e-12


@pytest.mark.parametrize(("method", "density"), METHOD_CASES)
def test_the_number_of_threads_changes_no_bit(method: str, density: float) -> None:
    had = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made.append(Factored([A, B, C]).blend(WEIGHTS, method, density=density, rank=2))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(had)
    for path, layer in made[0].items():
        assert torch.equal(layer.cut.pair.up, made[1][path].cut.pair.up)
        assert torch.equal(layer.cut.pair.down, made[1][path].cut.pair.down)


def test_shapes_that_disagree_are_named() -> None:
    other = dict(A)
    other[TEXT] = LoraPair(torch.ones(2, 5), torch.ones(9, 2), 2.0)
    with pytest.raises(AdapterError, match=r"fc1: made for \(9, 5\) and \(9, 6\)"):
        Factored([A, other])
    many = [{f"unet.{k}": LoraPair(torch.ones(1, width), torch.ones(2, 1), 1.0) for k in range(9)} for width in (3, 4)]
    with pytest.raises(AdapterError, match="and 4 modules more"):
        Factored(many)


@pytest.mark.parametrize("what", ["up", "alpha"])
def test_cancelled_and_zero_deltas_are_zeros(what: str) -> None:
    zero = {path: replace(pair, **{what: 0 * getattr(pair, what)}) for path, pair in A.items()}
    for method, density in METHOD_CASES:
        layers = Factored([zero]).blend([1.0], method, density=density)
        assert not any(bool(delta.any()) for delta in deltas(layers).values())
    for layer in Factored([A, A]).blend([1, -1], share=0.5).values():
        assert layer.cut.kept + layer.cut.discarded < 1e-20


def test_the_largest_rank_is_told() -> None:
    assert Factored([A, B]).largest_rank == 7
    assert Factored([{path: A[path] for path in ("unet.up_blocks.1.attentions.0.proj_out",)}]).largest_rank == 3
