"""What can be asked of the engine: the kinds of jobs as values, what the store keeps of them, and who does them.

Try it: python -c "from studio.desk.jobs import *; print(list(KINDS))"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from studio.desk import recall
from studio.desk.rows import JobRow, Json

if TYPE_CHECKING:
    from studio.desk.library import Library
    from studio.desk.work import Work
    from studio.draw.recipe import Recipe
    from studio.draw.use import Use
    from studio.write.recipe import WritingRecipe

ROOT = Path("/")  # paths in a job's recipe are seen from here


@dataclass(frozen=True)
class Draw:
    """Pictures -> {"pictures": [ids], "notes": []}; `previews` while they are drawn."""

    recipe: Recipe
    previews: bool = True
    kind: ClassVar[str] = "draw"

    @property
    def title(self) -> str:
        return self.recipe.prompt


@dataclass(frozen=True)
class Grid:
    """One sheet of the recipe's grid -> {"pictures": [id], "notes": []}."""

    recipe: Recipe
    previews: bool = True
    kind: ClassVar[str] = "grid"

    @property
    def title(self) -> str:
        return self.recipe.prompt


@dataclass(frozen=True)
class Write:
    """Texts -> {"texts": [], "endings": [], "seeds": [], "whose": ["adapters" | "base"], "forgotten": n, "notes": []}.

    With `compare` each is followed by what the bare base writes. `said` is a chat so far, question and answer in turn.
    """

    recipe: WritingRecipe
    compare: bool = False
    said: tuple[str, ...] = ()
    kind: ClassVar[str] = "write"

    @property
    def title(self) -> str:
        return self.recipe.prompt


@dataclass(frozen=True)
class Blend:
    """Several adapters as one of the library -> {"id", "path", "sha256", "certificate", "blocks", "total", "figure",
    "notes"}: `path` is seen from the home folder, `figure` (energy lost per block) from `.studio`.

    With `overwrite` what has the name goes into the bin. `base` serves DoRA.
    """

    adapters: tuple[Use, ...]
    name: str
    method: str = "svd"
    rank: int | None = None
    energy: float | None = None
    density: float | None = None
    seed: int | None = None
    dtype: str = "fp16"
    overwrite: bool = False
    base: str | None = None
    kind: ClassVar[str] = "blend"

    @property
    def title(self) -> str:
        return self.name


@dataclass(frozen=True)
class Resize:
    """One adapter cut to a rank or a share of its energy; the result is Blend's."""

    adapters: tuple[Use, ...]
    name: str
    rank: int | None = None
    energy: float | None = None
    dtype: str = "fp16"
    overwrite: bool = False
    base: str | None = None
    kind: ClassVar[str] = "resize"

    @property
    def title(self) -> str:
        return self.name


@dataclass(frozen=True)
class Merge:
    """Adapters in a base's own weights -> {"path" seen from `.studio`, "proved", "modules", "answers", "notes"}.

    Can't be cancelled midway.
    """

    adapters: tuple[Use, ...]
    name: str
    base: str
    dtype: str = "keep"
    partial: bool = False
    kind: ClassVar[str] = "merge"

    @property
    def title(self) -> str:
        return self.name


@dataclass(frozen=True)
class Export:
    """An adapter for another tool -> {"path" seen from `.studio`, "modules", "dtype", "notes"}; `base` serves GGUF and
    DoRA."""

    adapters: tuple[Use, ...]
    to: str
    dtype: str | None = None
    rank: int | None = None
    base: str | None = None
    kind: ClassVar[str] = "export"

    @property
    def title(self) -> str:
        return f"{self.adapters[0].title} for {self.to}"


@dataclass(frozen=True)
class Measure:
    """What adapters are or do -> {"facts", "figure": a PNG seen from `.studio`}; anatomy takes one, conflict more."""

    what: Literal["anatomy", "strength", "conflict"]
    adapters: tuple[Use, ...]
    base: str | None = None  # serves DoRA; without one: anatomy in units of the weights, conflict by directions alone
    weights: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    pictures: bool = True
    kind: ClassVar[str] = "measure"

    @property
    def title(self) -> str:
        return f"{self.what} of {', '.join(use.title for use in self.adapters)}"


Job = Draw | Grid | Write | Blend | Resize | Merge | Export | Measure

# kind -> (its job, who does it); these modules load the models' libraries, so they are imported by the worker
KINDS: dict[str, tuple[type[Any], str]] = {
    "draw": (Draw, "studio.desk.drawing:draw"),
    "grid": (Grid, "studio.desk.drawing:grid"),
    "write": (Write, "studio.desk.texting:write"),
    "blend": (Blend, "studio.desk.making:blend"),
    "resize": (Resize, "studio.desk.making:resize"),
    "merge": (Merge, "studio.desk.making:merge"),
    "export": (Export, "studio.desk.making:export"),
    "measure": (Measure, "studio.desk.measuring:measure"),
}


def runner(kind: str) -> Callable[[Work, Any], Json]:
    """What does a kind of job on the worker's thread, and gives its result."""
    module, _, name = KINDS[kind][1].partition(":")
    found: Callable[[Work, Any], Json] = getattr(import_module(module), name)
    return found


# --- as the store keeps them -----------------------------------------------------------------------------------------


def spec_of(job: Job, library: Library) -> Json:
    """All that a job is, as JSON: its recipe as TOML, its adapters as tables; `ids` are those of their files."""
    uses = job.recipe.adapters if isinstance(job, Draw | Grid | Write) else getattr(job, "adapters", ())
    return {field.name: _plain(job, field.name) for field in fields(job)} | {"ids": recall.ids(uses, library)}


def _plain(job: Job, name: str) -> Any:
    value = getattr(job, name)
    if name == "recipe":
        from studio.draw import recipe as pictures
        from studio.write import recipe as texts

        return (texts if isinstance(job, Write) else pictures).write(value, ROOT)
    if name == "adapters":
        from studio.draw.use import to_table

        return [to_table(use, ROOT) for use in value]
    return list(value) if isinstance(value, tuple) else value


def job_of(row: JobRow, library: Library, missing: list[str] | None = None) -> Job:
    """The job that a row of the store tells, to be given again; its adapters are found as they are called now.

    Those that are gone are left out and named in `missing`; AdapterError where that is None.
    """
    kind, _ = KINDS[row.kind]
    names = {field.name for field in fields(kind)}  # an older studio's job may have had others
    values: Json = {name: tuple(value) if isinstance(value, list) else value for name, value in row.spec.items()
                    if name in names}  # fmt: skip

    def found(tables: Any) -> list[recall.Table]:
        return recall.updated(tables, ROOT, library, row.spec.get("ids", {}), missing)

    if "recipe" in values:
        from studio.draw import recipe as pictures
        from studio.draw.tables import parse
        from studio.write import recipe as texts

        build, table = texts.build if kind is Write else pictures.build, parse(values["recipe"], f"job {row.id}")
        values["recipe"] = build(table | {"adapter": found(table.get("adapter", ()))}, ROOT, {}, [])
    if "adapters" in values:
        from studio.draw.use import from_table

        values["adapters"] = tuple(from_table(table, ROOT) for table in found(values["adapters"]))
    job: Job = kind(**values)
    return job
