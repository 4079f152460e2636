"""Every kind of change that adapter files hold, made into low-rank pairs: exact forms, cut to a rank only where asked.

A kind is a row of KINDS: the roles its tensors have, and its form. What can't be a pair is refused by name.

Try it: python -c "from trainers.lora.kinds import KINDS; print(*{kind.name for kind in KINDS.values()}, sep=', ')"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from trainers.lora.algebra import cut, energy, shaped
from trainers.lora.dora import by_output, change
from trainers.lora.formats.grouped import Grouped
from trainers.lora.formats.names import foreign_kind
from trainers.lora.lycoris import Factors, hadamard, kronecker, lean, of_matrix, tucker
from trainers.lora.pair import LoraPair, Pairs, pair_faults

WeightOf = Callable[[str], Tensor]  # canonical path -> the base's weight; KeyError where it has no such module
Roles = Mapping[str, Tensor]  # role -> tensor, of one module
DORA_RANKS = 2  # a DoRA's plain change is of full rank: where no rank is asked, it is cut to twice the rank it has
BIAS, MAGNITUDE = "diff_b", "dora_scale"
NEEDS_BASE = "DoRA: what it changes depends on the base's weights, and no base was given"


@dataclass(frozen=True)
class Entry:
    """What became of some of a file's tensors: a module's, or one that belongs to none."""

    path: str  # canonical; "" where the tensors belong to no module
    keys: tuple[str, ...]  # the tensors' names in the file
    verdict: Literal["applied", "converted", "refused", "left aside"]  # aside: known, and no part of the adapter
    reason: str = ""
    energy: float | None = None  # squared Frobenius norm of the change the file asks for; None: can't be known
    lost: float = 0.0  # the part of it that was cut away


@dataclass(frozen=True)
class Kind:
    """A row of KINDS: its name and, but for plain LoRA, its exact form from float64 tensors."""

    name: str
    form: Callable[[Roles], Factors] | None
    rank_of: Callable[[Roles], int | None]  # the rank that alpha is divided by; None: the scale is 1 whatever alpha is


def _locon(t: Roles) -> Factors:
    return t["up"].flatten(1), tucker(t["mid"], t["down"])


def _loha(t: Roles) -> Factors:
    return hadamard(t["hada_w1_a"], t["hada_w1_b"], t["hada_w2_a"], t["hada_w2_b"])


def _loha_tucker(t: Roles) -> Factors:
    downs = [tucker(t[f"hada_t{n}"], t[f"hada_w{n}_b"]) for n in (1, 2)]
    return hadamard(t["hada_w1_a"].mT, downs[0], t["hada_w2_a"].mT, downs[1])


def _lokr(t: Roles) -> Factors:
    one = of_matrix(t["lokr_w1"]) if "lokr_w1" in t else (t["lokr_w1_a"], t["lokr_w1_b"])
    if "lokr_w2" in t:
        return kronecker(one, of_matrix(t["lokr_w2"]))
    if "lokr_t2" in t:
        return kronecker(one, (t["lokr_w2_a"].mT, tucker(t["lokr_t2"], t["lokr_w2_b"])))
    return kronecker(one, (t["lokr_w2_a"], t["lokr_w2_b"]))


def _lokr_rank(t: Roles) -> int | None:
    return next((len(t[role]) for role in ("lokr_w2_b", "lokr_w1_b") if role in t), None)


_PLAIN = ("down", "up")
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_KRON_1 = (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
_KRON_2 = (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_w2_a", "lokr_w2_b", "lokr_t2"))
_LOHA, _LOKR = "LoHa (LyCORIS)", Kind("LoKr (LyCORIS)", _lokr, _lokr_rank)

# The roles a module has -> its kind. Scales as LyCORIS' own modules have them: alpha over the rank, but 1 for a LoKr of
# which nothing is factored, and for full differences.
KINDS: dict[frozenset[str], Kind] = {
    frozenset(_PLAIN): Kind("LoRA", None, lambda t: len(t["down"])),
    frozenset((*_PLAIN, "mid")): Kind("LoCon in Tucker form (LyCORIS)", _locon, lambda t: len(t["mid"])),
    frozenset(_HADA): Kind(_LOHA, _loha, lambda t: len(t["hada_w1_b"])),
    frozenset((*_HADA, "hada_t1", "hada_t2")): Kind(_LOHA, _loha_tucker, lambda t: len(t["hada_w1_b"])),
    **{frozenset(one + two): _LOKR for one, two in product(_KRON_1, _KRON_2)},
    frozenset(("diff",)): Kind("full differences (LyCORIS)", lambda t: of_matrix(t["diff"]), lambda t: None),
}

# Flat factors of a convolution don't tell its kernel; in the UNets of SD 1, 2 and XL these names have 3 x 3.
KERNELS = ("conv1", "conv2", "conv", "conv_in", "conv_out")


class _Refusal(Exception):
    """Why a module's tensors can't become a pair."""


def assemble(
    grouped: Grouped, *, rank: int | None = None, weight_of: WeightOf | None = None
) -> tuple[Pairs, list[Entry]]:
    """({path: pair} of all that could be read, what became of every tensor), both in the order of paths.

    Without `rank` all but DoRA is exact; with it every change is cut to that rank at most, and `Entry.lost` says what
    that took. DoRA takes `weight_of`, and where no rank is asked is cut to twice its own.
    """
    pairs: Pairs = {}
    entries = []
    for path, found in sorted(grouped.modules.items()):
        keys = grouped.keys[path]
        tensors = {role: tensor for role, tensor in found.items() if role != BIAS}
        if BIAS in found:
            entries.append(Entry(path, (keys[BIAS],), "refused", "a change of the bias (LyCORIS), which no LoRA has"))
        if not tensors:
            continue
        own = tuple(keys[role] for role in tensors)
        if MAGNITUDE in keys and "magnitude" in keys[MAGNITUDE]:  # peft's name, and so peft's axis
            tensors[MAGNITUDE] = by_output(tensors[MAGNITUDE])
        try:
            pairs[path], entry = _made(path, tensors, grouped.alpha_of, rank, weight_of)
        except _Refusal as refusal:
            entry = Entry(path, own, "refused", str(refusal))
        entries.append(replace(entry, keys=own))
    entries += [Entry("", (key,), "refused", foreign_kind(key) or "an unknown name") for key in sorted(grouped.unknown)]
    entries += [Entry("", (key,), "refused", fault) for key, fault in sorted(grouped.doubled.items())]
    return pairs, entries + [Entry("", (), "refused", fault) for fault in grouped.faults]


def _made(
    path: str,
    tensors: Roles,
    alpha_of: Callable[[str, int], float],
    rank: int | None,
    weight_of: WeightOf | None,
) -> tuple[LoraPair, Entry]:
    kind = KINDS.get(frozenset(tensors) - {"alpha", MAGNITUDE})
    if kind is None:
        raise _Refusal(_incomplete(frozenset(tensors) - {"alpha", MAGNITUDE}))
    _check_numbers(tensors)
    if kind.form or MAGNITUDE in tensors:
        _check_finite(tensors)
    pair = _pair(path, kind, tensors, alpha_of)
    if faults := pair_faults(path, pair):
        raise _Refusal(faults[0].removeprefix(f"{path}: "))
    names = [kind.name] if kind.form else []
    if MAGNITUDE in tensors:
        names.append("DoRA")
        pair, rank = _undecomposed(path, pair, tensors[MAGNITUDE], weight_of), rank or DORA_RANKS * pair.rank
    whole = energy(pair)
    if rank is None or pair.rank <= rank:
        how = f"{' with '.join(names)}, exact" if names else ""
        return pair, Entry(path, (), "converted" if names else "applied", how, whole)
    short = cut(pair, rank)
    reason = f"{' with '.join(names) or kind.name}, cut to rank {rank}"
    return short.pair, Entry(path, (), "converted", reason, whole, short.discarded)


def _pair(path: str, kind: Kind, tensors: Roles, alpha_of: Callable[[str, int], float]) -> LoraPair:
    """The module's change without its magnitude: a plain pair as it is, any other kind in float32 with scale 1."""
    try:
        own = kind.rank_of(tensors)
        alpha = 1.0 if own is None else float(tensors["alpha"]) if "alpha" in tensors else alpha_of(path, own)
        if kind.form is None:
            return LoraPair(tensors["down"], tensors["up"], alpha)
        up, down = lean(*kind.form({role: tensor.double() for role, tensor in tensors.items()}))
        return shaped((up * (alpha / (own or 1))).float(), down.float(), _inputs(path, down))
    except (RuntimeError, IndexError):
        shapes = ", ".join(f"{role} {list(tensor.shape)}" for role, tensor in sorted(tensors.items()))
        raise _Refusal(f"{kind.name}: its parts don't fit together: {shapes}") from None


