"""The one door to the package `gguf`, an extra: names, reader, writer and quantisers of llama.cpp's file format.

Try it: python -c "from studio.gguf.package import package; print(len(package().MODEL_ARCH_NAMES))"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainers.errors import BaseError, StyloraError


def package() -> Any:
    """The package itself. Raises StyloraError where it isn't installed."""
    try:
        import gguf
    except ImportError:
        step = "pip install 'stylora[gguf]'"
        raise StyloraError("GGUF files need the package gguf, which isn't installed", next_step=step) from None
    return gguf


def opened(path: Path) -> Any:
    """A gguf.GGUFReader of the file, little-endian and of one piece. Raises BaseError."""
    try:
        reader = package().GGUFReader(path)
    except OSError as error:
        raise BaseError(f"{path}: can't be read: {error.strerror or error}", next_step="check the path") from None
    except (ValueError, LookupError, OverflowError, TypeError) as error:  # what it raises over bytes that are no GGUF
        raise BaseError(f"{path}: not a whole GGUF file", [str(error)], "get the file again") from None
    if reader.byte_order != "I":
        raise BaseError(f"{path}: its numbers are of the other byte order", next_step="get a little-endian GGUF")
    if (pieces := value(reader, "split.count", 1)) > 1:
        step = "join them with llama.cpp's `llama-gguf-split --merge`"
        raise BaseError(f"{path}: one of {pieces} pieces of a model", next_step=step)
    return reader


def value(reader: Any, key: str, default: Any = None) -> Any:
    """A header entry as a Python value; `default` where there is none."""
    field = reader.get_field(key)
    return default if field is None else field.contents()
