"""What was asked for in the past names files, and the library renames them: here each is found by what is in it.

Try it: python -c "from studio.desk.recall import *; help(updated)"
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.errors import AdapterError

if TYPE_CHECKING:
    from studio.desk.library import Library
    from studio.draw.use import Use

Table = dict[str, Any]  # an adapter as a recipe has it
GONE = "an adapter of it is no longer in the library"


def ids(uses: Iterable[Use], library: Library) -> dict[str, str]:
    """{file: its id} of those adapters that are in the library now."""
    there = {entry.path: entry.id for entry in library.cards() if not entry.error}
    return {str(use.path): there[use.path] for use in uses if use.path in there}


def updated(
    tables: Sequence[Table], folder: Path, library: Library, ids: Mapping[str, str], missing: list[str] | None
) -> list[Table]:
    """The tables with the files as they are called now; paths in them are seen from `folder`.

    An adapter is known by its digests, or by the id that its file had then (`ids`). Those that are gone are left out
    and named in `missing`; AdapterError where that is None.
    """
    facts = [(entry.path, entry.id, entry.facts) for entry in library.cards() if entry.facts]
    there = {key: path for path, id, told in facts for key in (id, told.get("content"), told.get("sha256"))}
    others, found, gone = {path for path, _, _ in facts}, list[Table](), list[Table]()
    for table in tables:
        known = [table.get("sha256"), table.get("digest"), ids.get(table["file"])]
        path = next((there[key] for key in known if key in there), None)
        as_was = Path(os.path.abspath(folder / table["file"]))
        if path is None and (not as_was.exists() or (any(known) and as_was in others)):  # another took its name
            gone.append(table)
        else:
            found.append(table | {"file": str(path or as_was)})
    names = [str(table.get("name") or Path(table["file"]).stem) for table in gone]
    if missing is not None:
        missing += names
    elif gone:
        faults = [f"{name}: was {Path(table['file']).name}" for name, table in zip(names, gone, strict=True)]
        raise AdapterError(GONE, faults, "restore it from the bin, or take over the settings without it")
    return found
