"""Sheets: cells in their places, one batch where it can be, every cell the picture it would be alone, the labels."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from drawing import largest, wild
from PIL import Image

from studio.draw import generate, grid
from studio.draw.axes import Axes
from studio.draw.recipe import Recipe
from studio.draw.use import Use
from trainers import plot
from trainers.errors import ConfigError
from trainers.lora.gains import Gain


@pytest.fixture(scope="module")
def easel(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> generate.Easel:
    folder = tmp_path_factory.mktemp("adapters")
    uses = tuple(
        Use(wild(tiny_base, folder / f"{name}.safetensors", seed)) for seed, name in enumerate(("ink", "neon"))
    )
    recipe = Recipe("a house", base=str(tiny_base), adapters=uses, seed=3, steps=2, guidance=4.0)
    return generate.load(replace(recipe, grid=Axes("adapter:A=0..1/3", "te:neon=-0.5,1")), "cpu")


def test_cells_stand_row_by_row(easel: generate.Easel) -> None:
    planned = grid.plan(easel.recipe)
    gains = [[use.gain for use in cell.adapters] for cell in planned.cells]
    assert gains == [[Gain(a), Gain(1.0, b)] for b in (-0.5, 1.0) for a in (0.0, 0.5, 1.0)]
    assert {(cell.seed, cell.grid, cell.count) for cell in planned.cells} == {(3, None, 1)}
    assert generate.batches(planned.cells, 16) == [[0, 1, 2, 3, 4, 5]]
    names = grid.cell_names(planned, Path("cells"))
    assert [str(name) for name in names[2:4]] == ["cells/1-3.png", "cells/2-1.png"]


def test_a_cell_is_the_single_picture(easel: generate.Easel) -> None:
    made = grid.draw(easel)
    for picture, cell in zip(made, grid.plan(easel.recipe).cells, strict=True):
        ((_, alone),) = generate.draw(easel, [cell])
        assert largest(picture.image, alone.image) <= 2
        assert picture.recipe.adapters == cell.adapters
    assert min(largest(one.image, two.image) for one, two in pairwise(made)) > 2


def test_guidance_and_seed(easel: generate.Easel) -> None:
    recipe = replace(easel.recipe, grid=Axes("guidance=1.5,7", "seed=1,2"))
    assert generate.batches(grid.plan(recipe).cells) == [[0, 2], [1, 3]]
    made = grid.draw(replace(easel, recipe=recipe))
    assert [(picture.recipe.seed, picture.recipe.guidance) for picture in made] == [(1, 1.5), (1, 7), (2, 1.5), (2, 7)]


def test_the_sheet(easel: generate.Easel) -> None:
    made = grid.draw(easel)
    sheet = grid.sheet(easel, made)
    assert sheet.recipe.grid == easel.recipe.grid
    page = np.asarray(sheet.image)  # (H, W, 3)
    for picture in made:
        large = np.asarray(plot.enlarged(picture.image, grid.SIDE))
        ys, xs = np.nonzero((page[:, :-10] == large[0, 0]).all(-1))
        assert any(
            np.array_equal(page[y : y + len(large), x : x + len(large)], large) for y, x in zip(ys, xs, strict=True)
        )


def test_what_the_sheet_says(easel: generate.Easel) -> None:
    planned = grid.plan(easel.recipe)
    assert grid.headline(planned) == "a house"
    assert grid.details(planned) == "tiny-base · neon 1 · seed 3 · 2 steps · guidance 4"
    other = grid.plan(replace(easel.recipe, grid=Axes("prompt=a|b", "seed=1,2"), negative="night", sampler="ddim"))
    assert grid.headline(other) == ""
    assert grid.details(other) == "tiny-base · ink 1 · neon 1 · 2 steps · guidance 4 · ddim · without night"


def test_all_faults_of_a_plan(easel: generate.Easel) -> None:
    with pytest.raises(ConfigError) as caught:
        grid.plan(replace(easel.recipe, grid=Axes("adapter:C=0..1", "sead=1")))
    assert len(caught.value.faults) == 3
    with pytest.raises(ConfigError) as caught:
        grid.plan(replace(easel.recipe, grid=Axes("steps=0,2", "sampler=ddmi,ddim")))
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["steps", "sampler"]
    with pytest.raises(ConfigError, match="vary the same thing"):
        grid.plan(replace(easel.recipe, grid=Axes("adapter:A=0,1", "adapter:ink=0,1")))
    with pytest.raises(ConfigError, match="no axis"):
        grid.plan(replace(easel.recipe, grid=None))


def test_a_sheet_of_any_names() -> None:
    picture = Image.new("RGB", (16, 24), "red")
    plain = plot.sheet([[picture]], plot.Names("", [""]), plot.Names("", [""]))
    named = plot.sheet(
        [[picture]], plot.Names("prompt", ["a long name " * 9]), plot.Names("seed", ["b"]), "title " * 30, "note"
    )
    assert named.width > plain.width
    assert named.height > plain.height + 150
