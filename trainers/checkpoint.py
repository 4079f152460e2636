"""Checkpoints: folders that are whole or absent. Written aside, flushed, renamed; a manifest holds each file's digest.

`runs/ink/checkpoints/step-000100/{tensors.safetensors, facts.json, manifest.json}`. No generator state is stored: every
random number is a function of (seed, step, sample), so the tensors and the step are all that a run is.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers.digests import digest_of_file
from trainers.errors import RunError

NAME = re.compile(r"step-(\d{6,})$")
FILES = ("tensors.safetensors", "facts.json")  # those that the manifest vouches for


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: tensors by name, and facts that JSON can say."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Holds a lock on a run's file; it ends with the process, however that ends. Raises RunError if it is held."""
    with file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{file.parent} is being trained by another process", next_step="let it finish, or stop it first"
            ) from None
        yield


def write_atomically(path: Path, data: bytes) -> None:
    """The file has its old content or all of the new, whenever the machine stops."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, keep: int) -> Path:
    """Write checkpoint `step` under `folder`, then remove all but the newest `keep` up to it. Raises RunError."""
    final = folder / f"step-{step:06d}"
    partial = folder / f".{final.name}.tmp"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            partial / "tensors.safetensors",
        )
        (partial / "facts.json").write_text(json.dumps(dict(facts), sort_keys=True))
        (partial / "manifest.json").write_text(json.dumps({name: digest_of_file(partial / name) for name in FILES}))
        for file in partial.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        _flush_folder(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush_folder(folder)
    except (OSError, SafetensorError) as error:  # safetensors has a kind of its own for a full disk
        raise RunError(
            f"checkpoint {final} can't be written: {error}", next_step="free some space, then `stylora resume`"
        ) from error
    there = _folders(folder)
    for old in there[there.index(final) + keep :]:  # one of a later step was broken and is written anew
        shutil.rmtree(old, ignore_errors=True)
    return final


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if NAME.match(path.name)), key=lambda p: -int(p.name[5:]))


def is_whole(path: Path) -> bool:
    """Every file is there and has the digest that the manifest says."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        return all(digest_of_file(path / name) == manifest[name] for name in FILES)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint under `folder`; broken ones are passed over."""
    for path in _folders(folder):
        if is_whole(path):
            return Checkpoint(
                int(path.name[5:]),
                load_file(path / "tensors.safetensors"),
                json.loads((path / "facts.json").read_text()),
            )
    return None
