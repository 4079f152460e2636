"""Base + adapters -> base': W' = W + sum of gain * scale * up @ down, streamed, cast once; and a receipt over it.

The base is only read. The result appears under its name when it is whole and its receipt holds, or not at all.

`stylora merge --base tiny-sd --adapter runs/ink:0.8 --out merged/ink`
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from studio.draw.recipe import digest_faults
from studio.draw.use import Use
from studio.merge import receipt
from studio.merge.probe import Answers, Probe, answers, family_of, fresh, probe_for
from studio.merge.proof import Proof, prove
from studio.merge.receipt import Ask, Compared
from studio.merge.rewrite import DTYPES, UNIT, Change, beside, copy_rest, rewrite, sweep
from studio.merge.weights import Weights, open_base
from trainers.bases import EMBEDDED
from trainers.digests import digest_of_file
from trainers.errors import AdapterError, BaseError, ConfigError, RunError
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora.adapter import Adapter, content_digest, digest
from trainers.lora.ledger import fitted
from trainers.lora.rack import Rack
from trainers.unpack import cached, settings_for

REFUSED = "this merge can't be made"
WRONG = "the merged model isn't what the adapters on the base are"
ROOM = 1 << 18  # bytes of a single file's header kept free for the receipt, besides those for each tensor


@dataclass(frozen=True)
class Ingredient:
    """An adapter as it goes into the base: how it was asked for, its digests known, and what of it fits."""

    use: Use
    adapter: Adapter

    def gain(self, path: str) -> float:
        """The gain of a module; 0 where this adapter doesn't change it."""
        return self.use.gain.at(path) if path in self.adapter.pairs else 0.0

    def facts(self) -> dict[str, Any]:
        """For the receipt."""
        gain = self.use.gain
        return {"name": self.use.title, "file": self.use.path.name, "sha256": self.use.sha256,
                "content": self.use.digest, "weight": gain.weight, "text_encoder": gain.text_encoder,
                "blocks": dict(gain.blocks)}  # fmt: skip


@dataclass(frozen=True)
class Merged:
    """A result under its final name: how far its numbers and answers are off, and what there is to know."""

    path: Path
    compared: list[Compared]
    proof: Proof
    notes: list[str]

    @property
    def modules(self) -> int:
        """How many of them adapters have changed."""
        return self.proof.modules


def merge(
    base: str,
    uses: Sequence[Use],
    out: Path,
    *,
    dtype: str = "keep",
    config: str | None = None,
    partial: bool = False,
    overwrite: bool = False,
    digests: Mapping[str, str] | None = None,
    ask: Ask = fresh,
) -> Merged:
    """Merge adapters into a base and prove the result. Raises StyloraError, and then nothing is left under `out`.

    `dtype` is a key of DTYPES; `config` the diffusers folder whose settings and tokenizer a single file goes with;
    `digests` are those that parts of the base must have (StableDiffusion.digest); `ask` gives the answers of the
    result on disk.
    """
    weights = open_base(base)
    sweep(out)
    _check(weights, uses, out, dtype, config, overwrite)
    _check_digests(weights, config, digests or {})
    notes: list[str] = []
    parts = _ingredients(uses, weights, partial, notes)
    if unsound := weights.unsound():
        raise BaseError(f"{weights.root}: NaN or Inf in the base", unsound, "get the model anew")
    settings = settings_for(weights.files[0], config) if weights.single_file else {}
    with beside(out) as temp:
        stored = _write(weights, temp, parts, DTYPES[dtype], notes)
        proof = _prove(weights, temp, parts, DTYPES[dtype], notes)
        probe, live, bare = _ask_rack(weights.root, parts, settings)
        compared = receipt.compare(live, bare, ask(temp, probe, settings), stored)
        if faults := [fault for one in compared for fault in one.faults()]:
            step = "nothing was kept; merge with --dtype fp32, which rounds least"
            raise RunError(WRONG, faults, step)
        named = {"name": _name_of(base, weights), "files": _base_digests(weights)}
        facts = {"base": named, "adapters": [part.facts() for part in parts], "dtype": dtype, "stored": stored,
                 "proof": proof.facts(), "versions": _versions()}  # fmt: skip
        receipt.seal(temp, facts | receipt.record(probe, live, compared, settings))
    return Merged(out, compared, proof, notes)


