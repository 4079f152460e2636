"""An adapter as plain data: what a style changed in a frozen base, and what is known about it. Load, save, digest.

Try it: python -c "from trainers.lora.adapter import *; print(components(Adapter.load('ink.safetensors')))"
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainers.errors import AdapterError
from trainers.lora.formats import DIFFUSERS_HEADER, FORMATS, Tensors, foreign_faults, foreign_kind
from trainers.lora.metadata import THUMBNAIL_START
from trainers.lora.pair import LoraPair, Pairs, pair_faults

__all__ = ["Adapter", "AdapterInfo", "LoraPair", "components", "content_digest", "digest"]

DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


@dataclass(frozen=True)
class AdapterInfo:
    """The file's header entries, and the few of them that stylora itself speaks of."""

    metadata: dict[str, str] = field(default_factory=dict)
    format: str = ""  # the FORMATS row it was read as; "" when it never was in a file

    @property
    def name(self) -> str:
        return self.metadata.get("ss_output_name", "")

    @property
    def title(self) -> str:
        return self.metadata.get("modelspec.title", self.name)

    @property
    def trigger(self) -> str:
        return self.metadata.get("modelspec.trigger_phrase", "")

    @property
    def base_digest(self) -> str:
        return self.metadata.get("ss_new_sd_model_hash", "")

    @property
    def base_version(self) -> str:
        return self.metadata.get("ss_base_model_version", "")

    @property
    def thumbnail(self) -> bytes | None:
        """The JPEG file inside the header; None where there is none or its base64 is broken."""
        uri = self.metadata.get("modelspec.thumbnail", "")
        with contextlib.suppress(binascii.Error, ValueError):
            return base64.b64decode(uri.removeprefix(THUMBNAIL_START), validate=True) or None
        return None


@dataclass(frozen=True, eq=False)
class Adapter:
    """{canonical module path: LoraPair} and what is known about it. Equal content: compare `content_digest`."""

    pairs: Pairs
    info: AdapterInfo = field(default_factory=AdapterInfo)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Adapter:
        """Read a file of any format of FORMATS; AdapterError lists everything wrong with it."""
        name, tensors, metadata = _read(Path(path))
        try:
            pairs = FORMATS[name].read(tensors, metadata)
        except AdapterError as error:
            raise AdapterError(f"{path}: {error.what}", error.faults, error.next_step) from None
        return cls(pairs, AdapterInfo(metadata, name))

    def save(self, path: str | os.PathLike[str], format: str = "kohya", dtype: torch.dtype = torch.float16) -> Path:
        """Write the file whole or not at all; equal content gives equal bytes. AdapterError: nothing was written."""
        if faults := self._faults(format, dtype):
            raise AdapterError(f"{path}: this adapter can't be saved", faults)
        tensors, extra = FORMATS[format].write(self.pairs, dtype)
        if large := [name for name, part in tensors.items() if not bool(torch.isfinite(part).all())]:
            faults = [f"{name}: too large a number for {dtype}" for name in large]
            raise AdapterError(f"{path}: this adapter can't be saved", faults, "save it as bfloat16 or float32")
        kept = {key: value for key, value in self.info.metadata.items() if key != DIFFUSERS_HEADER}
        _write_whole(Path(path), _file_bytes(tensors, kept | extra))
        return Path(path)

    def _faults(self, format: str, dtype: torch.dtype) -> list[str]:
        faults = [fault for path, pair in sorted(self.pairs.items()) for fault in pair_faults(path, pair)]
        if not self.pairs:
            faults.append("it has no modules")
        if format not in FORMATS:
            faults.append(f"format is {format!r}, wanted one of {', '.join(FORMATS)}")
        if dtype not in DTYPES:
            faults.append(f"dtype is {dtype}, wanted one of {', '.join(map(str, DTYPES))}")
        odd = [key for key, value in self.info.metadata.items() if not _is_text(key) or not _is_text(value)]
        return faults + [f"metadata {key!r} isn't text" for key in odd]


