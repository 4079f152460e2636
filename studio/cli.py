"""The `stylora` command: all of them, in panels by topic; demo and env stand here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from studio.commands import app as pages
from studio.commands import chat, combine, draw, effects, files, look, merging  # noqa: F401  (each mounts its)
from trainers.cli import PANEL as TEACH
from trainers.cli import app
from trainers.console import escape, follow, say, table

MACHINE = "This machine"
ORDER = (TEACH, pages.PANEL, draw.PANEL, files.PANEL, look.PANEL, merging.PANEL, MACHINE)  # of the panels in --help


@app.command(rich_help_panel=TEACH)
def demo(
    style: Annotated[
        str | None, typer.Option(help="one of the sample styles; default: ink, with --text pirate", show_default=False)
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="a writing style on the embedded language model")] = False,
    out: Annotated[
        Path | None, typer.Option(help="new folder for everything it makes; default: runs/demo, then runs/demo-2 …")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="fewer steps for a quick look; default: as `stylora train`")
    ] = None,
    sets: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="any setting of `stylora train`")] = [],  # noqa: B006
) -> None:
    """Train a sample style on the embedded base and show before and after; a minute or two on two idle cores."""
    from studio import demo as show

    out = out or show.free_folder(Path("runs/demo-text" if text else "runs/demo"))
    chosen = [*sets, *([f"train.steps={steps}"] if steps else [])]
    if text:
        _text_demo(style, out, chosen)
        return
    style = style or "ink"
    follow(show.events(style, out, chosen), show.config_for(style, out, chosen).train.steps)
    report = show.read_report(out)
    names = (
        "style_gain",
        "content_kept",
        "content_of_base",
        "steps",
        "seconds",
        "pictures_per_second",
        "seconds_whole_demo",
    )
    table(f"{style} on tiny-sd", ("figure", "value"), [(name, str(report[name])) for name in names])
    sheet, made = escape(str(out / "before_after.png")), escape(str(out / report["adapter"]))
    say(f"Look at [bold]{sheet}[/]. The adapter is [bold]{made}[/].")
    command = f'{_stylora()} generate --adapter {made} --prompt "a red star at night, {style} style" --out star.png'
    say(f"Next: [bold]{command}[/]")
    say(f"or teach it your own pictures: [bold]{_stylora()} train --data FOLDER --out runs/mine[/]")


def _text_demo(style: str | None, out: Path, sets: list[str]) -> None:
    from studio import text_demo as show
    from studio.demo import read_report
    from trainers.appraisal import figures

    style = style or show.STYLE
    follow(show.events(style, out, sets), show.config_for(style, out, sets).train.steps)
    report = read_report(out)
    seconds = ("seconds of the whole demo", str(report["seconds_whole_demo"]))
    table(f"{style} on {show.BASE}", ("figure", "value"), [*figures(report), seconds])
    for prompt, before, after in report["before_after"]:
        say(f"\n[bold]{escape(prompt)}[/] …\n[dim]{show.BASE}:[/] {escape(before)}\n[green]{style}:[/] {escape(after)}")
    made = escape(str(out / report["adapter"]))
    say(f"\nThe page is [bold]{escape(str(out / show.SHEET))}[/], the adapter [bold]{made}[/].")
    say(f'Next: [bold]{_stylora()} generate --base {show.BASE} --adapter {made} --prompt "On Sunday"[/]')
    say(f"or teach it your own texts: [bold]{_stylora()} train --base {show.BASE} --data FOLDER --out runs/mine[/]")


def _stylora() -> str:
    return sys.argv[0] if Path(sys.argv[0]).name == "stylora" else "stylora"


@app.command(rich_help_panel=MACHINE)
def env() -> None:
    """Say what this machine offers: versions, device, number format, attention kernel and why."""
    from studio.environment import facts

    for name, value in facts():
        say(f"[bold]{name:>22}[/]  {escape(value)}")


app.registered_commands.sort(key=lambda command: ORDER.index(str(command.rich_help_panel)))


def main() -> None:
    """Entry of the console command."""
    app()


if __name__ == "__main__":
    main()