def _inputs(path: str, down: Tensor) -> Sequence[int]:
    """The input side (in[, kh, kw]) of down (R, in[, kh, kw]), which may be a convolution's flat (R, in * 9)."""
    kernel = path.startswith("unet.") and path.rpartition(".")[2] in KERNELS
    if kernel and down.ndim == 2 and down.shape[1] % 9 == 0:
        return (down.shape[1] // 9, 3, 3)
    return down.shape[1:]


def _undecomposed(path: str, pair: LoraPair, magnitude: Tensor, weight_of: WeightOf | None) -> LoraPair:
    if weight_of is None:
        raise _Refusal(NEEDS_BASE)
    try:
        up, down = of_matrix(change(weight_of(path), pair.delta(), magnitude))
    except KeyError:
        raise _Refusal("DoRA: the base has no such module") from None
    except ValueError as error:
        raise _Refusal(f"DoRA: {error}") from None
    return shaped(up.float(), down.float(), down.shape[1:])


def _check_numbers(tensors: Roles) -> None:
    """alpha is a single number, the others are of floating point."""
    if (alpha := tensors.get("alpha")) is not None and (alpha.numel() != 1 or alpha.is_complex()):
        raise _Refusal(f"alpha is {list(alpha.shape)}, wanted a single number")
    parts = {role: tensor for role, tensor in tensors.items() if role != "alpha"}
    if odd := [f"{role} is {tensor.dtype}" for role, tensor in parts.items() if not tensor.is_floating_point()]:
        raise _Refusal(f"{', '.join(odd)}, not floating point")


def _check_finite(tensors: Roles) -> None:
    if bad := [role for role, tensor in tensors.items() if not bool(torch.isfinite(tensor.float()).all())]:
        raise _Refusal(f"NaN or Inf in {' and '.join(bad)}")


def _incomplete(roles: frozenset[str]) -> str:
    """What a module lacks to be of the kind it comes nearest to."""
    nearest = min(KINDS, key=lambda wanted: (len(wanted ^ roles), sorted(wanted)))
    has, lacks = " and ".join(sorted(roles)) or "alpha alone", " and ".join(sorted(nearest - roles))
    return f"{KINDS[nearest].name}: has {has}, " + (f"lacks {lacks}" if lacks else "which is more than it can have")
