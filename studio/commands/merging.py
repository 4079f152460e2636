"""merge · verify · extract: adapters into a base's own weights, proof of it, and back.

`stylora merge --base tiny-sd --adapter runs/ink:0.8 --out merged/ink`
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainers.cli import app
from trainers.console import escape, say, show_notes, table

PANEL = "Merge into a base"
COLUMNS = ("answers", "largest error", "of their size", "of the adapters' effect", "bound")


@app.command(rich_help_panel=PANEL)
def merge(
    out: Annotated[Path, typer.Option(help="new folder, or FILE.safetensors where the base is a single file")],
    base: Annotated[
        str | None, typer.Option(help="tiny-sd, sd15, a diffusers folder, a hub id or a checkpoint; default: tiny-sd")
    ] = None,
    adapter: Annotated[
        list[str], typer.Option(metavar="FILE[:WEIGHT][:te=W][:blocks=…]", help="file or run folder; may be repeated")
    ] = [],  # noqa: B006
    recipe: Annotated[Path | None, typer.Option(help="base and adapters as a TOML file or a PNG; flags win")] = None,
    dtype: Annotated[str, typer.Option(help="keep, fp16, bf16, fp32: how the result's numbers are stored")] = "keep",
    config: Annotated[
        str | None, typer.Option(help="diffusers folder whose settings and tokenizer a single file goes with")
    ] = None,
    partial: Annotated[bool, typer.Option(help="merge what fits of an adapter that doesn't fit whole")] = False,
    overwrite: Annotated[bool, typer.Option(help="replace a merged model that is there")] = False,
) -> None:
    """Add adapters to a base's own weights; every tensor is proved, and the answers are those of the live adapters."""
    from studio.draw import recipe as recipes
    from studio.merge import receipt
    from studio.merge.merge import merge as merging

    flags = {"prompt": "", **({"base": base} if base else {}), **({"adapter": adapter} if adapter else {})}
    asked = recipes.read(recipe, flags)
    partial, digests = partial or asked.partial, asked.digests
    done = merging(
        asked.base,
        asked.adapters,
        out,
        dtype=dtype,
        config=config,
        partial=partial,
        overwrite=overwrite,
        digests=digests,
    )
    show_notes(done.notes)
    table("the result from disk, beside base + adapters", COLUMNS, receipt.shares(done.compared))
    say(f"[green]proved[/]: {escape(receipt.proved(done.proof.facts()))}")
    say(f"[green]{escape(str(done.path))}[/]: {done.modules} modules changed; its receipt is in it")
    say(f"Next: [bold]stylora verify {escape(str(done.path))}[/]")


@app.command(rich_help_panel=PANEL)
def verify(path: Annotated[Path, typer.Argument(metavar="MERGED", help="what `stylora merge` has made")]) -> None:
    """Prove a merged model again, from it alone: every byte of its weights, and what it answers."""
    from studio.merge import receipt

    record, compared = receipt.verify(path)
    model, proof = receipt.story(record)
    table("the model from disk, beside base + adapters when it was merged", COLUMNS, receipt.shares(compared))
    files = len(record["contents"]["tensors"])
    say(f"[green]proved[/]: all tensors of {files} weight file{'s' * (files != 1)} are the bytes that were merged;")
    say(f"        loaded in a fresh process, the model answers as {escape(model)}.")
    if proof:
        say(f"[dim]proved when it was merged: {escape(proof)}.[/]")
    say("[dim]not proved: who merged it; a receipt is no signature.[/]")


@app.command(rich_help_panel=PANEL)
def extract(
    tuned: Annotated[str, typer.Option(help="the changed model: a diffusers folder or a checkpoint")],
    base: Annotated[str, typer.Option(help="the model it was made from")],
    out: Annotated[Path, typer.Option(help="adapter file to write")],
    rank: Annotated[int, typer.Option(help="largest rank of a module")] = 16,
    energy: Annotated[
        float | None, typer.Option(help="share of each module's energy to keep, 0..1; ranks are then as low as can be")
    ] = None,
    targets: Annotated[str, typer.Option(help="attention, attention+ff, all-linear, all")] = "all",
    dtype: Annotated[str, typer.Option(help="fp16, bf16, fp32: how the adapter's numbers are stored")] = "fp16",
    overwrite: Annotated[bool, typer.Option(help="write over a file that is there")] = False,
) -> None:
    """Take the difference of two models as an adapter, with the error of each module stated."""
    from studio.merge import extract as extracting
    from trainers.devices import DTYPES
    from trainers.errors import ConfigError

    if dtype not in DTYPES:
        raise ConfigError(f"dtype: got {dtype}, wanted one of {', '.join(DTYPES)}")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out {out}: exists", next_step="name another, or add --overwrite")
    found = extracting.extract(tuned, base, rank, energy=energy, targets=targets, dtype=DTYPES[dtype])
    out.parent.mkdir(parents=True, exist_ok=True)
    found.adapter.save(out, dtype=DTYPES[dtype])
    columns = ("block", "modules", "ranks", "share of the difference", "energy lost")
    table("what the adapter holds", columns, extracting.by_block(found))
    show_notes(extracting.notes(found))
    say(f"[green]{escape(str(out))}[/]: {len(found.modules)} modules, {found.error:.2%} of their energy lost")
