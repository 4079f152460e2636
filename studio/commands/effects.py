"""The commands that measure what adapters do to a base: conflict · strength.

Try it: `stylora strength ink.safetensors neon.safetensors --base tiny-sd --out strength.png`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands.look import BASES, PANEL, Json, Out, Overwrite, each, free, named, opened, tell, write
from trainers.cli import app
from trainers.console import escape, say, show_notes, table
from trainers.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from studio.draw.use import Use
    from studio.look.anatomy import Overlap
    from studio.look.measure import Disturbance, Strength
    from trainers.lora.adapter import Adapter
    from trainers.lora.gains import Gain

Pair = tuple[str, str]
Prompts = Annotated[Path | None, typer.Option(metavar="FILE", help="a prompt a line; default: eight plain ones")]
Pictures = Annotated[bool, typer.Option(help="with --out and a base: show pictures, too")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps")]


@app.command(rich_help_panel=PANEL)
def conflict(
    files: Annotated[list[str], typer.Argument(metavar="FILE[:WEIGHT]…", help="two adapters or more")],
    base: Annotated[str | None, typer.Option(help=f"{BASES}: measure it there, too")] = None,
    prompts: Prompts = None,
    out: Out = None,
    as_json: Json = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    pictures: Pictures = True,
) -> None:
    """Say how much styles disturb each other: directions in common, and with --base what both do together."""
    from studio.look.anatomy import overlap
    from studio.look.measure import read_prompts

    uses: list[Use] = []
    loaded: list[Adapter] = []
    asked: list[str] = []
    takes = [lambda text=text: _take(text, uses, loaded) for text in files]
    each([*takes, lambda: asked.extend(read_prompts(prompts)), lambda: free(out, overwrite)])
    adapters = named([use.path for use in uses], loaded)
    _check_different(adapters, 2)
    pairs = list(combinations(adapters, 2))
    overlaps = {(a, b): overlap(adapters[a], adapters[b], (a, b)) for a, b in pairs}
    measured: dict[Pair, Disturbance] = {}
    drawn: dict[Pair, list[Image.Image]] = {}
    if base:
        gains = [use.gain for use in uses]
        measured, drawn = _measure(base, adapters, gains, asked, device, bool(out and pictures), as_json)
    if out:
        from studio.look.figures import conflict_sheet

        write(out, conflict_sheet(list(adapters), overlaps, measured, drawn), as_json)
    if as_json:
        return tell({"adapters": files, "base": base, "pairs": [_pair(pair, overlaps, measured) for pair in pairs]})
    _show_overlaps(overlaps)
    if measured:
        _show_measured(measured)
    else:
        say("Overlap is a hint only. Next: measure what they do together with [bold]--base …[/]")


def _take(text: str, uses: list[Use], adapters: list[Adapter]) -> None:
    """Read one adapter as the command line names it. Raises AdapterError."""
    from studio.draw.use import parse_use
    from trainers.lora.adapter import Adapter

    use = parse_use(text)
    if use.gain.schedule:
        step = "leave its schedule away: each timestep is measured at the whole weight"
        raise AdapterError(f"{text}: a conflict is measured without schedules", next_step=step)
    adapters.append(Adapter.load(use.path))
    uses.append(use)


def _check_different(adapters: Mapping[str, Adapter], least: int = 1) -> None:
    """AdapterError: fewer than `least`, or equal ones."""
    from trainers.lora.adapter import content_digest

    if len(adapters) < least:
        raise AdapterError(f"a conflict needs {least} adapters", [f"got {len(adapters)}"], "name another FILE")
    digests = {name: content_digest(adapter) for name, adapter in adapters.items()}
    if same := [f"{a} and {b}: equal in every number" for a, b in combinations(digests, 2) if digests[a] == digests[b]]:
        raise AdapterError("the same adapter twice", same, "name different ones")


def _measure(
    base: str,
    adapters: Mapping[str, Adapter],
    gains: Sequence[Gain],
    prompts: Sequence[str],
    device: str,
    draw: bool,
    quietly: bool,
) -> tuple[dict[Pair, Disturbance], dict[Pair, list[Image.Image]]]:
    """Every pair on the base, and pictures of bare, each, both; a pair's prompts have the trigger words of the two."""
    from studio.look import measure

    family, rack, keys = measure.on_base(base, adapters, device)
    _note_triggers(adapters, quietly)
    found: dict[Pair, Disturbance] = {}
    drawn: dict[Pair, list[Image.Image]] = {}
    with rack:
        for (a, first), (b, second) in combinations(zip(adapters, zip(keys, gains, strict=True), strict=True), 2):
            words = measure.with_triggers(prompts, [adapters[name].info.trigger for name in (a, b)])
            asked = measure.probes(family, rack, words)
            found[a, b] = measure.disturbance(family, rack, asked, first, second)
            if draw:
                cells = [{}, dict([first]), dict([second]), dict([first, second])]
                drawn[a, b] = measure.pictures_of(family, rack, cells, words[0])
    return found, drawn


