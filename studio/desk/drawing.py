"""The jobs that draw: pictures as they come, each in the store as soon as its batch is done; a grid as one sheet.

Try it: python -c "from studio.desk.engine import Engine; help(Engine)"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from studio.desk import recall
from studio.desk.rows import JobRow, Json, PictureRow
from studio.desk.work import Work

if TYPE_CHECKING:
    from torch import Tensor

    from studio.desk.jobs import Draw, Grid
    from studio.desk.library import Library
    from studio.desk.store import Store
    from studio.draw.generate import Easel, OnLatents, Picture
    from studio.draw.recipe import Recipe


def draw(work: Work, job: Draw) -> Json:
    """As many pictures as the recipe counts; those that are done before a cancel stay."""
    from studio.draw import generate

    easel = _easel(work, job.recipe)
    found: list[int] = []
    result: Json = {"pictures": found, "notes": list(easel.notes)}
    looking = _looking(work, easel) if job.previews else None
    for _, picture in generate.draw(easel, easel.recipe.pictures(), on_step=work.step, on_latents=looking):
        found.append(keep(work, picture))
        work.change(result=dict(result, pictures=list(found)))
    return result


def grid(work: Work, job: Grid) -> Json:
    """The sheet, its cells in batches."""
    from studio.draw import generate
    from studio.draw import grid as grids
    from studio.draw.axes import Axes

    cells = grids.plan(job.recipe).cells  # what is wrong with them is told before anything is loaded
    easel = _easel(work, job.recipe)
    looking = _looking(work, easel) if job.previews else None
    most, cells = (easel.recipe.grid or Axes()).batch, grids.plan(easel.recipe).cells
    made = dict(generate.draw(easel, cells, most, work.step, looking))
    sheet = grids.sheet(easel, [made[k] for k in range(len(made))])
    return {"pictures": [keep(work, sheet)], "notes": list(easel.notes)}


def _easel(work: Work, recipe: Recipe) -> Easel:
    work.say("loading the base and its adapters")
    easel = work.residents.easel(recipe)
    work.say("")
    return easel


def _looking(work: Work, easel: Easel) -> OnLatents:
    """Shows a batch's latents as previews; each batch has a turn of its own."""
    painter = work.residents.painter(easel.recipe.base)
    turn, batch = painter.start(), 0

    def look(places: Sequence[int], done: int, latents: Tensor) -> None:
        nonlocal turn, batch
        if places[0] != batch:
            turn, batch = painter.start(), places[0]
        if previews := turn.look(done, latents):
            work.show(previews)

    return look


def keep(work: Work, picture: Picture) -> int:
    """Write a picture with its recipe, then tell the store; its number."""
    from studio.draw import pictures
    from studio.draw import recipe as recipes

    file = work.add_file("pictures", ".png", lambda path: pictures.write(path, picture))
    text = recipes.write(picture.recipe, (work.folder / file).parent)
    return work.store.add_picture(work.desk, work.id, file, text, *picture.image.size)


def recipe_of(row: PictureRow, folder: Path, library: Library, missing: list[str] | None = None) -> Recipe:
    """The recipe of a picture in the studio's `folder`, its adapters as the library calls them now; without what ties
    it to one batch. Those that are gone are left out and named in `missing`; AdapterError where that is None.
    """
    from studio.draw import recipe as recipes
    from studio.draw.tables import parse

    table, place = parse(row.recipe, f"picture {row.id}"), (folder / row.file).parent
    adapters = recall.updated(table.get("adapter", ()), place, library, {}, missing)
    return replace(recipes.build(table | {"adapter": adapters}, place, {}, []), made=None)


def adopt(store: Store, job: JobRow) -> int:
    """Tell the store of the pictures that a job, lost with its server, has written without telling; how many."""
    from PIL import Image

    from studio.draw import recipe as recipes

    folder, known = store.path.parent, {row.file for row in store.pictures(job.desk, -1)}
    files = sorted((folder / "pictures").glob(f"{job.id:06}-*.png"))
    found = [file for file in files if file.relative_to(folder).as_posix() not in known]
    for file in found:
        with Image.open(file) as picture:
            size = picture.size
        store.add_picture(job.desk, job.id, file.relative_to(folder).as_posix(), recipes.text_of(file), *size)
    return len(found)
