"""The jobs that draw: what `stylora generate` and `stylora grid` would draw, with its recipe, in the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from desks import run, work_for
from drawing import pixels, wild

from studio.desk import jobs
from studio.desk.drawing import recipe_of
from studio.desk.jobs import Draw, Grid
from studio.draw import generate, grid
from studio.draw import recipe as recipes
from studio.draw.axes import Axes
from studio.draw.recipe import Recipe
from studio.draw.use import Use
from trainers.errors import ConfigError


@pytest.fixture
def recipe(tiny_base: Path, tmp_path: Path) -> Recipe:
    use = Use(wild(tiny_base, tmp_path / "ink.safetensors"))
    return Recipe("a red house", base=str(tiny_base), adapters=(use,), steps=2, seed=3)


def test_every_picture_has_its_recipe_in_the_file_and_in_the_store(recipe: Recipe, tmp_path: Path) -> None:
    asked = replace(recipe, count=3)
    work, result = run(tmp_path, Draw(asked))
    rows = [work.store.picture(id) for id in result["pictures"]]
    direct = dict(generate.draw(generate.load(asked, "cpu"), asked.pictures()))
    for k, row in enumerate(rows):
        path = work.store.picture_path(row)
        assert (pixels(path) == pixels(direct[k].image)).all()
        assert (row.desk, row.job, row.width, row.height) == ("me", work.id, 16, 16)
        told = recipe_of(row, work.folder)
        assert (told.seed, told.made, told.adapters[0].path) == (3 + k, None, recipe.adapters[0].path.resolve())
        assert replace(recipes.read(path), made=None) == told
    assert work.snapshot().done == work.snapshot().total == 2
    assert len(work.snapshot().previews) == 3


def test_without_previews_there_are_none(recipe: Recipe, tmp_path: Path) -> None:
    work, _ = run(tmp_path, Draw(recipe, previews=False))
    assert work.snapshot().shown == 0


def test_a_grid_is_one_sheet(recipe: Recipe, tmp_path: Path) -> None:
    asked = replace(recipe, grid=Axes("adapter:A=0,1", "seed=1,2", 3))
    work, result = run(tmp_path, Grid(asked))
    (id,) = result["pictures"]
    easel = generate.load(asked, "cpu")
    wanted = grid.sheet(easel, grid.draw(easel)).image
    assert (pixels(work.store.picture_path(work.store.picture(id))) == pixels(wanted)).all()
    assert work.snapshot().total == 4, "two batches"


def test_a_grid_without_axes_is_refused_before_anything_is_loaded(recipe: Recipe, tmp_path: Path) -> None:
    job = Grid(replace(recipe, base="/nowhere"))
    with pytest.raises(ConfigError, match="x: no axis"):
        jobs.runner("grid")(work_for(tmp_path, job), job)
