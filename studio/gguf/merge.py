"""Adapters into a GGUF base: W' = W + sum of gain * delta, every header entry and every other tensor kept to the byte.

The base's own kinds of number are kept (F32, F16, BF16, Q8_0), so the result is as large as the base and runs wherever
that does. A block of rows is in memory at a time. The result is read back and compared before it gets its name.

`stylora merge --base base.gguf --adapter runs/pirate:0.8 --out merged.gguf`
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from studio.draw.use import Use
from studio.gguf import modelfile
from studio.gguf.base import File
from studio.gguf.numbers import FLOATS, decode, encode, slack
from studio.merge.ingredients import promised
from studio.merge.rewrite import beside
from trainers.errors import BaseError, ConfigError, RunError
from trainers.lora.adapter import Adapter
from trainers.lora.fit import fitting
from trainers.lora.ledger import ledger_of, objection, read

REFUSED = "this merge can't be made"
NOTE = "stylora.merged"  # the header entry that says what went in; llama.cpp takes no notice of it
BLOCK = 1 << 22  # numbers of a tensor that are in memory at a time
COPY = 1 << 26  # bytes
LOUD = 0.1  # a share of the change that rounding may take before it is said


@dataclass(frozen=True)
class Change:
    """What is added to a tensor of the base: up (out, r), rows in the GGUF's order, times down (r, in), float64."""

    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Merged:
    """A result under its final name. `error`: the largest share of a tensor's change that rounding took (Frobenius)."""

    path: Path
    changed: dict[str, float]  # tensor -> the share of its change that rounding took
    notes: tuple[str, ...]

    @property
    def error(self) -> float:
        return max(self.changed.values())


def merge_gguf(
    base: Path,
    uses: Sequence[Use],
    out: Path,
    *,
    partial: bool = False,
    overwrite: bool = False,
    with_modelfile: bool = False,
) -> Merged:
    """Merge adapters into a GGUF. Raises StyloraError, and then nothing is left under `out`.

    `partial`: what fits of an adapter is enough; `with_modelfile`: write a Modelfile for Ollama beside the result.
    """
    _check(base, uses, out, overwrite, with_modelfile)
    model, notes = File(base), list[str]()
    parts = _adapters(model, uses, partial, notes)
    changes = _changes(model, parts)
    if odd := [f"{name} is {kind}" for name in changes if (kind := model.tensors[name].tensor_type.name) not in FLOATS]:
        step = "merge into an F16 GGUF of the base, then quantise the result with llama.cpp's llama-quantize"
        raise BaseError(f"{base}: nothing can be added to these tensors", odd, step)
    with beside(out) as temp:
        with temp.open("xb") as stream:
            _write(stream, model, changes, _story(parts))
        changed = compare(model, File(temp), changes)
        _tell(changed, notes)
    if with_modelfile:
        modelfile.write(out, modelfile.text(f"./{out.name}", None, model.template()), overwrite)
    return Merged(out, changed, tuple(notes))


# --- before anything is written --------------------------------------------------------------------------------------


def _check(base: Path, uses: Sequence[Use], out: Path, overwrite: bool, with_modelfile: bool) -> None:
    faults = [] if uses else ["no adapter; give --adapter FILE:0.8"]
    faults += [f"{use.path.name}: has a schedule; weights that stay can't change" for use in uses if use.gain.schedule]
    if out.suffix != ".gguf":
        faults.append(f"--out {out}: the base is a GGUF, so the result is one too: name it ….gguf")
    if out.resolve() == base.resolve():
        faults.append(f"--out {out}: that is the base, which is never written to")
    places = [out, out.with_name(modelfile.NAME)] if with_modelfile else [out]
    faults += [f"{place}: exists" for place in places if os.path.lexists(place) and (place.is_dir() or not overwrite)]
    if faults:
        raise ConfigError(REFUSED, faults, "`stylora merge --help` says what is meant")


