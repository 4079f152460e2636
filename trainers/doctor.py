"""What is in a folder of pictures, and all that is wrong with it, file by file, before any model is loaded.

`examine` reports, `scan` gives the samples or raises a DatasetError with every fault. Try it:
`python -c "from trainers import doctor; print(*doctor.examine('sample_data/styles/ink').notes, sep='\\n')"`
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainers import dataset
from trainers.dataset import CAPTIONS, METADATA, Group, Metadata, Sample
from trainers.errors import DatasetError

# What other tools and people call caption files. Nobody trains on them, so they are named with the rename to make.
UNREAD_CAPTIONS = (".tags", ".tag", ".cap", ".captions", ".text", ".md", ".prompt", ".description")
DECODERS = 4  # threads; each holds one decoded picture


@dataclass(frozen=True)
class Report:
    """`samples` are the sound pictures; with any fault the folder can't be trained on; notes say what was read."""

    samples: tuple[Sample, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Wishes:
    instance_prompt: str
    trigger: str
    require_captions: bool
    repeats: int
    min_side: int


@dataclass(frozen=True)
class _Shelf:
    """One folder that is read: its pictures, its metadata, and its other files by stem and extension."""

    group: Group
    metadata: Metadata
    pictures: tuple[Path, ...]
    texts: Mapping[str, Mapping[str, Path]]


@dataclass(frozen=True)
class _Finding:
    """What one picture turned out to be: a sample, or faults."""

    sample: Sample | None = None
    faults: tuple[str, ...] = ()
    digest: str = ""
    triggered: bool = False  # the trigger word was put in front of a caption


def scan(
    folder: Path,
    *,
    instance_prompt: str | None = None,
    trigger: str = "",
    require_captions: bool = False,
    repeats: int = 1,
    min_side: int = 1,
) -> list[Sample]:
    """The folder's samples, sorted by path; a DatasetError lists every fault. Arguments as for `examine`."""
    report = examine(
        folder,
        instance_prompt=instance_prompt,
        trigger=trigger,
        require_captions=require_captions,
        repeats=repeats,
        min_side=min_side,
    )
    return list(sound(report, folder).samples)


def sound(report: Report, folder: Path) -> Report:
    """The report itself if it has no faults, else a DatasetError that lists them all."""
    if report.faults:
        raise DatasetError(f"{folder} can't be trained on", report.faults, "put these right and start again")
    return report


def examine(
    folder: Path,
    *,
    instance_prompt: str | None = None,
    trigger: str = "",
    require_captions: bool = False,
    repeats: int = 1,
    min_side: int = 1,
) -> Report:
    """Reads and decodes everything in `folder`, flat or with `10_name class` folders in it.

    A picture's caption is the first there is of: its .txt, its .caption, metadata.jsonl, `instance_prompt`, its class
    folder's name, `trigger` alone. With `require_captions` only the first three count. `repeats` multiplies the
    folders' own; the shorter side of a picture must have `min_side` pixels.
    """
    root = Path(folder)
    wishes = _Wishes((instance_prompt or "").strip(), trigger.strip(), require_captions, repeats, min_side)
    try:
        shelves = [_shelf(group) for group in _groups(root)]
    except DatasetError as error:
        return Report(faults=error.faults)
    findings: list[_Finding] = []
    with ThreadPoolExecutor(DECODERS) as pool:
        for shelf in shelves:
            findings += pool.map(partial(_look, shelf=shelf, root=root, wishes=wishes), shelf.pictures)
    faults = [fault for shelf in shelves for fault in _shelf_faults(shelf, root)]
    faults += [fault for finding in findings for fault in finding.faults]
    if not findings:
        faults.append(_no_pictures(shelves, root))
    samples = tuple(finding.sample for finding in findings if finding.sample)
    notes = [*_sources(findings), *(note for shelf in shelves for note in _shelf_notes(shelf, root))]
    return Report(samples, tuple(dict.fromkeys(faults)), (*notes, *_duplicates(findings, root)))


def _groups(root: Path) -> list[Group]:
    if not root.exists():
        raise DatasetError("no folder", [f"{root}: no such folder"])
    if not root.is_dir():
        raise DatasetError("no folder", [f"{root}: a file, not a folder; give the folder that holds the pictures"])
    return dataset.groups(root)


def _shelf(group: Group) -> _Shelf:
    metadata = dataset.read_metadata(group.folder)
    texts: dict[str, dict[str, Path]] = {}
    for file in set(group.files) - set(group.pictures):
        texts.setdefault(file.stem, {})[file.suffix.lower()] = file
    return _Shelf(group, metadata, tuple(sorted({*group.pictures, *metadata.captions})), texts)


def _look(picture: Path, shelf: _Shelf, root: Path, wishes: _Wishes) -> _Finding:
    """Everything about one picture; its own faults and its caption's are both found."""
    faults: list[str] = []
    size, digest, caption, source = (0, 0), "", "", ""
    try:
        size, digest = _pixels(picture, wishes.min_side)
    except DatasetError as error:
        faults += [f"{_name(picture, root)}: {fault}" for fault in error.faults]
    try:
        caption, source = _caption(picture, shelf, root, wishes)
    except DatasetError as error:
        faults += error.faults
    if faults:
        return _Finding(faults=tuple(faults))
    whole = dataset.with_trigger(caption, wishes.trigger)
    sample = Sample(picture, whole, shelf.group.repeats * wishes.repeats, size, source)
    return _Finding(sample, digest=digest, triggered=bool(caption) and whole != caption)


def _pixels(picture: Path, min_side: int) -> tuple[tuple[int, int], str]:
    """(size, digest of the pixels as they will be trained on)."""
    image = dataset.open_picture(picture)
    width, height = image.size
    if min(width, height) < min_side:
        raise DatasetError("too small", [f"too small: {width} x {height}, wanted {min_side} on the shorter side"])
    return (width, height), hashlib.sha256(f"{width} {height} ".encode() + image.tobytes()).hexdigest()


def _caption(picture: Path, shelf: _Shelf, root: Path, wishes: _Wishes) -> tuple[str, str]:
    """(caption, where it was read); the faults of a DatasetError begin with the file's name."""
    if own := _captions_of(picture, shelf):
        try:
            return dataset.read_caption(own[0]), own[0].name
        except DatasetError as error:
            raise DatasetError(error.what, [f"{_name(own[0], root)}: {fault}" for fault in error.faults]) from error
    if picture in shelf.metadata.captions:
        return shelf.metadata.captions[picture], METADATA
    if unread := _unread_of(picture, shelf):
        rename = f"caption files end in {' or '.join(CAPTIONS)}; rename it to {picture.stem}{CAPTIONS[0]}"
        raise DatasetError("unread caption", [f"{_name(file, root)}: not read; {rename}" for file in unread])
    if not wishes.require_captions:
        spare = {"instance prompt": wishes.instance_prompt, "folder name": shelf.group.name}
        for source, caption in spare.items():
            if caption:
                return caption, source
        if wishes.trigger:
            return "", "trigger word"
    looked = ", ".join([*(picture.stem + suffix for suffix in CAPTIONS), METADATA])
    hint = "" if wishes.require_captions else "; write one, or give an instance prompt or a trigger word"
    raise DatasetError("no caption", [f"{_name(picture, root)}: no caption (looked for {looked}){hint}"])


def _captions_of(picture: Path, shelf: _Shelf) -> list[Path]:
    """The picture's caption files, the one that is read first."""
    beside = shelf.texts.get(picture.stem, {}) if picture.parent == shelf.group.folder else {}
    return [beside[suffix] for suffix in CAPTIONS if suffix in beside]


def _unread_of(picture: Path, shelf: _Shelf) -> list[Path]:
    """Files that look like the picture's caption but aren't read: ink_01.tags, or ink_01.png.txt."""
    if picture.parent != shelf.group.folder:
        return []
    beside, doubled = shelf.texts.get(picture.stem, {}), shelf.texts.get(picture.name, {})
    unread = [beside[suffix] for suffix in UNREAD_CAPTIONS if suffix in beside]
    return unread + [doubled[suffix] for suffix in CAPTIONS if suffix in doubled]


def _shelf_faults(shelf: _Shelf, root: Path) -> list[str]:
    faults = [f"{_name(shelf.group.folder / METADATA, root)}: {fault}" for fault in shelf.metadata.faults]
    if shelf.group.repeats < 1:
        name = shelf.group.name
        faults.append(f"{_name(shelf.group.folder, root)}: 0 repeats show nothing; call it 1_{name} or move it away")
    return faults


def _no_pictures(shelves: Sequence[_Shelf], root: Path) -> str:
    """Says which kinds are read and what was found instead."""
    found = Counter(file.suffix.lower() or file.name for shelf in shelves for file in shelf.group.files)
    folders = [_name(folder, root) + "/" for shelf in shelves for folder in shelf.group.others]
    what = [*(f"{count} {suffix}" for suffix, count in sorted(found.items())), *folders]
    if not what:
        return f"{root}: no pictures: the folder is empty; put pictures in it ({dataset.kinds()})"
    hint = "; subfolders are read when they are called like 10_name" if folders else ""
    return f"{root}: no pictures ({dataset.kinds()} are read); found {', '.join(what)}{hint}"


def _sources(findings: Iterable[_Finding]) -> list[str]:
    """How many captions came from where; the zeros of .txt and .caption are said, too."""
    origins = [finding.sample.caption_from for finding in findings if finding.sample]
    if not origins:
        return []
    counts = dict.fromkeys(CAPTIONS, 0)
    for origin in sorted(origins):
        suffix = Path(origin).suffix.lower()
        source = suffix if suffix in CAPTIONS else origin
        counts[source] = counts.get(source, 0) + 1
    first, *others = [f"{count} {{}}from {source}" for source, count in counts.items()]
    parts = ", ".join([first.format("captions "), *(other.format("") for other in others)])
    triggered = sum(finding.triggered for finding in findings)
    front = [f"trigger word put in front of {triggered} of {len(origins)} captions"] if triggered else []
    return [f"{len(origins)} pictures: {parts} (the first line of each file)", *front]


def _shelf_notes(shelf: _Shelf, root: Path) -> list[str]:
    group, count = shelf.group, len(shelf.pictures)
    if group.name:
        notes = [f"{_name(group.folder, root)}: {count} pictures, {group.repeats} repeats"]
    elif dataset.kohya_parts(root.absolute()):
        notes = [f"{root.absolute().name}: repeats are read from subfolders' names, not from this folder's own"]
    else:
        notes = []
    return [*notes, *_passed_over(shelf, root), *_leftovers(shelf, root)]


def _passed_over(shelf: _Shelf, root: Path) -> list[str]:
    """Captions that aren't read because the picture has one that comes before."""
    notes = []
    metadata = shelf.group.folder / METADATA
    for picture in shelf.pictures:
        if own := _captions_of(picture, shelf):
            others = [*own[1:], *_unread_of(picture, shelf)]
            others += [metadata] if picture in shelf.metadata.captions else []
            notes += [f"{_name(picture, root)}: {own[0].name} is read, {file.name} is not" for file in others]
    return notes


def _leftovers(shelf: _Shelf, root: Path) -> list[str]:
    """Files and folders that belong to no picture."""
    group, pictures = shelf.group, shelf.pictures
    used = {file for picture in pictures for file in (*_captions_of(picture, shelf), *_unread_of(picture, shelf))}
    spare = sorted(set(group.files) - set(pictures) - used - {group.folder / METADATA})
    masks = [file for file in spare if dataset.is_mask(file)]
    orphans = [file for file in spare if file.suffix.lower() in CAPTIONS and file not in masks]
    notes = [f"{_name(file, root)}: no picture has this name" for file in orphans]
    if masks:
        notes.append(f"{len(masks)} mask files ({dataset.MASK}) are not used")
    unread = [_name(file, root) for file in spare if file not in {*masks, *orphans}]
    unread += [f"{_name(one, root)}/" for one in group.others if not any(p.is_relative_to(one) for p in pictures)]
    return notes + ([f"not read: {', '.join(unread)}"] if unread else [])


def _duplicates(findings: Iterable[_Finding], root: Path) -> list[str]:
    same: dict[str, list[str]] = {}
    for finding in findings:
        if finding.sample:
            same.setdefault(finding.digest, []).append(_name(finding.sample.path, root))
    return [f"{' and '.join(names)} show the same pixels" for names in same.values() if len(names) > 1]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
