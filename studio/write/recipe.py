"""What texts are made of, as a value and as TOML: base, adapters with their gains, prompt, seed, sampling.

`stylora generate --base tiny-lm --recipe pirate.toml`. As of pictures: paths in a recipe are relative to the folder of
the file that holds it; digests in it are promises that are checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from studio.draw.axes import GRID, Axes
from studio.draw.recipe import MOST, opened
from studio.draw.tables import Kinds, Table, toml, unicode_faults
from studio.draw.use import Use, base_written, settled, to_table
from trainers.errors import ConfigError
from trainers.families.sampling import Sampling

REFUSED = "these texts can't be written"
KINDS: Kinds = {
    "prompt": str, "chat": bool, "system": str, "base": str, "seed": int, "count": int, "max_tokens": int,
    "temperature": float, "top_p": float, "top_k": int, "repetition_penalty": float, "partial": bool, "adapter": list,
    "grid": dict, "digests": dict,
}  # fmt: skip
NUMBERS = ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty")  # those of Sampling
DIGESTS: Kinds = dict.fromkeys(("model", "tokenizer"), str)


@dataclass(frozen=True)
class WritingRecipe:
    """All that decides how texts read; text k has seed + k. Plainly the base goes on where the prompt ends; in a `chat`
    the prompt is what the user says, in the words of the tokenizer's template."""

    prompt: str
    chat: bool = False
    system: str = ""  # what the chat is told first
    base: str = "tiny-lm"
    adapters: tuple[Use, ...] = ()
    seed: int = 0
    count: int = 1
    max_tokens: int = Sampling.max_tokens
    temperature: float = Sampling.temperature
    top_p: float = Sampling.top_p
    top_k: int = Sampling.top_k
    repetition_penalty: float = Sampling.repetition_penalty
    partial: bool = False  # use adapters of which only a part fits the base
    digests: Mapping[str, str] = field(default_factory=dict)  # part of the base -> sha256
    grid: Axes | None = None

    @property
    def sampling(self) -> Sampling:
        return Sampling(**{name: getattr(self, name) for name in NUMBERS})

    def texts(self) -> list[WritingRecipe]:
        """One recipe for each text, with its own seed."""
        return [replace(self, seed=self.seed + k, count=1, grid=None) for k in range(self.count)]

    def faults(self) -> list[str]:
        """Everything that is out of range, or has no meaning for texts."""
        found = self.sampling.faults()
        if not 1 <= self.count <= MOST:
            found.append(f"count: got {self.count}, wanted 1 to {MOST}")
        if not 0 <= self.seed <= 2**63 - self.count:
            found.append(f"seed: got {self.seed}, wanted at least 0 and less than 2^63")
        if self.system and not self.chat:
            found.append("system: only a chat is told something first; add --chat")
        if self.grid and not 1 <= self.grid.batch <= MOST:
            found.append(f"batch: got {self.grid.batch}, wanted 1 to {MOST}")
        found += [f"{use.title}: {part} is for pictures" for use in self.adapters for part in use.gain.for_pictures]
        return found + unicode_faults((self.prompt, self.system, self.base, *(str(use.path) for use in self.adapters)))


def read(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> WritingRecipe:
    """The recipe in a TOML file; `flags` win over it: the same keys, adapters as texts, paths from here.

    Raises one ConfigError with all that is wrong in both.
    """
    return build(*opened(file, flags or {}))


def build(table: Table, folder: Path, flags: Mapping[str, Any], faults: list[str]) -> WritingRecipe:
    """The recipe of a file's tables and of the flags that win over it. Raises ConfigError, `faults` among its own."""
    values = settled(table, KINDS, {"digests": DIGESTS, "grid": GRID}, folder, flags, faults)
    if "grid" in values:
        values["grid"] = Axes(**values["grid"])
    recipe = WritingRecipe(**values)
    faults += recipe.faults()
    if faults:
        raise ConfigError(REFUSED, faults, "`stylora generate --help` says what is meant")
    return recipe


def write(recipe: WritingRecipe, folder: Path, absolute: bool = True) -> str:
    """The recipe as TOML for a file in `folder`; `read` gives the same recipe back (`absolute` as in use.written)."""
    table: Table = {"prompt": recipe.prompt, "base": base_written(recipe.base, folder, absolute)}
    if recipe.chat:
        table |= {"chat": True} | ({"system": recipe.system} if recipe.system else {})
    table |= {"seed": recipe.seed, "count": recipe.count} | {name: getattr(recipe, name) for name in NUMBERS}
    if recipe.partial:
        table["partial"] = True
    table["adapter"] = [to_table(use, folder, absolute) for use in recipe.adapters]
    if recipe.grid:
        table["grid"] = {"x": recipe.grid.x, "y": recipe.grid.y, "batch": recipe.grid.batch}
    if recipe.digests:
        table["digests"] = dict(recipe.digests)
    return toml(table)
