"""Adapters -> one adapter, exactly: the table of methods and their tensor functions. Pure: tensors in, tensors out.

A method sees deltas as left @ core_i @ right^T (made by factored.py) and says what it wants before truncation.
No method depends on how a delta happens to be split into up and down.

Try it: python -c "from studio.blend.methods import *; [print(*row) for row in METHODS.items()]"
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.blend.span import Columns, layer_of, stored
from trainers.lora.algebra import matrices
from trainers.lora.pair import LoraPair

TINY = 1e-10  # of an adapter's largest singular value: what is below it is rounding
SAME = 1e-3  # singular vectors nearer than this are one: copies rounded to 16 bits differ by about 3e-4


@dataclass(frozen=True)
class Group:
    """n layers of one shape, in each of which the same a adapters act with the same ranks."""

    paths: tuple[str, ...]
    adapters: tuple[int, ...]  # the places of those that act here
    ranks: tuple[int, ...]  # theirs
    inputs: tuple[int, ...]  # (in,) or (in, kh, kw)
    left: Columns  # (n, out, k)
    cores: Tensor  # (n, a, k, l)
    right: Columns  # (n, in * kh * kw, l)


@dataclass(frozen=True)
class Target:
    """Deltas before truncation: left (n, out, k) @ core (n, k, l) @ right^T, right (n, in, l); columns orthonormal."""

    left: Columns
    core: Tensor
    right: Columns

    def at(self, layer: int) -> Target:
        return Target(layer_of(self.left, layer), self.core[layer : layer + 1], layer_of(self.right, layer))

    def energy(self) -> float:
        return float(self.core.square().sum())

    def missed(self, pair: LoraPair) -> float:
        """||target - delta||^2 of one layer, from small matrices."""
        up, down = matrices(pair)
        product = ((stored(self.left).mT @ up) @ (down @ stored(self.right)) * self.core).sum()
        own = ((up.mT @ up) * (down @ down.mT)).sum()
        return max(0.0, self.energy() - 2 * float(product) + float(own))


@dataclass(frozen=True)
class Options:
    """What some methods ask for beside the weights; `marks`, one for each adapter, speak of its content."""

    density: float = 1.0
    seed: int = 0
    marks: tuple[float, ...] = ()


# --- the methods: a group and weights (n, all adapters) in, targets out -----------------------------------------------


def weighted(group: Group, weights: Tensor, options: Options) -> Target:
    """sum of w_i delta_i."""
    return Target(group.left, torch.einsum("na,nakl->nkl", _here(group, weights), group.cores), group.right)


def ties(group: Group, weights: Tensor, options: Options) -> Target:
    """TIES-merging (Yadav et al. 2023, algorithm 1): trim, elect sign, add up those that have it, each with its weight.

    A sum where the paper has a mean: it goes to 0 with a weight, and an adapter that stands alone counts w_i delta_i.
    """
    u, rows, ranks = own_rows(group)
    joint = shared_basis(group, weights)
    turned = (joint.mT[:, None] @ u) @ trimmed(rows, options.density, ranks)
    votes = _here(group, weights)[..., None, None] * turned  # (n, a, p, in)
    elected = votes.sum(1, keepdim=True).sign()
    return _with_rows(group, joint, (votes * (votes.sign() == elected)).sum(1))


def dare(group: Group, weights: Tensor, options: Options) -> Target:
    """DARE (Yu et al. 2024): drop entries at random, rescale the others by 1 / density, add up."""
    u, rows, _ = own_rows(group)
    keep = torch.empty_like(rows, dtype=torch.bool)
    for layer, path in enumerate(group.paths):
        names = told_apart(_here(group, weights)[layer].tolist(), [options.marks[i] for i in group.adapters])
        for place, name in enumerate(names):
            keep[layer, place] = coins(options, path, name, rows.shape[2:])
    return _summed(group, weights, u, rows * keep / options.density)


def magnitude_prune(group: Group, weights: Tensor, options: Options) -> Target:
    """Keep each adapter's largest entries, add up: the trim step of TIES alone."""
    u, rows, ranks = own_rows(group)
    return _summed(group, weights, u, trimmed(rows, options.density, ranks))


