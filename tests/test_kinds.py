"""Every kind of change equals its dense formula; what can't be a pair is refused and says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainers.lora.dora import change
from trainers.lora.formats import FORMATS
from trainers.lora.kinds import NEEDS_BASE, Entry, assemble
from trainers.lora.pair import LoraPair, Pairs

LINEAR, CONV = "lora_unet_mid_block_attentions_0_proj_in", "lora_unet_mid_block_resnets_0_conv1"
PATHS = {LINEAR: "unet.mid_block.attentions.0.proj_in", CONV: "unet.mid_block.resnets.0.conv1"}
SUFFIXES = {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"}
Dense = Callable[..., Tensor]


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


def kron(one: Tensor, other: Tensor) -> Tensor:
    return torch.kron(
        one.reshape(*one.shape, *[1] * (other.ndim - 2)), other.clone(memory_format=torch.contiguous_format)
    )


def rebuilt(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("ij...,ip,jr->pr...", core, a, b)


# name -> (module, {role: shape}, dense formula without the scale, the rank alpha is divided by; None: scale 1)
HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
CASES: dict[str, tuple[str, dict[str, tuple[int, ...]], Dense, int | None]] = {
    "LoRA": (LINEAR, {"up": (8, 3), "down": (3, 6)}, lambda up, down: up @ down, 3),
    "LoCon": (CONV, {"up": (8, 2, 1, 1), "down": (2, 6, 3, 3)},
              lambda up, down: (up.flatten(1) @ down.flatten(1)).reshape(8, 6, 3, 3), 2),
    "Tucker": (CONV, {"up": (8, 2, 1, 1), "down": (2, 6, 1, 1), "mid": (2, 2, 3, 3)},
               lambda up, down, mid: rebuilt(mid, up[..., 0, 0].mT, down[..., 0, 0]), 2),
    "LoHa": (LINEAR, dict(zip(HADA, [(8, 2), (2, 6)] * 2, strict=True)), lambda a, b, c, d: (a @ b) * (c @ d), 2),
    "LoHa conv": (CONV, dict(zip(HADA, [(8, 2), (2, 54)] * 2, strict=True)),
                  lambda a, b, c, d: ((a @ b) * (c @ d)).reshape(8, 6, 3, 3), 2),
    "LoHa above full rank": (LINEAR, dict(zip(HADA, [(8, 4), (4, 6)] * 2, strict=True)),
                             lambda a, b, c, d: (a @ b) * (c @ d), 4),
    "LoHa Tucker": (CONV, dict(zip(HADA, [(2, 8), (2, 6)] * 2, strict=True))
                    | {"hada_t1": (2, 2, 3, 3), "hada_t2": (2, 2, 3, 3)},
                    lambda a, b, c, d, t, u: rebuilt(t, a, b) * rebuilt(u, c, d), 2),
    "LoKr": (LINEAR, {"lokr_w1": (2, 3), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 2)},
             lambda w1, a, b: kron(w1, a @ b), 1),
    "LoKr whole": (LINEAR, {"lokr_w1": (2, 3), "lokr_w2": (4, 2)}, kron, None),
    "LoKr both cut": (LINEAR, {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 3), "lokr_w2_a": (2, 2), "lokr_w2_b": (2, 2)},
                      lambda a, b, c, d: kron(a @ b, c @ d), 2),
    "LoKr first cut": (LINEAR, {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 3), "lokr_w2": (2, 2)},
                       lambda a, b, w2: kron(a @ b, w2), 2),
    "LoKr conv": (CONV, {"lokr_w1": (2, 2), "lokr_w2": (4, 3, 3, 3)}, kron, None),
    "LoKr conv flat": (CONV, {"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 27)},
                       lambda w1, a, b: kron(w1, (a @ b).reshape(4, 3, 3, 3)), 2),
    "LoKr Tucker": (CONV, {"lokr_w1": (2, 2), "lokr_w2_a": (2, 4), "lokr_w2_b": (2, 3), "lokr_t2": (2, 2, 3, 3)},
                    lambda w1, a, b, t: kron(w1, rebuilt(t, a, b)), 2),
    "LoKr rank 1": (CONV, {"lokr_w1": (2, 2), "lokr_w2_a": (1, 4), "lokr_w2_b": (1, 3), "lokr_t2": (1, 1, 3, 3)},
                    lambda w1, a, b, t: kron(w1, rebuilt(t, a, b)), 1),
    "difference": (CONV, {"diff": (8, 6, 3, 3)}, lambda diff: diff, None),
}  # fmt: skip
OTHER_KINDS = [name for name in CASES if name not in ("LoRA", "LoCon")]


def tensors_of(name: str) -> dict[str, Tensor]:
    return {role: rand(*shape) + number for number, (role, shape) in enumerate(CASES[name][1].items())}


def read(
    module: str, tensors: dict[str, Tensor], rank: int | None = None, weight: Tensor | None = None
) -> tuple[Pairs, list[Entry]]:
    named = {f"{module}.{SUFFIXES.get(role, role)}": tensor for role, tensor in tensors.items()}
    weight_of = None if weight is None else {PATHS[module]: weight}.__getitem__
    return assemble(FORMATS["kohya"].group(named, {}), rank=rank, weight_of=weight_of)


def delta(pair: LoraPair) -> Tensor:
    return (pair.scale * (pair.up.double().flatten(1) @ pair.down.double().flatten(1))).reshape(
        len(pair.up), *pair.down.shape[1:]
    )


def error(got: Tensor, wanted: Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("alpha", [3.0, None])
def test_the_pair_is_the_dense_formula(name: str, alpha: float | None) -> None:
    module, _, dense, own = CASES[name]
    tensors = tensors_of(name)
    wanted = dense(*(t.double() for t in tensors.values())) * (alpha / own if alpha and own else 1)
    given = tensors if alpha is None else tensors | {"alpha": torch.tensor(alpha)}
    pairs, [entry] = read(module, given)
    assert error(delta(pairs[PATHS[module]]), wanted) < 1e-6
    assert pairs[PATHS[module]].rank <= min(len(wanted), wanted[0].numel())
    assert (entry.path, len(entry.keys), entry.lost) == (PATHS[module], len(given), 0)
    assert entry.verdict == ("converted" if name in OTHER_KINDS else "applied")
    assert entry.energy == pytest.approx(float(wanted.square().sum()), rel=1e-5)


def test_plain_lora_is_left_as_it_is() -> None:
    tensors = {"up": rand(8, 3).half(), "down": rand(3, 6).half(), "alpha": torch.tensor(2.0)}
    pairs, _ = read(LINEAR, tensors)
    pair = pairs[PATHS[LINEAR]]
    assert (pair.up is tensors["up"], pair.down is tensors["down"], pair.alpha) == (True, True, 2)


@pytest.mark.parametrize("name", CASES)
def test_a_cut_says_what_it_lost(name: str) -> None:
    module, _, dense, _ = CASES[name]
    tensors = tensors_of(name)
    whole = dense(*(t.double() for t in tensors.values()))
    pairs, [entry] = read(module, tensors, rank=1)
    assert pairs[PATHS[module]].rank == 1
    lost = float((delta(pairs[PATHS[module]]) - whole).square().sum())
    assert entry.lost == pytest.approx(lost, rel=1e-4, abs=1e-5 * float(whole.square().sum()))
    assert entry.lost == pytest.approx(
        float(torch.linalg.svdvals(whole.flatten(1))[1:].square().sum()), rel=1e-6, abs=1e-3
    )
    assert (entry.verdict, entry.reason.endswith("cut to rank 1")) == ("converted", True)


@pytest.mark.parametrize("name", ["LoRA", "LoHa conv", "LoKr"])
@pytest.mark.parametrize("side", [0, 1])
def test_dora_with_the_bases_weight(name: str, side: int) -> None:
    module, _, dense, _ = CASES[name]
    tensors = tensors_of(name)
    plain = dense(*(t.double() for t in tensors.values()))
    weight = rand(*plain.shape)
    magnitude = rand(*(n if k == side else 1 for k, n in enumerate(plain.shape))).abs()
    wanted = change(weight, plain, magnitude)
    given = tensors | {"dora_scale": magnitude}
    pairs, [entry] = read(module, given, rank=99, weight=weight)
    assert error(delta(pairs[PATHS[module]]), wanted) < 1e-6
    assert entry.reason.endswith("DoRA, exact")
    pairs, [entry] = read(module, given | {"alpha": torch.tensor(0.0)}, weight=weight)
    own_rank = read(module, tensors)[0][PATHS[module]].rank
    assert pairs[PATHS[module]].rank == min(2 * own_rank, *weight.flatten(1).shape)


def test_dora_is_refused_without_the_base_or_with_another() -> None:
    tensors = tensors_of("LoRA") | {"dora_scale": rand(8, 1)}
    for weight, says in ((None, NEEDS_BASE), (rand(8, 7), "made for (8, 6), the base has (8, 7)")):
        pairs, [entry] = read(LINEAR, tensors, weight=weight)
        assert (pairs, entry.verdict, entry.energy) == ({}, "refused", None)
        assert says in entry.reason
    named = {f"{CONV}.{SUFFIXES.get(role, role)}": tensor for role, tensor in tensors.items()}
    _, [entry] = assemble(FORMATS["kohya"].group(named, {}), weight_of={}.__getitem__)
    assert "no such module" in entry.reason


def test_pefts_magnitude_is_by_output_even_of_a_square_kernel() -> None:
    tensors = {"lora_A.weight": rand(2, 4, 3, 3), "lora_B.weight": rand(4, 2, 1, 1)}
    weight, magnitude = rand(4, 4, 3, 3), rand(1, 4, 1, 1)
    named = {f"unet.conv_in.{end}": t for end, t in tensors.items()} | {"unet.conv_in.lora_magnitude_vector": magnitude}
    pairs, _ = assemble(FORMATS["diffusers"].group(named, {}), rank=9, weight_of=lambda _: weight)
    plain = LoraPair(tensors["lora_A.weight"], tensors["lora_B.weight"], 2.0)
    wanted = change(weight, delta(plain), magnitude.reshape(4, 1, 1, 1))
    assert error(delta(pairs["unet.conv_in"]), wanted) < 1e-6


BAD: dict[str, tuple[dict[str, Tensor], str]] = {
    "bias": ({"diff_b": rand(8)}, "a change of the bias"),
    "half": ({"up": rand(8, 2)}, "LoRA: has up, lacks down"),
    "alpha alone": ({"alpha": torch.tensor(1.0)}, "has alpha alone, lacks"),
    "mixture": ({"up": rand(8, 2), "down": rand(2, 6), "diff": rand(8, 6)}, "more than it can have"),
    "NaN": ({"up": rand(8, 2), "down": rand(2, 6) * torch.nan}, "NaN or Inf in down"),
    "NaN in LoHa": (tensors_of("LoHa") | {"hada_w2_b": rand(2, 6) / 0}, "NaN or Inf in hada_w2_b"),
    "alpha is Inf": (tensors_of("LoRA") | {"alpha": torch.tensor(torch.inf)}, "NaN or Inf in alpha"),
    "alphas": (tensors_of("LoRA") | {"alpha": torch.ones(2)}, "alpha is [2], wanted a single number"),
    "whole numbers": (tensors_of("LoKr") | {"lokr_w1": torch.ones(2, 3).int()}, "lokr_w1 is torch.int32"),
    "shapes": (tensors_of("LoHa") | {"hada_w1_b": rand(3, 5)}, "fit together: hada_w1_a [8, 2], hada_w1_b [3, 5]"),
    "sides": (tensors_of("LoHa") | {"hada_w1_a": rand(8)}, "don't fit together"),
    "one-dimensional": ({"diff": rand(8)}, "full differences"),
    "ranks": ({"up": rand(8, 2), "down": rand(3, 6)}, "up is [8, 2], but down [3, 6] wants [out, 3]"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_a_pair_says_why(name: str) -> None:
    tensors, says = BAD[name]
    pairs, [entry] = read(LINEAR, tensors)
    assert (pairs, entry.verdict, len(entry.keys)) == ({}, "refused", len(tensors))
    assert says in entry.reason


def test_a_bias_beside_lora_is_refused_alone_and_so_is_a_stranger() -> None:
    group = FORMATS["kohya"].group
    plain = {f"{LINEAR}.{SUFFIXES[role]}": tensor for role, tensor in tensors_of("LoRA").items()}
    pairs, entries = assemble(group(plain | {f"{LINEAR}.diff_b": rand(8), "lora_te3_x": rand(1), "x": rand(1)}, {}))
    assert list(pairs) == [PATHS[LINEAR]]
    assert [(e.verdict, len(e.keys)) for e in entries] == [
        ("refused", 1),
        ("applied", 2),
        ("refused", 1),
        ("refused", 1),
    ]
    assert [e.reason for e in entries[2:]] == ["a transformer base's (FLUX, SD 3, …)", "an unknown name"]
