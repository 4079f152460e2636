"""Files that a command writes: whether they may be, and written whole or not at all.

Try it: python -c "from studio.outputs import *; print(numbered(Path('boat.png'), 3))"
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trainers import checkpoint
from trainers.errors import RunError


def numbered(out: Path, count: int) -> list[Path]:
    """`boat.png`, or `boat-1.png` … for several."""
    return [out] if count == 1 else [out.with_name(f"{out.stem}-{k + 1}{out.suffix}") for k in range(count)]


def check_free(paths: Sequence[Path], overwrite: bool) -> None:
    """Raises RunError where one of the files, all in one folder, can't be written, or stands there already."""
    folder = next(place for place in paths[0].absolute().parents if place.exists())
    effective = os.access in os.supports_effective_ids
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK, effective_ids=effective):
        step = "name a file in a folder of your own"
        raise RunError(f"{paths[0]}: nothing can be written in {folder}", next_step=step)
    if folders := [path for path in paths if path.is_dir()]:
        raise RunError("a folder is in the way", [f"{path} is a folder" for path in folders], "name another --out")
    if not overwrite and (there := [path for path in paths if path.exists()]):
        step = "name another --out"
        raise RunError(
            "that would write over other files",
            [f"{path} exists; add --overwrite to write over it" for path in there],
            step,
        )


def write_whole(path: Path, data: bytes) -> None:
    """A file, its folder made. Raises RunError where it can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(path, data)
    except OSError as error:
        raise RunError(f"{path} can't be written: {error.strerror or error}", next_step="name another --out") from error
