"""Tuned model - base -> adapter: per module the best low-rank matrix for the difference, with the error it leaves.

The factors come from a randomised SVD (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1) in float64. The error is
exact and of the numbers as they are stored: the dense difference is at hand, module by module.

Try it: `stylora extract --tuned merged/ink --base tiny-sd --rank 16 --out ink.safetensors`
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from studio.merge.weights import Weights, is_layer, open_base
from trainers.batches import generator_for
from trainers.errors import BaseError, ConfigError
from trainers.lora.adapter import Adapter, AdapterInfo, components
from trainers.lora.algebra import rank_for
from trainers.lora.blocks import block_of, order
from trainers.lora.family import family_of
from trainers.lora.fit import Shape
from trainers.lora.inject import PRESETS
from trainers.lora.metadata import kohya_metadata
from trainers.lora.pair import LoraPair, Pairs
from trainers.tensorfile import FLOATS

OVERSAMPLE, POWERS = 8, 4  # columns beyond the rank, and passes over the matrix, of the randomised SVD
MOST_LONE = 0.1  # share of modules that only one model may have (a layer that its tools never use)
VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}  # family -> kohya's word for it
ALL = "all"
TARGETS = ("attention", "attention+ff", "all-linear", ALL)
TABLES = ("embed_tokens.weight", "wte.weight")  # language models' words for their tokens' embeddings
ENTRY = "stylora.extract"  # the header entry


Row = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Module:
    """One module's difference: its energy (squared Frobenius norm), what the pair lacks of it, and the pair's rank."""

    path: str
    rank: int
    energy: float
    error: float  # energy of (difference - pair as stored)

    @property
    def share(self) -> float:
        """Of the energy, lost: 0 where the pair is the difference."""
        return self.error / self.energy


@dataclass(frozen=True)
class Extracted:
    """The adapter, each of its modules, and the energy of all other tensors that differ."""

    adapter: Adapter
    modules: list[Module]
    left_out: dict[str, float] = field(default_factory=dict)  # component.name -> energy
    lone: dict[str, float] = field(default_factory=dict)  # tensors that only one of the two has -> their own energy
    absent: list[str] = field(default_factory=list)  # components that only one of the two has at all

    @property
    def text(self) -> bool:
        """Is it a language model's?"""
        return "model" in components(self.adapter)

    @property
    def energy(self) -> float:
        return sum(one.energy for one in self.modules)

    @property
    def error(self) -> float:
        """The share of the modules' energy that the adapter lacks."""
        return sum(one.error for one in self.modules) / self.energy

    @property
    def outside(self) -> float:
        """The share of all that differs which no module of the adapter stands for."""
        return 1 - self.energy / self.total

    @property
    def total(self) -> float:
        """The energy of all that differs; a tensor that only one model has differs from nothing."""
        return self.energy + sum(self.left_out.values()) + sum(self.lone.values())


def randomised_svd(matrix: Tensor, rank: int, seed: str) -> tuple[Tensor, Tensor, Tensor]:
    """(U (m, k), s (k,), V (k, n)), k = rank + OVERSAMPLE at the most: nearly the largest singular triples.

    Halko, Martinsson, Tropp 2011: the range of (A A^T)^q A times random columns (algorithm 4.4), then the SVD of
    A within that range (5.1). Of U S V cut to any rank the error is exactly ||A||^2 - sum s^2.
    """
    columns = min(rank + OVERSAMPLE, *matrix.shape)
    start = torch.randn(matrix.shape[1], columns, dtype=matrix.dtype, generator=generator_for(0, 0, 0, seed))
    q = torch.linalg.qr(matrix @ start).Q
    for _ in range(POWERS):
        q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ q).Q).Q
    u, s, v = torch.linalg.svd(q.T @ matrix, full_matrices=False)
    return q @ u, s, v


def pair_of(delta: Tensor, rank: int, share: float | None, dtype: torch.dtype, seed: str) -> tuple[LoraPair, float]:
    """The pair nearest to a difference (out, in[, kh, kw]) in float64, stored in `dtype`; and its squared error.

    `share` of the energy is kept with the lowest rank that does, up to `rank`.
    """
    matrix = delta.flatten(1)
    u, s, v = randomised_svd(matrix, rank, seed)
    keep = min(rank, len(s), max(1, int((s > s[0] * 1e-12).sum())))
    if share is not None:
        total = matrix.square().sum()
        rest = (total - s.square().sum()).clamp(min=0).sqrt()
        keep = min(keep, rank_for(torch.cat((s, rest[None])), share))
    root = s[:keep].sqrt()
    up, down = ((u[:, :keep] * root).to(dtype), (root[:, None] * v[:keep]).to(dtype))
    error = float((matrix - up.double() @ down.double()).square().sum())
    kernel = delta.shape[2:]
    shaped = LoraPair(
        down.reshape(keep, delta.shape[1], *kernel), up.reshape(-1, keep, *[1] * len(kernel)), float(keep)
    )
    return shaped, error