def _adapters(model: File, uses: Sequence[Use], partial: bool, notes: list[str]) -> list[tuple[Use, Adapter]]:
    """The adapters as they act on the base. Raises AdapterError: one doesn't fit (unless `partial`), or comes twice."""
    found: dict[str, tuple[Use, Adapter]] = {}
    for use in uses:
        reading = read(use.path, None, model.weight)
        shapes = model.shapes(reading.adapter.pairs)
        ledger = ledger_of(reading, shapes)
        if error := objection(use.path, reading, ledger, shapes, partial=partial):
            raise error
        adapter = replace(reading.adapter, pairs=fitting(reading.adapter.pairs, shapes))
        own = promised(use, adapter, ledger, found, notes)
        found[own.digest] = own, adapter
    return list(found.values())


def _changes(model: File, parts: Sequence[tuple[Use, Adapter]]) -> dict[str, Change]:
    """{tensor: what is added to it}, the adapters' factors side by side. Raises ConfigError: nothing would change."""
    ups: dict[str, list[Tensor]] = {}
    downs: dict[str, list[Tensor]] = {}
    for use, adapter in parts:
        for path, pair in adapter.pairs.items():
            if not (gain := use.gain.at(path)) or not bool(pair.up.any() and pair.down.any()):
                continue
            tensor = model.layout.tensor(path)
            up = pair.up.double().flatten(1) * (gain * pair.scale)
            order = model.layout.order(tensor, len(up))
            ups.setdefault(tensor, []).append(up if order is None else up[order])
            downs.setdefault(tensor, []).append(pair.down.double().flatten(1))
    if not ups:
        raise ConfigError(REFUSED, ["every weight is 0, or every number: nothing would change"], "give a weight")
    return {tensor: Change(torch.cat(ups[tensor], 1), torch.cat(downs[tensor])) for tensor in sorted(ups)}


def _story(parts: Sequence[tuple[Use, Adapter]]) -> str:
    """What the header says of the adapters."""
    rows = [{"name": use.title, "sha256": use.sha256, "content": use.digest, "weight": use.gain.weight,
             "blocks": dict(use.gain.blocks)} for use, _ in parts]  # fmt: skip
    return json.dumps({"adapters": rows}, sort_keys=True)


# --- writing ---------------------------------------------------------------------------------------------------------


def _write(stream: BinaryIO, model: File, changes: Mapping[str, Change], story: str) -> None:
    """The base's bytes with one header entry more, and other numbers in the changed tensors."""
    data, place = model.reader.data, model.reader.data_offset
    stream.write(_header(model, story))
    for tensor in sorted(model.reader.tensors, key=lambda tensor: int(tensor.data_offset)):
        end = tensor.data_offset + tensor.n_bytes
        _copy(stream, data[place : tensor.data_offset])
        if tensor.name in changes:
            stream.writelines(_changed(tensor, changes[tensor.name]))
        else:
            _copy(stream, data[tensor.data_offset : end])
        place = end
    _copy(stream, data[place:])
    stream.flush()
    os.fsync(stream.fileno())


def _header(model: File, story: str) -> bytes:
    """Magic, version and counts; the base's entries and ours; the base's list of tensors; padding."""
    counts, entries, tensors = _pieces(model)
    count = int.from_bytes(counts[16:], "little")
    made = counts[:16] + (count + 1).to_bytes(8, "little") + entries
    made += _text(_free(model)) + (8).to_bytes(4, "little") + _text(story) + tensors  # 8: a string
    return made + bytes(-len(made) % int(model.reader.alignment))


def _pieces(model: File) -> tuple[bytes, bytes, bytes]:
    """(magic, version and the two counts; the entries; the list of tensors) as they lie in the file."""
    raw, first, last = model.reader.data, model.reader.tensors[0].field, model.reader.tensors[-1].field
    end = last.offset + sum(int(part.nbytes) for part in last.parts)
    return raw[:24].tobytes(), raw[24 : first.offset].tobytes(), raw[first.offset : end].tobytes()


