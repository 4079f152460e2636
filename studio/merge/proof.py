"""Tensor by tensor: the result is base + deltas, rounded once, and where no adapter acts it is the base's own bytes.

The deltas are made anew here, in float64 from joined factors, so that nothing of the merge itself is taken on trust.
docs/methods.md, "Merge and receipt", derives what is allowed.

Try it: python -c "from studio.merge.proof import *; x = open_base('tiny-sd'); print(prove(x, x, []))"
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studio.merge.rewrite import UNIT
from studio.merge.weights import Source, Weights, open_base
from trainers.lora.adapter import Adapter
from trainers.lora.algebra import joined, matrices
from trainers.lora.files import raw
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair
from trainers.tensorfile import DTYPES, FLOATS, NAMES, TensorFile

__all__ = ["Proof", "open_base", "prove"]

TERM = 2.0**-23  # allowed for each float32 operation: twice its unit roundoff
TINY = {"F16": 2.0**-25}  # half a step among the subnormal numbers of a dtype
TINIEST = 2.0**-126  # the same for wider dtypes, which float32 sums may flush to zero
SLAB = 1 << 20  # numbers of a weight looked at together
Part = tuple[Adapter, Gain]
Deltas = Sequence[tuple[LoraPair, float]]


@dataclass(frozen=True)
class Proof:
    """How near the result is to base + deltas, and everything in it that isn't so."""

    modules: int = 0  # whose numbers were compared
    others: int = 0  # tensors that are the base's, byte for byte or cast once
    worst: float = 0.0  # the largest error, in units of the one allowed there: 1 is the border
    where: str = ""  # the module it was found in
    eaten: tuple[str, ...] = ()  # modules whose change is so small that no stored number moved
    faults: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """For the receipt."""
        return {"modules": self.modules, "others": self.others, "worst": self.worst, "where": self.where,
                "eaten": list(self.eaten)}  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """One module, looked at."""

    path: str
    error: float  # in units of the allowed one; NaN where a number is none
    moved: bool

    def fault(self) -> str:
        if self.error <= 1:  # NaN isn't
            return ""
        return f"{self.path}: off by {self.error:.3g} times what rounding allows"


def prove(base: Weights, made: Weights, parts: Sequence[Part], dtype: str = "") -> Proof:
    """Compare every tensor of `made` with what base and adapters say; floats were cast to `dtype` ("": kept)."""
    there = {_name(made, file): file for file in made.files}
    pairs = [(file, there.get(_name(base, file))) for file in base.files]
    if faults := [fault for old, new in pairs for fault in _layout(old, new, dtype)]:
        return Proof(faults=tuple(faults))
    wanted, inside = _wanted(parts), _inside(base)
    seen: list[_Seen] = []
    others: list[tuple[str, bool]] = []
    for old, new in ((old, new) for old, new in pairs if new):
        for key in old.entries:
            names = inside.get((old.path, key), [])
            if wanted.keys().isdisjoint(names) and not any(base.tensors[name].through for name in names):
                others.append((key, _same_bytes(old, new, key)))
                continue
            for name in names:  # several where query, key and value are fused; then some of them may stay
                one, other = base.tensors[name], made.tensors[name]
                if name in wanted:
                    seen.append(_look(name, one, other, wanted[name]))
                else:
                    others.append((name, _same_cast(one, other)))
    return _proof(seen, others)


def _proof(seen: Sequence[_Seen], others: Sequence[tuple[str, bool]]) -> Proof:
    faults = [fault for one in seen if (fault := one.fault())]
    faults += [f"{name}: no adapter changes it, and it isn't the base's" for name, same in others if not same]
    worst = max(seen, key=lambda one: math.inf if math.isnan(one.error) else one.error, default=_Seen("", 0.0, True))
    eaten = tuple(one.path for one in seen if not one.moved)
    return Proof(len(seen), sum(same for _, same in others), worst.error, worst.path, eaten, tuple(faults))


# --- what there should be --------------------------------------------------------------------------------------------


def _name(model: Weights, file: TensorFile) -> Path:
    return Path() if model.single_file else file.path.relative_to(model.root)


def _layout(old: TensorFile, new: TensorFile | None, dtype: str) -> Iterator[str]:
    """A file that isn't there, tensors that came or went, other shapes, other dtypes."""
    if new is None:
        yield f"{old.path.name} of the base is missing"
        return
    yield from (f"{key}: {'is missing' if key in old.entries else 'is new'}"
                for key in sorted(old.entries.keys() ^ new.entries.keys()))  # fmt: skip
    for key in old.entries.keys() & new.entries.keys():
        one, other = old.entries[key], new.entries[key]
        stored = dtype if dtype and one.dtype in FLOATS else one.dtype
        if (stored, one.shape) != (other.dtype, other.shape):
            yield f"{key}: is {other.dtype} {list(other.shape)}, wanted {stored} {list(one.shape)}"


def _wanted(parts: Sequence[Part]) -> dict[str, list[tuple[LoraPair, float]]]:
    """{tensor: what is to be added to it}."""
    found: dict[str, list[tuple[LoraPair, float]]] = defaultdict(list)
    for adapter, gain in parts:
        for path, pair in adapter.pairs.items():
            if factor := gain.at(path):
                found[f"{path}.weight"].append((pair, factor))
    return dict(found)


def _inside(base: Weights) -> Mapping[tuple[Path, str], list[str]]:
    """(file, its tensor) -> the pipeline's tensors that lie in it: none, one, or query, key and value."""
    found: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for name, source in base.tensors.items():
        found[source.file.path, source.key].append(name)
    return found


# --- looking ---------------------------------------------------------------------------------------------------------


def _same_bytes(old: TensorFile, new: TensorFile, key: str) -> bool:
    stored = new.entries[key].dtype
    if old.entries[key].dtype == stored:
        return all(one == other for one, other in zip(old.pieces(key), new.pieces(key), strict=True))
    return _same_cast(Source(old, key), Source(new, key))


def _same_cast(old: Source, new: Source) -> bool:
    return bool(raw(old.tensor().to(DTYPES[new.dtype])) == raw(new.tensor()))


def _look(name: str, old: Source, new: Source, deltas: Deltas) -> _Seen:
    before, after = old.tensor(), new.tensor()
    error = excess(before, after, deltas)
    return _Seen(name.removesuffix(".weight"), error, not torch.equal(after, before.to(after.dtype)))


def excess(before: Tensor, after: Tensor, deltas: Deltas) -> float:
    """The largest |W' - S| in units of what is allowed there, S = W + sum of gain * delta; NaN where W' is none.

    Allowed is u |S| for the rounding to W's new dtype, half a step where numbers are subnormal, and for the float32
    sums TERM * (operations) * (|W| + |up| |down|): the bound of dot products in any order (Higham 2002, section 3.1).
    """
    up, down = matrices(joined(*(list(column) for column in zip(*deltas, strict=True))))
    stored = NAMES[after.dtype]
    unit, tiny = UNIT[stored], TINY.get(stored, TINIEST)
    term = TERM * (len(down) + len(deltas) + 6)
    rows = max(1, SLAB // down.shape[1])
    worst = []
    for first in range(0, len(up), rows):
        old, new = (side.flatten(1)[first : first + rows].double() for side in (before, after))
        left = up[first : first + rows]
        wanted = old + left @ down
        allowed = unit * wanted.abs() + tiny + term * (old.abs() + left.abs() @ down.abs())
        worst.append(((new - wanted).abs() / allowed).max())
    return float(torch.stack(worst).max())
