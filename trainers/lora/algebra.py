"""Exact algebra of low-rank changes, without ever making a dense one. Pure functions, float64 inside.

A pair is delta = scale * up @ down (a convolution's kernel is flattened into its input side). Everything here depends
on the delta alone: (up M, M^-1 down) gives the same answers for any invertible M.

Try it: python -c "from trainers.lora.algebra import *; x = torch.eye(2); print(cut(LoraPair(x, x, 2), 1))"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trainers.lora.pair import LoraPair

__all__ = ["Cut", "LoraPair", "cut", "energy", "inner", "joined", "rank_for", "singular_values"]

ROUNDING = 1e-12  # of an energy: sums of squares in float64 are good to about this


def matrices(pair: LoraPair) -> tuple[Tensor, Tensor]:
    """(up * scale (out, r), down (r, in * kh * kw)) in float64 on the pair's device."""
    return pair.up.double().flatten(1) * pair.scale, pair.down.double().flatten(1)


def inner(one: LoraPair, other: LoraPair) -> float:
    """<delta_1, delta_2> = sum((up_1^T up_2) * (down_1 down_2^T)): Frobenius product from two small Gram matrices."""
    (up_1, down_1), (up_2, down_2) = matrices(one), matrices(other)
    return float(((up_1.T @ up_2) * (down_1 @ down_2.T)).sum())


def energy(pair: LoraPair) -> float:
    """The squared Frobenius norm of the delta."""
    return max(0.0, inner(pair, pair))


def joined(pairs: Sequence[LoraPair], weights: Sequence[float]) -> LoraPair:
    """The exact weighted sum of deltas, ranks added: float64 factors with scale 1 (LoRA by concatenation)."""
    halves = [matrices(pair) for pair in pairs]
    up = torch.cat([weight * up for weight, (up, _) in zip(weights, halves, strict=True)], 1)
    return shaped(up, torch.cat([down for _, down in halves]), pairs[0].down.shape[1:])


def shaped(up: Tensor, down: Tensor, inputs: Sequence[int]) -> LoraPair:
    """up (out, r) and down (r, in * kh * kw) as a pair of scale 1; `inputs` is (in,) or (in, kh, kw)."""
    return LoraPair(down.reshape(-1, *inputs), up.reshape(*up.shape, *[1] * (len(inputs) - 1)), float(len(down)))


def bases(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """left, r_up, r_down, right with up = left @ r_up and down = r_down @ right^T, by Householder QR; stacks welcome.

    up (…, out, r), down (…, r, in) -> left (…, out, min(out, r)), right (…, in, min(r, in)); columns orthonormal.
    """
    left, r_up = torch.linalg.qr(up)
    right, r_down = torch.linalg.qr(down.mT)
    return left, r_up, r_down.mT, right


def singular_values(pair: LoraPair) -> Tensor:
    """The delta's singular values, largest first (min(r, out, in),), float64: QR of the factors, small SVD."""
    _, r_up, r_down, _ = bases(*matrices(pair))
    values: Tensor = torch.linalg.svdvals(r_up @ r_down)
    return values


@dataclass(frozen=True)
class Cut:
    """A delta truncated to its largest singular values: the best of its rank (Eckart, Young 1936)."""

    pair: LoraPair  # scale 1, factors balanced: up = left * sqrt(s), down = sqrt(s) * right
    kept: float  # energy, sum of the kept s^2
    discarded: float  # energy, sum of the others


def rank_for(values: Tensor, share: float) -> int:
    """The fewest singular values (largest first) that hold `share` of the energy; at least 1."""
    sums = values.double().square().cumsum(0)
    return min(len(values), int((sums < share * sums[-1] * (1 - ROUNDING)).sum()) + 1)


def cut(pair: LoraPair, rank: int | None = None, share: float | None = None) -> Cut:
    """Truncate to `rank`, or to the rank that keeps `share` (0..1) of the energy, or both; the pair is float32."""
    left, r_up, r_down, right = bases(*matrices(pair))
    [made] = cuts(left[None], (r_up @ r_down)[None], right[None], pair.down.shape[1:], rank, share)
    return Cut(LoraPair(made.pair.down.float(), made.pair.up.float(), made.pair.alpha), made.kept, made.discarded)


class Columns(Protocol):
    """A stack (n, m, k) of orthonormal columns, stored or not: all that is asked of it is a product."""

    def __matmul__(self, other: Tensor, /) -> Tensor: ...


def cuts(
    left: Columns, core: Tensor, right: Columns, inputs: Sequence[int], rank: int | None, share: float | None
) -> list[Cut]:
    """Truncate a stack of deltas left (n, out, k) @ core (n, k, l) @ right^T, right (n, in, l).

    float64 pairs, each of at most `rank`, and no larger than keeps `share` of its energy; None is no limit.
    """
    u, s, v = torch.linalg.svd(core, full_matrices=False)
    most = s.shape[-1] if rank is None else min(rank, s.shape[-1])
    root = s[:, None, :most].sqrt()
    ups = left @ (u[:, :, :most] * root)  # (n, out, most)
    downs = (right @ (v[:, :most].mT * root)).mT  # (n, most, in)
    keep = [most if share is None else min(most, rank_for(values, share)) for values in s]
    energies = s.square().tolist()
    kept = [sum(squares[:n]) for squares, n in zip(energies, keep, strict=True)]
    lost = [sum(squares[n:]) for squares, n in zip(energies, keep, strict=True)]
    pairs = [shaped(up[:, :n], down[:n], inputs) for up, down, n in zip(ups, downs, keep, strict=True)]
    return [Cut(*row) for row in zip(pairs, kept, lost, strict=True)]
