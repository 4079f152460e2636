"""Many adapters resident in one model, one gain each, per sample; the base's weights are never touched.

Every linear layer and convolution that some adapter changes gets a forward hook that adds

    y = W x + up (g * (down x)),      down: (R, in), up: (out, R), g: (samples, R)

where the factors of all resident adapters are packed along R (see packed). A change of weights writes one flat buffer
of numbers, in place: under torch.compile new gains for as many samples recompile nothing, other adapters do.
Not thread-safe: the thread that changes the rack is the one that runs the models.

Try it: python -c "from torch import nn; from trainers.lora.rack import Rack; print(Rack({'unet': nn.ReLU()}).resident)"
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainers.errors import AdapterError
from trainers.lora.adapter import Adapter, content_digest
from trainers.lora.blocks import order
from trainers.lora.fit import locate
from trainers.lora.gains import Gain
from trainers.lora.packed import Columns, Layer, Rows, rows_of

Gains = Mapping[str, Gain]  # adapter's key (its content digest) -> Gain; an adapter left out has gain 0


class Rack:
    """All adapters resident in the models of one base. A context: on leaving, the models are as they were.

    `parts` are models by component ("unet", "text_encoder"); while they are in the rack they stay on their devices.
    Row b of a batch has the gains of sample b % samples, so that a batch may be any multiple of the samples:
    classifier-free guidance doubles it (negative rows, then prompt rows). Several racks may act in one model at once.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        self.parts = dict(parts)
        self._resident: dict[str, dict[str, Rows]] = {}  # adapter's key -> canonical path -> its factors there
        self._layers: dict[str, Layer] = {}  # canonical path -> what acts there
        self._columns: list[Columns] = []
        self._blocks: tuple[str, ...] = ()  # the labels of the blocks in which anything acts
        self._changed: set[str] = set()  # canonical paths whose layers must be packed anew
        self._cells: list[Gains] = [{}]
        self._place = 0.0

    @property
    def resident(self) -> tuple[str, ...]:
        """The keys of the adapters in it, in the order they came."""
        return tuple(self._resident)

    def add(self, adapter: Adapter) -> str:
        """Make an adapter resident, with gain 0 until `set`; its key is its content digest.

        AdapterError: it doesn't fit, or has no modules.
        """
        key = content_digest(adapter)
        if key not in self._resident:
            self._resident[key] = self._rows(adapter)
            self._changed |= self._resident[key].keys()
        return key

    def remove(self, key: str) -> None:
        """Take one adapter out; the others keep their gains. KeyError where it isn't resident."""
        self._changed |= self._resident.pop(key).keys()
        self._cells = [{k: gain for k, gain in cell.items() if k != key} for cell in self._cells]
        self._write()

    def replace(self, key: str, adapter: Adapter) -> str:
        """Another adapter in the place of one, with that one's gains even if it was resident with gains of its own.

        KeyError where `key` isn't resident, AdapterError where the adapter doesn't fit: nothing has changed then.
        """
        old, new = self._resident[key], content_digest(adapter)
        if new == key:
            return key
        rows = self._resident.get(new) or self._rows(adapter)
        self._resident = {
            new if k == key else k: rows if k == key else v for k, v in self._resident.items() if k != new
        }
        cells = ({k: gain for k, gain in cell.items() if k != new} for cell in self._cells)
        self._cells = [{new if k == key else k: gain for k, gain in cell.items()} for cell in cells]
        self._changed |= old.keys() | rows.keys()
        self._write()
        return new

    def set(self, cells: Sequence[Gains], place: float = 0.0) -> None:
        """One mapping for each sample of the batch, or a single one for all. KeyError: an adapter isn't resident."""
        for key in {key for cell in cells for key in cell} - self._resident.keys():
            raise KeyError(key)
        self._cells, self._place = [dict(cell) for cell in cells] or [{}], place
        self._write()

    def at(self, place: float) -> None:
        """Move to a place of the denoising: 0 before the first step, k / n before step k of n."""
        moved, self._place = place != self._place, place
        if moved and any(gain.schedule for cell in self._cells for gain in cell.values()):
            self._write()

    def close(self) -> None:
        """Take everything out."""
        self._resident, self._cells, self._changed = {}, [{}], set(self._layers)
        self._write()

    def __enter__(self) -> Rack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the numbers ----------------------------------------------------------------------------------------------

    def _rows(self, adapter: Adapter) -> dict[str, Rows]:
        if not adapter.pairs:
            raise AdapterError("an adapter without modules changes nothing", next_step="leave it out")
        places = locate(self.parts, adapter.pairs)
        return {path: rows_of(place, self.parts[place.component]) for path, place in places.items()}

    @torch.inference_mode(False)  # the gains must stay writable when inference mode is left
    def _write(self) -> None:
        """Bring layers and gains up to date with what is resident and set."""
        if self._changed:
            self._pack()
        if self._columns:
            table = self._table()
            for columns in self._columns:
                columns.fill(table)

    def _table(self) -> Tensor:
        """The gains (samples, adapters x blocks), float32 on the CPU."""
        place, blocks, nothing = self._place, self._blocks, [0.0] * len(self._blocks)
        return torch.tensor(
            [
                [g for key in self._resident for g in (cell[key].row(place, blocks) if key in cell else nothing)]
                for cell in self._cells
            ]
        )

    def _pack(self) -> None:
        """Pack the changed layers anew, from the shares that stay as they are and those that are new."""
        hooked = set(self._layers)
        for path in sorted(self._changed):
            if shares := {key: rows[path] for key, rows in self._resident.items() if path in rows}:
                if path not in self._layers:
                    self._layers[path] = Layer(path, next(iter(shares.values())).module)
                self._layers[path].pack(shares)
            elif path in self._layers:
                self._layers.pop(path).hook.remove()
        self._changed = set()
        by_device: dict[torch.device, list[Layer]] = defaultdict(list)
        for layer in self._layers.values():
            by_device[layer.down.device].append(layer)
        self._blocks = tuple(sorted({layer.block for layer in self._layers.values()}, key=order))
        self._columns = [Columns(layers, self.resident, self._blocks) for layers in by_device.values()]
        if hooked != self._layers.keys():
            _forget_compiled()


def _forget_compiled() -> None:
    """Make torch.compile look at the models again: it doesn't notice hooks that come and go."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
