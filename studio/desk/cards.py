"""Reading an adapter for the library: its id, its facts or its fault, its picture, and how it fits a base.

The id of an adapter is the digest of its numbers, so it stays through renaming, moving and another header; where not
all of a file can be read it is the file's own digest. Importing this imports torch.

Try it: python -c "from studio.desk.cards import *; print(described(Path('ink.safetensors')).id)"
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from studio.desk.rows import Fit, Json
from studio.desk.shelf import configs, stamp
from studio.look.card import Card, read_card
from studio.merge.weights import Weights, open_base
from trainers import bases
from trainers.errors import AdapterError, BaseError, StyloraError
from trainers.lora.adapter import refusals
from trainers.lora.family import is_text
from trainers.lora.kinds import NEEDS_BASE
from trainers.lora.ledger import ledger_of, objection, read

LONGEST = 2000  # letters of a header's entry that are kept in the index
SHOWN = 3  # reasons that are told of a bad fit
# what a damaged file may raise besides our own
BROKEN = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class Described:
    """Of facts and error one is None. `thumbnail` is the header's picture as it stands there."""

    id: str
    facts: Json | None
    error: Json | None
    thumbnail: bytes | None = None


def described(path: Path) -> Described:
    """Everything about a file or PEFT folder; never raises, whatever is in the file."""
    try:
        card = read_card(path)
        return Described(card.sha256 if card.refused else card.content, _facts(path, card), None, card.thumbnail)
    except StyloraError as error:
        return Described(_broken(path), None, fault(error, path))
    except BROKEN as error:
        told = AdapterError(f"{path}: can't be read", [f"{type(error).__name__}: {error}"], "get the file again")
        return Described(_broken(path), None, fault(told, path))


def fault(error: StyloraError, path: Path) -> Json:
    """What, faults and next_step as the pages show them: the file by its name, not by where it lies."""
    texts = [text.replace(f"{path.parent}/", "") for text in (error.what, error.next_step, *error.faults)]
    return {"what": texts[0], "faults": texts[2:], "next_step": texts[1]}


def _broken(path: Path) -> str:
    return "broken-" + hashlib.sha256(f"{path.name} {stamp(path)}".encode(errors="replace")).hexdigest()


def _facts(path: Path, card: Card) -> Json:
    text = card.family == "lm" or (not card.modules and is_text(entry.path for entry in read(path).entries))
    if not card.modules and not any(NEEDS_BASE in reason for reason in card.refused):
        raise AdapterError(f"{path}: nothing of this adapter can be used", card.refused, "get a whole one in its place")
    facts = {key: value for key, value in card.data().items() if key not in ("path", "name", "thumbnail")}
    header = card.metadata
    return facts | {
        "base": card.base or _base_of(path),
        "title": header.get("modelspec.title") or header.get("ss_output_name", ""),
        "kind": "text" if text else "pictures",
        "rank": next(iter(card.ranks), 0),
        "metadata": {key: _cut(value) for key, value in facts["metadata"].items()},
    }


def _base_of(path: Path) -> str:
    """What a PEFT folder's config calls the base: a hub id, or the last part of a path; "" where it says nothing."""
    for config in configs(path):
        with contextlib.suppress(ValueError, LookupError, TypeError):
            said = str(json.loads(config.read_text("utf-8"))["base_model_name_or_path"] or "")
            return said if said.count("/") == 1 and not said.startswith(("/", ".", "~")) else Path(said).name
    return ""


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _fetched(base: str) -> str:
    """Where a base of the hub lies on this disk. BaseError: nowhere, and it isn't fetched just to be looked at."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(bases.HUB_ALIASES.get(base, base), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        step = "draw or write with it once: that fetches it"
        raise BaseError(f"{base} isn't on this machine yet, so nothing is known about it", next_step=step) from None


@lru_cache(maxsize=4)
def _base(name: str, stamp: str) -> Weights:
    return open_base(name)


def fit(path: Path, base: str, base_stamp: str = "") -> Fit:
    """How an adapter fits a base. Raises BaseError: the base can't be had; AdapterError: the adapter can't be read."""
    weights = _base(base if base_stamp else _fetched(base), base_stamp)
    shapes = weights.shapes
    reading = read(path, None, weights.weight)
    ledger = ledger_of(reading, shapes)
    error = objection(path, reading, ledger, shapes, partial=False)
    if error is None:
        return Fit(True, ledger.share, "")
    some = objection(path, reading, ledger, shapes, partial=True) is None
    told = error.what.removeprefix(f"{path}: ")
    if some:
        told = f"{ledger.share:.0%} of its strength acts on this base, the rest can't be applied"
    return Fit(False, ledger.share, told, tuple(refusals(ledger.entries)[:SHOWN]))
