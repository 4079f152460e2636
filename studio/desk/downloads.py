"""What a person takes home: a file as it is, a folder as a .zip that lies on the disk and not in memory.

Try it: python -c "from studio.desk.downloads import *; print(name_of(Path('docs')), len(opened(Path('docs')).read()))"
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from studio.desk import shelf
from trainers.errors import RunError


def name_of(path: Path) -> str:
    """What the download is called."""
    return f"{path.name}.zip" if path.is_dir() else path.name


def opened(path: Path, aside: Path = Path()) -> BinaryIO:
    """The download, to be read from its start; of a PEFT adapter's folder only what makes the adapter.

    A .zip has no name on the disk of `aside`: closed, or with the server killed, it is gone. RunError: it can't be read
    or written.
    """
    try:
        return _zipped(path, aside) if path.is_dir() else path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a date before 1980, which a zip can't hold
        step = "reload the page; where the disk is full, free some space"
        raise RunError(f"{path.name}: can't be downloaded", [str(error)], step) from None


def _zipped(folder: Path, aside: Path) -> BinaryIO:
    parts = shelf.parts(folder) if shelf.configs(folder) else sorted(folder.rglob("*"))
    with TemporaryFile(dir=aside) as made:
        with zipfile.ZipFile(made, "w") as archive:
            for part in (part for part in parts if part.is_file()):
                archive.write(part, f"{folder.name}/{part.relative_to(folder).as_posix()}")
        made.seek(0)
        return os.fdopen(os.dup(made.fileno()), "rb")  # Streamlit reads no file that could be written, too