# --- before anything is written --------------------------------------------------------------------------------------


def _check(weights: Weights, uses: Sequence[Use], out: Path, dtype: str, config: str | None, overwrite: bool) -> None:
    """Raises one error with everything that keeps this merge from being made."""
    if weights.sdxl:
        raise BaseError(
            f"{weights.root}: this is an SDXL base, and SDXL can't be run yet, so no receipt could be made",
            next_step="merge into an SD 1.x or 2.x base",
        )
    faults = [] if uses else ["no adapter; give --adapter FILE:0.8"]
    faults += [f"{use.path.name}: has a schedule; weights that stay can't change while a picture is drawn"
               for use in uses if use.gain.schedule]  # fmt: skip
    if dtype not in DTYPES:
        faults.append(f"dtype: got {dtype}, wanted one of {', '.join(DTYPES)}")
    if config and not weights.single_file:
        faults.append("--config: is for single-file bases; a diffusers folder has settings of its own")
    if weights.single_file and out.suffix != ".safetensors":
        faults.append(f"--out {out}: the base is a single file, so the result is one too: name it ….safetensors")
    if not weights.single_file and out.suffix == ".safetensors":
        faults.append(f"--out {out}: the base is a diffusers folder, so the result is one too")
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
    replaceable = (out / receipt.FILE).is_file() if out.is_dir() else out.suffix == ".safetensors"
    return "" if replaceable and not out.is_symlink() else f"--out {out}: exists, and is no merged model"


def _check_digests(weights: Weights, config: str | None, wanted: Mapping[str, str]) -> None:
    """Raises BaseError unless the base's parts have these digests; a single file's are those of its diffusers form."""
    if not wanted:
        return
    folder = cached(weights.root, config) if weights.single_file else weights.root
    family = StableDiffusion(folder, device="cpu")
    if faults := digest_faults(wanted, {part: family.digest(part) for part in wanted}):
        raise BaseError(f"{weights.root}: not the base of the recipe", faults, "name the right one with --base")


def _ingredients(uses: Sequence[Use], weights: Weights, partial: bool, notes: list[str]) -> list[Ingredient]:
    """The adapters as they act on the base. Raises AdapterError: one doesn't fit (unless `partial`), or comes twice."""
    parts: dict[str, Ingredient] = {}
    for use in uses:
        adapter, ledger = fitted(use.path, weights.shapes, partial=partial, weight_of=weights.weight)
        own = replace(use, digest=content_digest(adapter), sha256=digest(use.path))
        if why := use.mismatch(own):
            raise AdapterError(f"{use.path}: isn't the adapter of the recipe", [why], "name the right file")
        if own.digest in parts:
            raise AdapterError(f"{use.path}: stands there twice", next_step="name it once, with the sum of the weights")
        if not ledger.whole:
            notes.append(f"{use.path.name}: {ledger.share:.1%} of its energy acts in this base")
        parts[own.digest] = Ingredient(own, adapter)
    acting = (pair for part in parts.values() for path, pair in part.adapter.pairs.items() if part.gain(path))
    if not any(bool(pair.up.any() and pair.down.any()) for pair in acting):
        raise ConfigError(REFUSED, ["every weight is 0, or every number: nothing would change"], "give a weight")
    return list(parts.values())


# --- writing ---------------------------------------------------------------------------------------------------------


