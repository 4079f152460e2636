"""Adapters into one adapter file, with a certificate of what was kept: blend · resize.

`stylora blend ink.safetensors:0.6 neon.safetensors:0.4 --method svd --rank 16 --out both.safetensors`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainers.cli import app
from trainers.console import escape, say, show_notes, table

if TYPE_CHECKING:
    from studio.blend.blending import Blended
    from studio.blend.certificate import Row

PANEL = "Adapter files"
COLUMNS = ("block", "modules", "rank", "energy", "kept", "discarded", "in the file")

Rank = Annotated[int | None, typer.Option(help="of every layer; default: the adapters' largest")]
Energy = Annotated[float | None, typer.Option(help="share of each layer's energy to keep, such as 0.99")]
Out = Annotated[Path, typer.Option(help="file to write; for text a folder")]
Dtype = Annotated[str, typer.Option(help="fp16, bf16, fp32")]
Format = Annotated[
    str, typer.Option(help="kohya, diffusers; peft writes a folder; default: kohya, for text peft", show_default=False)
]
Overwrite = Annotated[bool, typer.Option(help="write over a file that is there")]
Plot = Annotated[Path | None, typer.Option(metavar="PNG", help="draw the energy lost per block")]
Json = Annotated[bool, typer.Option("--json", help="one JSON document, the certificate, instead of a table")]


@app.command(rich_help_panel=PANEL)
def blend(
    adapters: Annotated[
        list[str], typer.Argument(metavar="FILE[:WEIGHT]…", help="also FILE:0.8:te=0.4:blocks=IN=0.5,MID=0")
    ],
    out: Out,
    method: Annotated[
        str, typer.Option(help="svd, concat (exact), ties, dare, magnitude-prune, orthogonal; see docs/methods.md")
    ] = "svd",
    rank: Rank = None,
    energy: Energy = None,
    density: Annotated[
        float | None, typer.Option(help="share of the entries that ties, dare and magnitude-prune keep; default 0.5")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="of dare; default 0")] = None,
    dtype: Dtype = "fp16",
    format: Format = "",
    overwrite: Overwrite = False,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Several adapters as one file: the exact sum, its best truncation, or a merging method; with a certificate."""
    from studio.blend import blending
    from studio.blend.faults import plot_faults

    plan = blending.Plan(method, rank, energy, density, seed, dtype, format)
    _write(blending.blend(adapters, plan, out, overwrite, plot_faults(plot, overwrite)), plot, as_json)


@app.command(rich_help_panel=PANEL)
def resize(
    adapter: Annotated[str, typer.Argument(metavar="FILE", help="an adapter file, a run's folder or a PEFT folder")],
    rank: Rank = None,
    energy: Energy = None,
    out: Annotated[
        Path | None,
        typer.Option(help="file (for text: folder) to write; default: beside the adapter, named by the rank"),
    ] = None,
    dtype: Dtype = "fp16",
    format: Format = "",
    overwrite: Overwrite = False,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """One adapter cut to a smaller rank, or to the rank each layer needs for a share of its energy."""
    from studio.blend import blending
    from studio.blend.faults import plot_faults

    plan = blending.Plan("svd", rank, energy, dtype=dtype, format=format)
    _write(blending.resize(adapter, plan, out, overwrite, plot_faults(plot, overwrite)), plot, as_json)


def _write(made: Blended, plot: Path | None, as_json: bool) -> None:
    """Save, draw, tell."""
    from studio.blend.certificate import save_chart
    from trainers.lora.adapter import digest

    sha256 = digest(made.save())
    if plot:
        save_chart(made.certificate, plot)
    if as_json:
        facts = {"out": str(made.out), "sha256": sha256, "notes": made.notes(), **made.certificate.table()}
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    rows = [*made.certificate.blocks().items(), ("all", made.certificate.total)]
    table(f"{made.plan.method} of {made.certificate.parts}", COLUMNS, [_cells(label, row) for label, row in rows])
    show_notes(made.notes())
    say(f"[green]{escape(str(made.out))}[/] sha256 {sha256[:12]}")
    if plot:
        say(f"[green]{escape(str(plot))}[/]")


def _cells(label: str, row: Row) -> tuple[str, ...]:
    shares = (f"{share:.4%}" for share in (row.share, 1 - row.share, row.in_file))
    return (label, str(row.modules), row.ranks, f"{row.energy:.4g}", *shares)
