"""Base + adapters -> base': W' = W + sum of gain * scale * up @ down, streamed, cast once; and a receipt over it.

The base is only read. The result appears under its name when it is whole and its receipt holds, or not at all.

`stylora merge --base tiny-sd --adapter runs/ink:0.8 --out merged/ink`
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from studio.draw.use import Use
from studio.merge import receipt
from studio.merge.probe import Answers, Probe, answers, family_of, fresh, probe_for
from studio.merge.receipt import Ask, Compared
from studio.merge.rewrite import DTYPES, Change, beside, copy_rest, metadata_of, rewrite
from studio.merge.weights import Weights, open_base
from trainers import tensorfile
from trainers.digests import digest_of_file
from trainers.errors import AdapterError, BaseError, ConfigError, RunError
from trainers.lora.adapter import Adapter, content_digest, digest
from trainers.lora.ledger import fitted
from trainers.lora.rack import Rack
from trainers.unpack import settings_for

REFUSED = "this merge can't be made"
ROOM = 1 << 18  # bytes of a single file's header kept free for the receipt, besides those for each tensor


@dataclass(frozen=True)
class Ingredient:
    """An adapter as it goes into the base: how it was asked for, and what of it fits."""

    use: Use
    adapter: Adapter

    def gain(self, path: str) -> float:
        """The gain of a module; 0 where this adapter doesn't change it."""
        return self.use.gain.at(path) if path in self.adapter.pairs else 0.0

    def facts(self) -> dict[str, Any]:
        """For the receipt."""
        gain = self.use.gain
        return {"name": self.use.title, "file": self.use.path.name, "sha256": digest(self.use.path),
                "content": content_digest(self.adapter), "weight": gain.weight, "text_encoder": gain.text_encoder,
                "blocks": dict(gain.blocks)}  # fmt: skip


@dataclass(frozen=True)
class Merged:
    """A result under its final name: how far its answers are from the rack's, and what there is to know."""

    path: Path
    compared: list[Compared]
    modules: int
    notes: list[str]


def merge(
    base: str,
    uses: Sequence[Use],
    out: Path,
    *,
    dtype: str = "keep",
    config: str | None = None,
    partial: bool = False,
    overwrite: bool = False,
    ask: Ask = fresh,
) -> Merged:
    """Merge adapters into a base and prove the result. Raises StyloraError, and then nothing is left under `out`.

    `dtype` is a key of DTYPES; `config` the diffusers folder whose settings and tokenizer a single file goes with;
    `ask` gives the answers of the result on disk.
    """
    weights = open_base(base)
    _check(weights, uses, out, dtype, config, overwrite)
    notes: list[str] = []
    parts = _ingredients(uses, weights, partial, notes)
    settings = settings_for(weights.files[0], config) if weights.single_file else {}
    with beside(out) as temp:
        modules, stored = _write(weights, temp, parts, DTYPES[dtype], notes)
        probe, live, bare = _ask_rack(weights.root, parts, settings)
        compared = receipt.compare(live, bare, ask(temp, probe, settings), stored)
        if faults := [fault for one in compared for fault in one.faults()]:
            step = "nothing was kept; merge with --dtype fp32, which rounds least"
            raise RunError("the merged model isn't what the adapters on the base are", faults, step)
        facts = {"base": {"name": base, "files": _base_digests(weights)}, "adapters": [part.facts() for part in parts],
                 "dtype": dtype, "stored": stored, "modules": modules, "versions": _versions()}  # fmt: skip
        _seal(temp, facts | receipt.record(probe, live, compared, settings))
    return Merged(out, compared, modules, notes)


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


def _ingredients(uses: Sequence[Use], weights: Weights, partial: bool, notes: list[str]) -> list[Ingredient]:
    """The adapters as they act on the base. Raises AdapterError: one doesn't fit (unless `partial`), or comes twice."""
    parts: dict[str, Ingredient] = {}
    for use in uses:
        adapter, ledger = fitted(use.path, weights.shapes, partial=partial, weight_of=weights.weight)
        key = content_digest(adapter)
        if use.digest not in ("", key):
            fault = f"sha256 of its numbers is {key[:12]}, wanted {use.digest[:12]}"
            raise AdapterError(f"{use.path}: isn't the adapter of the recipe", [fault], "name the right file")
        if key in parts:
            raise AdapterError(f"{use.path}: stands there twice", next_step="name it once, with the sum of the weights")
        if not ledger.whole:
            notes.append(f"{use.path.name}: {ledger.share:.1%} of its energy acts in this base")
        parts[key] = Ingredient(use, adapter)
    return list(parts.values())


# --- writing ---------------------------------------------------------------------------------------------------------


def _write(weights: Weights, temp: Path, parts: Sequence[Ingredient], dtype: str, notes: list[str]) -> tuple[int, str]:
    """Write all of the merged model but its receipt; gives (changed modules, the coarsest dtype of changed tensors)."""
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
    return len(changed), max(stored, key=lambda name: receipt.UNIT[name], default=dtype or "F32")


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


def _seal(temp: Path, facts: receipt.Receipt) -> None:
    """Write the receipt into the merged model: a file of its folder, or the room left in the header."""
    model = open_base(temp)
    sealed = receipt.sealed(facts | {"contents": receipt.contents(model)})
    if not model.single_file:
        (temp / receipt.FILE).write_text(json.dumps(sealed, indent=1, sort_keys=True))
        return
    file = model.files[0]
    names = {key: (entry.dtype, entry.shape) for key, entry in file.entries.items()}
    head = tensorfile.header(names, metadata_of(file) | {receipt.ENTRY: json.dumps(sealed)}, file.data)
    if len(head) != file.data:
        raise RunError(f"the receipt takes {len(head) - file.data} bytes more than the header has room for")
    with temp.open("r+b") as stream:
        stream.write(head)
        stream.flush()
        os.fsync(stream.fileno())