def _note_triggers(adapters: Mapping[str, Adapter], quietly: bool) -> None:
    if not quietly:
        words = {name: adapter.info.trigger for name, adapter in adapters.items() if adapter.info.trigger}
        show_notes(f"prompts for {name} have its trigger word: {word}" for name, word in words.items())


def _pair(pair: Pair, overlaps: Mapping[Pair, Sequence[Overlap]], measured: Mapping[Pair, Disturbance]) -> object:
    found = measured.get(pair)
    facts = {**asdict(found), "verdict": found.verdict} if found else None
    return {"pair": pair, "blocks": [asdict(block) for block in overlaps[pair]], "measured": facts}


def _show_overlaps(overlaps: Mapping[Pair, Sequence[Overlap]]) -> None:
    rows = [
        [
            f"{a} + {b}",
            o.block,
            f"{o.writes:.3f}",
            f"{o.writes_by_chance:.3f}",
            f"{o.reads:.3f}",
            f"{o.reads_by_chance:.3f}",
        ]
        for (a, b), found in overlaps.items()
        for o in found
    ]
    columns = ("pair", "block", "writes", "by chance", "reads", "by chance")
    table("overlap: share of directions in common, 0 none, 1 all", columns, rows)


def _show_measured(measured: Mapping[Pair, Disturbance]) -> None:
    from studio.look.measure import ADDS_UP

    rows = [
        [f"{a} + {b}", *(f"{effect:.3f}" for effect in d.effects), f"{d.agreement:+.2f}", f"{d.share:.2f}",
         " and ".join(f"{own:.2f}" for own in d.alone)]
        for (a, b), d in measured.items()
    ]  # fmt: skip
    columns = ("pair", "effect of one", "of the other", "of both", "agreement", "disturbance", "of each alone")
    table("measured on the base", columns, rows)
    for (a, b), found in measured.items():
        say(f"[bold]{escape(f'{a} + {b}')}[/]: {found.verdict}")
    if any(found.share > ADDS_UP for found in measured.values()):
        say("The disturbance falls with the weights. Next: try lower ones, such as [bold]FILE:0.6[/]")


