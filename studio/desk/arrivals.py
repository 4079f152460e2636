"""What comes into the library from outside: uploads and files of the server, checked before they get a place there.

Everything is written into a folder of its own first. Of a zip only the parts of one PEFT folder are ever taken out.

Try it: python -c "from studio.desk.arrivals import *; print(unpacked('x.txt', b'', Path('.')))"
"""

from __future__ import annotations

import io
import lzma
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from studio.desk import shelf
from studio.desk.places import inside, reason, written
from trainers.errors import AdapterError

LARGEST = 2 * 1024**3  # bytes of an adapter
KINDS = "a .safetensors file, or a .zip of a PEFT folder (adapter_config.json, adapter_model.safetensors)"
MOST = 1000  # entries of a zip
CHUNK = 1024**2
UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError,
              struct.error)  # what zipfile raises on broken, encrypted and unknown ones  # fmt: skip


def unpacked(name: str, data: bytes, folder: Path, largest: int = LARGEST) -> Path:
    """An upload written into `folder`, under a plain name.

    AdapterError: too large, of another kind, no sound zip, or no room for it on the disk.
    """
    stem, kind = shelf.plain_name(name), Path(name.strip()).suffix.lower()
    if kind not in (shelf.SUFFIX, ".zip"):
        raise AdapterError(f"{_short(name)}: no adapter by its name", next_step=f"give {KINDS}")
    _small(name, len(data), largest)
    with written(_short(name), AdapterError):
        if kind == ".zip":
            return _unzipped(name, data, folder / stem, largest)
        return _poured(io.BytesIO(data), folder / f"{stem}{shelf.SUFFIX}")


def copied(path: Path, folder: Path, roots: Sequence[Path], largest: int = LARGEST) -> Path:
    """A copy in `folder` of an adapter's file or PEFT folder. AdapterError: too large, or links lead out of `roots`."""
    pieces = shelf.parts(path)
    if out := [piece.name for piece in pieces if not inside(piece, roots)]:
        raise outside(path, out)
    place = folder / (shelf.plain_name(path.name) + ("" if path.is_dir() else shelf.SUFFIX))
    try:
        _small(path.name, sum(piece.stat().st_size for piece in pieces), largest)
        for piece in pieces:
            with piece.open("rb") as source:
                _poured(source, place / piece.relative_to(path))
    except OSError as error:
        step = "free some space, or check the file's rights"
        raise AdapterError(f"{path.name}: can't be copied", [reason(error)], step) from None
    return place


def outside(path: Path, faults: Sequence[str] = ()) -> AdapterError:
    """What to say of a path that isn't the studio's to read."""
    step = "upload the file instead, or start the studio with that folder as --root"
    return AdapterError(f"{_short(path.name)}: outside of the folders that the studio may read", faults, step)


def _unzipped(name: str, data: bytes, place: Path, largest: int) -> Path:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            wanted = _wanted(name, archive.infolist())
            _small(name, sum(entry.file_size for entry in wanted.values()), largest)
            for part, entry in wanted.items():
                with archive.open(entry) as source:
                    _poured(source, place / part)
    except UNREADABLE as error:
        if getattr(error, "errno", None):  # the disk is at fault, not the zip
            raise
        raise AdapterError(f"{_short(name)}: no sound zip", [str(error)], "pack it again") from None
    return place


def _wanted(name: str, entries: Sequence[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """{file within the PEFT folder: entry} of the one adapter in a zip, which may lie in folders of any depth there."""
    if len(entries) > MOST:
        raise AdapterError(f"{_short(name)}: {len(entries)} files in it, {MOST} at the most", next_step=f"give {KINDS}")
    if odd := [_short(entry.filename) for entry in entries if _leads_out(entry)]:
        raise AdapterError(
            f"{_short(name)}: names in it lead out of its folder, or are links", odd[:3], "pack it again"
        )
    files = {PurePosixPath(entry.filename): entry for entry in entries if not entry.is_dir()}
    roots = {_root(path) for path in files if path.name == shelf.CONFIG_FILE}
    if len(roots) != 1:
        what = "several adapters in it" if roots else f"no {shelf.CONFIG_FILE} in it"
        raise AdapterError(f"{_short(name)}: {what}", [str(root) for root in sorted(roots)], "pack one PEFT folder")
    (root,) = roots
    places = {f"{part}/{file}".lstrip("/") for part in shelf.PARTS for file in (shelf.CONFIG_FILE, shelf.TENSORS_FILE)}
    return {place: files[root / place] for place in sorted(places) if root / place in files}


def _root(config: PurePosixPath) -> PurePosixPath:
    """The folder that is the adapter: above `unet/` and the like, where the config lies in one of these."""
    return config.parent.parent if config.parent.name in shelf.PARTS[1:] else config.parent


def _leads_out(entry: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    link = stat.S_ISLNK(entry.external_attr >> 16)
    return path.is_absolute() or ".." in path.parts or link or bool(re.match(r"[A-Za-z]:", str(path)))


def _small(name: str, size: int, largest: int) -> None:
    if size > largest:
        fault = f"{size / 1e6:.0f} MB, {largest / 1e6:.0f} MB at the most"
        raise AdapterError(f"{_short(name)}: too large for an adapter", [fault], "give the adapter without its base")


def _poured(source: IO[bytes], place: Path) -> Path:
    """A new file of what is read."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("xb") as out:
        shutil.copyfileobj(source, out, CHUNK)
        out.flush()
        os.fsync(out.fileno())
    return place


def _short(name: str) -> str:
    """A stranger's file name, fit to be shown."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in re.split(r"[/\\]", name)[-1])
    return shown[-60:] or "a file"
