"""The folders that people train on: their desk's own, the samples, and others under the allowed roots.

A desk's own lie in a folder of `.studio/datasets/` that no other desk sees; nothing else of `.studio` is opened.
Uploads are limited by kind and size, never written over a file; what is taken out lies in the dataset's `.removed/`.
Try: python -c "from studio.desk.datasets import *; print(Datasets(Path('/tmp/home')).names())"
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from studio.desk.places import inside, path_of, reason, safe_name, sample_folders, within, written
from trainers import dataset
from trainers.errors import DatasetError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TEXTS = (".txt", ".md", ".jsonl")
KINDS = tuple(suffix[1:] for suffix in (*PICTURES, *TEXTS))  # as an upload field wants them
LARGEST = {"picture": 40_000_000, "text": 20_000_000}  # bytes
MOST = 2000  # files in a dataset
REMOVED = ".removed"


@dataclass(frozen=True)
class Added:
    """What became of an upload: the names it was saved under, and a sentence for each file that wasn't."""

    names: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class Datasets:
    """The datasets of a desk in a home folder. `roots` may be read and edited as well; the samples are only read.

    DatasetError, from any method: what is wanted can't be read or written, or isn't the desk's to touch.
    """

    def __init__(self, home: Path, roots: Sequence[Path] = (), desk: str = "") -> None:
        self.home, self.room, self.roots = home, home / ".studio", (home, *roots)
        own = hashlib.sha256(desk.encode()).hexdigest()[:16] if desk else "everyone"  # paths don't tell a desk's token
        self.own = self.room.resolve() / "datasets" / own
        with written(str(self.own), DatasetError):
            self.own.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """The desk's own datasets, by name."""
        return sorted(path.name for path in self.own.iterdir() if path.is_dir() and not path.name.startswith("."))

    def samples(self) -> dict[str, Path]:
        """The sample styles that came with stylora, by name."""
        return sample_folders()

    def open(self, place: str | Path) -> Path:
        """The folder of one of `names`, of `samples`, or in the roots; a relative path is seen from the home folder.

        Raises DatasetError: none of these, or gone. ConfigError: it can't be a path.
        """
        known = self.samples() | {name: self.own / name for name in self.names()}
        folder = known.get(str(place)) or path_of(place, self.home)
        if not self._allowed(folder) and not inside(folder, self.samples().values()):
            roots = [f"allowed: {root}" for root in self.roots]
            raise DatasetError(
                "that folder isn't one the studio may read", roots, "name one in there, or upload the files"
            )
        try:
            if not folder.is_dir():
                raise DatasetError(f"{folder}: no such folder", next_step="name another one")
        except OSError as error:
            raise DatasetError(f"{folder}: can't be read", [reason(error)], "name another one") from error
        return folder.resolve()

    def editable(self, folder: Path) -> bool:
        """The samples aren't: `copy` them first."""
        return self._allowed(folder) and not inside(folder, self.samples().values())

    def create(self, title: str) -> Path:
        """A new empty dataset; a number is added where the name is taken."""
        name = safe_name(title) or "dataset"
        with written(name, DatasetError):
            for number in itertools.count(1):
                folder = self.own / (name if number == 1 else f"{name} {number}")
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                    return folder
        raise AssertionError

    def copy(self, folder: Path, title: str = "") -> Path:
        """A dataset of one's own with the same files, to be edited."""
        source = self.open(folder)
        new = self.create(title or source.name)
        try:
            with written(new.name, DatasetError):
                shutil.copytree(source, new, False, shutil.ignore_patterns(".*"), _copy, dirs_exist_ok=True)
        except DatasetError:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return new

    def add(self, folder: Path, files: Iterable[tuple[str, bytes]]) -> Added:
        """Save uploads, (name, bytes) each. A picture and its caption stay a pair where a name is taken."""
        ordered = sorted(files, key=lambda file: Path(file[0]).suffix.lower() in TEXTS)  # pictures choose their names
        names: list[str] = []
        refused: list[str] = []
        stems: dict[str, str] = {}
        with self._changing(folder):
            count = sum(1 for _ in folder.iterdir())
            for name, data in ordered:
                if why := _unfit(name, data, count + len(names)):
                    refused.append(f"{Path(name).name}: {why}")
                    continue
                names.append(_save(folder, name, data, stems))
        return Added(tuple(names), tuple(refused))

    def paste(self, folder: Path, text: str, each: str = "whole") -> str:
        """Save pasted text: whole, or a document for each "paragraph" or "line"; JSON lines stay as they are.

        Returns the file's name. Raises DatasetError where there is nothing to save.
        """
        text = text.strip("\n")
        if not text.strip():
            raise DatasetError("there is no text", next_step="paste some, or upload a file")
        breaks = {"paragraph": r"\n\s*\n", "line": r"\n"}
        if each in breaks and not _is_jsonl(text):
            parts = [part.strip() for part in re.split(breaks[each], text) if part.strip()]
            text = "\n".join(json.dumps({"text": part}, ensure_ascii=False) for part in parts)
        name = "pasted.jsonl" if _is_jsonl(text) else "pasted.txt"
        added = self.add(folder, [(name, f"{text}\n".encode())])
        if added.refused:
            raise DatasetError("the text can't be saved", added.refused)
        return added.names[0]

    def edit_caption(self, folder: Path, name: str, caption: str) -> None:
        """Write a picture's caption into its file, one line; an empty one takes the file away."""
        line = " ".join(caption.split())
        with self._changing(folder):
            picture = _picture(folder, name)
            file = dataset.caption_file(picture) or picture.with_suffix(dataset.CAPTIONS[0])
            if line:
                _write(file, f"{line}\n".encode())
            elif file.is_file():
                _put_away(folder, file)

    def remove(self, folder: Path, name: str) -> None:
        """Take a picture with its caption, or a file of texts, out of the dataset; `restore` brings back the last."""
        with self._changing(folder):
            file = within(folder, name)
            for each in [file, dataset.caption_file(file) if file.suffix.lower() in dataset.PICTURES else None]:
                if each and each.is_file():
                    _put_away(folder, each)

    def removed(self, folder: Path) -> list[str]:
        """The names of what was taken out."""
        bin = folder / REMOVED
        return sorted(path.relative_to(bin).as_posix() for path in bin.rglob("*") if path.is_file())

    def restore(self, folder: Path, name: str) -> None:
        """Put back what was taken out; never over a file that is there now."""
        with self._changing(folder):
            source, place = within(folder / REMOVED, name), within(folder, name)
            if place.exists():
                raise DatasetError(f"there is another {name} by now", next_step="remove that one first")
            if source.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                source.replace(place)

    def _allowed(self, folder: Path) -> bool:
        """Is it the desk's own, or in a root and none of the studio's own things?"""
        return inside(folder, [self.own]) or (inside(folder, self.roots) and not inside(folder, [self.room]))

    @contextlib.contextmanager
    def _changing(self, folder: Path) -> Iterator[None]:
        if not self.editable(folder):
            raise DatasetError("this dataset can only be read", next_step="make a copy of it to edit")
        with written(folder.name, DatasetError):
            yield


