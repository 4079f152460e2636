"""The commands that make adapters: train · resume · batch · doctor. The only place that prints.

`python -m trainers train --data pictures --out runs/ink`; `stylora` mounts the same commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trainers.console import StyloraGroup, escape, follow, say, show_notes, table
from trainers.errors import ConfigError
from trainers.options import with_options

PANEL = "Teach a style"
app = typer.Typer(cls=StyloraGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Sets = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="any setting, such as optim.lr=2e-4; may be repeated")
]
File = Annotated[
    Path | None, typer.Argument(metavar="[FILE.toml]", help="settings as a TOML file; flags and --set win over it")
]


@app.command(rich_help_panel=PANEL)
@with_options
def train(file: File = None, sets: Sets = [], *, values: dict[str, Any]) -> None:  # noqa: B006
    """Teach a base a style from a folder of pictures or texts; leaves one small adapter."""
    from trainers.config import TrainConfig

    config = TrainConfig.build(file=file, values=values, sets=sets)
    from trainers import run

    run.check_folder(config.out)
    config = run.for_base(config)
    if report := follow(run.start(config), config.train.steps):
        if "perplexity" in report:
            from trainers.appraisal import figures

            table(f"{config.adapter_name} on {config.base}", ("figure", "value"), figures(report))
        out = "" if config.adapter.format == "peft" else " --out new.png"
        command = f'stylora generate --base {config.base} --adapter {run.adapter_path(config)} --prompt "…"{out}'
        say(f"Next: [bold]{escape(command)}[/]")


@app.command(rich_help_panel=PANEL)
def resume(folder: Annotated[Path, typer.Argument(metavar="RUN", help="the folder given to `train --out`")]) -> None:
    """Go on with a stopped run from its newest checkpoint; the result is the same to the bit."""
    from trainers import run

    config = run.read_config(folder)
    follow(run.resume(folder), config.train.steps)


@app.command(rich_help_panel=PANEL)
@with_options
def batch(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER…", help="one adapter is trained for each")],
    sets: Sets = [],  # noqa: B006
    *,
    values: dict[str, Any],
) -> None:
    """Train one adapter per folder, the base loaded once; run again, it does only what isn't finished."""
    from trainers import batch as batching

    results = batching.run_all(folders, values, sets, follow)
    batching.print_table(results)
    if any(result.error for result in results):
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL)
def doctor(
    folder: Annotated[Path, typer.Argument(help="folder of pictures, or folder or file of texts")],
    trigger: Annotated[str, typer.Option(help="word put before every caption")] = "",
    instance_prompt: Annotated[str | None, typer.Option(help="one caption for the pictures that have none")] = None,
    require_captions: Annotated[
        bool, typer.Option("--require-captions", help="a picture without its own caption is an error")
    ] = False,
    min_side: Annotated[int, typer.Option(min=1, metavar="PIXELS", help="shorter side a picture must have")] = 1,
) -> None:
    """Say what is in a folder of pictures or texts and all that is wrong with it; loads no model."""
    from trainers import doctor as examiner
    from trainers import documents

    if documents.holds_texts(folder):
        odd = {"--trigger": trigger, "--instance-prompt": instance_prompt, "--require-captions": require_captions}
        if given := [flag for flag, value in odd.items() if value] + (["--min-side"] if min_side > 1 else []):
            raise ConfigError(f"{folder} holds texts", [f"{flag} is for pictures" for flag in given], "leave these out")
        reading = documents.read(folder)
        show_notes(reading.notes)
        documents.sound(reading, folder)
        count = len(reading.documents)
        say(f"[green]{count} text{'s' * (count != 1)}, nothing wrong.[/]")
        return
    report = examiner.examine(
        folder, trigger=trigger, instance_prompt=instance_prompt, require_captions=require_captions, min_side=min_side
    )
    show_notes(report.notes)
    examiner.sound(report, folder)
    say(f"[green]{len(report.samples)} pictures, nothing wrong.[/]")


def main() -> None:
    """Entry of `python -m trainers`."""
    app()
