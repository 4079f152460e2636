"""A dataset as a page shows it: pictures in their buckets, captions and faults beside each; texts with what is learned.

Try: python -c "from studio.desk.dataset_view import *; print(look(Path('sample_data/styles/ink'), 'tiny-sd').buckets)"
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image

from trainers import buckets, dataset, doctor, documents
from trainers.buckets import Size
from trainers.dataset import Sample
from trainers.errors import DatasetError

THUMBNAIL = 192  # longer side in pixels
SHOWN = 2000  # letters of a text
TWINS = " show the same pixels"  # how the doctor ends a note on pictures that are alike


@dataclass(frozen=True)
class Wishes:
    """The settings that decide how a folder of pictures is read; as in `dataset`'s settings."""

    trigger: str = ""
    instance_prompt: str | None = None
    require_captions: bool = False
    repeats: int = 1
    resolution: int | None = None


@dataclass(frozen=True)
class Picture:
    """One picture: `caption` is its own, before the trigger word; `taught` is what it is trained with.

    `size` and `bucket` in pixels, None where it can't be read; `caption_from` as in `Sample`, "" where there is none.
    """

    name: str  # seen from the dataset's folder
    path: Path
    caption: str = ""
    taught: str = ""
    caption_from: str = ""
    size: Size | None = None
    bucket: Size | None = None
    repeats: int = 1
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    """One document: `runs` are its parts in order, each with whether it is learned; chats have the speaker in front."""

    name: str
    runs: tuple[tuple[str, bool], ...]
    heldout: bool


@dataclass(frozen=True)
class View:
    """A dataset; with any fault it can't be trained on. `faults` and `notes` are those that are no picture's own."""

    folder: Path
    kind: Literal["pictures", "text", "empty"]
    pictures: tuple[Picture, ...] = ()
    texts: tuple[Text, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    buckets: Mapping[Size, int] = field(default_factory=dict)  # how many pictures each holds, the fullest first

    @property
    def sound(self) -> bool:
        """Can it be trained on?"""
        return self.kind != "empty" and not self.faults and not any(one.faults for one in self.pictures)


def look(folder: Path, base: str, wishes: Wishes | None = None, *, supervise: str = "auto") -> View:
    """All that a page shows of a folder. Raises BaseError where pictures want a base that can't be had."""
    if documents.holds_texts(folder):
        return _texts(folder, supervise)
    if not any(group.pictures for group in dataset.groups(folder)):
        return View(folder, "empty", faults=doctor.examine(folder).faults)
    return _pictures(folder, base, wishes or Wishes())


def thumbnail(path: Path, side: int = THUMBNAIL) -> bytes:
    """A JPEG of a picture, upright, `side` pixels on the longer side at most. Raises DatasetError."""
    try:
        stamp = path.stat().st_mtime_ns
    except OSError as error:
        raise DatasetError(f"{path.name} is gone", next_step="reload the page") from error
    return _thumbnail(path, side, stamp)


@lru_cache(maxsize=2000)
def _thumbnail(path: Path, side: int, stamp: int) -> bytes:
    picture = dataset.open_picture(path)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=85)
    return stream.getvalue()


@lru_cache(maxsize=32)
def shape_of(base: str) -> tuple[int, int]:
    """(side of the pictures a base is made for, what their sides must be multiples of) in pixels; as its family says.

    Raises BaseError: it can't be had, or makes no pictures.
    """
    from trainers import bases  # imports torch, which an empty page needn't wait for

    folder = bases.find(base, weights=False, kind="pictures")
    with bases.reading(folder, "config"):
        unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return int(unet["sample_size"] * factor), max(8, factor * 2 ** (len(unet["block_out_channels"]) - 1))


# --- pictures ---------------------------------------------------------------------------------------------------------


def _pictures(folder: Path, base: str, wishes: Wishes) -> View:
    side, multiple = shape_of(base)
    resolution = wishes.resolution or side
    report = doctor.examine(
        folder,
        trigger=wishes.trigger,
        instance_prompt=wishes.instance_prompt,
        require_captions=wishes.require_captions,
        repeats=wishes.repeats,
        min_side=resolution // 2,
    )
    samples = {sample.path: sample for sample in report.samples}
    names = {path: path.relative_to(folder).as_posix() for path in _paths(folder, samples)}
    faults, notes = _by_picture(report.faults, names), _by_picture(report.notes, names)
    shown = tuple(
        _picture(path, name, samples.get(path), (resolution, multiple), faults.get(path, ()), notes.get(path, ()))
        for path, name in names.items()
    )
    counts = Counter(one.bucket for one in shown if one.bucket)
    return View(folder, "pictures", shown, (), faults.get(None, ()), notes.get(None, ()), dict(counts.most_common()))


def _paths(folder: Path, samples: Mapping[Path, Sample]) -> list[Path]:
    """Every picture that is read, the faulty ones too."""
    return sorted({*samples, *(path for group in dataset.groups(folder) for path in group.pictures)})


def _picture(
    path: Path, name: str, sample: Sample | None, area: tuple[int, int], faults: Sequence[str], notes: Sequence[str]
) -> Picture:
    own = _own_caption(path)
    if sample is None:
        return Picture(name, path, own, faults=tuple(faults), notes=tuple(notes))
    bucket = buckets.place(sample.size, *area).bucket
    source = sample.caption_from
    caption = own or (sample.caption if source == dataset.METADATA else "")
    told = (sample.size, bucket, sample.repeats, tuple(faults), tuple(notes))
    return Picture(name, path, caption, sample.caption, source, *told)


def _own_caption(picture: Path) -> str:
    file = dataset.caption_file(picture)
    try:
        return dataset.read_caption(file) if file else ""
    except DatasetError:
        return ""  # the doctor says what is wrong with it


def _by_picture(said: Sequence[str], names: Mapping[Path, str]) -> dict[Path | None, tuple[str, ...]]:
    """What the doctor said, by the picture it is about: its name or its caption file's in front, or two of one look."""
    found: dict[Path | None, list[str]] = {}
    by_name = {name: path for path, name in names.items()}
    stems = {name.rpartition(".")[0]: path for path, name in names.items()}
    for line in said:
        name, colon, rest = line.partition(": ")
        stem = name.rpartition(".")[0]
        about = [by_name.get(name) or stems.get(stem) or by_name.get(stem)] if colon else []
        if line.endswith(TWINS):
            about = [by_name.get(one) for one in line.removesuffix(TWINS).split(" and ")]
        found_in: list[Path | None] = [path for path in about if path]
        for path in found_in or [None]:
            found.setdefault(path, []).append(rest if path and names[path] == name else line)
    return {path: tuple(lines) for path, lines in found.items()}


# --- texts ------------------------------------------------------------------------------------------------------------


def _texts(folder: Path, supervise: str) -> View:
    reading = documents.read(folder)
    texts = tuple(Text(one.name, _runs(one, supervise == "all"), one.heldout) for one in reading.documents)
    return View(folder, "text", texts=texts, faults=reading.faults, notes=reading.notes)


def _runs(document: documents.Document, everything: bool) -> tuple[tuple[str, bool], ...]:
    """Its parts, each with whether it is learned; only the first SHOWN letters of each."""
    if document.kind == "chat":
        said = [
            (f"{one['role']}: {one['content']}", number >= document.given and one["role"] == "assistant")
            for number, one in enumerate(document.messages)
        ]
    else:
        said = [(document.prompt, False)] if document.prompt else []
        said.append((document.text, True))
    return tuple((text[:SHOWN] + "…" * (len(text) > SHOWN), learned or everything) for text, learned in said)