def orthogonal(group: Group, weights: Tensor, options: Options) -> Target:
    """TSV-Merge (Gargiulo et al. 2025): all singular vectors, moved just enough to be orthonormal."""
    own = _here(group, weights)
    u, s, v = torch.linalg.svd(group.cores * (own != 0)[..., None, None], full_matrices=False)
    real = _real(group, s)
    sides = [(side * real[:, :, None]).transpose(1, 2).flatten(2) for side in (u, v.mT)]  # (n, k, a * m), (n, l, a * m)
    sizes = (own[..., None] * s).flatten(1)
    core = (_nearest_orthonormal(sides[0]) * sizes[:, None]) @ _nearest_orthonormal(sides[1]).mT
    return Target(group.left, core, group.right)


@dataclass(frozen=True)
class Method:
    """A row of METHODS: the command line's choices and docs/methods.md are read from it."""

    about: str
    formula: str
    paper: str
    takes: tuple[str, ...]  # of rank, energy, density, seed
    target: Callable[[Group, Tensor, Options], Target]


CUT = ("rank", "energy")
METHODS = {
    "concat": Method("the exact sum; ranks add up", "D = Σ wᵢ Δᵢ", "Hu et al. 2021, *LoRA*, section 4.1", (), weighted),
    "svd": Method(
        "the sum, cut to the best adapter of its rank",
        "D = argmin ‖D − Σ wᵢ Δᵢ‖, rank D ≤ r",
        "Eckart, Young 1936, *The Approximation of One Matrix by Another of Lower Rank*",
        CUT,
        weighted,
    ),
    "ties": Method(
        "where adapters pull opposite ways, only the stronger side counts",
        "Uᵀ D = Σ wᵢ Uᵀ trim(Δᵢ), entry by entry over those that have the elected sign: that of the sum over all",
        "Yadav et al. 2023, *TIES-Merging: Resolving Interference When Merging Models*; "
        "basis: Stoica et al. 2024, *Model Merging with SVD to Tie the Knots*",
        (*CUT, "density"),
        ties,
    ),
    "dare": Method(
        "entries dropped at random, the others rescaled",
        "D = Σ wᵢ Uᵢ (mᵢ ⊙ Uᵢᵀ Δᵢ) / density; mᵢ = 1 with probability density, else 0",
        "Yu et al. 2024, *Language Models are Super Mario*",
        (*CUT, "density", "seed"),
        dare,
    ),
    "magnitude-prune": Method(
        "the sum of each adapter's largest entries",
        "D = Σ wᵢ trim(Δᵢ); trim(Δᵢ) = Uᵢ · (the largest entries of Uᵢᵀ Δᵢ)",
        "Yadav et al. 2023, the first step alone",
        (*CUT, "density"),
        magnitude_prune,
    ),
    "orthogonal": Method(
        "directions that adapters share are pulled apart",
        "D = polar[U₁ U₂ …] · diag(wᵢ Sᵢ) · polar[V₁ V₂ …]ᵀ; Δᵢ = Uᵢ Sᵢ Vᵢᵀ",
        "Gargiulo et al. 2025, *Task Singular Vectors: Reducing Task Interference in Model Merging*",
        CUT,
        orthogonal,
    ),
}


# --- their parts ------------------------------------------------------------------------------------------------------


