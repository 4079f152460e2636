"""The bases that stay in memory between jobs, one for pictures and one for text, and the adapters in their racks.

A recipe's adapters, and no others, lie in the rack in the recipe's order, so that a picture's numbers are rounded as
`stylora generate` rounds them; other weights for the same adapters only set gains. Only the worker's thread comes here.

Try it: python -c "from studio.desk.residents import Residents; from studio.draw.recipe import Recipe; \\
print(Residents().easel(Recipe('a boat')).recipe.digests)"
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.desk import grounds, shelf

if TYPE_CHECKING:
    from studio.desk.previews import Painter
    from studio.draw.generate import Easel
    from studio.draw.recipe import Recipe
    from studio.draw.use import Use
    from studio.resident import Found
    from studio.write.generate import Desk
    from studio.write.recipe import WritingRecipe
    from trainers.lora.rack import Rack

MOST = 16  # adapters kept in memory with a base
Stamp = tuple[str, str]  # a path, and a text that is another one when what lies there was changed


@dataclass
class Base:
    """An open base: its rack, what was read for it, and what makes previews from its latents."""

    stamp: Stamp
    family: Any
    rack: Rack
    found: OrderedDict[tuple[Stamp, bool], Found] = field(default_factory=OrderedDict)
    painter: Painter | None = None

    def read(self, rack: Rack, path: Path, partial: bool) -> Found:
        """resident.read, remembered while the file stays as it is."""
        from studio import resident

        key = (stamp(path), partial)
        if key not in self.found:
            self.found[key] = resident.read(rack, path, partial)
            if len(self.found) > MOST:
                self.found.popitem(last=False)
        self.found.move_to_end(key)
        return self.found[key]

    def clear(self, uses: Sequence[Use], partial: bool) -> None:
        """Take out of the rack what isn't in its place for these adapters."""
        known = [self.found.get((stamp(use.path), partial)) for use in uses]
        wanted, kept = [found.digest if found else "" for found in known], 0
        for have, want in zip(self.rack.resident, wanted, strict=False):
            if have != want:
                break
            kept += 1
        for key in reversed(self.rack.resident[kept:]):
            self.rack.remove(key)


class Residents:
    """At most one base of each kind, opened when a recipe first names it, closed when one names another."""

    def __init__(self, device: str = "auto") -> None:
        self.device = device
        self._folders: dict[tuple[str, str, str], Path] = {}  # (kind, base, stamp of a file) -> where its parts lie
        self._open: dict[str, Base] = {}  # kind -> base

    def easel(self, recipe: Recipe) -> Easel:
        """Base and adapters, ready to draw. Raises as `studio.draw.generate.load` does."""
        from studio.draw import generate

        base = self.pictures(recipe.base)
        base.clear(recipe.adapters, recipe.partial)
        return generate.set_up(recipe, base.family, base.rack, base.read)

    def desk(self, recipe: WritingRecipe) -> Desk:
        """The same for texts. Raises as `studio.write.generate.load` does."""
        from studio.write import generate

        base = self.texts(recipe.base)
        base.clear(recipe.adapters, recipe.partial)
        return generate.set_up(recipe, base.family, base.rack, base.read)

    def painter(self, base: str) -> Painter:
        """What makes previews from the latents of a base."""
        from studio.desk.previews import Painter

        opened = self.pictures(base)
        opened.painter = opened.painter or Painter(opened.family)
        return opened.painter

    def pictures(self, base: str) -> Base:
        from studio.draw.generate import open_base

        return self._opened(base, "pictures", open_base)

    def texts(self, base: str) -> Base:
        from studio.write.generate import open_base

        return self._opened(base, "text", open_base)

    def rest(self) -> None:
        """Between two jobs no adapter acts."""
        for base in self._open.values():
            base.rack.set([{}])

    def close(self, kind: str = "") -> None:
        """Let the base of a kind go, or both."""
        for name in [kind] if kind else list(self._open):
            if base := self._open.pop(name, None):
                base.rack.close()
                for part in base.family.loaded_parts():
                    base.family.unload(part)

    def _opened(self, base: str, kind: Any, open_base: Any) -> Base:
        from trainers.lora.rack import Rack

        folder = self._found(base, kind)
        now = str(folder), shelf.base_stamp(str(folder))
        if (there := self._open.get(kind)) is None or there.stamp != now:
            self.close(kind)
            family = open_base(folder, self.device)
            self._open[kind] = Base(now, family, Rack(family.parts()))
        return self._open[kind]

    def _found(self, base: str, kind: Any) -> Path:
        """bases.find; of what may be long it is remembered: asking the network, unpacking a checkpoint."""
        from trainers import bases

        file = grounds.file_of(base)
        key = kind, base, shelf.base_stamp(base) if file and file.is_file() else ""
        if key not in self._folders or (file and file.is_dir()):
            self._folders[key] = bases.find(base, kind=kind)
        return self._folders[key]


def stamp(path: Path) -> Stamp:
    """An adapter's file or folder as it is now."""
    return str(path), shelf.stamp(path)
