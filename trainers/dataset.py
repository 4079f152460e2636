"""Reads a folder's files one at a time: pictures, captions, `metadata.jsonl`; a DatasetError says why one can't be.

The whole folder is looked through by `trainers.doctor`: `doctor.scan(folder)` gives the list of samples. Try it:
`python -c "from trainers import doctor; print(*doctor.scan('sample_data/styles/ink'), sep='\\n')"`
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError, features

from trainers.buckets import Placement
from trainers.errors import DatasetError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", *((".avif",) if features.check("avif") else ()))
CAPTIONS = (".txt", ".caption")  # the first one found is read
METADATA = "metadata.jsonl"
MASK = "-masklabel"

# Pillow's decoders raise all of these on damaged files (the warning only where warnings are made errors).
UNREADABLE = (OSError, RuntimeError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError,
              struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)  # fmt: skip
_KOHYA = re.compile(r"(\d+)_(.+)")  # 10_ink drawing: repeats, class


@dataclass(frozen=True)
class Sample:
    """One picture with its caption. `caption_from` says where that was read; `prior` marks class pictures."""

    path: Path
    caption: str
    repeats: int
    size: tuple[int, int]  # (width, height), upright
    caption_from: str  # "ink_01.txt", "metadata.jsonl", "instance prompt", "folder name" or "trigger word"
    prior: bool = False


@dataclass(frozen=True)
class Group:
    """A folder that pictures are read from: the one given, or a `10_name class` folder in it."""

    folder: Path
    repeats: int = 1
    name: str = ""  # what the rest of a kohya folder's name says; "" in the folder given
    files: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()  # folders in it that aren't read

    @property
    def pictures(self) -> tuple[Path, ...]:
        return tuple(file for file in self.files if file.suffix.lower() in PICTURES and not is_mask(file))


@dataclass(frozen=True)
class Metadata:
    """The captions in a folder's `metadata.jsonl`, by picture, and what is wrong with its lines."""

    captions: dict[Path, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


def open_picture(path: Path, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """The whole picture as RGB: upright by its EXIF tag, transparent parts over `background`."""
    try:
        with Image.open(path) as opened:
            opened.load()
            picture = _composited(_eight_bit(ImageOps.exif_transpose(opened)), background)
    except UNREADABLE as error:
        raise DatasetError(f"{path} can't be read as a picture", [_reason(path, error)], "replace it") from error
    return picture


def apply(image: Image.Image, placement: Placement) -> Image.Image:
    """The picture resized and cropped into its bucket."""
    (x, y), (width, height) = placement.crop, placement.bucket
    return image.resize(placement.resize, Image.Resampling.LANCZOS).crop((x, y, x + width, y + height))


def read_caption(path: Path) -> str:
    """The first line of a caption file that isn't empty."""
    text = read_text(path)
    for line in text.splitlines():
        if line.strip():
            return line.strip()
    raise DatasetError(f"{path} can't be used", ["empty caption file; write the caption into it or delete it"])


def caption_file(picture: Path) -> Path | None:
    """The caption file of a picture that is read, if there is one."""
    files = [picture.with_suffix(suffix) for suffix in CAPTIONS]
    return next((file for file in files if file.is_file()), None)


def with_trigger(caption: str, trigger: str) -> str:
    """`trigger, caption`; the caption alone when it has the trigger as a whole word (upper and lower case alike)."""
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def read_metadata(folder: Path) -> Metadata:
    """`metadata.jsonl` as Hugging Face's imagefolder has it: {"file_name": "a.png", "text": "a caption"} a line."""
    path = folder / METADATA
    if not path.is_file():
        return Metadata()
    captions: dict[Path, str] = {}
    faults = []
    try:
        lines = read_text(path).split("\n")  # not splitlines: JSON strings may hold U+2028
    except DatasetError as error:
        return Metadata(faults=error.faults)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                picture, text = _entry(line, folder)
                if captions.setdefault(picture, text) != text:
                    raise ValueError(f"{picture.name} is named again with another text")
            except ValueError as error:
                faults.append(f"line {number}: {error}")
    return Metadata(captions, tuple(faults))


def groups(folder: Path) -> list[Group]:
    """The folders to read: the one given (flat), then the `10_name class` folders in it, sorted by name."""
    files, folders = listed(folder)
    kohya = {path: parts for path in folders if (parts := kohya_parts(path))}
    flat = Group(folder, files=files, others=tuple(path for path in folders if path not in kohya))
    return [flat, *(Group(path, *parts, *listed(path)) for path, parts in kohya.items())]


def kohya_parts(folder: Path) -> tuple[int, str] | None:
    """(repeats, class) of a folder called like `10_ink drawing`."""
    found = _KOHYA.fullmatch(folder.name)
    return (int(found[1]), found[2].strip()) if found else None


def is_mask(file: Path) -> bool:
    return file.stem.lower().endswith(MASK)


def listed(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """(files, folders), sorted, without hidden ones."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"{folder} can't be read", [f"{folder}: {error.strerror or error}"]) from error
    return tuple(one for one in entries if not one.is_dir()), tuple(one for one in entries if one.is_dir())


def read_text(path: Path) -> str:
    """A file's text, line ends as they are; a DatasetError where it isn't UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fault = f"not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}); save it as UTF-8"
    except OSError as error:
        fault = f"can't be read: {error.strerror or error}"
    raise DatasetError(f"{path} can't be read", [fault])


def _entry(line: str, folder: Path) -> tuple[Path, str]:
    """One line of metadata.jsonl as (picture, caption); a ValueError says what is wrong with it."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(entry, dict):
        raise ValueError('wanted {"file_name": …, "text": …}')
    values = [entry.get(key) for key in ("file_name", "text")]
    for key, value in zip(("file_name", "text"), values, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f'no "{key}" (it has {", ".join(map(repr, entry)) or "nothing"})')
    name, text = map(str, values)
    picture = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name} lies outside the folder")
    if picture.suffix.lower() not in PICTURES:
        raise ValueError(f"{name} is not a kind of picture that is read ({kinds()})")
    if not picture.is_file():
        raise ValueError(f"{name} is not there")
    return picture, " ".join(text.split())


def kinds() -> str:
    """The extensions of pictures, as people say them."""
    return " ".join(suffix[1:] for suffix in PICTURES)


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Pillow clips 16-bit grey to white when it converts; scale it instead."""
    return picture.point(lambda value: value / 256).convert("L") if picture.mode.startswith("I") else picture


def _composited(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (*background, 255)), layer).convert("RGB")


def _reason(path: Path, error: BaseException) -> str:
    if path.is_file() and not path.stat().st_size:
        return "empty file (0 bytes)"
    if "truncat" in str(error).lower():
        return f"truncated: {error}"
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture of a kind that is read ({kinds()})"
    return f"can't be read as a picture: {getattr(error, 'strerror', None) or error}"
