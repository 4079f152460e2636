"""What a grid can vary: `adapter:A=0..1/5`, `seed=1,2,3`, `prompt=a boat|a house` … as changes to a recipe.

Try it: python -c "from studio.draw.axes import *; print(axis('seed=1..4', None).labels)"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from studio.draw.tables import Kinds, nearest, noting
from trainers.errors import ConfigError
from trainers.lora.blocks import parse_blocks, to_number

Recipe = Any  # of pictures or of texts: a frozen dataclass whose `adapters` are a tuple of Use
MOST_VALUES = 64  # of an axis
GRID: Kinds = {"x": str, "y": str, "batch": int}


@dataclass(frozen=True)
class Axes:
    """A sheet's axes as they were written, and how many of its cells are one batch at the most."""

    x: str = ""
    y: str = ""
    batch: int = 16


@dataclass(frozen=True)
class Axis:
    """What varies, what the sheet writes at each of its cells, and what each does to a recipe."""

    title: str = ""
    labels: tuple[str, ...] = ("",)
    changes: tuple[Callable[[Recipe], Recipe], ...] = (lambda recipe: recipe,)


# --- values ----------------------------------------------------------------------------------------------------------


def numbers(text: str) -> list[float]:
    """ "0..1/5" -> 5 numbers from 0 to 1; "0, 0.5, 1" -> these. Raises ConfigError."""
    return [number for item in text.split(",") for number in _range(item)]


def wholes(text: str) -> list[int]:
    """The same with whole numbers; "1..4" -> 1, 2, 3, 4. Raises ConfigError."""
    found = [number for item in text.split(",") for number in _range(item, each_whole=True)]
    if odd := [number for number in found if not number.is_integer()]:
        raise ConfigError(f"{text!r}: {odd[0]:g} isn't a whole number")
    return [int(number) for number in found]


def _range(item: str, each_whole: bool = False) -> list[float]:
    """A number, `low..high/count`, or for whole numbers `low..high`."""
    low_text, dots, rest = item.partition("..")
    high_text, slash, count_text = rest.partition("/")
    low, high = to_number(low_text), to_number(high_text if dots else low_text)
    if low is None or high is None:
        raise ConfigError(f"{item.strip()!r}: wanted a number, or a range such as 0..1/5: from 0 to 1, 5 values")
    if not dots:
        return [low]
    count = int(high - low) + 1 if each_whole and not slash else _count(count_text)
    if not 2 <= count <= MOST_VALUES:
        raise ConfigError(f"{item.strip()!r}: wanted 2 to {MOST_VALUES} values, such as {low:g}..{high:g}/5")
    return [round(low + (high - low) * k / (count - 1), 9) for k in range(count)]


def _count(text: str) -> int:
    return int(text) if text.strip().isascii() and text.strip().isdecimal() and len(text) < 9 else 0


def texts(text: str) -> list[str]:
    """ "a boat|a house" -> these."""
    return [part.strip() for part in text.split("|")]


def names(text: str) -> list[str]:
    """ "ddim,euler" -> these."""
    return [part.strip() for part in text.split(",")]


# --- changes ---------------------------------------------------------------------------------------------------------


def _gain(recipe: Recipe, k: int, **changed: Any) -> Recipe:
    uses = list(recipe.adapters)
    uses[k] = replace(uses[k], gain=replace(uses[k].gain, **changed))
    return _field(recipe, "adapters", tuple(uses))


def _weight(recipe: Recipe, k: int, value: float) -> Recipe:
    return _gain(recipe, k, weight=value)


def _text_weight(recipe: Recipe, k: int, value: float) -> Recipe:
    return _gain(recipe, k, text_encoder=value)


def _block(recipe: Recipe, label: str, value: float) -> Recipe:
    factors = parse_blocks(f"{label}={value!r}")
    for k, use in enumerate(recipe.adapters):
        recipe = _gain(recipe, k, blocks={**use.gain.blocks, **factors})
    return recipe


def _field(recipe: Recipe, name: str, value: Any) -> Recipe:
    return replace(recipe, **{name: value})


# --- what stands behind the colon: (what the change needs to know of it, what the sheet calls it) ---------------------


def adapter_of(recipe: Recipe, name: str) -> tuple[int, str]:
    """The adapter of a name, or of a letter: A is the first."""
    titles = [use.title for use in recipe.adapters]
    letters = [chr(ord("A") + k) for k in range(min(26, len(titles)))]
    if titles.count(name) != 1 and name not in letters:
        there = ", ".join(f"{letter} ({title})" for letter, title in zip(letters, titles, strict=False)) or "none"
        trouble = "several adapters have that name" if name in titles else "no such adapter"
        raise ConfigError(f"{name!r}: {trouble}; there are: {there}")
    k = titles.index(name) if titles.count(name) == 1 else letters.index(name)
    return k, titles[k] if titles.count(titles[k]) == 1 else f"{titles[k]} ({letters[k]})"


