"""Adapters -> one adapter, exactly: the table of methods and their tensor functions. Pure: tensors in, tensors out.

A method sees deltas as left @ core_i @ right^T (made by factored.py) and says what it wants before truncation.
No method depends on how a delta happens to be split into up and down.

Try it: python -c "from studio.blend.methods import *; [print(*row) for row in METHODS.items()]"
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.blend.span import Columns, layer_of, stored
from trainers.lora.algebra import matrices
from trainers.lora.pair import LoraPair

TINY = 1e-10  # of the largest singular value: directions below it are rounding
SAME = 1e-3  # singular vectors nearer than this are one: copies rounded to 16 bits differ by about 3e-4


@dataclass(frozen=True)
class Group:
    """n layers of one shape, in each of which the same a adapters act with the same ranks."""

    paths: tuple[str, ...]
    adapters: tuple[int, ...]  # the places of those that act here
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
    """What some methods ask for beside the weights; `marks` tell the adapters apart by content."""

    density: float = 1.0
    seed: int = 0
    marks: tuple[int, ...] = ()


# --- the methods: a group and weights (n, all adapters) in, targets out -----------------------------------------------


def weighted(group: Group, weights: Tensor, options: Options) -> Target:
    """sum of w_i delta_i."""
    return Target(group.left, torch.einsum("na,nakl->nkl", _here(group, weights), group.cores), group.right)


def ties(group: Group, weights: Tensor, options: Options) -> Target:
    """TIES-merging (Yadav et al. 2023, algorithm 1): trim, elect sign, disjoint mean; lambda is the sum of |w_i|."""
    left, rows, ranks = shared_rows(group, weights)
    own = _here(group, weights)[..., None, None]
    votes = own * trimmed(rows, options.density, ranks)  # (n, a, p, in)
    elected = votes.sum(1, keepdim=True).sign()
    agreeing = (votes.sign() == elected) & (elected != 0)
    counted = (own.abs() * agreeing).sum(1)  # (n, p, in)
    mean = (votes * agreeing).sum(1) / counted.where(counted > 0, 1)
    return _from_rows(left, mean * weights.abs().sum(1)[:, None, None])


def dare(group: Group, weights: Tensor, options: Options) -> Target:
    """DARE (Yu et al. 2024): drop entries at random, rescale the others by 1 / density, add up."""
    left, rows, _ = shared_rows(group, weights)
    keep = torch.stack(
        [
            torch.stack([coins(options, path, options.marks[i], rows.shape[2:]) for i in group.adapters])
            for path in group.paths
        ]
    ).to(rows.device)
    return _summed(group, weights, left, rows * keep / options.density)


def magnitude_prune(group: Group, weights: Tensor, options: Options) -> Target:
    """Keep each adapter's largest entries, add up: the trim step of TIES alone."""
    left, rows, ranks = shared_rows(group, weights)
    return _summed(group, weights, left, trimmed(rows, options.density, ranks))


def orthogonal(group: Group, weights: Tensor, options: Options) -> Target:
    """TSV-Merge (Gargiulo et al. 2025): all singular vectors, moved just enough to be orthonormal."""
    own = _here(group, weights)
    u, s, v = torch.linalg.svd(group.cores * (own != 0)[..., None, None], full_matrices=False)
    real = s > TINY * s.amax((1, 2), keepdim=True)  # (n, a, m)
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
BASIS = "basis: Stoica et al. 2024, *Model Merging with SVD to Tie the Knots*"
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
        "Uᵀ D = λ · weighted mean of those trim(Uᵀ Δᵢ) that have the elected sign; λ = Σ abs(wᵢ)",
        f"Yadav et al. 2023, *TIES-Merging: Resolving Interference When Merging Models*; {BASIS}",
        (*CUT, "density"),
        ties,
    ),
    "dare": Method(
        "entries dropped at random, the others rescaled",
        "Uᵀ D = Σ wᵢ mᵢ ⊙ Uᵀ Δᵢ / density; mᵢ = 1 with probability density, else 0",
        f"Yu et al. 2024, *Language Models are Super Mario*; {BASIS}",
        (*CUT, "density", "seed"),
        dare,
    ),
    "magnitude-prune": Method(
        "the sum of each adapter's largest entries",
        "Uᵀ D = Σ wᵢ trim(Uᵀ Δᵢ)",
        f"Yadav et al. 2023, the first step alone; {BASIS}",
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


def shared_rows(group: Group, weights: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """The basis of KnOTS (Stoica et al. 2024): U of the SVD of [delta_1 … delta_a], those of weight 0 left out.

    left = U (n, out, p); rows = U^T delta_i (n, a, p, in); n ranks, the rows beyond which are nothing but rounding.
    U is unique but for its columns' signs, and they turn an entry for all adapters alike.
    """
    cores = group.cores * (_here(group, weights) != 0)[..., None, None]
    u, s, _ = torch.linalg.svd(cores.transpose(1, 2).flatten(2), full_matrices=False)  # u (n, k, p)
    inner = (u.mT[:, None] @ cores).flatten(1, 2)  # (n, a * p, l)
    rows = (group.right @ inner.mT).mT.unflatten(1, cores.shape[1:2] + u.shape[2:])
    return group.left @ u, rows, [int(count) for count in (s > TINY * s[:, :1]).sum(1)]


def trimmed(rows: Tensor, density: float, ranks: Sequence[int]) -> Tensor:
    """rows (n, a, p, in) with all but the largest `density` of each adapter's entries set to 0, layer by layer."""
    if density >= 1:
        return rows
    sizes = rows.abs().flatten(2)  # (n, a, p * in)
    limits = torch.zeros_like(sizes[..., 0])
    for layer, rank in enumerate(ranks):
        keep = max(1, math.ceil(density * rank * rows.shape[3]))
        limits[layer] = sizes[layer].kthvalue(sizes.shape[2] - keep + 1, dim=1).values
    return rows * (rows.abs() >= limits[..., None, None])


def coins(options: Options, path: str, mark: int, shape: Sequence[int]) -> Tensor:
    """True with probability `density`: a pure function of the seed, the module's path and the adapter's content."""
    text = f"{options.seed} {path} {mark}".encode()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:7], "big"))
    return torch.rand(*shape, generator=generator, dtype=torch.float64) < options.density


def _here(group: Group, weights: Tensor) -> Tensor:
    """The weights (n, a) of the adapters that act in this group."""
    return weights[:, list(group.adapters)]


def _summed(group: Group, weights: Tensor, left: Tensor, rows: Tensor) -> Target:
    return _from_rows(left, torch.einsum("na,napi->npi", _here(group, weights), rows))


def _from_rows(left: Tensor, rows: Tensor) -> Target:
    """left (n, out, p) @ rows (n, p, in), the rows in an orthonormal basis of their own."""
    right, core = torch.linalg.qr(rows.mT)
    return Target(left, core.mT, right)


def _nearest_orthonormal(columns: Tensor) -> Tensor:
    """The polar factor of (n, k, m): the nearest orthonormal columns, within the space that they span."""
    p, s, q = torch.linalg.svd(columns, full_matrices=False)
    nearest: Tensor = (p * (s > SAME)[:, None]) @ q
    return nearest
