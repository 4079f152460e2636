"""One recipe varied along two axes -> a labelled sheet; the cells that share their numbers are one batch.

`stylora grid --adapter ink.safetensors --adapter neon.safetensors --x adapter:A=0..1/5 --y adapter:B=-0.5..1/4 …`
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from studio.draw import axes, generate
from studio.draw.axes import Axes, Plan
from studio.draw.generate import Easel, OnStep, Picture
from studio.draw.recipe import REFUSED, Made, Recipe
from trainers import plot
from trainers.lora.blocks import number_text

SIDE, WIDEST = 160, 8192  # pixels: a cell is at least so large on the sheet; what the longer way of the cells may take


def plan(recipe: Recipe) -> Plan:
    """Raises ConfigError with everything that is wrong with the axes or with any cell."""
    return axes.plan(recipe, replace(recipe, count=1, grid=None, made=None), REFUSED)


def cell_names(planned: Plan, folder: Path) -> list[Path]:
    """ROW-COLUMN.png for each cell, both from 1."""
    ways = itertools.product(range(len(planned.y.labels)), range(len(planned.x.labels)))
    return [folder / f"{row + 1}-{column + 1}.png" for row, column in ways]


def draw(easel: Easel, on_step: OnStep | None = None) -> list[Picture]:
    """The pictures of all cells of the easel's recipe, row by row."""
    asked = easel.recipe.grid or Axes()
    made = dict(generate.draw(easel, plan(easel.recipe).cells, asked.batch, on_step))
    return [made[k] for k in range(len(made))]


def sheet(easel: Easel, pictures: Sequence[Picture]) -> Picture:
    """All pictures on one page with what varies beside them; its recipe makes the whole of it again."""
    planned = plan(easel.recipe)
    columns = len(planned.x.labels)
    rows = [[made.image for made in pictures[k : k + columns]] for k in range(0, len(pictures), columns)]
    size = rows[0][0].size
    page = plot.sheet(
        rows,
        plot.Names(planned.x.title, planned.x.labels),
        plot.Names(planned.y.title, planned.y.labels),
        headline(planned),
        details(planned),
        max(SIDE, min(max(size), WIDEST // max(columns, len(rows)))),
    )
    made = Made(facts=generate.facts(easel))
    return Picture(page, replace(easel.recipe, count=1, size=size, made=made))


def headline(planned: Plan) -> str:
    """The prompt, unless it varies."""
    return "" if "prompt" in planned.varied else planned.recipe.prompt


def details(planned: Plan) -> str:
    """All else that is the same in every cell: base, adapters, seed, numbers."""
    recipe, varied = planned.recipe, planned.varied
    facts = {"": Path(recipe.base).name}
    for use in recipe.adapters:
        facts[f"weight of {use.title}"] = f"{use.title} {number_text(use.gain.weight)}"
    facts["seed"] = f"seed {recipe.seed}"
    facts["steps"] = f"{recipe.steps} steps"
    facts["guidance"] = f"guidance {number_text(recipe.guidance)}"
    if recipe.sampler:
        facts["sampler"] = recipe.sampler
    if recipe.negative:
        facts["negative"] = f"without {recipe.negative}"
    return " · ".join(text for key, text in facts.items() if key not in varied)