def own_rows(group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """u (n, a, k, m), rows (n, a, m, in), ranks (n, a): delta_i = left @ u_i @ rows_i, u_i its left singular vectors.

    They depend on that delta alone, but for the columns' signs; m is the largest rank, rows beyond an own rank are 0.
    """
    u, s, v = torch.linalg.svd(group.cores, full_matrices=False)
    most, real = min(max(group.ranks), s.shape[2]), _real(group, s)
    inner = ((s * real)[..., None] * v)[:, :, :most]  # (n, a, m, l)
    rows = (group.right @ inner.flatten(1, 2).mT).mT.unflatten(1, inner.shape[1:3])
    return u[..., :most], rows, real.sum(2)


def _real(group: Group, s: Tensor) -> Tensor:
    """Which singular values (n, a, m) of the cores are more than rounding: no more than the factors' rank."""
    ranks = torch.tensor(group.ranks, device=s.device)[:, None]
    return (s > TINY * s[..., :1]) & (torch.arange(s.shape[2], device=s.device) < ranks)


def shared_basis(group: Group, weights: Tensor) -> Tensor:
    """u (n, k, p), left @ u being the left singular vectors of [w_1 delta_1 … w_a delta_a], unique but for their signs.

    The basis of KnOTS (Stoica et al. 2024) of the weighted deltas, so that it hardly turns by one of little weight.
    """
    cores = group.cores * _here(group, weights)[..., None, None]
    u: Tensor = torch.linalg.svd(cores.transpose(1, 2).flatten(2), full_matrices=False).U
    return u


def trimmed(rows: Tensor, density: float, ranks: Tensor) -> Tensor:
    """rows (n, a, m, in) without all but the largest `density` of each adapter's rank * in entries, layer by layer."""
    if density >= 1:
        return rows
    sizes = rows.abs()
    keep = (density * ranks * rows.shape[3]).ceil().long().clamp(min=1)
    limits = sizes.flatten(2).sort(2, descending=True).values.gather(2, keep[..., None] - 1)
    return rows * (sizes >= limits[..., None])


def told_apart(weights: Sequence[float], marks: Sequence[float]) -> list[str]:
    """A name for each adapter of a layer: its rounded mark, and its place among those that have the same there.

    Rounded, as one delta has many pairs of factors, which no file holds exactly. The larger weight comes first, then
    the larger mark: neither the order of the files counts, nor, for the others, one whose weight goes to 0.
    """
    order = sorted(range(len(marks)), key=lambda i: (-abs(weights[i]), -round(marks[i], 6), -weights[i]))
    alike = [round(marks[i]) for i in order]
    names = {i: f"{mark} {alike[:place].count(mark)}" for place, (i, mark) in enumerate(zip(order, alike, strict=True))}
    return [names[i] for i in range(len(marks))]


def coins(options: Options, path: str, name: str, shape: Sequence[int]) -> Tensor:
    """True with probability `density`: a pure function of the seed, the module's path and the adapter's name.

    More rows change nothing in the first ones.
    """
    text = f"{options.seed} {path} {name}".encode()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:7], "big"))
    return torch.rand(*shape, generator=generator, dtype=torch.float64) < options.density


def _here(group: Group, weights: Tensor) -> Tensor:
    """The weights (n, a) of the adapters that act in this group."""
    return weights[:, list(group.adapters)]


def _summed(group: Group, weights: Tensor, u: Tensor, rows: Tensor) -> Target:
    """sum of w_i left @ u_i @ rows_i."""
    own = u * _here(group, weights)[..., None, None]
    return _with_rows(group, own.transpose(1, 2).flatten(2), rows.flatten(1, 2))


def _with_rows(group: Group, u: Tensor, rows: Tensor) -> Target:
    """left @ u (n, k, p) @ rows (n, p, in), the rows in an orthonormal basis of their own."""
    right, core = torch.linalg.qr(rows.mT)
    return Target(group.left, u @ core.mT, right)


def _nearest_orthonormal(columns: Tensor) -> Tensor:
    """The polar factor of (n, k, m): the nearest orthonormal columns, within the space that they span."""
    p, s, q = torch.linalg.svd(columns, full_matrices=False)
    nearest: Tensor = (p * (s > SAME)[:, None]) @ q
    return nearest
