"""Small pictures of adapters: whatever a header or a person gives, drawn anew as a JPEG of at most 512 px.

Try it: python -c "from studio.desk.thumbnails import *; print(len(as_jpeg(open('boat.png', 'rb').read())))"
"""

from __future__ import annotations

import contextlib
import io
import secrets
from pathlib import Path

from PIL import Image, ImageOps

from studio.desk.places import written
from trainers.dataset import UNREADABLE
from trainers.errors import AdapterError

SIDE = 512  # pixels of the longer side
KINDS = ("PNG", "JPEG", "WEBP")
LARGEST = 32 * 1024**2  # bytes
PIXELS = 64_000_000


def as_jpeg(data: bytes) -> bytes:
    """The picture in bytes as a small JPEG, without its metadata. AdapterError: broken, of another kind, too large."""
    step = "give a PNG, JPEG or WebP"
    if len(data) > LARGEST:
        raise AdapterError(f"the picture has {len(data) / 1e6:.0f} MB, {LARGEST / 1e6:.0f} at the most", next_step=step)
    try:
        with Image.open(io.BytesIO(data), formats=KINDS) as picture:
            if picture.width * picture.height > PIXELS:
                raise AdapterError(f"the picture has {picture.width} x {picture.height} pixels, too many to be shown")
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except UNREADABLE as error:
        raise AdapterError("the picture can't be read", [str(error)], step) from None
    upright.thumbnail((SIDE, SIDE))
    drawn = io.BytesIO()
    upright.save(drawn, "JPEG", quality=90)
    return drawn.getvalue()


class Thumbnails:
    """A folder of them, two for an adapter at the most: the one in its header, and one that a person set instead."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, id: str) -> bytes | None:
        """The person's, else the header's."""
        for path in (self._path(id), self._path(id, ".header")):
            with contextlib.suppress(OSError):
                return path.read_bytes()
        return None

    def set(self, id: str, data: bytes | None) -> None:
        """Set a person's picture, or take it away. AdapterError: it can't be read or written."""
        if data is None:
            with written("the thumbnail", AdapterError):
                self._path(id).unlink(missing_ok=True)
        else:
            self._write(self._path(id), as_jpeg(data))

    def set_header(self, id: str, data: bytes) -> None:
        """Keep a header's picture; a broken one is no fault of the adapter."""
        with contextlib.suppress(AdapterError):
            self._write(self._path(id, ".header"), as_jpeg(data))

    def _path(self, id: str, which: str = "") -> Path:
        return self.folder / f"{id}{which}.jpg"

    def _write(self, path: Path, data: bytes) -> None:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with written("the thumbnail", AdapterError):
            try:
                partial.write_bytes(data)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