def extract(
    tuned: str,
    base: str,
    rank: int = 16,
    *,
    energy: float | None = None,
    targets: str = ALL,
    dtype: torch.dtype = torch.float16,
) -> Extracted:
    """The adapter that turns the base into the tuned model, as far as `rank` (and `targets`) allow.

    Modules that don't differ are left out. Raises ConfigError, BaseError (other shapes, other modules, NaN, no
    difference).
    """
    one, other = open_base(tuned), open_base(base)
    if faults := _faults(rank, energy, targets, other.shapes):
        raise ConfigError("nothing can be extracted so", faults, "`stylora extract --help` says what is meant")
    _check(one, other)
    lone, absent = _lone(one, other)
    pairs: Pairs = {}
    modules: list[Module] = []
    left_out: dict[str, float] = {}
    for name, after, before in _both(one, other):
        delta = after.double() - before.double()
        size = _size(delta)
        path = name.removesuffix(".weight")
        if not (is_layer(name, other.tensors[name]) and chosen(path, tuple(before.shape), targets)):
            left_out[name] = size
            continue
        pairs[path], error = pair_of(delta, rank, energy, dtype, path)
        modules.append(Module(path, pairs[path].rank, size, error))
    if not pairs:
        rest = sorted(left_out | lone)[:3]
        what = f"nothing but {', '.join(rest)}" if rest else "nothing"
        raise BaseError(f"{tuned} and {base} differ in {what} that an adapter can hold", next_step="name other models")
    found = Extracted(Adapter(pairs), modules, left_out, lone, absent)
    return replace(found, adapter=Adapter(pairs, AdapterInfo(_metadata(found, tuned, base, rank, other.shapes))))


def chosen(path: str, shape: Shape, targets: str) -> bool:
    """Is a module among the targets? The presets are those of training."""
    if targets == ALL:
        return True
    component, _, inner = path.partition(".")
    presets = PRESETS.get(component.removesuffix("_2"), {})
    linear = len(shape) == 2 or "proj_" in inner
    return linear and bool(re.search(presets[targets], f".{inner}"))


def _faults(rank: int, energy: float | None, targets: str, shapes: Mapping[str, Shape]) -> list[str]:
    faults = [] if rank >= 1 else [f"rank: got {rank}, wanted at least 1"]
    if energy is not None and not 0 < energy <= 1:
        faults.append(f"energy: got {energy}, wanted more than 0 and at most 1")
    if targets not in TARGETS:
        return [*faults, f"targets: got {targets}, wanted one of {', '.join(TARGETS)}"]
    most = max((min(s[0], math.prod(s[1:])) for path, s in shapes.items() if chosen(path, s, targets)), default=rank)
    return faults + ([f"rank: got {rank}, but no module of the targets can have more than {most}"] * (rank > most))


def _check(one: Weights, other: Weights) -> None:
    """Raises BaseError unless nearly all modules are in both, in the same shapes, and every number is one."""
    both = sorted(one.tensors.keys() & other.tensors.keys())
    faults = [f"{name}: {list(ours)} and {list(theirs)}" for name in both
              if (ours := one.tensors[name].shape) != (theirs := other.tensors[name].shape)
              and _flat(ours) != _flat(theirs) and not _longer_table(name, ours, theirs)]  # fmt: skip
    lone = sorted(one.shapes.keys() ^ other.shapes.keys())
    if len(lone) > MOST_LONE * len(other.shapes):
        faults += [f"{path}: only {(one if path in one.shapes else other).root} has it" for path in lone]
    unlike = bool(faults)
    faults += [f"{name}: NaN or Inf in {model.root}" for model in (one, other) for name in model.unsound()]
    if faults:
        shown = [*faults[:12], f"and {len(faults) - 12} more"] if len(faults) > 12 else faults
        what = f"{one.root} isn't tuned from {other.root}" if unlike else "no difference can be taken of these models"
        raise BaseError(what, shown, "name the base it was tuned from" if unlike else "get the model anew")


