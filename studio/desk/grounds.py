"""Bases that a page names: what lies on this disk of them, and whether it may be read for whoever asks.

Try it: python -c "from studio.desk.grounds import *; print(file_of('tiny-sd'), file_of('~'))"
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from studio.desk.places import inside, path_of
from trainers.errors import BaseError

if TYPE_CHECKING:
    from trainers.lora.kinds import WeightOf

STEP = "name a base that comes with stylora, one of the hub (owner/name), or a folder that the studio was given"


def file_of(base: str) -> Path | None:
    """The folder or file that a base's name means; None for an alias or a hub id. ConfigError: no path is written so.

    Nothing is opened, so that a name can't make the worker look through a whole disk.
    """
    from trainers.bases import EMBEDDED

    path = path_of(base)
    return path if base not in EMBEDDED and path.exists() else None


def check(base: str, roots: Iterable[Path] | None) -> None:
    """Raises BaseError unless it is an alias, a hub id, or lies in one of these folders; None: it may lie anywhere.

    A path elsewhere is answered the same whether there is something or not.
    """
    from trainers.bases import EMBEDDED, HUB_ALIASES

    if roots is None or base in EMBEDDED or base in HUB_ALIASES or inside(Path(base), roots):
        return
    if base.count("/") != 1 or base.startswith((".", "/", "~")) or file_of(base):
        raise BaseError(f"{base!r} lies outside the folders that the studio may read", next_step=STEP)


def weight_of(base: str | None) -> WeightOf | None:
    """The base's weights by module path, for adapters with DoRA; it is opened when one is asked for. None: no base."""
    if base is None:
        return None
    from studio.merge.weights import open_base

    file_of(base)
    once = cache(open_base)
    return lambda path: once(base).weight(path)