@app.command(rich_help_panel=PANEL)
def strength(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="adapter files, or run folders")],
    base: Annotated[str, typer.Option(help=BASES)] = "tiny-sd",
    weights: Annotated[str, typer.Option(metavar="RANGE", help="FROM..TO/COUNT, or numbers with commas")] = "0..1.5/7",
    prompts: Prompts = None,
    reference: Annotated[float | None, typer.Option(help="the effect that is to be equal; default: 0.2")] = None,
    out: Out = None,
    pictures: Pictures = True,
    keep: Annotated[bool, typer.Option("--write", help="write the equal-feel weight into each FILE's header")] = False,
    as_json: Json = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Say how strongly an adapter acts at which weight, and at which weights several act equally."""
    from studio.look import measure
    from trainers.lora.gains import Gain

    asked: list[str] = []
    steps: list[float] = []
    checks = (
        lambda: asked.extend(measure.read_prompts(prompts)),
        lambda: steps.extend(measure.rising(_numbers(weights))),
        lambda: free(out, overwrite),
        lambda: _check_reference(reference),
    )
    adapters = opened(files, *checks)
    _check_different(adapters)
    family, rack, keys = measure.on_base(base, adapters, device)
    _note_triggers(adapters, as_json)
    found: dict[str, Strength] = {}
    drawn: dict[str, list[Image.Image]] = {}
    with rack:
        for (name, adapter), key in zip(adapters.items(), keys, strict=True):
            words = measure.with_triggers(asked, [adapter.info.trigger])
            probes = measure.probes(family, rack, words)
            found[name] = measure.strength(family, rack, probes, key, steps, reference or measure.REFERENCE)
            if out and pictures:
                shown = [*steps, found[name].equal_feel]
                cells = [{key: Gain(weight)} for weight in shown if weight is not None]
                drawn[name] = measure.pictures_of(family, rack, cells, words[0])
    if out:
        from studio.look.figures import strength_sheet

        write(out, strength_sheet(found, drawn), as_json)
    if as_json:
        tell({"base": base, "base_digest": family.digest("unet"), "adapters": {k: asdict(v) for k, v in found.items()}})
    else:
        _show_strength(found)
    if keep:
        _keep(dict(zip(files, found.values(), strict=True)), family.digest("unet"), as_json)


def _numbers(text: str) -> list[float]:
    from studio.draw.axes import numbers

    try:
        return numbers(text)
    except ConfigError as error:
        raise ConfigError(f"--weights {text}", [error.what], "write FROM..TO/COUNT such as 0..1.5/7") from None


def _check_reference(reference: float | None) -> None:
    if reference is not None and not 0 < reference < 10:
        raise ConfigError(f"--reference {reference:g}: wanted more than 0", next_step="write for example 0.2")


def _show_strength(found: Mapping[str, Strength]) -> None:
    one = next(iter(found.values()))
    rows = [
        [name, *(f"{effect:.3f}" for effect in s.effects), "–" if s.equal_feel is None else f"{s.equal_feel:.2f}"]
        for name, s in found.items()
    ]
    table("effect on the base by weight", ("adapter", *(f"{w:g}" for w in one.weights), "equal-feel weight"), rows)
    say(f"Equal feel: the weight whose effect is {one.reference:g}; there the adapters act equally strongly.")
    for name, s in found.items():
        if s.equal_feel is None:
            say(f"{escape(name)} does not reach it with these weights. Next: widen [bold]--weights[/] or --reference")


def _keep(found: Mapping[Path, Strength], base: str, quietly: bool) -> None:
    """Write each file's equal-feel weight into its header. AdapterError: one has none, and no file was written."""
    from studio.draw.use import adapter_file
    from studio.look.measure import EQUAL_FEEL, with_metadata

    if missing := [
        f"{file}: no weight has the effect {s.reference:g}" for file, s in found.items() if not s.equal_feel
    ]:
        raise AdapterError("no equal-feel weight to write", missing, "widen --weights, or choose another --reference")
    if folders := [f"{file}: is a PEFT folder" for file in found if adapter_file(file).is_dir()]:
        step = "write it as a file first: `stylora export FOLDER --to kohya`"
        raise AdapterError("there is no header to write the weight in", folders, step)
    for file, s in found.items():
        entry = {"base": base, "weight": round(s.equal_feel or 0.0, 4), "effect": s.reference}
        with_metadata(adapter_file(file), {EQUAL_FEEL: json.dumps(entry, sort_keys=True)})
        if not quietly:
            say(f"[green]{escape(str(file))}[/] {EQUAL_FEEL} written, its numbers are as they were")
