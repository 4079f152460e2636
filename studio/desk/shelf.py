"""Adapter files as the library finds, names and moves them; none is opened here, and no torch is needed.

Try it: python -c "from studio.desk.shelf import *; print(plain_name('../My: ink.safetensors'), found(Path('.')))"
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
from pathlib import Path

from studio.desk.places import path_of, safe_name
from trainers import samples

SUFFIX = ".safetensors"
CONFIG_FILE, TENSORS_FILE = "adapter_config.json", "adapter_model.safetensors"  # of a PEFT folder
PARTS = ("", "unet", "text_encoder", "text_encoder_2")  # where in a folder they lie
READ = 1  # raise it where more is read of a file than before: then all are read again
ENDS = (SUFFIX, ".json")  # of what makes a base


def found(folder: Path) -> list[Path]:
    """The adapters in a folder, by name: .safetensors files and PEFT folders; nothing that is hidden."""
    try:
        there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
    return [path for path in there if (configs(path) if path.is_dir() else path.suffix.lower() == SUFFIX)]


def configs(folder: Path) -> list[Path]:
    """The configs that make a folder a PEFT adapter; none: it is no adapter."""
    return [folder / part / CONFIG_FILE for part in PARTS if (folder / part / CONFIG_FILE).is_file()]


def parts(path: Path) -> list[Path]:
    """The files an adapter is made of: itself, or those of a PEFT folder that hold it."""
    return [file for config in configs(path) for file in (config, config.parent / TENSORS_FILE)] or [path]


def stamp(path: Path) -> str:
    """Another text when a file was changed or replaced; moving it changes nothing. "" where it is gone."""
    try:
        facts = [(file, file.stat()) for file in parts(path)]
    except OSError:
        return "" if not os.path.lexists(path) else "unreadable"
    there = [[str(file.relative_to(path)), s.st_size, s.st_mtime_ns, s.st_ino] for file, s in facts]
    return json.dumps([READ, there])


def size(path: Path) -> int:
    """Bytes of its files; 0 where it is gone."""
    try:
        return sum(file.stat().st_size for file in parts(path))
    except OSError:
        return 0


def base_stamp(base: str) -> str:
    """Another text when a base's weights or configs were changed; "" for one that isn't on this disk by that name.

    Raises ConfigError: a path of that name there can't be.
    """
    root = samples.base_folder(base) if base in samples.base_names() else path_of(base)
    model = any((root / mark).is_file() for mark in samples.BASE_MARKS)
    files = [root] if root.is_file() else [file for end in ENDS if model for file in root.glob(f"**/*{end}")]
    facts = [(str(file), s.st_size, s.st_mtime_ns) for file in sorted(files) if file.exists() for s in [file.stat()]]
    return hashlib.sha256(repr(facts).encode()).hexdigest() if facts else ""


def plain_name(name: str) -> str:
    """An adapter's name made of what somebody called it: a safe one, without the ending."""
    return safe_name(re.sub(r"\.(safetensors|zip)$", "", name.strip(), flags=re.IGNORECASE)) or "adapter"


def claim(folder: Path, stem: str, like: Path) -> Path:
    """A new empty file or folder, as `like` is one: of this name, or with a number where that is taken."""
    for number in itertools.count(1):
        name = stem if number == 1 else f"{stem}-{number}"
        try:
            if like.is_dir():
                (free := folder / name).mkdir()
            else:
                (free := folder / f"{name}{SUFFIX}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return free
    raise AssertionError


def stem_of(path: Path) -> str:
    """What people call it: a file's name without its ending, a folder's name."""
    return path.stem if path.suffix.lower() == SUFFIX else path.name


def move(path: Path, folder: Path, stem: str) -> Path:
    """Move an adapter into a folder of the same disk, under a free name; where it lies now."""
    place = claim(folder, stem, path)
    try:
        os.replace(path, place)
    except OSError:
        place.rmdir() if place.is_dir() else place.unlink()
        raise
    _flush(folder)
    return place


def _flush(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not all file systems can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
