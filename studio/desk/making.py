"""The jobs that make files: adapters blended or cut into the library, bases with adapters in them, exports.

Try it: python -c "from studio.desk.making import *; help(blend)"
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.desk import grounds
from studio.desk.rows import Json
from studio.desk.shelf import plain_name
from studio.desk.work import Work
from trainers.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from studio.blend.blending import Blended
    from studio.desk.jobs import Blend, Export, Merge, Resize
    from studio.merge.merge import Merged
    from trainers.lora.kinds import Entry

BASE = "choose the base it was trained on"


@contextmanager
def base_wanted(base: str | None) -> Iterator[None]:
    """Within, adapters are read. Where one has DoRA and no base was chosen, the AdapterError says so."""
    from trainers.lora.kinds import NEEDS_BASE

    try:
        yield
    except AdapterError as error:
        if base or not any(NEEDS_BASE in fault for fault in error.faults):
            raise
        raise AdapterError(error.what, error.faults, BASE) from None


# --- into the library ------------------------------------------------------------------------------------------------


def blend(work: Work, job: Blend) -> Json:
    from studio.blend import blending

    out, format = _out(work, job)
    plan = blending.Plan(job.method, job.rank, job.energy, job.density, job.seed, job.dtype, format)
    work.say("blending")
    with base_wanted(job.base):
        made = blending.blend(job.adapters, plan, out, job.overwrite, weight_of=grounds.weight_of(job.base))
    return _added(work, made)


def resize(work: Work, job: Resize) -> Json:
    from studio.blend import blending
    from studio.draw.use import Use

    if job.rank is None and job.energy is None:
        raise ConfigError("it isn't said how far to cut", next_step="choose a rank, or the share of energy to keep")
    out, format = _out(work, job)
    plan = blending.Plan("svd", job.rank, job.energy, dtype=job.dtype, format=format)
    whole = Use(job.adapters[0].path, name=job.adapters[0].name)  # its weight has no say
    work.say("cutting")
    with base_wanted(job.base):
        made = blending.resize(whole, plan, out, job.overwrite, weight_of=grounds.weight_of(job.base))
    return _added(work, made)


def _out(work: Work, job: Blend | Resize) -> tuple[Path, str]:
    """Where to, in which format: of folders a folder, else a file. Raises ConfigError: the name is taken."""
    folders = any(use.path.is_dir() for use in job.adapters)
    out = work.library.home / (plain_name(job.name) + ("" if folders else ".safetensors"))
    if out.exists() and not job.overwrite:
        raise ConfigError(f"{out.name} is in the library already", next_step="give another name, or tick Replace")
    return out, "peft" if folders else ""


def _added(work: Work, made: Blended) -> Json:
    """Save, have the library find it, and tell of the certificate. What had its name goes into the bin."""
    from studio.blend.certificate import chart
    from trainers.lora.adapter import content_digest, digest

    work.check()
    with work.library.replacing(made.out.name):
        made.save()
    work.library.refresh()
    paper = made.certificate
    blocks = [{"block": label} | _shares(row) for label, row in paper.blocks().items()]
    ids = {entry.path.name: entry.id for entry in work.library.cards()}
    facts = {"id": ids.get(made.out.name) or content_digest(made.adapter), "path": made.out.name}
    figure = work.add_figure(chart(paper))
    told = {"certificate": paper.table(), "blocks": blocks, "total": _shares(paper.total)}
    return facts | told | {"sha256": digest(made.out), "figure": figure, "notes": made.notes()}


def _shares(row: Any) -> Json:
    return {"modules": row.modules, "ranks": row.ranks, "share": row.share, "in_file": row.in_file}


# --- bases and exports -----------------------------------------------------------------------------------------------


def merge(work: Work, job: Merge) -> Json:
    """Into a base's weights, proved; while it lasts no base stays in memory. Each merge has a folder of its own."""
    from studio.merge import receipt
    from studio.merge.merge import merge as merging

    file = grounds.file_of(job.base)
    ending = file.suffix if file and file.is_file() else ""
    if ending == ".gguf":
        step = "merge into the model it was made from, and convert that"
        raise ConfigError("into a .gguf base nothing can be merged here", next_step=step)
    name = plain_name(job.name) + ending
    work.say("merging, then proving the result; this can't be stopped midway")
    work.residents.close()
    _sweep(work.folder / "merged")
    done: list[Merged] = []

    def write(folder: Path) -> None:
        done.append(merging(job.base, job.adapters, folder / name, dtype=job.dtype, partial=job.partial))

    place = work.add_file("merged", "", write)
    (made,) = done
    answers = [list(row) for row in receipt.shares(made.compared)]
    facts: Json = {"path": f"{place}/{name}", "proved": receipt.proved(made.proof.facts()), "answers": answers}
    return facts | {"modules": made.modules, "notes": made.notes}


def _sweep(folder: Path) -> None:
    """Remove what merges that failed or were killed have left: folders with nothing that is finished."""
    for place in folder.glob("*-*"):
        if place.is_dir() and all(path.name.startswith(".") for path in place.iterdir()):
            shutil.rmtree(place, ignore_errors=True)


def export(work: Work, job: Export) -> Json:
    """A file or folder of its own for each export."""
    use = job.adapters[0]
    ending = {"gguf": ".gguf", "peft": ""}.get(job.to, ".safetensors")
    work.say("exporting")

    def write(folder: Path) -> Json:
        out = folder / (plain_name(use.title) + ending)
        return _gguf(job, out) if job.to == "gguf" else _written(job, out)

    facts: Json = {}
    name = work.add_file("exports", "", lambda folder: facts.update(write(folder)))
    return facts | {"path": f"{name}/{plain_name(use.title)}{ending}"}


def _written(job: Export, out: Path) -> Json:
    from studio.export import export as write

    path, weight_of = job.adapters[0].path, grounds.weight_of(job.base)
    with base_wanted(job.base):
        made = write(path, job.to, dtype=job.dtype, out=out, rank=job.rank, weight_of=weight_of)
    kind = str(made.dtype).removeprefix("torch.")
    return {"modules": len(made.adapter.pairs), "dtype": kind, "notes": _notes(made.entries)}


def _gguf(job: Export, out: Path) -> Json:
    from studio.gguf.adapter import export as write

    if not job.base:
        raise ConfigError("a GGUF adapter has the names that its base's tensors have", next_step="choose its base")
    grounds.file_of(job.base)
    made = write(job.adapters[0].path, job.base, dtype=job.dtype, out=out, rank=job.rank)
    notes = [*_notes(made.entries), *made.notes]
    return {"modules": len(made.adapter.pairs), "dtype": made.dtype, "error": made.error, "notes": notes}


def _notes(entries: Sequence[Entry]) -> list[str]:
    """What was converted or left out, with how many modules."""
    told = [f"{entry.verdict}: {entry.reason}" for entry in entries if entry.verdict in ("converted", "left aside")]
    return [f"{told.count(line)} {line}" for line in dict.fromkeys(told)]
