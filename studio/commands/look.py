"""The commands that look at what adapters are made of: anatomy · diff.

Try it: `stylora anatomy ink.safetensors --out anatomy.png`
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.look.document import plain
from trainers.cli import app
from trainers.console import escape, say, show_notes, table
from trainers.errors import AdapterError, StyloraError

if TYPE_CHECKING:
    from PIL import Image

    from studio.look.anatomy import Difference, Part
    from studio.merge.weights import Weights
    from trainers.lora.adapter import Adapter
    from trainers.lora.kinds import WeightOf

PANEL = "Look into adapters"
BASES = "tiny-sd, sd15, tiny-lm, a folder of diffusers or transformers, or a hub id"
SHOWN = (1, 2, 4, 8, 16, 32)  # ranks whose kept energy is told
Out = Annotated[Path | None, typer.Option(metavar="PNG", help="draw it, too")]
Json = Annotated[bool, typer.Option("--json", help="one JSON document instead of tables")]
Overwrite = Annotated[bool, typer.Option(help="write over a picture that is there")]


@app.command(rich_help_panel=PANEL)
def anatomy(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="adapter file, run folder or PEFT folder")],
    base: Annotated[str | None, typer.Option(help=f"{BASES}: tell sizes relative to its weights")] = None,
    out: Out = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
) -> None:
    """Say what an adapter is made of: how much it changes each block, and which rank each block needs."""
    from studio.look.anatomy import anatomy as look
    from studio.look.anatomy import sizes
    from studio.merge.weights import open_base
    from trainers.lora.family import is_text

    weights = open_base(base) if base else None
    weight_of = weights.weight if weights else None
    ((name, adapter),) = opened([file], lambda: free(out, overwrite), weight_of=weight_of).items()
    weight_norm = _weight_norm(weights, adapter) if weights else None
    found = look(adapter, weight_norm)
    kinds = sizes(adapter, weight_norm) if is_text(adapter.pairs) else {}
    if out:
        from studio.look.figures import anatomy_sheet

        write(out, anatomy_sheet(name, found, kinds), as_json)
    if as_json:
        more = {"kinds": kinds} if kinds else {}
        return tell({"adapter": str(file), "base": base, "blocks": [asdict(part) for part in found], **more})
    ranks = sorted({min(rank, found[-1].rank) for rank in SHOWN})
    columns = ("block", "modules", "norm", *(["of the base"] if base else []), "effective rank", "95 % at rank",
               "99 % at rank", "in every module")  # fmt: skip
    table(f"anatomy of {name}", columns, [_anatomy_row(part) for part in found])
    if kinds:
        form = ".1%" if base else ".2f"
        rows = [[part.block, *(format(row[part.block], form) if part.block in row else "" for row in kinds.values())]
                for part in found]  # fmt: skip
        what = "change by kind of module, of the base" if base else "norm by kind of module"
        table(f"{what}: attention, then feed-forward", ("block", *kinds), rows)
    kept = [[part.block, *(f"{part.kept[min(rank, part.rank) - 1]:.1%}" for rank in ranks)] for part in found]
    table("energy kept when cut to a rank", ("block", *(f"rank {rank}" for rank in ranks)), kept)
    say(_rank_advice(file, found[-1]))


def _anatomy_row(part: Part) -> list[str]:
    relative = [] if part.relative is None else [f"{part.relative:.2%}"]
    needed = part.needed[0.95], part.needed[0.99], part.needed_by_all[0.99]
    return [part.block, str(part.modules), f"{part.norm:.3f}", *relative, f"{part.effective_rank:.1f}",
            *map(str, needed)]  # fmt: skip


def _rank_advice(file: Path, total: Part) -> str:
    needed = total.needed[0.99]
    if needed >= total.rank:
        return f"A rank below its {total.rank} keeps less than 99 % of the energy."
    command = escape(f"stylora resize {file} --rank {needed}")
    return f"Rank {needed} of {total.rank} keeps 99 % of the energy. Next: [bold]{command}[/]"


def _weight_norm(weights: Weights, adapter: Adapter) -> Callable[[str], float]:
    """The norm of the base's weight by module path. AdapterError: every module that doesn't fit."""
    from trainers.lora.fit import misfits

    if odd := misfits(adapter.pairs, weights.shapes):
        step = "name its own base; `stylora check FILE --base …` tells how much of it fits"
        faults = [f"{path}: {why}" for path, why in odd.items()]
        raise AdapterError(f"the adapter doesn't fit {weights.root}", faults, step)
    return cache(lambda path: float(weights.weight(path).double().norm()))


@app.command(rich_help_panel=PANEL)
def diff(
    one: Annotated[Path, typer.Argument(metavar="A", help="adapter file, run folder or PEFT folder")],
    other: Annotated[Path, typer.Argument(metavar="B", help="another one, of any rank and format")],
    as_json: Json = False,
) -> None:
    """Compare two adapters block by block: norms, the angle between their changes, how far they are apart."""
    from studio.look.anatomy import diff as compare
    from trainers.lora.adapter import content_digest

    (a, first), (b, second) = opened([one, other]).items()
    found = compare(first, second, (a, b))
    if as_json:
        return tell({"adapters": [str(one), str(other)], "blocks": [asdict(block) for block in found]})
    columns = ("block", "in both", f"{a} only", f"{b} only", f"norm of {a}", f"norm of {b}", "cosine",
               "norm of the difference")  # fmt: skip
    table(f"{a} and {b}", columns, [_diff_row(block) for block in found])
    if content_digest(first) == content_digest(second):
        show_notes([f"{a} and {b} are the same adapter: equal in every number"])


def _diff_row(found: Difference) -> list[str]:
    cosine = f"{found.cosine:.3f}" if math.isfinite(found.cosine) else "–"
    return [found.block, *map(str, found.modules), *(f"{norm:.3f}" for norm in found.norms), cosine,
            f"{found.distance:.3f}"]  # fmt: skip


# --- what all of them need -------------------------------------------------------------------------------------------


def opened(
    files: Sequence[Path], *checks: Callable[[], object], weight_of: WeightOf | None = None
) -> dict[str, Adapter]:
    """{short name: adapter}, after everything that can be wrong was looked at: one StyloraError with all of it.

    `weight_of` gives the base's weights, which DoRA takes to be read.
    """
    from studio.draw.use import adapter_file
    from trainers.lora.adapter import Adapter

    adapters: list[Adapter] = []
    loads = [lambda file=file: adapters.append(Adapter.load(adapter_file(file), weight_of=weight_of)) for file in files]
    each([*loads, *checks])
    return named(files, adapters)


def weights_of(base: str | None) -> WeightOf | None:
    """The base's weights by module path; it is opened when one is asked for."""
    from studio.merge.weights import open_base

    once = cache(open_base)
    return (lambda path: once(base).weight(path)) if base else None