def _flat(shape: Shape) -> Shape:
    """Without a 1 x 1 kernel: the same map as a linear layer."""
    return shape[:2] if tuple(shape[2:]) == (1, 1) else shape


def _longer_table(name: str, one: Shape, other: Shape) -> bool:
    """Embeddings for more tokens in one model than in the other."""
    return ("embeddings." in name or name.endswith(TABLES)) and len(one) == len(other) == 2 and one[1] == other[1]


def _lone(one: Weights, other: Weights) -> tuple[dict[str, float], list[str]]:
    """({tensor that only one of the two has: its energy}, [components that only one of the two has])."""
    parts, others = ({name.partition(".")[0] for name in model.tensors} for model in (one, other))
    absent = sorted(parts ^ others)
    names = sorted(one.tensors.keys() ^ other.tensors.keys())
    sources = {name: (one.tensors | other.tensors)[name] for name in names if name.partition(".")[0] not in absent}
    return {name: _size(source.tensor()) if source.dtype in FLOATS else 0.0 for name, source in sources.items()}, absent


def _size(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _both(one: Weights, other: Weights) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, tuned tensor, base tensor) of the tensors of both that differ by more than a cast from one dtype.

    Of tables the shorter one is filled up with zeros.
    """
    for name in sorted(one.tensors.keys() & other.tensors.keys()):
        after, before = one.tensors[name].tensor(), other.tensors[name].tensor()
        if after.numel() != before.numel():
            after, before = pad_sequence([after.double(), before.double()], batch_first=True)
        after = after.reshape(before.shape)
        if not (torch.equal(after, before.to(after.dtype)) or torch.equal(after.to(before.dtype), before)):
            yield name, after, before


def by_block(found: Extracted) -> list[Row]:
    """Rows for people: block, modules, ranks, its share of the difference, the share of its energy that is lost."""
    rows = []
    for label in sorted({block_of(one.path) for one in found.modules}, key=order):
        here = [one for one in found.modules if block_of(one.path) == label]
        energy, ranks = sum(one.energy for one in here), sorted({one.rank for one in here})
        spread = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        lost = sum(one.error for one in here) / energy
        rows.append((label, str(len(here)), spread, f"{energy / found.energy:.1%}", f"{lost:.2e}"))
    return rows


def notes(found: Extracted) -> list[str]:
    """What differs and isn't in the adapter, by kind, with its share of all that differs."""
    said = _by_kind("not in the adapter: ", found.left_out, found.total, "layers outside the targets")
    said += _by_kind("only one of the models has ", found.lone, found.total, "layers")
    return said + [f"only one of the models has any {part}; it wasn't compared" for part in found.absent]


def _by_kind(start: str, energies: Mapping[str, float], total: float, rest: str) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for name in energies:
        kinds.setdefault(_kind(name, rest), []).append(name)
    return [
        f"{start}{kind}, {sum(energies[name] for name in names) / total:.2%} of the difference"
        f" ({', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''})"
        for kind, names in sorted(kinds.items())
    ]


def _kind(name: str, rest: str) -> str:
    if name.startswith("vae."):
        return "the VAE"
    if "norm" in name or name.endswith(".bias"):
        return "norms and biases"
    return "embeddings" if ".embeddings." in name or name.endswith(TABLES) else rest


def _metadata(found: Extracted, tuned: str, base: str, rank: int, shapes: Mapping[str, Shape]) -> dict[str, str]:
    """kohya's entries, and what this extraction kept and lost."""
    facts = {
        "tuned": Path(tuned).name, "base": Path(base).name, "rank": rank,
        "error": found.error, "outside": found.outside,
        "modules": {one.path: {"rank": one.rank, "energy": one.energy, "error": one.error} for one in found.modules},
        "left_out": found.left_out, "lone": found.lone, "absent": found.absent,
    }  # fmt: skip
    most = max(one.rank for one in found.modules)
    if found.text:
        return {"stylora.kind": "text", "stylora.base": Path(base).name, ENTRY: json.dumps(facts, sort_keys=True)}
    version = VERSIONS.get(family_of(shapes), "sd_v1")
    kohya = kohya_metadata(base_version=version, rank=most, alpha=most, base_name=Path(base).name)
    return {**kohya, ENTRY: json.dumps(facts, sort_keys=True)}
