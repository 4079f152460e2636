"""What an adapter is made of, and how two compare, from its factors alone: norms, spectra, needed rank, overlap.

A block (trainers.lora.blocks) is taken as one block-diagonal matrix of its modules' deltas. No dense delta is made, and
(up M, M^-1 down) gives the same answers for any invertible M. Formulas and papers: docs/methods.md.

Try it: `stylora anatomy ink.safetensors --out anatomy.png`, `stylora diff ink.safetensors neon.safetensors`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from trainers.errors import AdapterError
from trainers.lora.adapter import Adapter
from trainers.lora.algebra import energy, inner, matrices, rank_for, singular_values
from trainers.lora.blocks import block_of, order
from trainers.lora.family import is_text
from trainers.lora.pair import LoraPair

SHARES = (0.95, 0.99)  # of the energy, for which the needed rank is told
TOTAL = "TOTAL"
NAMES = ("the first", "the second")
WeightNorm = Callable[[str], float]  # canonical path -> Frobenius norm of the base's weight there
KINDS = {  # how paths end in the layers of Llama and its kin, GPT-2, Phi and GPT-NeoX -> attention's, feed-forward's
    ".q_proj": "q", ".k_proj": "k", ".v_proj": "v", ".qkv_proj": "qkv", ".attn.c_attn": "qkv",
    ".query_key_value": "qkv", ".o_proj": "out", ".out_proj": "out", ".attn.c_proj": "out", ".gate_proj": "gate",
    ".gate_up_proj": "gate, up", ".up_proj": "up", ".mlp.c_fc": "up", ".fc1": "up", ".dense_h_to_4h": "up",
    ".down_proj": "down", ".mlp.c_proj": "down", ".fc2": "down", ".dense_4h_to_h": "down", "lm_head": "head",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One block of an adapter, or all of it. Energy is the squared Frobenius norm of the deltas."""

    block: str
    modules: int
    rank: int  # the largest that a module has
    norm: float
    relative: float | None  # ||delta|| / ||W|| over the block's modules; None without a base
    effective_rank: float  # mean over the modules that change anything
    kept: tuple[float, ...]  # [k - 1]: share of the energy left when every module is cut to rank k
    needed: dict[float, int]  # share -> the smallest such k
    needed_by_all: dict[float, int]  # share -> the smallest k at which no single module keeps less


def anatomy(adapter: Adapter, weight_norm: WeightNorm | None = None) -> list[Part]:
    """Every block in the order of the data's way, then TOTAL; `weight_norm(path)` is the base's ||W|| of a module."""
    spectra = {path: singular_values(pair) for path, pair in adapter.pairs.items()}
    norms = {path: weight_norm(path) for path in adapter.pairs} if weight_norm else {}
    found = [_part(block, paths, adapter, spectra, norms) for block, paths in by_block(adapter.pairs).items()]
    return [*found, _part(TOTAL, list(adapter.pairs), adapter, spectra, norms)]


def sizes(adapter: Adapter, weight_norm: WeightNorm | None = None) -> dict[str, dict[str, float]]:
    """{kind of module: {block: ||delta||, or with `weight_norm` ||delta|| / ||W||}}, and TOTAL among both.

    Meant for language models, whose layers have all the same modules.
    """
    squares: dict[tuple[str, str], list[float]] = {}
    for path, pair in adapter.pairs.items():
        base = weight_norm(path) ** 2 if weight_norm else 0.0
        for key in product((kind_of(path), TOTAL), (block_of(path), TOTAL)):
            change, whole = squares.get(key, (0.0, 0.0))
            squares[key] = [change + energy(pair), whole + base]
    kinds, blocks = ({key[k] for key in squares} for k in (0, 1))
    return {
        kind: {
            block: math.sqrt(found[0] / (found[1] or 1.0))
            for block in sorted(blocks, key=lambda label: (label == TOTAL, order(label)))
            if (found := squares.get((kind, block)))
        }
        for kind in sorted(kinds, key=_kinds_order)
    }


def kind_of(path: str) -> str:
    """What a module of a language model's layer is, in KINDS' words, else its own name."""
    return next((words for end, words in KINDS.items() if path.endswith(end)), path.rpartition(".")[2])