def _write(weights: Weights, temp: Path, parts: Sequence[Ingredient], dtype: str, notes: list[str]) -> str:
    """Write all of the merged model but its receipt; gives the coarsest dtype of the changed tensors."""
    changed = sorted({path for part in parts for path in part.adapter.pairs if part.gain(path)})
    modules: dict[tuple[Path, str], list[str]] = defaultdict(list)  # (file, tensor) -> the modules that lie in it
    for path in changed:
        source = weights.tensors[f"{path}.weight"]
        modules[source.file.path, source.key].append(path)
    if weights.single_file:
        if any(key.startswith("model_ema.") for key in weights.files[0].entries):
            notes.append("model_ema.…, a second copy of the UNet that tools don't draw with, is left as it was")
    else:
        left = copy_rest(weights, temp, receipt.FILE)
        notes += [f"{name} is left out: it holds the base's weights once more, unchanged" for name in left]
    stored = set()
    for file in weights.files:
        target = temp if weights.single_file else temp / file.path.relative_to(weights.root)
        here = {key: paths for (path, key), paths in modules.items() if path == file.path}
        room = ROOM + 3 * receipt.SHORT * len(file.entries) if weights.single_file else 0
        rewrite(file, target, {key: _sum(weights, paths, parts) for key, paths in here.items()}, dtype, room)
        stored |= {dtype or file.entries[key].dtype for key in here}
    return max(stored, key=lambda name: UNIT[name])


def _sum(weights: Weights, paths: Sequence[str], parts: Sequence[Ingredient]) -> Change:
    """Adds the deltas of the modules that lie in one tensor (several where query, key and value are fused)."""

    def add(whole: Tensor) -> Tensor:
        for path in paths:
            rows = weights.tensors[f"{path}.weight"].rows
            weight = whole[rows] if rows else whole
            for part in parts:
                if gain := part.gain(path):
                    weight += gain * part.adapter.pairs[path].delta().reshape(weight.shape)
        return whole

    return add


# --- the receipt -----------------------------------------------------------------------------------------------------


def _prove(weights: Weights, temp: Path, parts: Sequence[Ingredient], dtype: str, notes: list[str]) -> Proof:
    """Every tensor of the result against base and adapters. Raises RunError: one is something else, or none changed."""
    proof = prove(weights, open_base(temp), [(part.adapter, part.use.gain) for part in parts], dtype)
    if proof.faults:
        raise RunError(WRONG, proof.faults, "nothing was kept; check disk and memory, and merge again")
    small = len(proof.eaten)
    if small == proof.modules:
        fault = f"{small} modules: not one stored number changed"
        raise RunError("rounding has eaten the adapters", [fault], "nothing was kept; merge with --dtype fp32")
    if small:
        shown = f"{', '.join(proof.eaten[:3])}{f' and {small - 3} more' if small > 3 else ''}"
        notes.append(f"too small a change to move any stored number: {shown}")
    return proof


def _ask_rack(base: Path, parts: Sequence[Ingredient], settings: Mapping[str, bytes]) -> tuple[Probe, Answers, Answers]:
    """(the question, the answers of base + rack, those of the bare base)."""
    words = ", ".join(part.adapter.info.trigger for part in parts if part.adapter.info.trigger)
    with tempfile.TemporaryDirectory(prefix="stylora-") as folder:
        family = family_of(base, settings, Path(folder))
        probe = probe_for(family, words)
        bare = answers(family, probe)
        with Rack(family.parts()) as rack:
            rack.set([{rack.add(part.adapter): part.use.gain for part in parts}])
            return probe, answers(family, probe), bare


def _name_of(base: str, weights: Weights) -> str:
    """What the receipt calls the base: an alias or hub id as it is; of a path the last part, as disks are private."""
    return weights.root.resolve().name if base not in EMBEDDED and Path(base).expanduser().exists() else base


def _base_digests(weights: Weights) -> dict[str, str]:
    """sha256 of each weight file, by its name within the base."""
    root = weights.root.parent if weights.single_file else weights.root
    return {file.path.relative_to(root).as_posix(): digest_of_file(file.path) for file in weights.files}


def _versions() -> dict[str, str]:
    found = {}
    for name in ("stylora", "torch", "diffusers", "transformers"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
