"""The commands that look at adapter files: info · check · export.

Try it: `stylora info ink.safetensors`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainers.cli import app
from trainers.console import complain, escape, say, show_notes, size, table
from trainers.errors import AdapterError

if TYPE_CHECKING:
    from studio.export import Exported
    from studio.gguf.adapter import Written
    from studio.look.card import Card
    from trainers.lora.ledger import Entry, Ledger

PANEL = "Adapter files"
LONG = 100  # characters of a header entry that the table shows
File = Annotated[Path, typer.Argument(metavar="FILE", help="adapter file, run folder or PEFT folder")]
Json = Annotated[bool, typer.Option("--json", help="one JSON document instead of tables")]


def meant(file: Path) -> Path:
    """The adapter itself where a finished run's folder is named. Raises AdapterError: the folder holds none."""
    from studio.draw.use import adapter_file

    return adapter_file(file) if file.is_dir() else file


@app.command(rich_help_panel=PANEL)
def info(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="adapter files, run folders or PEFT folders")],
    as_json: Json = False,
    header: Annotated[bool, typer.Option("--header", help="the header's entries, too")] = False,
    thumbnail: Annotated[
        Path | None, typer.Option(metavar="OUT.jpg|png", help="save the picture in the header of the one FILE")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="write over a thumbnail that is there")] = False,
) -> None:
    """Say what adapter files are: format, family, ranks, blocks, norms, trigger words, header, digests."""
    from studio.look.card import read_card, save_thumbnail

    if thumbnail and len(files) != 1:
        raise AdapterError("--thumbnail saves one picture", [f"{len(files)} files are named"], "name one FILE")
    cards: list[Card] = []
    errors: dict[Path, AdapterError] = {}
    for file in files:
        try:
            cards.append(read_card(meant(file)))
        except AdapterError as error:
            errors[file] = error
    if as_json:
        faulty = [{"path": str(file), "error": e.what, "faults": list(e.faults)} for file, e in errors.items()]
        typer.echo(json.dumps([card.data() for card in cards] + faulty, indent=2, ensure_ascii=False))
    else:
        for card in cards:
            table(card.path, ("fact", "value"), _facts(card, header))
    for broken in errors.values():
        complain(broken)
    if thumbnail and cards:
        save_thumbnail(cards[0], thumbnail, overwrite)
        say(f"[green]{escape(str(thumbnail))}[/]")
    if errors:
        raise typer.Exit(1)


def _facts(card: Card, header: bool) -> list[tuple[str, str]]:
    from trainers.lora.family import FAMILIES

    rows = [
        ("name", card.name),
        ("format", f"{card.format}, {_counts(card.dtypes)}"),
        ("family", FAMILIES.get(card.family, "unknown")),
        ("base", card.base),
        ("trigger", card.trigger),
        ("tags", _short(", ".join(f"{tag} ({count})" for tag, count in card.tags.items()))),
        ("rank", _counts(card.ranks)),
        ("alpha", _counts({f"{alpha:g}": count for alpha, count in card.alphas.items()})),
    ]
    for part, found in card.modules.items():
        rows.append((part, f"{sum(found.values())} modules, norm {card.norms[part]:.4g}: {_blocks(found)}"))
    rows += [("converted", line) for line in card.converted] + [("refused", line) for line in card.refused]
    rows += [
        ("parameters", f"{card.parameters:,}"),
        ("size", size(card.size)),
        ("sha256", card.sha256),
        ("content", card.content),
        ("thumbnail", f"{size(len(card.thumbnail))}; save it with --thumbnail OUT.jpg" if card.thumbnail else ""),
    ]
    entries = [(key, _short(text)) for key, text in card.metadata.items() if key != "modelspec.thumbnail"]
    if not header:
        rows.append(("header", f"{len(entries)} entries; --header shows them" if entries else ""))
    return [(name, text) for name, text in rows if text] + (entries if header else [])


def _blocks(found: dict[str, int]) -> str:
    """{block: modules} with neighbours that have as many in one: "L00-L31 7 each"."""
    from trainers.lora.blocks import LABELS

    runs: list[list[str]] = []
    for label, count in found.items():
        last = runs[-1][-1] if runs else ""
        if last and found[last] == count and LABELS.index(label) == LABELS.index(last) + 1:
            runs[-1].append(label)
        else:
            runs.append([label])
    return ", ".join(f"{r[0]}-{r[-1]} {found[r[0]]} each" if len(r) > 1 else f"{r[0]} {found[r[0]]}" for r in runs)


def _short(text: str) -> str:
    return text if len(text) <= LONG else f"{text[:LONG]}… ({len(text)} characters; --json has them all)"


def _counts(counts: dict[str, int] | dict[int, int]) -> str:
    """The value itself where all have it, else each with how many."""
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{value} ({count} modules)" for value, count in counts.items())


