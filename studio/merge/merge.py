"""Base + adapters -> base': W' = W + sum of gain * scale * up @ down, streamed, cast once; and a receipt over it.

The base is only read. The result appears under its name when it is whole and its receipt holds, or not at all.

`stylora merge --base tiny-sd --adapter runs/ink:0.8 --out merged/ink`
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from torch import Tensor

from studio.draw.use import Use
from studio.merge import receipt
from studio.merge.contents import FILE, SHORT
from studio.merge.ingredients import Ingredient, check, check_digests, ingredients
from studio.merge.likeness import Likeness
from studio.merge.onto import Onto, choose, settle, with_rack, words_of
from studio.merge.probe import Answers, Probe, answers, family_of, fresh, probe_for
from studio.merge.proof import Proof, prove
from studio.merge.receipt import Ask, Compared
from studio.merge.rewrite import DTYPES, UNIT, Change, beside, copy_rest, rewrite, sweep, tell_dtype
from studio.merge.weights import Weights, open_base
from trainers.bases import EMBEDDED
from trainers.digests import digest_of_file
from trainers.errors import BaseError, RunError
from trainers.unpack import settings_for

WRONG = "the merged model isn't what the adapters on the base are"
ROOM = 1 << 18  # bytes of a single file's header kept free for the receipt, besides those for each tensor


@dataclass(frozen=True)
class Merged:
    """A result under its final name: how far its numbers and answers are off, and what there is to know."""

    path: Path
    compared: list[Compared]
    proof: Proof
    notes: list[str]
    like: Likeness | None = None  # of language models: the distribution of the next token
    onto: Onto | None = None  # of adapters that were trained on a quantised base

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
    onto: str = "auto",
    ask: Ask = fresh,
) -> Merged:
    """Merge adapters into a base and prove the result. Raises StyloraError, and then nothing is left under `out`.

    `dtype` is a key of DTYPES; `config` the diffusers folder whose settings and tokenizer a single file goes with;
    `digests` are those that parts of the base must have (a family's `digest`); `onto` is one of ingredients.ONTO;
    `ask` gives the answers of the result on disk.
    """
    weights = open_base(base)
    sweep(out)
    check(weights, uses, out, dtype, config, overwrite, onto)
    check_digests(weights, config, digests or {})
    notes: list[str] = []
    parts = ingredients(uses, weights, partial, notes)
    if unsound := weights.unsound():
        raise BaseError(f"{weights.root}: NaN or Inf in the base", unsound, "get the model anew")
    settings = settings_for(weights.files[0], config) if weights.single_file else {}
    weights, chosen = choose(weights, parts, onto)
    with beside(out) as temp:
        stored = _write(weights, temp, parts, DTYPES[dtype], notes)
        proof = _prove(weights, temp, parts, DTYPES[dtype], notes)
        probe, live, bare = _ask_rack(weights, parts, settings)
        said = ask(temp, probe, settings)
        compared, like = receipt.compare(live, bare, said, stored), receipt.next_token(live, said)
        if faults := receipt.faults_of(compared, like):
            step = "nothing was kept; merge with --dtype fp32, which rounds least"
            raise RunError(WRONG, faults, step)
        named = {"name": _name_of(base, weights), "files": _base_digests(weights)}
        facts = {"base": named, "adapters": [part.facts() for part in parts], "dtype": dtype, "stored": stored,
                 "proof": proof.facts(), "versions": _versions(weights)}  # fmt: skip
        facts |= {"onto": chosen.facts()} if chosen else {}
        receipt.seal(temp, facts | receipt.record(probe, live, compared, settings, like))
    return Merged(out, compared, proof, notes, like, chosen)


# --- writing ---------------------------------------------------------------------------------------------------------


def _write(weights: Weights, temp: Path, parts: Sequence[Ingredient], dtype: str, notes: list[str]) -> str:
    """Write all of the merged model but its receipt; gives the coarsest dtype of the changed tensors."""
    changed = {path for part in parts for path in part.adapter.pairs if part.gain(path)}
    changed |= {name.removesuffix(".weight") for name, source in weights.tensors.items() if source.through}
    modules: dict[tuple[Path, str], list[str]] = defaultdict(list)  # (file, tensor) -> the modules that lie in it
    for path in sorted(changed):
        source = weights.tensors[f"{path}.weight"]
        modules[source.file.path, source.key].append(path)
    if weights.single_file:
        if any(key.startswith("model_ema.") for key in weights.files[0].entries):
            notes.append("model_ema.…, a second copy of the UNet that tools don't draw with, is left as it was")
    else:
        left = copy_rest(weights, temp, FILE)
        notes += [f"{name} is left out: it holds the base's weights once more, unchanged" for name in left]
    stored = set()
    for file in weights.files:
        target = temp if weights.single_file else temp / file.path.relative_to(weights.root)
        here = {key: paths for (path, key), paths in modules.items() if path == file.path}
        room = ROOM + 3 * SHORT * len(file.entries) if weights.single_file else 0
        rewrite(file, target, {key: _sum(weights, paths, parts) for key, paths in here.items()}, dtype, room)
        stored |= {dtype or file.entries[key].dtype for key in here}
    if weights.text and dtype:
        tell_dtype(temp, dtype)
    return max(stored, key=lambda name: UNIT[name])


def _sum(weights: Weights, paths: Sequence[str], parts: Sequence[Ingredient]) -> Change:
    """Adds the deltas of the modules that lie in one tensor (several where query, key and value are fused)."""

    def add(whole: Tensor) -> Tensor:
        for path in paths:
            source = weights.tensors[f"{path}.weight"]
            weight = whole[source.rows] if source.rows else whole
            weight = weight.T if source.transposed else weight
            if source.through:
                weight.copy_(source.through(weight))
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


def _ask_rack(
    weights: Weights, parts: Sequence[Ingredient], settings: Mapping[str, bytes]
) -> tuple[Probe, Answers, Answers]:
    """(the question, the answers of base + rack, those of the bare base)."""
    with tempfile.TemporaryDirectory(prefix="stylora-") as folder:
        family = family_of(weights.root, settings, Path(folder))
        probe = probe_for(family, words_of(parts))
        settle(family.parts(), weights)
        bare = answers(family, probe)
        return probe, with_rack(family, parts, probe), bare


def _name_of(base: str, weights: Weights) -> str:
    """What the receipt calls the base: an alias or hub id as it is; of a path the last part, as disks are private."""
    return weights.root.resolve().name if base not in EMBEDDED and Path(base).expanduser().exists() else base


def _base_digests(weights: Weights) -> dict[str, str]:
    """sha256 of each weight file, by its name within the base."""
    root = weights.root.parent if weights.single_file else weights.root
    return {file.path.relative_to(root).as_posix(): digest_of_file(file.path) for file in weights.files}


def _versions(weights: Weights) -> dict[str, str]:
    found = {}
    for name in ("stylora", "torch", "transformers", *(() if weights.text else ("diffusers",))):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