def _kinds_order(kind: str) -> tuple[bool, int, str]:
    words = list(dict.fromkeys(KINDS.values()))
    return kind == TOTAL, words.index(kind) if kind in words else len(words), kind


def by_block(paths: Iterable[str]) -> dict[str, list[str]]:
    """{block: its module paths}, text encoders first, then along the UNet."""
    blocks: dict[str, list[str]] = {}
    for path in sorted(paths):
        blocks.setdefault(block_of(path), []).append(path)
    return {block: blocks[block] for block in sorted(blocks, key=order)}


def _part(
    block: str, paths: Sequence[str], adapter: Adapter, spectra: Mapping[str, Tensor], norms: Mapping[str, float]
) -> Part:
    rank = max(adapter.pairs[path].rank for path in paths)
    rows = torch.zeros(len(paths), rank, dtype=torch.float64)
    for row, path in zip(rows, paths, strict=True):
        row[: len(spectra[path])] = spectra[path]
    changing = [row for row in rows if bool(row.any())]
    norm = float(rows.square().sum().sqrt())
    base = math.sqrt(sum(norms[path] ** 2 for path in paths)) if norms else 0.0
    pooled = rows.square().sum(0)  # (rank,): energy of the k-th singular values of all modules
    return Part(
        block,
        len(paths),
        rank,
        norm,
        norm / base if base else None,
        sum(map(effective_rank, changing)) / len(changing) if changing else 0.0,
        tuple((pooled.cumsum(0) / pooled.sum()).clamp(max=1.0).tolist()) if norm else (1.0,) * rank,
        {share: rank_for(pooled.sqrt(), share) for share in SHARES},
        {share: max((rank_for(row, share) for row in changing), default=1) for share in SHARES},
    )


def effective_rank(values: Tensor) -> float:
    """exp(entropy of the singular values over their sum): 1 … rank (Roy, Vetterli 2007); 0 where all are 0."""
    shares = values[values > 0] / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 0.0


# --- two adapters ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Two adapters in one block, or in all: the norms of their deltas, of the difference, and the angle's cosine."""

    block: str
    modules: tuple[int, int, int]  # in both, in the first only, in the second only
    norms: tuple[float, float]
    cosine: float  # NaN where one of them changes nothing
    distance: float  # ||delta_1 - delta_2||


def diff(one: Adapter, other: Adapter, names: tuple[str, str] = NAMES) -> list[Difference]:
    """Every block, then TOTAL; a module that one adapter lacks counts as a delta of 0. AdapterError: other sizes."""
    check_sizes([(names[0], one), (names[1], other)])
    blocks = by_block({**one.pairs, **other.pairs})
    return [_difference(block, paths, one, other) for block, paths in blocks.items()] + [
        _difference(TOTAL, sorted({**one.pairs, **other.pairs}), one, other)
    ]


def _difference(block: str, paths: Sequence[str], one: Adapter, other: Adapter) -> Difference:
    both = [path for path in paths if path in one.pairs and path in other.pairs]
    first, second = ([adapter.pairs[path] for path in paths if path in adapter.pairs] for adapter in (one, other))
    squares = sum(map(energy, first)), sum(map(energy, second))
    product = sum(inner(one.pairs[path], other.pairs[path]) for path in both)
    norms = math.sqrt(squares[0]), math.sqrt(squares[1])
    cosine = max(-1.0, min(1.0, product / (norms[0] * norms[1]))) if all(norms) else math.nan
    distance = math.sqrt(max(0.0, squares[0] + squares[1] - 2 * product))
    counts = len(both), len(first) - len(both), len(second) - len(both)
    return Difference(block, counts, norms, cosine, distance)


def check_sizes(adapters: Sequence[tuple[str, Adapter]]) -> None:
    """AdapterError unless the named adapters are made for modules of the same sizes: one family of bases."""
    check_kinds(adapters)
    sizes: dict[str, dict[tuple[int, int], list[str]]] = {}
    versions: dict[str, list[str]] = {}
    for name, adapter in adapters:
        if version := adapter.info.base_version:
            versions.setdefault(version, []).append(name)
        for path, pair in adapter.pairs.items():
            up, down = matrices(pair)
            sizes.setdefault(path, {}).setdefault((len(up), down.shape[1]), []).append(name)
    faults = [_told("base version", versions)] if len(versions) > 1 else []
    faults += [_told(path, found) for path, found in sorted(sizes.items()) if len(found) > 1]
    if faults:
        raise AdapterError("these adapters are of different families", faults, "compare adapters of one base")


