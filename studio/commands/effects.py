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

from studio.commands.look import (
    BASES,
    PANEL,
    Json,
    Out,
    Overwrite,
    each,
    free,
    named,
    opened,
    tell,
    weights_of,
    write,
)  # fmt: skip
from studio.commands.measured import (
    Pair,
    Shown,
    show_lines,
    show_measured,
    show_overlaps,
    show_strength,
    texts_of,
)  # fmt: skip
from trainers.cli import app
from trainers.console import escape, say, show_notes
from trainers.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from studio.draw.use import Use
    from studio.look.anatomy import Overlap
    from studio.look.measure import Disturbance, Strength
    from trainers.lora.adapter import Adapter
    from trainers.lora.gains import Gain
    from trainers.lora.kinds import WeightOf

Prompts = Annotated[Path | None, typer.Option(metavar="FILE", help="a prompt a line; default: eight plain ones")]
Pictures = Annotated[bool, typer.Option(help="with a base, show what it makes: pictures in --out, or lines of text")]
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
    weight_of = weights_of(base)
    takes = [lambda text=text: _take(text, uses, loaded, weight_of) for text in files]
    each([*takes, lambda: asked.extend(read_prompts(prompts)), lambda: free(out, overwrite)])
    adapters = named([use.path for use in uses], loaded)
    _check_different(adapters, 2)
    pairs = list(combinations(adapters, 2))
    overlaps = {(a, b): overlap(adapters[a], adapters[b], (a, b)) for a, b in pairs}
    measured: dict[Pair, Disturbance] = {}
    shown: dict[Pair, Shown] = {}
    if base:
        gains = [use.gain for use in uses]
        measured, shown = _measure(base, adapters, gains, asked, device, bool(out), pictures, as_json)
    if out:
        from studio.look.figures import conflict_sheet

        write(out, conflict_sheet(list(adapters), overlaps, measured, shown), as_json)
    if as_json:
        told = [_pair(pair, overlaps, measured, shown) for pair in pairs]
        return tell({"adapters": files, "base": base, "pairs": told})
    show_overlaps(overlaps)
    if measured:
        show_measured(measured)
        lines = {f"{a} + {b}": (("bare base", a, b, "both"), made) for (a, b), made in shown.items()}
        show_lines(lines, "with")
    else:
        say("Overlap is a hint only. Next: measure what they do together with [bold]--base …[/]")


def _take(text: str, uses: list[Use], adapters: list[Adapter], weight_of: WeightOf | None) -> None:
    """Read one adapter as the command line names it. Raises AdapterError."""
    from studio.draw.use import parse_use
    from trainers.lora.adapter import Adapter
    from trainers.lora.family import is_text

    use = parse_use(text)
    if use.gain.schedule:
        step = "leave its schedule away: each timestep is measured at the whole weight"
        raise AdapterError(f"{text}: a conflict is measured without schedules", next_step=step)
    adapter = Adapter.load(use.path, weight_of=weight_of)
    if is_text(adapter.pairs) and (odd := use.gain.for_pictures):
        raise AdapterError(f"{text}: an adapter for text has no use for {', '.join(odd)}", next_step="leave it away")
    adapters.append(adapter)
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
    sheet: bool,
    show: bool,
    quietly: bool,
) -> tuple[dict[Pair, Disturbance], dict[Pair, Shown]]:
    """Every pair on the base, and what is made by bare, each, both; a pair's prompts have the triggers of the two."""
    from studio.look import measure

    asked, keys = measure.on_base(base, adapters, device)
    _note_triggers(adapters, quietly)
    found: dict[Pair, Disturbance] = {}
    shown: dict[Pair, Shown] = {}
    with asked.rack:
        for (a, first), (b, second) in combinations(zip(adapters, zip(keys, gains, strict=True), strict=True), 2):
            triggers = [adapters[name].info.trigger for name in (a, b)]
            words = measure.with_triggers(prompts or asked.prompts, triggers)
            found[a, b] = measure.disturbance(asked.probes(words), first, second)
            if show and (sheet or asked.kind == "text"):
                shown[a, b] = asked.show([{}, dict([first]), dict([second]), dict([first, second])], words[0])
    return found, shown


def _note_triggers(adapters: Mapping[str, Adapter], quietly: bool) -> None:
    if not quietly:
        words = {name: adapter.info.trigger for name, adapter in adapters.items() if adapter.info.trigger}
        show_notes(f"prompts for {name} have its trigger word: {word}" for name, word in words.items())