@app.command(rich_help_panel=PANEL)
def check(
    file: File,
    base: Annotated[str, typer.Option(help="tiny-sd, sd15, tiny-lm, a model's folder, a hub id or a checkpoint file")],
    as_json: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="a line for every tensor")] = False,
    rank: Annotated[int | None, typer.Option(min=1, help="cut every change to this rank at most")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="it is enough if part of it can be applied")] = False,
) -> None:
    """Say what of an adapter acts on a base: every tensor applied, converted or refused; partial is exit code 1."""
    from studio.merge.weights import open_base
    from trainers.lora.adapter import refusals
    from trainers.lora.ledger import ledger_of, objection, read

    file, weights = meant(file), open_base(base)
    shapes = weights.shapes
    reading = read(file, rank, weights.weight)
    ledger = ledger_of(reading, shapes)
    error = objection(file, reading, ledger, shapes, partial=partial)
    if as_json:
        typer.echo(json.dumps({"path": str(file), "base": base, **ledger.data()}, indent=2, ensure_ascii=False))
    else:
        columns = ("verdict", "reason", "tensor") if verbose else ("verdict", "reason", "tensors", "modules")
        table(f"{file.name} on {base}", columns, _lines(ledger, verbose))
        say(escape(_share(ledger)))
    if error:
        raise error
    if not as_json:
        show_notes(refusals(ledger.entries))


def _lines(ledger: Ledger, verbose: bool) -> list[tuple[str, ...]]:
    """A row per verdict and reason, or with `verbose` per tensor."""
    from trainers.lora.adapter import by_reason

    if verbose:
        return [(e.verdict, e.reason + _residual([e]), key) for e in ledger.entries for key in e.keys or ("",)]
    rows: list[tuple[str, ...]] = []
    for (verdict, reason), found in by_reason(ledger.entries).items():
        more = " and the like" if len({entry.reason for entry in found}) > 1 else ""
        modules = len({entry.path for entry in found if entry.path})
        tensors = sum(len(entry.keys) for entry in found)
        rows.append((verdict, reason + more + _residual(found), str(tensors), str(modules or "")))
    return rows


def _residual(found: list[Entry]) -> str:
    """What a cut lost of the energy of these modules together."""
    whole, lost = sum(entry.energy or 0.0 for entry in found), sum(entry.lost for entry in found)
    return f": {lost / whole:.3%} of the energy lost" if lost else ""


def _share(ledger: Ledger) -> str:
    if not ledger.unknown:
        return f"{ledger.share:.2%} of the adapter's energy is applied."
    return f"At most {ledger.share:.2%} of its energy is applied: that of {ledger.unknown} refused tensors is unknown."


@app.command(rich_help_panel=PANEL)
def export(
    file: File,
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="kohya, diffusers, peft (a folder) or gguf (llama.cpp, Ollama)")
    ],
    dtype: Annotated[
        str | None, typer.Option(help="fp16, bf16, fp32, for gguf also q8_0; default: the file's own")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="default: beside the file, such as ink.diffusers.safetensors")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="cut every change to this rank at most")] = None,
    base: Annotated[
        str | None, typer.Option(help="the base it is for: gguf wants its names, DoRA is converted with its weights")
    ] = None,
    modelfile: Annotated[
        str | None, typer.Option(metavar="FROM", help="gguf: also a Modelfile, from this base in Ollama or this GGUF")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="write over what is there")] = False,
) -> None:
    """Write an adapter in another tool's format; LoHa, LoKr and the like become plain LoRA."""
    from studio.export import export as write

    if to == "gguf":
        _to_gguf(meant(file), base, dtype, out, rank, modelfile, overwrite)
        return
    if modelfile:
        raise AdapterError("--modelfile is for --to gguf: it is Ollama's")
    if out and to in ("kohya", "diffusers") and out.suffix != ".safetensors":
        raise AdapterError(f"--out {out}: an adapter is written as .safetensors", next_step=f"use {out}.safetensors")
    weight_of = None
    if base:
        from studio.merge.weights import open_base

        weight_of = open_base(base).weight
    made = write(meant(file), to, dtype=dtype, out=out, rank=rank, weight_of=weight_of, overwrite=overwrite)
    for line in _notes(made):
        say(f"[dim]·[/] {escape(line)}")
    kind = str(made.dtype).removeprefix("torch.")
    say(f"[green]{escape(str(made.path))}[/] {len(made.adapter.pairs)} modules, {kind}")


def _to_gguf(
    file: Path, base: str | None, dtype: str | None, out: Path | None, rank: int | None, origin: str | None, over: bool
) -> None:
    from studio.gguf.adapter import export as write

    if not base:
        step = "add --base FOLDER, or the base's own GGUF"
        raise AdapterError("a GGUF adapter has the names that its base's tensors have", ["no --base"], step)
    made = write(file, base, dtype=dtype, out=out, rank=rank, origin=origin, overwrite=over)
    show_notes([*_notes(made), *made.notes])
    say(f"[green]{escape(str(made.path))}[/] {len(made.adapter.pairs)} modules, {made.dtype}")
    say(f"[dim]read back: the deltas are the adapter's to {made.error:.1e} of their size[/]")
    if made.modelfile:
        say(f"[green]{escape(str(made.modelfile))}[/]: [bold]ollama create NAME -f {escape(str(made.modelfile))}[/]")


def _notes(made: Exported | Written) -> list[str]:
    """What was converted with its residual, and what was left out."""
    groups: dict[str, list[Entry]] = {}
    for entry in made.entries:
        if entry.verdict in ("converted", "left aside"):
            groups.setdefault(f"{entry.verdict}: {entry.reason}", []).append(entry)
    return [f"{len(found)} {reason}{_residual(found)}" for reason, found in groups.items()]