def check_kinds(adapters: Sequence[tuple[str, Adapter]]) -> bool:
    """Whether the named adapters are for language models. AdapterError: some are, and some for pictures."""
    kinds: dict[str, list[str]] = {}
    for name, adapter in adapters:
        kinds.setdefault("text" if is_text(adapter.pairs) else "pictures", []).append(name)
    if len(kinds) > 1:
        faults = [f"for {kind}: {', '.join(names)}" for kind, names in sorted(kinds.items())]
        raise AdapterError("adapters for pictures and for text don't go together", faults, "name adapters of one base")
    return "text" in kinds


def _told(what: str, found: Mapping[Any, Sequence[str]]) -> str:
    def size(key: object) -> str:
        return " x ".join(map(str, key)) if isinstance(key, tuple) else str(key)

    return f"{what}: " + ", ".join(f"{size(key)} ({' and '.join(names)})" for key, names in found.items())


# --- overlap ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """How much two adapters share directions, 0 … 1, and what chance alone would give with their spectra."""

    block: str
    writes: float  # of the outputs (column spaces)
    writes_by_chance: float
    reads: float  # of the inputs (row spaces)
    reads_by_chance: float


def overlap(one: Adapter, other: Adapter, names: tuple[str, str] = NAMES) -> list[Overlap]:
    """<G_1, G_2> / (||G_1|| ||G_2||) with G = delta delta^T for what is written, delta^T delta for what is read.

    In singular vectors that is sum s_i^2 s'_j^2 cos^2(u_i, u'_j): the principal angles, weighted by energy. For
    deltas of r equal singular values it is ||U^T U'||^2 / r. By chance (either space turned at random in d dimensions)
    <G_1, G_2> is tr(G_1) tr(G_2) / d.
    """
    check_sizes([(names[0], one), (names[1], other)])
    every = sorted({**one.pairs, **other.pairs})
    blocks = {**by_block(every), TOTAL: every}
    return [_overlap(block, paths, one, other) for block, paths in blocks.items()]


def _overlap(block: str, paths: Sequence[str], one: Adapter, other: Adapter) -> Overlap:
    return Overlap(block, *_share(paths, one, other, _outputs), *_share(paths, one, other, _inputs))


def _share(
    paths: Sequence[str], one: Adapter, other: Adapter, side: Callable[[LoraPair], tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """(overlap, the same by chance) on one side of the modules, taken as one block-diagonal matrix."""
    product = chance = 0.0
    squares = [0.0, 0.0]
    for path in paths:
        here = [side(adapter.pairs[path]) if path in adapter.pairs else None for adapter in (one, other)]
        for k, found in enumerate(here):
            squares[k] += _gram_inner(found, found) if found else 0.0
        if here[0] and here[1]:
            product += _gram_inner(here[0], here[1])
            chance += _trace(here[0]) * _trace(here[1]) / len(here[0][0])
    size = math.sqrt(squares[0] * squares[1])
    return (min(1.0, product / size), min(1.0, chance / size)) if size else (0.0, 0.0)


def _outputs(pair: LoraPair) -> tuple[Tensor, Tensor]:
    """(basis (d, r), core (r, r)) with delta delta^T = basis core basis^T."""
    up, down = matrices(pair)
    return up, down @ down.T


def _inputs(pair: LoraPair) -> tuple[Tensor, Tensor]:
    """The same for delta^T delta."""
    up, down = matrices(pair)
    return down.T, up.T @ up


def _gram_inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """<B C B^T, B' C' B'^T> = sum((C M C') * M), M = B^T B': from small matrices alone."""
    between = one[0].T @ other[0]
    return max(0.0, float(((one[1] @ between @ other[1]) * between).sum()))


def _trace(gram: tuple[Tensor, Tensor]) -> float:
    return float(((gram[0].T @ gram[0]) * gram[1]).sum())
