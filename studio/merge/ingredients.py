"""The adapters of a merge as they act on its base, and everything that keeps a merge from being made.

Try it: python -c "from studio.merge.ingredients import *; print(Ingredient(Use(Path('a')), Adapter({})).facts())"
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.draw.tables import digest_faults
from studio.draw.use import Use
from studio.merge.contents import FILE
from studio.merge.rewrite import DTYPES, REFUSED
from studio.merge.weights import Weights
from trainers.errors import AdapterError, BaseError, ConfigError
from trainers.lora.adapter import Adapter, content_digest, digest
from trainers.lora.ledger import Ledger, fitted
from trainers.unpack import cached

if TYPE_CHECKING:
    from trainers.families.quantized import Quantization

ONTO = ("auto", "16bit", "dequantised")  # what an adapter that was trained on a quantised base is merged onto


@dataclass(frozen=True)
class Ingredient:
    """An adapter as it goes into the base: how it was asked for, its digests known, and what of it fits."""

    use: Use
    adapter: Adapter

    def gain(self, path: str) -> float:
        """The gain of a module; 0 where this adapter doesn't change it."""
        return self.use.gain.at(path) if path in self.adapter.pairs else 0.0

    @property
    def quantization(self) -> Quantization:
        """How the base was quantised when this was trained: none, nf4 or int8."""
        try:
            said = json.loads(self.adapter.info.metadata["stylora.config"])["train"]["quantization"]
        except (KeyError, TypeError, ValueError):
            return "none"
        return "nf4" if said == "nf4" else "int8" if said == "int8" else "none"

    def facts(self) -> dict[str, Any]:
        """For the receipt."""
        gain = self.use.gain
        return {"name": self.use.title, "file": self.use.path.name, "sha256": self.use.sha256,
                "content": self.use.digest, "weight": gain.weight, "text_encoder": gain.text_encoder,
                "blocks": dict(gain.blocks)}  # fmt: skip


def check(
    weights: Weights, uses: Sequence[Use], out: Path, dtype: str, config: str | None, overwrite: bool, onto: str
) -> None:
    """Raises one error with everything that keeps this merge from being made."""
    if weights.sdxl:
        raise BaseError(
            f"{weights.root}: this is an SDXL base, and SDXL can't be run yet, so no receipt could be made",
            next_step="merge into an SD 1.x or 2.x base",
        )
    kind, one = "transformers" if weights.text else "diffusers", weights.single_file
    faults = [] if uses else ["no adapter; give --adapter FILE:0.8"]
    faults += [f"{use.path.name}: has a schedule; weights that stay can't change while a picture is drawn"
               for use in uses if use.gain.schedule]  # fmt: skip
    faults += [f"{use.path.name}: has te=…, and a language model has no text encoder"
               for use in uses if weights.text and use.gain.text_encoder is not None]  # fmt: skip
    for name, got, known in (("dtype", dtype, DTYPES), ("onto", onto, ONTO)):
        faults += [f"{name}: got {got}, wanted one of {', '.join(known)}"] if got not in known else []
    if config and not one:
        faults.append(f"--config: is for single-file bases; a {kind} folder has settings of its own")
    if onto != "auto" and not weights.text:
        faults.append("--onto: is for language models")
    if one and out.suffix != ".safetensors":
        faults.append(f"--out {out}: the base is a single file, so the result is one too: name it ….safetensors")
    if not one and out.suffix == ".safetensors":
        faults.append(f"--out {out}: the base is a {kind} folder, so the result is one too")
    there, root = out.resolve(), weights.root.resolve()
    if there == root or there in root.parents or root in there.parents:
        faults.append(f"--out {out}: that is where the base lies ({weights.root}), which is never written to")
    elif fault := _in_the_way(out, overwrite):
        faults.append(fault)
    if faults:
        raise ConfigError(REFUSED, faults, "`stylora merge --help` says what is meant")


def _in_the_way(out: Path, overwrite: bool) -> str:
    """Why `out` can't be had; --overwrite replaces files and merged models, but no folder that holds other things."""
    if not os.path.lexists(out):
        return ""
    if not overwrite:
        return f"--out {out}: exists; name another, or add --overwrite"
    replaceable = (out / FILE).is_file() if out.is_dir() else out.suffix == ".safetensors"
    return "" if replaceable and not out.is_symlink() else f"--out {out}: exists, and is no merged model"


def check_digests(weights: Weights, config: str | None, wanted: Mapping[str, str]) -> None:
    """Raises BaseError unless the base's parts have these digests; a single file's are those of its diffusers form."""
    if not wanted:
        return
    from studio.merge.probe import family_of

    family = family_of(cached(weights.root, config) if weights.single_file else weights.root, {}, Path())
    if faults := digest_faults(wanted, {part: family.digest(part) for part in wanted}):
        raise BaseError(f"{weights.root}: not the base of the recipe", faults, "name the right one with --base")


def ingredients(uses: Sequence[Use], weights: Weights, partial: bool, notes: list[str]) -> list[Ingredient]:
    """The adapters as they act on the base. Raises AdapterError: one doesn't fit (unless `partial`), or comes twice."""
    parts: dict[str, Ingredient] = {}
    for use in uses:
        adapter, ledger = fitted(use.path, weights.shapes, partial=partial, weight_of=weights.weight)
        own = promised(use, adapter, ledger, parts, notes)
        parts[own.digest] = Ingredient(own, adapter)
    _check_closed(weights, list(parts.values()))
    acting = (pair for part in parts.values() for path, pair in part.adapter.pairs.items() if part.gain(path))
    if not any(bool(pair.up.any() and pair.down.any()) for pair in acting):
        raise ConfigError(REFUSED, ["every weight is 0, or every number: nothing would change"], "give a weight")
    return list(parts.values())


def promised(use: Use, adapter: Adapter, ledger: Ledger, others: Container[str], notes: list[str]) -> Use:
    """The adapter as it was asked for, with its digests; `others`: those of the adapters before it.

    Raises AdapterError: it isn't the recipe's, or comes twice. What of it is lost is noted.
    """
    own = replace(use, digest=content_digest(adapter), sha256=digest(use.path))
    if why := use.mismatch(own):
        raise AdapterError(f"{use.path}: isn't the adapter of the recipe", [why], "name the right file")
    if own.digest in others:
        raise AdapterError(f"{use.path}: stands there twice", next_step="name it once, with the sum of the weights")
    if not ledger.whole:
        notes.append(f"{use.path.name}: {ledger.share:.1%} of its energy acts in this base")
    return own


def _check_closed(weights: Weights, parts: Sequence[Ingredient]) -> None:
    """Raises BaseError: an adapter changes a layer whose weight isn't a tensor of its own in the files."""
    closed = {path: why for path, (_, why) in weights.closed.items() if any(part.gain(path) for part in parts)}
    if closed:
        faults = [f"{path}: {why}" for path, why in closed.items()]
        raise BaseError(f"{weights.root}: nothing can be added to these layers alone", faults, "use the adapter live")
