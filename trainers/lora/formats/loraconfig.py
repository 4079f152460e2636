"""The fields of peft's LoraConfig that give each module its own rank and alpha: read and written.

PEFT folders keep them in adapter_config.json, diffusers' files in the header.

Try it: python -c "from trainers.lora.formats.loraconfig import *; print(alphas({'lora_alpha': 8})(['conv_in'], 4))"
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)
_LITERAL = re.compile(r"\^?[\w.]+")


def alphas(fields: Mapping[str, Any]) -> Callable[[Iterable[str], int], float]:
    """alpha by (a module's names within its model, its rank) as the fields give it; alpha = rank where they are silent.

    rsLoRA's scale alpha / sqrt(rank) is given as the alpha that has it over the plain rank. Raises ValueError,
    TypeError or re.error for fields of another form than LoraConfig's.
    """
    patterns = {str(pattern): float(alpha) for pattern, alpha in dict(fields.get("alpha_pattern") or {}).items()}
    of_pattern = first_match(patterns)
    common = None if fields.get("lora_alpha") is None else float(fields["lora_alpha"])
    rslora = bool(fields.get("use_rslora"))

    def alpha_of(names: Iterable[str], rank: int) -> float:
        own = of_pattern(names)
        alpha = common if own is None else own
        return (float(rank) if alpha is None else alpha) * (math.sqrt(rank) if rslora else 1.0)

    return alpha_of


def first_match(patterns: Mapping[str, float]) -> Callable[[Iterable[str]], float | None]:
    """peft's `get_pattern_key`: the first pattern that matches a whole tail of a path; files may have a thousand."""
    order = {pattern: n for n, pattern in enumerate(patterns)}
    loose = {p: re.compile(rf"(.*\.)?({p})$") for p in patterns if not _LITERAL.fullmatch(p)}

    def find(names: Iterable[str]) -> float | None:
        hits = []
        for name in names:
            words = name.split(".")
            tails = [f"^{name}", *(".".join(words[start:]) for start in range(len(words)))]
            hits += [tail for tail in tails if tail in order and tail not in loose]
            hits += [pattern for pattern, compiled in loose.items() if compiled.match(name)]
        return patterns[min(hits, key=order.__getitem__)] if hits else None

    return find


def fields_of(scales: Mapping[str, tuple[int, float]], anchored: bool = True) -> dict[str, Any]:
    """The fields for {path within its model: (rank, alpha)} of every module.

    `anchored`: patterns begin with "^", so that no path can match as another's tail.
    """
    names = {path: f"^{path}" if anchored else path for path in sorted(scales)}
    rank = _most_common(rank for rank, _ in scales.values())
    alpha = _most_common(alpha for _, alpha in scales.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {names[path]: own for path, (own, _) in sorted(scales.items()) if own != rank},
        "alpha_pattern": {names[path]: own for path, (_, own) in sorted(scales.items()) if own != alpha},
        "target_modules": sorted(scales),
    }


def _most_common(values: Iterable[Number]) -> Number:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))
