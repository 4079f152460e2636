"""The jobs that make files: adapters blended or cut into the library, bases with adapters in them, exports.

Try it: python -c "from studio.desk.making import *; print(file_name('my ink/neon'))"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.desk.rows import Json
from studio.desk.work import Work
from trainers.errors import ConfigError

if TYPE_CHECKING:
    from studio.blend.blending import Blended
    from studio.desk.jobs import Blend, Export, Merge, Resize
    from studio.draw.use import Use
    from trainers.lora.kinds import Entry


def file_name(name: str) -> str:
    """A name that is safe as a file's: no folders, nothing hidden. Raises ConfigError."""
    safe = re.sub(r"[^\w .()+-]+", "-", name).strip(" .-")[:80]
    if not safe:
        raise ConfigError(f"{name!r} is no name for a file", next_step="use letters and numbers")
    return safe.removesuffix(".safetensors")


# --- into the library ------------------------------------------------------------------------------------------------


def blend(work: Work, job: Blend) -> Json:
    from studio.blend import blending

    plan = blending.Plan(job.method, job.rank, job.energy, job.density, job.seed, job.dtype)
    texts = [typed(use) for use in job.adapters]
    work.say("blending")
    return _added(work, blending.blend(texts, plan, _out(work, job.name, job.adapters), job.overwrite))


def resize(work: Work, job: Resize) -> Json:
    from studio.blend import blending

    plan = blending.Plan("svd", job.rank, job.energy, dtype=job.dtype)
    work.say("cutting")
    out = _out(work, job.name, job.adapters)
    return _added(work, blending.resize(str(job.adapters[0].path), plan, out, job.overwrite))


def _out(work: Work, name: str, adapters: Sequence[Use]) -> Path:
    """Text adapters are folders, those for pictures files."""
    folders = any(use.path.is_dir() for use in adapters)
    return work.home / (file_name(name) + ("" if folders else ".safetensors"))


def _added(work: Work, made: Blended) -> Json:
    """Save, have the library find it, and tell of the certificate."""
    from studio.blend.certificate import chart
    from trainers.lora.adapter import content_digest, digest

    work.check()
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


def typed(use: Use) -> str:
    """The text that `parse_use` reads as this use."""
    from studio.draw.use import to_table

    table = to_table(use, Path("/"))
    parts = [str(use.path), repr(use.gain.weight)]
    named = {"te": "text_encoder", "blocks": "blocks", "schedule": "schedule", "name": "name"}
    return ":".join([*parts, *(f"{word}={table[key]}" for word, key in named.items() if key in table)])


# --- bases and exports -----------------------------------------------------------------------------------------------


def merge(work: Work, job: Merge) -> Json:
    """Into a base's weights, proved; while it lasts no base stays in memory."""
    from studio.merge import receipt
    from studio.merge.merge import merge as merging

    ending = Path(job.base).suffix if Path(job.base).expanduser().is_file() else ""
    if ending == ".gguf":
        raise ConfigError("a .gguf base is merged in a terminal", next_step="`stylora merge --base FILE.gguf …`")
    name = file_name(job.name) + ending
    out = work.folder / "merged" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    work.say("merging, then proving the result; this can't be stopped midway")
    work.residents.close()
    done = merging(job.base, job.adapters, out, dtype=job.dtype, partial=job.partial, overwrite=job.overwrite)
    answers = [list(row) for row in receipt.shares(done.compared)]
    proved = receipt.proved(done.proof.facts())
    return {
        "path": f"merged/{name}",
        "proved": proved,
        "modules": done.modules,
        "answers": answers,
        "notes": done.notes,
    }


def export(work: Work, job: Export) -> Json:
    """A file or folder of its own for each export."""
    use = job.adapters[0]
    ending = {"gguf": ".gguf", "peft": ""}.get(job.to, ".safetensors")
    work.say("exporting")

    def write(folder: Path) -> Json:
        out = folder / (file_name(use.title) + ending)
        return _gguf(job, out) if job.to == "gguf" else _written(job, out)

    facts: Json = {}
    name = work.add_file("exports", "", lambda folder: facts.update(write(folder)))
    return facts | {"path": f"{name}/{file_name(use.title)}{ending}"}


def _written(job: Export, out: Path) -> Json:
    from studio.export import export as write
    from studio.merge.weights import open_base

    weight_of = open_base(job.base).weight if job.base else None
    made = write(job.adapters[0].path, job.to, dtype=job.dtype, out=out, rank=job.rank, weight_of=weight_of)
    kind = str(made.dtype).removeprefix("torch.")
    return {"modules": len(made.adapter.pairs), "dtype": kind, "notes": _notes(made.entries)}


def _gguf(job: Export, out: Path) -> Json:
    from studio.gguf.adapter import export as write

    if not job.base:
        raise ConfigError("a GGUF adapter has the names that its base's tensors have", next_step="choose its base")
    made = write(job.adapters[0].path, job.base, dtype=job.dtype, out=out, rank=job.rank)
    notes = [*_notes(made.entries), *made.notes]
    return {"modules": len(made.adapter.pairs), "dtype": made.dtype, "error": made.error, "notes": notes}


def _notes(entries: Sequence[Entry]) -> list[str]:
    """What was converted or left out, with how many modules."""
    told = [f"{entry.verdict}: {entry.reason}" for entry in entries if entry.verdict in ("converted", "left aside")]
    return [f"{told.count(line)} {line}" for line in dict.fromkeys(told)]
