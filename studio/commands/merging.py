"""merge · verify · extract: adapters into a base's own weights, proof of it, and back.

`stylora merge --base tiny-sd --adapter runs/ink:0.8 --out merged/ink`
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainers.cli import app
from trainers.console import escape, say, show_notes, table

if TYPE_CHECKING:
    from studio.draw.recipe import Recipe
    from studio.merge.likeness import Likeness
    from studio.write.recipe import WritingRecipe

PANEL = "Merge into a base"
ONTO = ("base", "KL in nats, mean", "largest", "same likeliest token")
NEXT_TOKEN = ("KL in nats, mean", "largest", "bound", "same likeliest token", "places")
COLUMNS = ("answers", "largest error", "of their size", "of the adapters' effect", "bound")


@app.command(rich_help_panel=PANEL)
def merge(
    out: Annotated[Path, typer.Option(help="new folder, or FILE.safetensors, FILE.gguf where the base is one file")],
    base: Annotated[
        str | None,
        typer.Option(help="tiny-sd, tiny-lm, a model's folder, a hub id, a checkpoint or a .gguf; default: tiny-sd"),
    ] = None,
    adapter: Annotated[
        list[str], typer.Option(metavar="FILE[:WEIGHT][:te=W][:blocks=…]", help="file or run folder; may be repeated")
    ] = [],  # noqa: B006
    recipe: Annotated[Path | None, typer.Option(help="base and adapters as a TOML file or a PNG; flags win")] = None,
    dtype: Annotated[str, typer.Option(help="keep, fp16, bf16, fp32: how the result's numbers are stored")] = "keep",
    config: Annotated[
        str | None, typer.Option(help="diffusers folder whose settings and tokenizer a single file goes with")
    ] = None,
    onto: Annotated[
        str,
        typer.Option(help="auto, 16bit, dequantised: which base an adapter trained on a quantised one is merged onto"),
    ] = "auto",
    partial: Annotated[bool, typer.Option(help="merge what fits of an adapter that doesn't fit whole")] = False,
    modelfile: Annotated[bool, typer.Option(help="beside a .gguf, write a Modelfile for Ollama")] = False,
    overwrite: Annotated[bool, typer.Option(help="replace a merged model that is there")] = False,
) -> None:
    """Add adapters to a base's own weights; every tensor is proved, and the answers are those of the live adapters."""
    from studio.merge import receipt
    from studio.merge.merge import merge as merging
    from trainers.errors import ConfigError

    asked = _asked(base, adapter, recipe)
    partial, digests = partial or asked.partial, asked.digests
    gguf, others = (
        asked.base.endswith(".gguf"),
        {"--dtype": dtype != "keep", "--config": config, "--onto": onto != "auto"},
    )
    if wrong := [name for name, given in (others if gguf else {"--modelfile": modelfile}).items() if given]:
        faults = [f"{name}: {'not' if gguf else 'only'} with a .gguf base" for name in wrong]
        raise ConfigError("this merge can't be made", faults, "leave it out")
    if gguf:
        _merge_gguf(asked, out, partial, overwrite, modelfile)
        return
    done = merging(
        asked.base,
        asked.adapters,
        out,
        dtype=dtype,
        config=config,
        partial=partial,
        overwrite=overwrite,
        digests=digests,
        onto=onto,
    )
    show_notes(done.notes)
    if done.onto:
        table(f"trained on the base in {done.onto.quantization}; with adapters, beside that", ONTO, done.onto.rows())
        say(str(done.onto))
    table("the result from disk, beside base + adapters", COLUMNS, receipt.shares(done.compared))
    _show_likeness(done.like, receipt.limit(done.compared))
    say(f"[green]proved[/]: {escape(receipt.proved(done.proof.facts()))}")
    say(f"[green]{escape(str(done.path))}[/]: {done.modules} modules changed; its receipt is in it")
    say(f"Next: [bold]stylora verify {escape(str(done.path))}[/]")
    if done.like:
        for command in ('generate --prompt "…"', "chat"):
            say(f"      [bold]stylora {command} --base {escape(str(done.path))}[/]")


def _show_likeness(like: Likeness | None, limit: float) -> None:
    """The rows of language models: what comes next, beside base + adapters."""
    if like:
        row = (f"{like.kl_mean:.2e}", f"{like.kl_max:.2e}", f"{limit:.2e}", f"{like.agreement:.1%}", str(like.places))
        table("the next token", NEXT_TOKEN, [row])


def _asked(base: str | None, adapter: list[str], recipe: Path | None) -> Recipe | WritingRecipe:
    """What goes in: from the flags and from a recipe, be it of pictures or of texts."""
    from studio.draw import recipe as pictures
    from studio.draw.tables import parse
    from studio.draw.use import base_in
    from studio.write import recipe as texts

    flags = {"prompt": "", **({"base": base} if base else {}), **({"adapter": adapter} if adapter else {})}
    said = parse(pictures.text_of(recipe), str(recipe)).get("base") if recipe and not base else None
    named = base_in(recipe.parent, said) if recipe and isinstance(said, str) else base
    return texts.read(recipe, flags) if named and _writes(named) else pictures.read(recipe, flags)


def _writes(base: str) -> bool:
    """Is a base a language model?"""
    from trainers import bases

    if base.endswith((".gguf", ".safetensors")):
        return base.endswith(".gguf")
    return bases.kind_of(bases.find(base, weights=False)) == "text"


def _merge_gguf(asked: Recipe | WritingRecipe, out: Path, partial: bool, overwrite: bool, modelfile: bool) -> None:
    """Merge into a GGUF file, which other programs run."""
    from studio.gguf.merge import merge_gguf

    done = merge_gguf(
        Path(asked.base), asked.adapters, out, partial=partial, overwrite=overwrite, with_modelfile=modelfile
    )
    show_notes(done.notes)
    say(f"[green]{escape(str(done.path))}[/]: {len(done.changed)} tensors changed, written and read back")


@app.command(rich_help_panel=PANEL)
def verify(path: Annotated[Path, typer.Argument(metavar="MERGED", help="what `stylora merge` has made")]) -> None:
    """Prove a merged model again, from it alone: every byte of its weights, and what it answers."""
    from studio.merge import receipt

    record, compared, like = receipt.verify(path)
    model, proof = receipt.story(record)
    table("the model from disk, beside base + adapters when it was merged", COLUMNS, receipt.shares(compared))
    _show_likeness(like, receipt.limit(compared))
    files = len(record["contents"]["tensors"])
    say(f"[green]proved[/]: all tensors of {files} weight file{'s' * (files != 1)} are the bytes that were merged;")
    say(f"        loaded in a fresh process, the model answers as {escape(model)}.")
    if proof:
        say(f"[dim]proved when it was merged: {escape(proof)}.[/]")
    say("[dim]not proved: who merged it; a receipt is no signature.[/]")


@app.command(rich_help_panel=PANEL)
def extract(
    tuned: Annotated[
        str, typer.Option(help="the changed model: a folder of diffusers or transformers, or a checkpoint")
    ],
    base: Annotated[str, typer.Option(help="the model it was made from")],
    out: Annotated[Path, typer.Option(help="adapter file to write; of a language model, a PEFT folder")],
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
    found.adapter.save(out, "peft" if found.text else "kohya", DTYPES[dtype])
    columns = ("block", "modules", "ranks", "share of the difference", "energy lost")
    table("what the adapter holds", columns, extracting.by_block(found))
    show_notes(extracting.notes(found))
    say(f"[green]{escape(str(out))}[/]: {len(found.modules)} modules, {found.error:.2%} of their energy lost")
