"""The jobs that draw: what `stylora generate` and `stylora grid` would draw, with its recipe, in the store."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from desks import run, work_for
from drawing import pixels, wild

from studio.desk import jobs
from studio.desk.drawing import recipe_of
from studio.desk.jobs import Draw, Grid
from studio.desk.work import told
from studio.draw import generate, grid
from studio.draw import recipe as recipes
from studio.draw.axes import Axes
from studio.draw.recipe import Recipe
from studio.draw.use import Use
from trainers import checkpoint
from trainers.errors import AdapterError, ConfigError, RunError


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
        back = recipe_of(row, work.folder, work.library)
        assert (back.seed, back.made, back.adapters[0].path) == (3 + k, None, recipe.adapters[0].path.resolve())
        assert replace(recipes.read(path), made=None) == back
    assert work.snapshot().done == work.snapshot().total == 2
    assert len(work.snapshot().previews) == 3


def test_a_picture_finds_its_adapter_under_any_name(recipe: Recipe, tmp_path: Path) -> None:
    work, result = run(tmp_path, Draw(recipe))
    row = work.store.picture(result["pictures"][0])
    work.library.refresh()
    (entry,) = work.library.cards()
    work.library.rename(entry.id, "tusche")
    back = recipe_of(row, work.folder, work.library)
    assert back.adapters[0].path == tmp_path.resolve() / "tusche.safetensors"
    run(tmp_path, Draw(back))
    work.library.remove(entry.id)
    with pytest.raises(AdapterError, match="no longer in the library"):
        recipe_of(row, work.folder, work.library)
    missing: list[str] = []
    rest = recipe_of(row, work.folder, work.library, missing)
    assert (rest.adapters, rest.seed, missing) == ((), 3, ["ink"])


def test_a_full_disk_is_told_in_the_pages_words(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place, name in ((checkpoint, "write_atomically"), (Path, "mkdir")):
        work = work_for(tmp_path, job := Draw(recipe))
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            with pytest.raises(RunError) as caught:
                jobs.runner("draw")(work, job)
        assert "No space left on device" in str(caught.value)
        assert "free some space" in told(caught.value)["next_step"]


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


def test_more_steps_than_the_sampler_can_take_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    grid = replace(recipe, sampler="unipc", grid=Axes("steps=2,1000"))
    for job in (Draw(replace(recipe, sampler="unipc", steps=1000)), Grid(grid)):
        with pytest.raises(ConfigError, match="steps: got 1000, wanted at most"):
            run(tmp_path, job)


def test_a_grid_without_axes_is_refused_before_anything_is_loaded(recipe: Recipe, tmp_path: Path) -> None:
    job = Grid(replace(recipe, base="/nowhere"))
    with pytest.raises(ConfigError, match="x: no axis"):
        jobs.runner("grid")(work_for(tmp_path, job), job)
