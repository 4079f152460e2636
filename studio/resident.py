"""Adapters that a recipe names, made resident in a base's rack: the right files, what of them acts, and is it the base.

What `stylora generate` and `stylora chat` do before they draw or write. Try it:
python -c "from studio.resident import *; print(base_of('tiny-sd'))"
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from studio.draw.tables import digest_faults
from studio.draw.use import Use, located
from trainers.bases import EMBEDDED
from trainers.errors import AdapterError, BaseError
from trainers.lora import fit
from trainers.lora.adapter import Adapter, content_digest, digest
from trainers.lora.ledger import Ledger, fitted

if TYPE_CHECKING:
    from trainers.lora.rack import Rack


@dataclass(frozen=True)
class Found:
    """An adapter as it acts in a rack's models, what became of its tensors there, and both its digests (see Use)."""

    adapter: Adapter
    ledger: Ledger
    digest: str
    sha256: str


Reader = Callable[["Rack", Path, bool], Found]  # (rack, path, partial): as `read` does it


def read(rack: Rack, path: Path, partial: bool) -> Found:
    """DoRA is converted with the weights of the rack's models. AdapterError: it doesn't fit."""
    modules = fit.modules(rack.parts)

    def weight(name: str) -> Tensor:
        return fit.weight(modules[name])

    adapter, ledger = fitted(path, fit.shapes(rack.parts), partial=partial, weight_of=weight)
    return Found(adapter, ledger, content_digest(adapter), digest(path))


def hang(
    rack: Rack, wanted: Sequence[Use], partial: bool = False, read: Reader = read, base: str = "", base_digest: str = ""
) -> tuple[tuple[Use, ...], tuple[str, ...]]:
    """The adapters, now resident in the rack, with their digests; notes on those of which a part is lost, and on those
    that know another `base` of this name.

    `base_digest` is the one that a training would write into a header. Raises AdapterError with what is wrong with any
    of them; of a file that isn't the one whose digests a use has, too.
    """
    uses: list[Use] = []
    notes: list[str] = []
    errors: list[AdapterError] = []
    for use in wanted:
        try:
            found = read(rack, use.path, partial)
            own = replace(use, digest=found.digest, sha256=found.sha256)
            _check(use, own, uses)
            if own.digest not in rack.resident:
                rack.add(found.adapter)
        except AdapterError as error:
            errors.append(error)
            continue
        uses.append(own)
        ledger = found.ledger
        if not ledger.whole or round(ledger.share, 3) < 1:
            unknown = f" at the most, {ledger.unknown} tensors being of unknown energy" if ledger.unknown else ""
            notes.append(f"{use.path.name}: {ledger.share:.1%} of its energy acts in this base{unknown}")
        notes += _other_base(own, found.adapter.info.metadata, base, base_digest)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        faults = [line for error in errors for line in (error.what, *(f"  {fault}" for fault in error.faults))]
        raise AdapterError(f"{len(errors)} adapters can't be used", faults, errors[0].next_step)
    return tuple(uses), tuple(notes)


def _check(wanted: Use, got: Use, others: Sequence[Use]) -> None:
    """Raises AdapterError unless it is the adapter that was promised, and no other is the same."""
    if why := wanted.mismatch(got):
        raise AdapterError(
            f"{got.path}: not the adapter of the recipe: {why}",
            next_step="name the right one with --adapter (of `again`: --adapters FOLDER), or take digest and sha256 "
            "out of the recipe",
        )
    if twin := next((use for use in others if use.digest == got.digest), None):
        raise AdapterError(f"{got.path}: the same adapter as {twin.path}", next_step="name it once, with one weight")


def _other_base(use: Use, header: Mapping[str, str], base: str, base_digest: str) -> list[str]:
    """A note where the adapter was trained on a base of the same name that had other numbers.

    Of a base of another name nothing is said: adapters are often meant for what was made of their base, and the same
    base has another digest in other files. Other programs' digests are of other things.
    """
    name, known = header.get("stylora.base") or header.get("ss_sd_model_name"), header.get("stylora.base_digest")
    if not known or known == base_digest or name != Path(base).name:
        return []
    digests = f"its digest is {known[:8]}, this base's is {base_digest[:8]}"
    return [f"{use.title} was trained on another {name} ({digests}): it may not act as it was meant to"]


def check_digests(base: str, wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raises BaseError where a part of the base isn't the one whose digest a recipe holds."""
    if faults := digest_faults(wanted, found):
        raise BaseError(f"base {base}: not the one of the recipe", faults, "name the right one with --base")


def base_of(base: str) -> str:
    """The base's absolute path, so that recipes find it from anywhere; or the alias or hub id it is."""
    local = base not in EMBEDDED and os.path.exists(os.path.expanduser(base))
    return str(located(Path(os.path.expanduser(base)))) if local else base
