"""Bytes on disk: safetensors files and PEFT folders, read with every fault named, written whole or not at all.

Try it: python -c "from trainers.lora.files import *; print(read_file(Path('ink.safetensors'))[1])"
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainers.errors import AdapterError
from trainers.lora.formats.names import COMPONENTS, CONFIG_FILE, TENSORS_FILE

Tensors = dict[str, Tensor]
Bytes = bytes | memoryview
Folder = Mapping[str, tuple[Tensors, dict[str, Any]]]  # subfolder ("" for none) -> (tensors, adapter_config.json)

DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
SUBFOLDERS = ("", *COMPONENTS)


def read_file(path: Path, check: Callable[[list[str]], None] = lambda keys: None) -> tuple[Tensors, dict[str, str]]:
    """(tensors, header entries) of a safetensors file; AdapterError where it isn't a whole one.

    `check` is given the tensors' names before any tensor is read, and may raise.
    """
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            check(keys)
            # cloned, as the file is only mapped: it may be replaced while the adapter lives
            return {key: file.get_tensor(key).clone() for key in keys}, dict(file.metadata() or {})
    except FileNotFoundError:
        raise AdapterError(f"{path}: there is no such file", next_step="check the path of the adapter") from None
    except SafetensorError as error:
        fault = f"{error} ({path.stat().st_size} bytes)"
        raise AdapterError(f"{path}: not a whole safetensors file", [fault], "get the file again") from None
    except OSError as error:
        raise AdapterError(f"{path}: can't be read", [error.strerror or str(error)]) from None


def subfolders(path: Path) -> list[str]:
    """Where in a folder PEFT adapters lie: "" for the folder itself, or the components' names."""
    return [name for name in SUBFOLDERS if (path / name / CONFIG_FILE).is_file()]


def read_folder(path: Path) -> tuple[Folder, dict[str, str]]:
    """(a PEFT folder's tensors and configs by subfolder, the header entries of its files); AdapterError."""
    found = subfolders(path)
    if not found:
        fault = f"neither it nor {', '.join(f'{name}/' for name in SUBFOLDERS[1:])} in it holds {CONFIG_FILE}"
        raise AdapterError(f"{path}: a folder without an adapter", [fault], "name a .safetensors file or a PEFT folder")
    parts: dict[str, tuple[Tensors, dict[str, Any]]] = {}
    metadata: dict[str, str] = {}
    for name in found:
        tensors, entries = read_file(path / name / TENSORS_FILE)
        parts[name], metadata = (tensors, _config(path / name / CONFIG_FILE)), metadata | entries
    return parts, metadata


def folder_bytes(parts: Folder, metadata: Mapping[str, str]) -> dict[str, list[Bytes]]:
    """{file within the folder: bytes} of a PEFT folder."""
    made: dict[str, list[Bytes]] = {}
    for name, (tensors, config) in parts.items():
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        made[f"{name}/{CONFIG_FILE}".lstrip("/")] = [text.encode()]
        made[f"{name}/{TENSORS_FILE}".lstrip("/")] = file_bytes(tensors, metadata)
    return made


def keys_of(parts: Folder) -> list[str]:
    """Every tensor's name in a folder, as Grouped has them."""
    return [f"{name}/{key}".lstrip("/") for name, (tensors, _) in parts.items() for key in tensors]


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: can't be read", [str(error)], "get the folder again") from None
    if not isinstance(found, dict):
        raise AdapterError(f"{path}: isn't a table", [f"it is {type(found).__name__}"], "get the folder again")
    return found


def parts_on_disk(path: Path) -> list[Path]:
    """The files an adapter is made of: itself, or those of a PEFT folder that hold it."""
    return [path / name / file for name in subfolders(path) for file in (CONFIG_FILE, TENSORS_FILE)] or [path]


def digest(path: str | os.PathLike[str]) -> str:
    """sha256 of the whole file; of a PEFT folder over the sha256 and names of its adapter files, sorted by name."""
    path = Path(path)
    try:
        files = parts_on_disk(path)
        if files == [path]:
            return _sha256(path)
        lines = [f"{_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in sorted(files)]
    except OSError as error:
        raise AdapterError(f"{path}: can't be read", [error.strerror or str(error)]) from None
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def raw(tensor: Tensor) -> memoryview:
    """The tensor's bytes, row by row, little-endian as on every machine torch runs on."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def file_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[Bytes]:
    """A safetensors file: 8-byte little-endian length, JSON padded to 8 bytes, tensors (largest items first: aligned).

    Written here because safetensors' own writer keeps metadata in a hash map and so differs from process to process.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    parts = [raw(tensors[name]) for name in order]
    total, start = hashlib.sha256(), 0
    header: dict[str, object] = {}
    for name, part in zip(order, parts, strict=True):
        total.update(part)
        tensor, end = tensors[name], start + part.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    hashes = {"sshs_model_hash": total.hexdigest(), "modelspec.hash_sha256": f"0x{total.hexdigest()}"}
    header["__metadata__"] = {**metadata, **hashes}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *parts]


def write_whole(path: Path, parts: Sequence[Bytes]) -> None:
    """Temp file in the same folder, fsync, rename: `path` is what it was before, or the whole new file."""
    temp = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        _write(temp, parts)
        os.replace(temp, path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
    _flush(path.parent)


def write_folder_whole(path: Path, files: Mapping[str, Sequence[Bytes]]) -> None:
    """{name within the folder: bytes} written aside and renamed; AdapterError where the folder holds anything."""
    temp = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise AdapterError(f"{path}: is there and isn't an empty folder", next_step="name a new folder")
    try:
        for name, parts in files.items():
            (temp / name).parent.mkdir(parents=True, exist_ok=True)
            _write(temp / name, parts)
        for folder in {(temp / name).parent for name in files} | {temp}:
            _flush(folder)
        os.replace(temp, path)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    _flush(path.parent)


def _write(path: Path, parts: Sequence[Bytes]) -> None:
    with open(path, "xb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def _unwritable(path: Path, error: OSError) -> AdapterError:
    step = "choose a folder that exists and is writable"
    return AdapterError(f"{path}: can't be written", [error.strerror or str(error)], step)


def _flush(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems can't fsync a folder; the file itself is safe already
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
