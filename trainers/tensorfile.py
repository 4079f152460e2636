"""Safetensors files as streams: the header alone, one tensor's bytes at a time, and a writer that needs one tensor.

Byte layout (huggingface.co/docs/safetensors): 8 bytes little-endian length of the header, the header as JSON
(name -> dtype, shape, offsets; `__metadata__` -> strings), then the tensors' bytes.

Try it: python -c "from trainers.tensorfile import read; print(read('model.safetensors').entries)"
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from trainers.errors import BaseError
from trainers.lora.files import raw

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ("F64", "F32", "F16", "BF16")  # those that arithmetic is done in
LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
PIECE = 1 << 22  # bytes read at once where no tensor is wanted


@dataclass(frozen=True)
class Entry:
    """One tensor as the header speaks of it; its bytes are data[start:end]."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class TensorFile:
    """What the header of a file says; tensors come one by one, in the order of their bytes."""

    path: Path
    metadata: dict[str, str]
    entries: dict[str, Entry]
    data: int  # where the first tensor's bytes begin

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return max((entry.end for entry in self.entries.values()), default=0)

    def pieces(self, key: str) -> Iterator[bytes]:
        """A tensor's bytes as they lie in the file, a few MB at a time."""
        entry = self.entries[key]
        with _opened(self.path) as file:
            file.seek(self.data + entry.start)
            left = entry.end - entry.start
            while left:
                piece = file.read(min(left, PIECE))
                if not piece:
                    raise _broken(self.path, "it became shorter while it was read")
                left -= len(piece)
                yield piece

    def tensor(self, key: str) -> Tensor:
        """A tensor of its own, in the dtype it is stored in. Raises BaseError: torch knows no such dtype."""
        entry = self.entries[key]
        if entry.dtype not in DTYPES:
            raise BaseError(f"{self.path}: {key} is {entry.dtype}", next_step=f"convert it to {', '.join(FLOATS)}")
        raw = bytearray(b"".join(self.pieces(key)))
        if not raw:
            return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        return torch.frombuffer(raw, dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def read(path: Path) -> TensorFile:
    """The header of a file, checked against the file's length. Raises BaseError: no whole safetensors file."""
    with _opened(path) as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise _broken(path, f"its header can't be {length} bytes long in a file of {size}")
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
        found = {
            key: Entry(str(row["dtype"]), tuple(map(int, row["shape"])), *map(int, row["data_offsets"]))
            for key, row in header.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _broken(path, f"its header can't be read: {error}") from None
    entries = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].end, item[0])))
    return TensorFile(path, metadata, _checked(path, entries, size - 8 - length), 8 + length)


def _checked(path: Path, entries: dict[str, Entry], size: int) -> dict[str, Entry]:
    """The entries, if their bytes follow each other without gaps and their lengths are what their shapes say."""
    place = 0
    for key, entry in entries.items():
        width = DTYPES[entry.dtype].itemsize if entry.dtype in DTYPES else None
        wanted = math.prod(entry.shape) * width if width else entry.end - entry.start
        if entry.start != place or entry.end - entry.start != wanted or wanted < 0:
            raise _broken(path, f"{key} can't lie at bytes {entry.start} to {entry.end}")
        place = entry.end
    if place != size:
        raise _broken(path, f"its tensors end at byte {place} of {size}")
    return entries


def header(entries: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str], length: int = 0) -> bytes:
    """The first bytes of a file whose tensors ({name: (dtype, shape)}) are written after them in this order.

    Blanks make it at least `length` bytes long, which leaves room for more metadata to be put in later.
    """
    rows: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for key, (dtype, shape) in entries.items():
        end = place + math.prod(shape) * DTYPES[dtype].itemsize
        rows[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(rows, separators=(",", ":")).encode()
    text += b" " * max(-len(text) % 8, length - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


def write(
    path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], parts: Iterable[Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file whose tensors come one at a time, in the order of `tensors`."""
    with path.open("xb") as file:
        file.write(header(tensors, metadata))
        for tensor in parts:
            file.write(raw(tensor))


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise BaseError(f"{path}: can't be read: {error.strerror or error}", next_step="check the path") from None


def _broken(path: Path, fault: str) -> BaseError:
    return BaseError(f"{path}: not a whole safetensors file", [fault], "get the file again")