def _free(model: File) -> str:
    """The name of our header entry: the first that the base, itself a merged one perhaps, hasn't taken."""
    names = (f"{NOTE}.{number}" if number else NOTE for number in range(len(model.reader.fields) + 1))
    return next(name for name in names if name not in model.reader.fields)


def _text(text: str) -> bytes:
    return len(text.encode()).to_bytes(8, "little") + text.encode()


def _copy(stream: BinaryIO, data: Any) -> None:
    for place in range(0, len(data), COPY):
        stream.write(data[place : place + COPY].data)


def _changed(tensor: Any, change: Change) -> Iterator[bytes]:
    """The new bytes of a tensor, a block of rows at a time. Raises RunError: a number is too large for its kind."""
    kind = tensor.tensor_type.name
    for rows in _blocks(change):
        wide = decode(kind, tensor.data[rows]) + change.up[rows].float() @ change.down.float()
        try:
            yield encode(kind, wide).tobytes()
        except OverflowError as error:
            raise RunError(f"{tensor.name}: {error}", next_step="merge into an F32 GGUF") from None


def _blocks(change: Change) -> Iterator[slice]:
    height = max(1, BLOCK // change.down.shape[1])
    return (slice(row, row + height) for row in range(0, len(change.up), height))


# --- proof -----------------------------------------------------------------------------------------------------------


def compare(old: File, new: File, changes: Mapping[str, Change]) -> dict[str, float]:
    """{changed tensor: the share of its change that rounding took}. Raises RunError: anything isn't as it should be."""
    faults = [] if _same_headers(old, new) else ["the header isn't the base's"]
    lost: dict[str, float] = {}
    for one, two in zip(old.reader.tensors, new.reader.tensors, strict=True):
        if one.name in changes:
            share, fault = _lost(one, two, changes[one.name])
            lost[one.name] = share
            faults += [fault] if fault else []
        elif not (one.data == two.data).all() and one.data.tobytes() != two.data.tobytes():  # NaN isn't equal to itself
            faults.append(f"{one.name}: isn't the base's")
    if faults:
        raise RunError("the merged model isn't what the adapters on the base are", faults, "nothing was kept")
    return lost


def _same_headers(old: File, new: File) -> bool:
    """Every entry and the list of tensors to the byte, but for the one entry more."""
    (counts, entries, tensors), (new_counts, new_entries, new_tensors) = _pieces(old), _pieces(new)
    return counts[:16] == new_counts[:16] and tensors == new_tensors and new_entries.startswith(entries)


def _lost(old: Any, new: Any, change: Change) -> tuple[float, str]:
    """(share of the change that rounding took, what is wrong): in float64, against what rounding can be at most."""
    kind, off, size, worst = old.tensor_type.name, 0.0, 0.0, 0.0
    for rows in _blocks(change):
        up, down = change.up[rows], change.down
        was, delta = decode(kind, old.data[rows]).double(), up @ down
        error = (decode(kind, new.data[rows]).double() - was - delta).abs()
        sums = (len(down) + 4) * 2.0**-24 * (was.abs() + up.abs() @ down.abs())  # of the float32 arithmetic
        worst = max(worst, float((error - slack(kind, was + delta) - 2 * sums).max()))
        off, size = off + float(error.square().sum()), size + float(delta.square().sum())
    fault = f"{old.name}: off by {worst:.3g} more than rounding to {kind} can be" if not worst <= 0 else ""
    return (off / size) ** 0.5 if size else 0.0, fault


def _tell(changed: Mapping[str, float], notes: list[str]) -> None:
    """Say where rounding has taken much of the change. Raises RunError: all of it."""
    loud = [name for name, share in changed.items() if share > LOUD]
    if all(share >= 1 for share in changed.values()):
        fault = f"{len(changed)} tensors: rounding took as much as was added"
        raise RunError("rounding has eaten the adapters", [fault], "merge into a GGUF of wider numbers (F16, F32)")
    if loud:
        most = max(changed.values())
        notes.append(
            f"rounding took up to {most:.0%} of the change in {len(loud)} tensors; wider numbers would keep it"
        )
