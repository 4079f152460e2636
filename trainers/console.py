"""How the command line speaks: errors without tracebacks, a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from trainers import stopping
from trainers.errors import StyloraError

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "BITSANDBYTES_NOWELCOME": "1",
}

PIPE_WIDTH = 1000  # columns of what is no terminal: nothing is cut or wrapped


class StyloraGroup(TyperGroup):
    """Prints a StyloraError as text and exits with 1; ctrl-C exits with 130; anything else is a bug and shows."""

    def invoke(self, ctx: Any) -> Any:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        try:
            return super().invoke(ctx)
        except StyloraError as error:
            complain(error)
            sys.exit(1)
        except KeyboardInterrupt as stop:
            complain(StyloraError(str(stop) or "stopped", next_step="a begun run goes on with `stylora resume RUN`"))
            sys.exit(130)


def complain(error: StyloraError) -> None:
    """What is wrong, each fault, what to do next; on stderr."""
    typer.secho(f"Error: {error.what}", fg="red", err=True)
    for fault in error.faults:
        typer.echo(f"  - {fault}", err=True)
    if error.next_step:
        typer.echo(f"Next: {error.next_step}", err=True)


def say(text: str) -> None:
    """One line with rich's markup on stdout; file names are never wrapped."""
    from rich.console import Console

    Console(soft_wrap=True, highlight=False).print(text)


def show_notes(notes: Iterable[str]) -> None:
    for note in notes:
        say(f"[dim]·[/] {escape(note)}")


def escape(text: str) -> str:
    """Text as it is, its brackets no markup."""
    from rich.markup import escape as rich_escape

    return rich_escape(text)


def size(count: float) -> str:
    """Bytes for people: 812 MB, 1.4 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def follow(events: Iterable[Any], steps: int) -> dict[str, Any]:
    """Draw a run's events as they come; returns the report of the finished run (empty if there was nothing to do).

    Raises KeyboardInterrupt when it was asked to stop: during the steps once the one it is in is saved, else at once.
    """
    with stopping.watched(events) as told:
        if not speaks():
            for _ in told:
                pass
            return {}
        if not sys.stdout.isatty():
            return _plain(told, steps)
        return _live(told, steps)


def speaks() -> bool:
    """True in the one of several processes that talks."""
    return os.environ.get("RANK", "0") == "0"


def _plain(events: Iterable[Any], steps: int) -> dict[str, Any]:
    """A line for what matters, and about twenty for the steps."""
    report: dict[str, Any] = {}
    unit = ""
    every = max(1, steps // 20)
    for event in events:
        kind = type(event).__name__
        if kind == "Step":
            if event.step % every == 0 or event.step == steps:
                say(f"step {event.step}/{steps} {_step_text(event, unit)}")
        elif kind != "Busy":
            unit = event.unit if kind == "Started" else unit
            report = _tell(event) or report
    return report


def _live(events: Iterable[Any], steps: int) -> dict[str, Any]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}")]
    report: dict[str, Any] = {}
    with Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()) as bar:
        unit = ""
        busy: TaskID | None = bar.add_task("preparing", total=None, facts="")
        training: TaskID | None = None
        for event in events:
            kind = type(event).__name__
            if kind == "Busy":  # before the training, and in the demo after it
                busy = bar.add_task("", facts="") if busy is None else busy
                bar.update(busy, description=event.what, completed=event.done, total=event.total)
            elif kind == "Step" and training is not None:
                bar.update(training, completed=event.step, facts=_step_text(event, unit))
            else:
                if kind == "Started":
                    unit = event.unit
                    if busy is not None:
                        bar.remove_task(busy)
                    busy, training = None, bar.add_task("training", total=steps, completed=event.first_step, facts="")
                report = _tell(event, bar.console) or report
    return report


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, gone when all is done; nothing elsewhere. Gives the function (done, total) that moves it."""
    if not (speaks() and sys.stdout.isatty()):
        yield lambda done, total: None
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task(escape(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _step_text(event: Any, unit: str) -> str:
    count = event.weight if unit == "tokens" else event.samples
    speed = count / event.seconds if event.seconds else 0.0
    shown = f"{speed:,.0f}" if speed > 1000 else f"{speed:.1f}"
    return f"loss {event.loss:.4f} · lr {event.lr:.2e} · {shown} {unit}/s · {size(event.memory)}"


def _tell(event: Any, console: Any = None) -> dict[str, Any]:
    """Print one event that isn't a step; returns the report if it is the last."""
    from rich.console import Console

    console = console or Console(soft_wrap=True, highlight=False)
    for line in _lines(event):
        console.print(line, soft_wrap=True, highlight=False)
    return dict(event.report) if type(event).__name__ == "Finished" else {}


def _lines(event: Any) -> Iterator[str]:
    kind = type(event).__name__
    if kind == "Note":
        yield f"[dim]·[/] {escape(event.text)}"
    elif kind == "Cached":
        yield f"[dim]·[/] encodings: {event.encoded} made, {event.reused} taken from the cache"
    elif kind == "Started":
        what = "texts" if event.unit == "tokens" else event.unit
        yield f"[bold]{escape(event.name)}[/]: {event.samples} {what}, {event.steps} steps on {escape(event.base)}"
        low, high = event.exposures
        seen = f"{low}" if low == high else f"{low} to {high}"
        yield f"[dim]·[/] {event.device}, {event.precision}, attention by {event.attention}, {event.optimizer}"
        yield f"[dim]·[/] each of the {what} is seen {seen} times"
        for part, (trainable, total) in event.parameters.items():
            yield f"[dim]·[/] {part}: {trainable:,} of {total:,} parameters are trained ({trainable / total:.1%})"
        if event.first_step:
            yield f"[dim]·[/] going on after step {event.first_step}"
    elif kind == "Supervised":
        yield from _supervised(event)
    elif kind == "Validation":
        mark = " [green]the best so far[/]" if event.best else ""
        yield f"[dim]·[/] step {event.step}: loss {event.loss:.4f} on what is kept apart{mark}"
    elif kind == "Saved":
        yield f"[dim]·[/] checkpoint at step {event.step}: {escape(event.path)}"
    elif kind == "Preview":
        yield f"[dim]·[/] preview at step {event.step}: {escape(event.path)}"
    elif kind == "Finished":
        yield f"[green]done[/] in {event.seconds:.0f} s: {escape(event.path)} (sha256 {event.sha256[:12]})"


def _supervised(event: Any) -> Iterator[str]:
    """The receipt of what is learned: counts, then the first texts with what is learned in green."""
    share = event.supervised / event.tokens if event.tokens else 0.0
    yield (
        f"[dim]·[/] {event.documents} texts in {event.pieces} pieces: {event.tokens:,} tokens, of which"
        f" [green]{event.supervised:,} are learned[/] ({share:.0%})"
    )
    for name, runs in event.samples:
        text = "".join(f"[green]{escape(text)}[/]" if learned else f"[dim]{escape(text)}[/]" for text, learned in runs)
        yield f"    [bold]{escape(name)}[/] {text}".replace("\n", "↵")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: as wide as the terminal, and as wide as it needs to be in a file."""
    from rich.console import Console
    from rich.table import Table

    if not speaks():
        return
    drawn = Table(*columns, title=title, title_justify="left")
    for row in rows:
        drawn.add_row(*(escape(cell) for cell in row))
    (Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)).print(drawn)