def _is_text(value: object) -> bool:
    """A str that UTF-8 can carry: a lone surrogate (a badly decoded file name) would make a header nobody can read."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def components(adapter: Adapter) -> tuple[str, ...]:
    """The parts of the base it changes, sorted: ("text_encoder", "unet")."""
    return tuple(sorted({path.partition(".")[0] for path in adapter.pairs}))


def content_digest(adapter: Adapter) -> str:
    """sha256 of the numbers alone: names, shapes, kinds of number, tensor bytes and alphas; not the metadata."""
    total = hashlib.sha256()
    for path, pair in sorted(adapter.pairs.items()):
        for part in (pair.down, pair.up):
            total.update(f"{path} {part.dtype} {list(part.shape)} {pair.alpha!r}\n".encode())
            total.update(_raw(part))
    return total.hexdigest()


def digest(path: str | os.PathLike[str]) -> str:
    """sha256 of the whole file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AdapterError(f"{path}: can't be read", [error.strerror or str(error)]) from None


def _read(path: Path) -> tuple[str, Tensors, dict[str, str]]:
    """(the format's name, tensors, header entries); looks at the names before it reads any tensor."""
    try:
        if path.is_dir():
            raise AdapterError(f"{path}: is a folder", next_step="name a .safetensors file")
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            name = next((name for name, row in FORMATS.items() if row.detect(keys)), None)
            if name is None:
                raise _unknown(path, keys)
            # cloned, as the file is only mapped: it may be replaced while the adapter lives
            return name, {key: file.get_tensor(key).clone() for key in keys}, dict(file.metadata() or {})
    except FileNotFoundError:
        raise AdapterError(f"{path}: there is no such file", next_step="check the path of the adapter") from None
    except SafetensorError as error:
        fault = f"{error} ({path.stat().st_size} bytes)"
        raise AdapterError(f"{path}: not a whole safetensors file", [fault], "get the file again") from None
    except OSError as error:
        raise AdapterError(f"{path}: can't be read", [error.strerror or str(error)]) from None


def _unknown(path: Path, keys: list[str]) -> AdapterError:
    if any("lora" in key or foreign_kind(key) for key in keys):
        wanted = f"stylora reads plain LoRA as {' or '.join(FORMATS)}"
        return AdapterError(f"{path}: an adapter of a format stylora doesn't know", foreign_faults(keys), wanted)
    names = ", ".join(sorted(keys)[:3]) or "none at all"
    return AdapterError(f"{path}: no LoRA in it", [f"its {len(keys)} tensors: {names}"], "give an adapter file")


def _raw(tensor: Tensor) -> memoryview:
    """The tensor's bytes, row by row, little-endian as on every machine torch runs on."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _file_bytes(tensors: Tensors, metadata: dict[str, str]) -> list[bytes | memoryview]:
    """A safetensors file: 8-byte little-endian length, JSON padded to 8 bytes, tensors (largest items first: aligned).

    Written here because safetensors' own writer keeps metadata in a hash map and so differs from process to process.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    parts = [_raw(tensors[name]) for name in order]
    total, start = hashlib.sha256(), 0
    header: dict[str, object] = {}
    for name, part in zip(order, parts, strict=True):
        total.update(part)
        tensor, end = tensors[name], start + part.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    hashes = {"sshs_model_hash": total.hexdigest(), "modelspec.hash_sha256": f"0x{total.hexdigest()}"}
    header["__metadata__"] = metadata | hashes
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *parts]


def _write_whole(path: Path, parts: list[bytes | memoryview]) -> None:
    """Temp file in the same folder, fsync, rename: `path` is what it was before, or the whole new file."""
    temp = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        with open(temp, "xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
    except OSError as error:
        fault = error.strerror or str(error)
        step = "choose a folder that exists and is writable"
        raise AdapterError(f"{path}: can't be written", [fault], step) from None
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # some file systems can't fsync a folder; the file itself is safe already
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
