"""Paths and names that people give: which may be touched (links followed), and what a file may be called. No torch.

Try: python -c "from studio.desk.places import *; print(inside(Path('/etc'), [Path('/home')]), safe_name('a/b?'))"
"""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainers import samples
from trainers.errors import ConfigError, DatasetError, StyloraError

LONGEST = 120  # bytes of a name: an ending, a number and what is put around it while it is written still have room


def path_of(text: str | Path, start: Path = Path()) -> Path:
    """The path that somebody means: `~` followed, a relative one seen from `start`. ConfigError: it can't be one."""
    try:
        path = start / Path(text).expanduser()
        # whether there is something, and who may look, is for others to say
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.stat(path)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, 300 letters; `~nobody`; a NUL byte
        shown = repr(str(text))[:60]
        raise ConfigError(f"{shown} can't be a path", [reason(error)], "look at how it is written") from None
    return path


def inside(path: Path, roots: Iterable[Path]) -> bool:
    """Does the path, all links followed, lie in one of the folders, or is it one of them?"""
    try:
        real = path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # as above
        return False
    return any(real.is_relative_to(root.resolve()) for root in roots)


def within(folder: Path, name: str) -> Path:
    """The file of this name in a folder or a folder of it. Raises DatasetError: it leads out of it, or is hidden."""
    path = folder / name
    hidden = any(part.startswith(".") for part in Path(name).parts)
    if not name or hidden or not inside(path, [folder]) or path.resolve() == folder.resolve():
        raise DatasetError(f"{name!r} is no file of this dataset", next_step="reload the page")
    return path


def safe_name(name: str) -> str:
    """What a file may be called: no folders, nothing hidden or that a shell or a disk trips over; "" if nothing stays.

    LONGEST bytes at the most.
    """
    last = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    kept = "".join(letter for letter in last if unicodedata.category(letter)[0] != "C")
    kept = re.sub(r'[<>:"|?*]+', "-", kept).lstrip(" .-")
    return kept.encode(errors="ignore")[:LONGEST].decode(errors="ignore").rstrip(" .-")


def typed_name(text: str) -> str:
    """What a person typed as a name: "B/W ink" is no folder but "B-W ink"."""
    return re.sub(r"[/\\]+", "-", text.strip())


@contextlib.contextmanager
def written(what: str, kind: type[StyloraError]) -> Iterator[None]:
    """Within, files are written: a full disk, or a folder without the rights, is told as an error of this kind."""
    try:
        yield
    except OSError as error:
        step = "free some space, or check the folder's rights"
        raise kind(f"{what} can't be written", [reason(error)], step) from error


def reason(error: Exception) -> str:
    """Why, in the system's words and without the path."""
    return getattr(error, "strerror", None) or str(error)


def sample_folders() -> dict[str, Path]:
    """The sample styles that came with stylora, by name, which every page may read; empty where none did."""
    try:
        folder = samples.sample_data()
    except StyloraError:
        return {}
    return {
        path.name: path for part in ("styles", "text") for path in sorted(folder.glob(f"{part}/*")) if path.is_dir()
    }
