"""Which paths the studio may touch for a page: those in the allowed folders, links followed. Imports no torch.

Try: python -c "from studio.desk.places import *; print(inside(Path('/etc/passwd'), [Path('/home')]))"
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainers import samples
from trainers.errors import DatasetError, StyloraError


def inside(path: Path, roots: Iterable[Path]) -> bool:
    """Does the path, all links followed, lie in one of the folders, or is it one of them?"""
    try:
        real = path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, `~nobody`, a NUL byte
        return False
    return any(real.is_relative_to(root.resolve()) for root in roots)


def within(folder: Path, name: str) -> Path:
    """The file of this name in a folder or a folder of it. Raises DatasetError: the name leads out of it."""
    path = folder / name
    if not name or path.name.startswith(".") or not inside(path, [folder]) or path.resolve() == folder.resolve():
        raise DatasetError(f"{name!r} is no file of this dataset", next_step="reload the page")
    return path


def sample_folders() -> dict[str, Path]:
    """The sample styles that came with stylora, by name, which every page may read; empty where none did."""
    try:
        folder = samples.sample_data()
    except StyloraError:
        return {}
    return {
        path.name: path for part in ("styles", "text") for path in sorted(folder.glob(f"{part}/*")) if path.is_dir()
    }