def each(readers: Sequence[Callable[[], object]]) -> None:
    """Run them all; then raise the one error as it is, or all of them as one."""
    errors: list[StyloraError] = []
    for reader in readers:
        try:
            reader()
        except StyloraError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        faults = [f"{e.what}: {fault}" if fault else e.what for e in errors for fault in e.faults or ("",)]
        raise AdapterError(f"{len(errors)} things are wrong", faults, "put them right; `--help` says what is meant")


def named(files: Sequence[Path], adapters: Sequence[Adapter]) -> dict[str, Adapter]:
    """By file name without its ending; by whole path, then with a number, where these are alike."""
    alike = Counter(file.stem for file in dict.fromkeys(files))
    names = [file.stem if alike[file.stem] == 1 else str(file) for file in files]
    seen = Counter[str]()
    for k, name in enumerate(names):
        seen[name] += 1
        names[k] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return dict(zip(names, adapters, strict=True))


def free(out: Path | None, overwrite: bool) -> None:
    """StyloraError where the picture can't be written, or stands there already."""
    from studio.draw.pictures import targets_of

    if out:
        targets_of(out, 1, overwrite)


def write(out: Path, sheet: Image.Image, quietly: bool) -> None:
    """Save the sheet as PNG and say so."""
    import io

    from studio.outputs import write_whole

    stream = io.BytesIO()
    sheet.save(stream, format="PNG")
    write_whole(out, stream.getvalue())
    if not quietly:
        say(f"[green]{escape(str(out))}[/]")


def tell(document: Any) -> None:
    """JSON on stdout; numbers that JSON doesn't know (NaN, infinity) are null."""
    typer.echo(json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False))
