"""What generate and grid do where the base is a language model, and the options that choose how it writes.

`stylora generate --base tiny-lm --adapter runs/pirate:0.8 --prompt "On Monday, Anna"`
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainers.console import escape, progress
from trainers.errors import ConfigError

if TYPE_CHECKING:
    from studio.draw.axes import Plan
    from studio.write.generate import Desk, Text
    from studio.write.recipe import WritingRecipe

PANEL = "Pictures and texts"
FILE_WIDTH = 120  # letters of a table in a file

System = Annotated[str | None, typer.Option(help="what a chat is told first")]
MaxTokens = Annotated[int | None, typer.Option(help="the longest text, in tokens; default 200")]
Temperature = Annotated[float | None, typer.Option(help="how freely to choose; 0: the likeliest token; default 0.8")]
TopP = Annotated[float | None, typer.Option(help="choose among the likeliest tokens of this share; default 0.95")]
TopK = Annotated[int | None, typer.Option(help="choose among so many of the likeliest tokens; default 0: all")]
Penalty = Annotated[
    float | None, typer.Option("--repetition-penalty", help="against saying things twice, such as 1.1; default 1: none")
]
Partial = Annotated[
    bool | None, typer.Option("--partial", help="use adapters of which only a part fits the base", show_default=False)
]


# --- generate --------------------------------------------------------------------------------------------------------


def generate_texts(
    file: Path | None, flags: Mapping[str, Any], out: Path | None, save: Path | None, device: str, overwrite: bool
) -> None:
    """Write the texts of a recipe on stdout, a single one as it comes, and nothing else there; notes go to stderr."""
    from studio.outputs import write_whole
    from studio.write import generate as writing

    asked, paths = _asked(file, flags, out, save, overwrite)
    aside(["one text of the recipe, without its axes: `stylora grid` writes the table"] if asked.grid else [])
    desk = load(asked, device)
    if save:
        write_recipe(save, desk.recipe)
    if asked.count == 1:
        typer.echo("" if asked.chat else asked.prompt, nl=False)
        texts = writing.write(desk, desk.recipe.texts(), lambda _, piece: typer.echo(piece, nl=False))
        typer.echo()
    else:
        texts = writing.write(desk, desk.recipe.texts())
        typer.echo("\n\n".join(f"seed {text.recipe.seed}\n{text.whole}" for text in texts))
    aside(writing.cut_notes(texts, desk.family.context))
    for path, text in zip(paths, texts, strict=bool(paths)):
        write_whole(path, f"{text.whole}\n".encode())
        aside([f"{path} seed {text.recipe.seed}"])


def _asked(
    file: Path | None,
    flags: Mapping[str, Any],
    out: Path | None,
    save: Path | None,
    overwrite: bool,
    sheet: bool = False,
) -> tuple[WritingRecipe, list[Path]]:
    """The recipe, and the files of its texts or its table. Raises one ConfigError with all that is wrong."""
    from studio.draw.tables import noting
    from studio.outputs import check_free, numbered
    from studio.write import recipe as recipes

    faults: list[str] = []
    asked, paths, endings = (
        recipes.WritingRecipe(""),
        list[Path](),
        (".md", ".csv", ".txt") if sheet else (".txt", ".md"),
    )
    with noting(faults):
        asked = recipes.read(file, flags)
    if out and out.suffix.lower() not in endings:
        faults.append(f"--out {out}: wanted a file that ends in {' or '.join(endings)}")
    elif out:
        paths = numbered(out, 1 if sheet else max(1, asked.count))
    for path in [*paths, *([save] if save else [])]:
        with noting(faults):
            check_free([path], overwrite)
    if faults:
        raise ConfigError(recipes.REFUSED, faults, "`stylora generate --help` says what is meant")
    return asked, paths


def write_recipe(path: Path, recipe: WritingRecipe) -> None:
    from studio.outputs import write_whole
    from studio.write import recipe as recipes

    write_whole(path, recipes.write(recipe, path.parent).encode())


def load(asked: WritingRecipe, device: str) -> Desk:
    """The desk; says what of the adapters doesn't act."""
    from studio.write import generate as writing

    with progress("loading"):
        desk = writing.load(asked, device)
    aside(desk.notes)
    return desk


def aside(notes: Iterable[str]) -> None:
    """Notes on stderr: what stands on stdout may go into a pipe."""
    for note in notes:
        typer.echo(f"· {note}", err=True)


# --- grid ------------------------------------------------------------------------------------------------------------


def grid_of_texts(
    file: Path | None, flags: Mapping[str, Any], out: Path | None, save: Path | None, device: str, overwrite: bool
) -> None:
    """Print a table of texts, and write it whole where `out` says."""
    from studio.outputs import write_whole
    from studio.write import generate as writing
    from studio.write import grid as grids

    asked, paths = _asked(file, flags, out, save, overwrite, sheet=True)
    planned = grids.plan(asked)
    aside(["a grid has one text a cell: the recipe's count stays out"] if asked.count > 1 else [])
    desk = load(asked, device)
    if save:
        write_recipe(save, desk.recipe)
    with progress("writing"):
        texts = grids.draw(desk)
    width = shutil.get_terminal_size((100, 24)).columns
    typer.echo(drawn(planned, texts, width), nl=False)
    aside(writing.cut_notes(texts, desk.family.context))
    for path in paths:
        made = {".md": grids.markdown, ".csv": grids.csv_text}.get(path.suffix.lower())
        write_whole(path, (made(planned, texts) if made else drawn(planned, texts, FILE_WIDTH)).encode())
        aside([f"{path} {len(texts)} texts"])


def drawn(planned: Plan, texts: Sequence[Text], width: int) -> str:
    """The table in lines of `width` letters, cells wrapped, headline above and details below."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from studio.write import grid as grids

    heads, rows = grids.laid_out(planned, texts, width)
    labels = len(heads) - (len(planned.x.labels) if heads[-1] != "text" else 1)  # columns that say where a text stands
    table = Table(box=box.ROUNDED, show_lines=True, title=escape(grids.headline(planned)) or None, title_justify="left",
                  caption=escape(grids.details(planned)), caption_justify="left")  # fmt: skip
    for k, head in enumerate(heads):
        table.add_column(escape(head), no_wrap=False, overflow="fold", ratio=None if k < labels else 1,
                         max_width=max(width // 4, 8) if k < labels else None)  # fmt: skip
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()
