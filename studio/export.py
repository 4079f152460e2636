"""An adapter file in another tool's format: names, alphas and header carried over, kinds other than LoRA converted.

Try it: python -c "from studio.export import *; print(default_out(Path('ink.safetensors'), 'diffusers'))"
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trainers.devices import DTYPES
from trainers.errors import AdapterError
from trainers.lora.adapter import Adapter, read
from trainers.lora.files import parts_on_disk
from trainers.lora.formats import FORMATS
from trainers.lora.kinds import Entry, WeightOf


@dataclass(frozen=True)
class Exported:
    """What was written, in which kind of number, and what had to be converted for it."""

    path: Path
    dtype: torch.dtype
    adapter: Adapter
    entries: tuple[Entry, ...]


def default_out(path: Path, to: str) -> Path:
    """Beside the file: `ink.safetensors` -> `ink.diffusers.safetensors`, or the folder `ink.peft`."""
    name = path.name.removesuffix(".safetensors")
    name = next((name.removesuffix(f".{row}") for row in FORMATS if name.endswith(f".{row}")), name)
    return path.with_name(f"{name}.{to}" + (".safetensors" if FORMATS[to].kind == "file" else ""))


def widest(adapter: Adapter) -> torch.dtype:
    """The kind of number that holds all of the adapter's tensors without rounding."""
    found = {half.dtype for pair in adapter.pairs.values() for half in (pair.down, pair.up)}
    return found.pop() if len(found) == 1 and found <= set(DTYPES.values()) else torch.float32


def export(
    path: Path,
    to: str,
    *,
    dtype: str | None = None,
    out: Path | None = None,
    rank: int | None = None,
    weight_of: WeightOf | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the adapter in the format `to`. AdapterError: it can't be read whole, or the place is taken; see DTYPES."""
    if faults := _unknown(to, dtype):
        raise AdapterError("this export can't be done", faults, "`stylora export --help` says what is meant")
    out = out or default_out(path, to)
    if out.exists() and not overwrite:
        raise AdapterError(f"{out} exists", next_step="name another --out, or add --overwrite")
    reading = read(path, rank, weight_of)
    adapter = reading.whole(path)
    if any(entry.verdict == "converted" for entry in reading.entries):
        adapter = replace(adapter, info=replace(adapter.info, metadata=_header(adapter, reading.entries)))
    kind = DTYPES[dtype] if dtype else widest(adapter)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AdapterError(f"{out}: can't be written: {reason}", next_step="name another --out") from None
    with _room(out, to):
        return Exported(adapter.save(out, to, kind), kind, adapter, reading.entries)


def _unknown(to: str, dtype: str | None) -> list[str]:
    asked = (("--to", to, FORMATS), ("--dtype", dtype or "fp16", DTYPES))
    return [f"{flag} is {got!r}, wanted one of {', '.join(table)}" for flag, got, table in asked if got not in table]


def _header(adapter: Adapter, entries: tuple[Entry, ...]) -> dict[str, str]:
    """The header of what is plain LoRA now: its kind, rank and alpha as they are, and from what it was made."""
    pairs = adapter.pairs.values()
    reasons = Counter(entry.reason for entry in entries if entry.verdict == "converted")
    return adapter.info.metadata | {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(Counter(pair.rank for pair in pairs).most_common(1)[0][0]),
        "ss_network_alpha": str(Counter(pair.alpha for pair in pairs).most_common(1)[0][0]),
        "ss_network_args": "{}",
        "stylora.converted": json.dumps(reasons, sort_keys=True),
    }


@contextmanager
def _room(out: Path, to: str) -> Iterator[None]:
    """Have a PEFT folder that is to be written over out of the way; it comes back where nothing takes its place.

    AdapterError: anything else is in the way.
    """
    if not out.is_dir():
        if out.exists() and FORMATS[to].kind == "folder":
            raise AdapterError(f"{out}: a file is where the folder would be", next_step="name another --out")
        yield
        return
    others = {file for file in out.rglob("*") if not file.is_dir()} - set(parts_on_disk(out))
    if others or FORMATS[to].kind == "file":
        names = [str(file) for file in sorted(others)][:10]
        raise AdapterError(f"{out}: a folder is in the way", names, "name another --out")
    aside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
    out.rename(aside)
    try:
        yield
    finally:
        if out.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(out)