def _label(recipe: Recipe, name: str) -> tuple[str, str]:
    if not recipe.adapters:
        raise ConfigError(f"{name!r}: there is no adapter whose blocks could vary")
    parse_blocks(f"{name}=1")
    return name.upper(), name.upper()


# --- axes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A row of AXES: how its values are read, what one does to a recipe, what stands behind its colon."""

    about: str
    read: Callable[[str], Sequence[Any]]
    change: Callable[[Recipe, Any, Any], Recipe] = _field
    behind: str = ""
    find: Callable[[Recipe, str], tuple[Any, str]] | None = None
    title: str = "{}"


GAINS: dict[str, Kind] = {
    "adapter": Kind("an adapter's weight", numbers, _weight, "NAME", adapter_of, "weight of {}"),
    "block": Kind("all adapters' factor in a block", numbers, _block, "BLOCK", _label, "adapters in {}"),
}
BOTH: dict[str, Kind] = {"seed": Kind("the seed", wholes), "prompt": Kind("the prompt", texts)}
AXES: dict[str, Kind] = {
    **GAINS,
    "te": Kind("its weight in the text encoder", numbers, _text_weight, "NAME", adapter_of, "{} in the text encoder"),
    **BOTH,
    "negative": Kind("the negative prompt", texts),
    "guidance": Kind("the guidance", numbers),
    "steps": Kind("the denoising steps", wholes),
    "sampler": Kind("the sampler", names),
}
AXES_OF_TEXT: dict[str, Kind] = {
    **GAINS,
    **BOTH,
    "system": Kind("what the chat is told first", texts),
    "temperature": Kind("the temperature", numbers),
    "top_p": Kind("the share of likely tokens", numbers),
    "top_k": Kind("the number of likely tokens", wholes),
    "repetition_penalty": Kind("the penalty of what stands there", numbers),
    "max_tokens": Kind("the longest text", wholes),
}


def axis(text: str, recipe: Recipe, axes: Mapping[str, Kind] = AXES) -> Axis:
    """`adapter:A=0..1/5` as changes to `recipe`. Raises ConfigError with everything wrong with it."""
    head, sign, values_text = text.partition("=")
    word, _, behind = (part.strip() for part in head.partition(":"))
    kind = axes.get(word)
    if kind is None or not sign:
        raise ConfigError(f"{text!r}: no such axis; {nearest(word, axes)}" if sign else f"{text!r}: wanted AXIS=VALUES")
    faults: list[str] = []
    values: Sequence[Any] = []
    target, name = word, word
    with noting(faults):
        if bool(behind) != bool(kind.behind):
            raise ConfigError(f"wanted {word}:{kind.behind}=…" if kind.behind else f"wanted {word}=…")
        if kind.find:
            target, name = kind.find(recipe, behind)
    with noting(faults):
        values = kind.read(values_text)
    if len(values) > MOST_VALUES:
        faults.append(f"{len(values)} values, wanted {MOST_VALUES} at the most")
    if faults:
        raise ConfigError(text, [f"{text}: {fault}" for fault in faults])
    labels = tuple(_text(value) for value in values)
    changes = tuple(partial(_changed, kind, target, value) for value in values)
    return Axis(kind.title.format(name), labels, changes)


def _text(value: Any) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}") if isinstance(value, float) else str(value) or "(none)"


def _changed(kind: Kind, target: Any, value: Any, recipe: Recipe) -> Recipe:
    return kind.change(recipe, target, value)


# --- both ways -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The cells of `recipe.grid`, row by row."""

    recipe: Recipe
    x: Axis
    y: Axis
    cells: tuple[Recipe, ...]

    @property
    def varied(self) -> tuple[str, str]:
        return self.x.title, self.y.title


def plan(recipe: Recipe, one: Recipe, refused: str, axes: Mapping[str, Kind] = AXES) -> Plan:
    """The cells of `recipe.grid`, each a change of `one`.

    Raises ConfigError, `refused` its headline, with everything that is wrong with the axes or with any cell.
    """
    asked, faults = recipe.grid, list[str]()
    if asked is None or not asked.x:
        raise ConfigError(refused, ["x: no axis; give --x, such as --x seed=1,2,3"], "see `stylora grid --help`")
    across = down = Axis()
    with noting(faults):
        across = axis(asked.x, recipe, axes)
    with noting(faults):
        down = axis(asked.y, recipe, axes) if asked.y else down
    if across.title and across.title == down.title:
        faults.append(f"{asked.y}: x and y vary the same thing")
    cells = tuple(second(first(one)) for second in down.changes for first in across.changes)
    faults += dict.fromkeys(fault for cell in cells for fault in cell.faults())
    if faults:
        raise ConfigError(refused, faults, "`stylora grid --help` tells the axes and how their values are written")
    return Plan(recipe, across, down, cells)
