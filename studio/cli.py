"""The `stylora` command: the trainers' commands, and those that use adapters: generate · demo · env."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from trainers.cli import app
from trainers.console import escape, follow, say, table


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="what to draw")],
    out: Annotated[Path, typer.Option(help="PNG file to write; several are numbered")],
    base: Annotated[str, typer.Option(help="tiny-sd, sd15, a diffusers folder or a hub id")] = "tiny-sd",
    adapter: Annotated[
        list[str], typer.Option(metavar="FILE[:WEIGHT]", help="adapter file or run folder; may be repeated")
    ] = [],  # noqa: B006
    negative: Annotated[str, typer.Option(help="what to keep out of the picture")] = "",
    seed: Annotated[int, typer.Option(help="of the first picture; the next has seed + 1")] = 0,
    count: Annotated[int, typer.Option(help="how many pictures")] = 1,
    steps: Annotated[int, typer.Option(help="denoising steps")] = 25,
    guidance: Annotated[float, typer.Option(help="how closely to follow the prompt")] = 7.5,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="such as 512x768; default: the base's own")] = None,
    sampler: Annotated[
        str | None, typer.Option(help="ddim, euler, euler-a, dpm++2m, dpm++2m-karras, unipc, pndm; default: the base's")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="write over pictures that are there")] = False,
) -> None:
    """Draw pictures with a base and any adapters; each PNG carries its parameters."""
    from studio import generate as drawing

    request = drawing.Request(prompt, negative, seed, count, steps, guidance, sampler=sampler)
    asked, used, paths = drawing.read(request, size, adapter, out, overwrite)
    family = drawing.load(base, used, device, asked.size)
    made = drawing.pictures(family, asked)
    for path, (picture, own_seed) in zip(paths, made, strict=True):
        drawing.write(
            path, picture, drawing.parameters_text(asked, own_seed, picture, base, family.digest("unet"), used)
        )
        say(f"[green]{escape(str(path))}[/] seed {own_seed}")


@app.command()
def demo(
    style: Annotated[str, typer.Option(help="one of the sample styles")] = "ink",
    out: Annotated[
        Path | None, typer.Option(help="new folder for everything it makes; default: runs/demo, then runs/demo-2 …")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="fewer steps for a quick look; default: as `stylora train`")
    ] = None,
    sets: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="any setting of `stylora train`")] = [],  # noqa: B006
) -> None:
    """Train a sample style on the embedded base and show before and after; about two minutes on two cores."""
    from studio import demo as show

    out = out or show.free_folder(Path("runs/demo"))
    chosen = [*sets, *([f"train.steps={steps}"] if steps else [])]
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
    stylora = sys.argv[0] if Path(sys.argv[0]).name == "stylora" else "stylora"
    command = f'{stylora} generate --adapter {made} --prompt "a red star at night, {style} style" --out star.png'
    say(f"Next: [bold]{command}[/]")
    say(f"or teach it your own pictures: [bold]{stylora} train --data FOLDER --out runs/mine[/]")


@app.command()
def env() -> None:
    """Say what this machine offers: versions, device, number format, attention kernel and why."""
    from studio.environment import facts

    for name, value in facts():
        say(f"[bold]{name:>22}[/]  {escape(value)}")


def main() -> None:
    """Entry of the console command."""
    app()


if __name__ == "__main__":
    main()