def _pair(
    pair: Pair,
    overlaps: Mapping[Pair, Sequence[Overlap]],
    measured: Mapping[Pair, Disturbance],
    shown: Mapping[Pair, Shown],
) -> object:
    found = measured.get(pair)
    facts = {**asdict(found), "verdict": found.verdict} if found else None
    blocks = [asdict(block) for block in overlaps[pair]]
    return {"pair": pair, "blocks": blocks, "measured": facts, **texts_of(shown.get(pair, ()))}


@app.command(rich_help_panel=PANEL)
def strength(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="adapter files, run folders or PEFT folders")],
    base: Annotated[str | None, typer.Option(help=f"{BASES}; default: tiny-sd, for text tiny-lm")] = None,
    weights: Annotated[str, typer.Option(metavar="RANGE", help="FROM..TO/COUNT, or numbers with commas")] = "0..1.5/7",
    prompts: Prompts = None,
    reference: Annotated[
        float | None, typer.Option(help="the effect that is to be equal; default: 0.2, for text 0.7")
    ] = None,
    out: Out = None,
    pictures: Pictures = True,
    keep: Annotated[bool, typer.Option("--write", help="write the equal-feel weight into each FILE's header")] = False,
    as_json: Json = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Say how strongly an adapter acts at which weight, and at which weights several act equally."""
    from studio.look import measure
    from studio.look.anatomy import check_kinds
    from trainers.lora.gains import Gain

    given: list[str] = []
    steps: list[float] = []
    checks = (
        lambda: given.extend(measure.read_prompts(prompts)),
        lambda: steps.extend(measure.rising(_numbers(weights))),
        lambda: free(out, overwrite),
        lambda: _check_reference(reference),
    )
    adapters = opened(files, *checks, weight_of=weights_of(base))
    _check_different(adapters)
    base = base or ("tiny-lm" if check_kinds(list(adapters.items())) else "tiny-sd")
    asked, keys = measure.on_base(base, adapters, device)
    _note_triggers(adapters, as_json)
    found: dict[str, Strength] = {}
    shown: dict[str, Shown] = {}
    with asked.rack:
        for (name, adapter), key in zip(adapters.items(), keys, strict=True):
            words = measure.with_triggers(given or asked.prompts, [adapter.info.trigger])
            found[name] = measure.strength(asked.probes(words), key, steps, reference or asked.reference)
            if pictures and (out or asked.kind == "text"):
                cells = [{key: Gain(weight)} for weight in found[name].worth_a_look]
                shown[name] = asked.show(cells, words[0])
    if out:
        from studio.look.figures import strength_sheet

        write(out, strength_sheet(found, shown), as_json)
    if as_json:
        told = {name: {**asdict(s), **texts_of(shown.get(name, ()))} for name, s in found.items()}
        tell({"base": base, "base_digest": asked.digest(), "adapters": told})
    else:
        show_strength(found)
        show_lines({name: (found[name].labels, made) for name, made in shown.items()})
    if keep:
        _keep(dict(zip(files, found.values(), strict=True)), asked.digest(), as_json)


def _numbers(text: str) -> list[float]:
    from studio.draw.axes import numbers

    try:
        return numbers(text)
    except ConfigError as error:
        raise ConfigError(f"--weights {text}", [error.what], "write FROM..TO/COUNT such as 0..1.5/7") from None


def _check_reference(reference: float | None) -> None:
    if reference is not None and not 0 < reference < 10:
        raise ConfigError(f"--reference {reference:g}: wanted more than 0", next_step="write for example 0.2")


def _keep(found: Mapping[Path, Strength], base: str, quietly: bool) -> None:
    """Write each file's equal-feel weight into its header. AdapterError: one has none, and no file was written."""
    from studio.draw.use import adapter_file
    from studio.look.measure import EQUAL_FEEL, with_metadata

    if missing := [
        f"{file}: no weight has the effect {s.reference:g}" for file, s in found.items() if not s.equal_feel
    ]:
        raise AdapterError("no equal-feel weight to write", missing, "widen --weights, or choose another --reference")
    for file, s in found.items():
        entry = {"base": base, "weight": round(s.equal_feel or 0.0, 4), "effect": s.reference}
        with_metadata(adapter_file(file), {EQUAL_FEEL: json.dumps(entry, sort_keys=True)})
        if not quietly:
            say(f"[green]{escape(str(file))}[/] {EQUAL_FEEL} written, its numbers are as they were")