def _picture(folder: Path, name: str) -> Path:
    picture = within(folder, name)
    if picture.suffix.lower() not in dataset.PICTURES or not picture.is_file():
        raise DatasetError(f"{name} is no picture of this dataset", next_step="reload the page")
    return picture


def _copy(source: str, target: str) -> None:
    with written(Path(target).name, DatasetError):  # copytree would go on with the other files
        shutil.copy2(source, target)


def _unfit(name: str, data: bytes, count: int) -> str:
    """Why a file can't be taken; "" where it can."""
    suffix = Path(name).suffix.lower()
    if suffix not in (*PICTURES, *TEXTS) or not safe_name(_stem(name)):
        return f"not a kind that is taken ({' '.join(KINDS)})"
    largest = LARGEST["picture" if suffix in PICTURES else "text"]
    if len(data) > largest:
        return f"{len(data) / 1e6:.0f} MB, at most {largest / 1e6:.0f} MB are taken"
    return f"a dataset holds at most {MOST} files" if count >= MOST else ""


def _stem(name: str) -> str:
    return name.removesuffix(Path(name).suffix)


def _save(folder: Path, name: str, data: bytes, stems: dict[str, str]) -> str:
    """Write one upload; `stems` are the names that this upload's files have taken: {as given: as saved}."""
    suffix, given = Path(name).suffix.lower(), _stem(name)
    stem = stems.get(given) or safe_name(given)
    file = folder / f"{stem}{suffix}"
    if file.exists() and file.read_bytes() != data:
        taken = {path.stem for path in folder.iterdir()}
        stem = next(other for k in itertools.count(2) if (other := f"{safe_name(given)}-{k}") not in taken)
        file = folder / f"{stem}{suffix}"
    stems[given] = stem
    if not file.exists():
        _write(file, data)
    return file.name


def _is_jsonl(text: str) -> bool:
    try:
        return all(isinstance(json.loads(line), dict) for line in text.split("\n") if line.strip())
    except ValueError:
        return False


def _put_away(folder: Path, file: Path) -> None:
    place = folder / REMOVED / file.relative_to(folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    file.replace(place)


def _write(file: Path, data: bytes) -> None:
    from trainers.checkpoint import write_atomically  # imports torch, which a page needn't wait for

    write_atomically(file, data)
