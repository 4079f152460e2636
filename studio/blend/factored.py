"""Adapters brought once into shared orthonormal bases, to be blended with any weights by any of the METHODS.

Layers of one shape are stacked; QR of their stacked factors (float64) gives delta_i = left @ core_i @ right^T with a
small core for every adapter. New weights cost only small SVDs of the cores and two thin products.

Try it: python -c "from studio.blend.factored import *; from trainers.lora.adapter import *; \\
a = Adapter.load('ink.safetensors'); print(len(Factored([a.pairs]).blend([0.5], rank=4)))"
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from studio.blend.methods import METHODS, Group, Options, Target
from studio.blend.span import spanned
from trainers.errors import AdapterError
from trainers.lora.algebra import Cut, cuts, energy, shaped
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair

SHOWN = 5  # modules that an error names
MOST = 2**20  # float64 numbers in the factors of one group, 8 MB; more layers are taken in pieces
_TAKING_TURNS = threading.Lock()  # torch's number of threads is one for the whole process

Weight = float | Gain
Kind = tuple[int, tuple[int, ...], tuple[tuple[int, int], ...]]  # out, (in, kh, kw), ((adapter's place, its rank), …)


@dataclass(frozen=True)
class Layer:
    """One module of a blend, and what it was cut from."""

    cut: Cut
    target: Target


class Factored:
    """Adapters, {path: pair} each, in shared bases.

    A module that an adapter lacks counts as a delta of 0; a linear layer and a 1 x 1 convolution are the same map.
    Raises AdapterError naming modules whose shapes disagree.
    """

    def __init__(self, adapters: Sequence[Mapping[str, LoraPair]]) -> None:
        self.adapters = [dict(pairs) for pairs in adapters]
        pieces = [(kind, piece) for kind, paths in _by_kind(self.adapters).items() for piece in _pieces(kind, paths)]
        with one_thread():
            self.groups = [_factored(kind, paths, self.adapters) for kind, paths in pieces]

    @cached_property
    def marks(self) -> tuple[float, ...]:
        """A number for each adapter that speaks of its delta alone: 1024 times the logarithm of its energy."""
        sums = [0.0] * len(self.adapters)
        for group in self.groups:
            energies = group.cores.square().sum((0, 2, 3)).tolist()
            for place, part in zip(group.adapters, energies, strict=True):
                sums[place] += part
        return tuple(1024 * math.log(total) if total else 0.0 for total in sums)

    @property
    def largest_rank(self) -> int:
        """The largest rank that a blend of these can have in any module."""
        return max(min(map(int, group.cores.shape[2:])) for group in self.groups)

    def blend(
        self,
        weights: Sequence[Weight],
        method: str = "svd",
        *,
        rank: int | None = None,
        share: float | None = None,
        density: float = 1.0,
        seed: int = 0,
    ) -> dict[str, Layer]:
        """{path: layer}, cut to `rank`, that `share` of the energy, or both; modules where nothing acts are left out.

        `concat` takes neither: its factors are the adapters' own, side by side. KeyError: there is no such method.
        """
        row = METHODS[method]
        options = Options(density, seed, self.marks if "seed" in row.takes else ())

        def layers(group: Group) -> dict[str, Layer]:
            own = _weights(group, weights)
            target = row.target(group, own, options)
            made = cuts(target.left, target.core, target.right, group.inputs, rank, share) if row.takes else []
            acts = own[:, list(group.adapters)].any(1)
            return {
                path: Layer(made[k] if made else self._concatenated(path, own[k].tolist(), group.inputs), target.at(k))
                for k, path in enumerate(group.paths)
                if acts[k]
            }

        with one_thread():
            parts = [layers(group) for group in self.groups]
        return dict(sorted(item for part in parts for item in part.items()))

    def _concatenated(self, path: str, weights: Sequence[float], inputs: Sequence[int]) -> Cut:
        """The exact sum, its factors the adapters' own; those of weight 0 are left out."""
        acting = [(pairs[path], w) for pairs, w in zip(self.adapters, weights, strict=True) if w and path in pairs]
        pair = concatenated([pair for pair, _ in acting], [w for _, w in acting], inputs)
        return Cut(pair, energy(pair), 0.0)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread, which is quicker for matrices as small as these, and the same to the bit on any machine."""
    with _TAKING_TURNS:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def concatenated(pairs: Sequence[LoraPair], weights: Sequence[float], inputs: Sequence[int]) -> LoraPair:
    """The weighted sum, `down` and, where scales agree, `up` being the very numbers of the pairs.

    alpha carries the largest weight * scale, so that half precision rounds as little as it can; 1, where all are 0.
    """
    scales = [weight * pair.scale for pair, weight in zip(pairs, weights, strict=True)]
    rank, largest = sum(pair.rank for pair in pairs), max(map(abs, scales)) or 1.0
    up = torch.cat([pair.up.double().flatten(1) * (s / largest) for pair, s in zip(pairs, scales, strict=True)], 1)
    made = shaped(up, torch.cat([pair.down.double().flatten(1) for pair in pairs]), inputs)
    return LoraPair(made.down, made.up, largest * rank)


def _weights(group: Group, weights: Sequence[Weight]) -> Tensor:
    """(n, all adapters), float64: a Gain says its own for each module, at the first step of the denoising."""
    rows = [[w.at(path) if isinstance(w, Gain) else w for w in weights] for path in group.paths]
    return torch.tensor(rows, dtype=torch.float64, device=group.cores.device)


def _by_kind(adapters: Sequence[Mapping[str, LoraPair]]) -> dict[Kind, list[str]]:
    """The modules that can be stacked with one another."""
    kinds: dict[Kind, list[str]] = defaultdict(list)
    faults = []
    for path in sorted({path for pairs in adapters for path in pairs}):
        here = [(place, pairs[path]) for place, pairs in enumerate(adapters) if path in pairs]
        sizes = {(pair.up.shape[0], tuple(pair.down.shape[1:])) for _, pair in here}
        if len({(out, *_without_1x1(inputs)) for out, inputs in sizes}) > 1:
            shapes = " and ".join(str((out, *inputs)) for out, inputs in sorted(sizes))
            faults.append(f"{path}: made for {shapes}")
            continue
        out, inputs = max(sizes, key=lambda size: len(size[1]))  # a convolution where one of them is
        kinds[out, inputs, tuple((place, pair.rank) for place, pair in here)].append(path)
    if faults:
        more = [f"… and {len(faults) - SHOWN} modules more"] if len(faults) > SHOWN else []
        raise AdapterError("these adapters disagree", faults[:SHOWN] + more, "blend adapters made for one base")
    return kinds


def _without_1x1(inputs: tuple[int, ...]) -> tuple[int, ...]:
    return inputs[:1] if inputs[1:] == (1, 1) else inputs


def _pieces(kind: Kind, paths: list[str]) -> Iterator[list[str]]:
    out, inputs, ranks = kind
    count = max(1, MOST // ((out + math.prod(inputs)) * sum(rank for _, rank in ranks)))
    for first in range(0, len(paths), count):
        yield paths[first : first + count]


def _factored(kind: Kind, paths: Sequence[str], adapters: Sequence[Mapping[str, LoraPair]]) -> Group:
    _, inputs, ranks = kind
    here = [[adapters[place][path] for place, _ in ranks] for path in paths]
    left, r_up = spanned([[pair.up.flatten(1) for pair in row] for row in here])
    right, r_down = spanned([[pair.down.flatten(1).mT for pair in row] for row in here])
    scales = torch.tensor([[pair.scale for pair in row] for row in here], dtype=torch.float64, device=r_up.device)
    sizes = [rank for _, rank in ranks]
    spans = zip(r_up.split(sizes, 2), r_down.split(sizes, 2), strict=True)
    cores = torch.stack([up @ down.mT for up, down in spans], 1) * scales[..., None, None]
    return Group(tuple(paths), tuple(place for place, _ in ranks), tuple(sizes), inputs, left, cores, right)
