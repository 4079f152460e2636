"""The factors of many adapters side by side in a module, its forward hook, and the gains of all modules in one buffer.

A module's hook adds up (g * (down x)), with down (R, in), up (R, out) transposed, g (samples, R); R is the sum of the
adapters' ranks there. g is a view of one flat buffer (samples, columns of all modules), filled by one gather.

Try it: python -c "import torch; from trainers.lora.packed import *; print(times_(torch.ones(4, 3), torch.eye(2, 3)))"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks

from trainers.errors import AdapterError
from trainers.lora.blocks import block_of
from trainers.lora.fit import Place

NUMBERS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # other weights are packed: 8 bits, 4 bits


@dataclass
class Rows:
    """One adapter's share of one module's factors: tensors of its own until they are packed, views of the pack then."""

    module: nn.Module
    down: Tensor  # (r, in) or (r, in, kh, kw)
    up: Tensor  # (r, out): transposed, so that each adapter's share lies in one piece
    scale: float


def rows_of(place: Place, model: nn.Module) -> Rows:
    """A pair's factors where its module is, in the number format it computes in (the model's, if its own is packed)."""
    weights = chain(place.module.parameters(), model.parameters())
    dtype = next((weight.dtype for weight in weights if weight.dtype in NUMBERS), torch.float32)
    device = next(place.module.parameters()).device
    down, up = (half.detach().to(device, dtype) for half in (place.pair.down, place.pair.up.flatten(1).T))
    return Rows(place.module, down, up, place.pair.scale)


class Layer:
    """What acts in one module: the packed factors, the gains' columns and the hook."""

    def __init__(self, path: str, module: nn.Module) -> None:
        self.block = block_of(path)
        self.keys: list[str] = []  # of the adapters, in the order of R
        self.ranks: list[int] = []
        self.scales: list[float] = []
        self.down = self.up = self.gain = torch.empty(0)  # (R, in) or (R, in, kh, kw); (R, out); (samples, R)
        self.idle = True  # all its gains are 0
        self.hook = module.register_forward_hook(self.act)

    def pack(self, rows: Mapping[str, Rows]) -> None:
        """Put the shares of these adapters, and of no others, side by side."""
        shares = list(rows.values())
        self.keys, self.scales = list(rows), [share.scale for share in shares]
        self.ranks = [len(share.down) for share in shares]
        self.down = torch.cat([share.down for share in shares])
        self.up = torch.cat([share.up.contiguous() for share in shares])
        for share, down, up in zip(shares, self.down.split(self.ranks), self.up.split(self.ranks), strict=True):
            share.down, share.up = down, up

    def act(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The forward hook: the module's output plus up (g * (down x)).

        Raises AdapterError for a batch that isn't a multiple of the gains' samples.
        """
        if not torch.compiler.is_compiling() and self.idle:  # compiled code doesn't ask, so it can't depend on it
            return output
        x, dtype = args[0], self.down.dtype
        if len(x) % len(self.gain):
            what = f"a batch of {len(x)} can't have the gains of {len(self.gain)} samples"
            raise AdapterError(what, next_step="make the batch a multiple of the cells given to Rack.set")
        start = output
        if output.dtype != dtype or not output.is_contiguous() or not _is_ours(module, output):
            start = output.to(dtype).clone(memory_format=torch.contiguous_format)
        if isinstance(module, nn.Conv2d):
            low = module._conv_forward(x.to(dtype), self.down, None)  # (B, R, h, w); stride and such are the module's
            low = times_(low.flatten(2), self.gain[..., None]).to(dtype)
            start.flatten(2).baddbmm_(self.up.T.expand(len(x), -1, -1), low)  # (B, out, h w)
        else:
            low = times_(F.linear(x.to(dtype), self.down), self.gain).to(dtype)  # (B, …, R)
            start.flatten(0, -2).addmm_(low.flatten(0, -2), self.up)  # (B …, out)
        return start.to(output.dtype)


def _is_ours(module: nn.Module, output: Tensor) -> bool:
    """Whether nobody else can hold a module's output, so that adding to it in place (one copy less) is safe.

    Otherwise it may be needed for gradients, kept by another hook, or be no fresh tensor where the layer isn't torch's.
    """
    plain = type(module) in (nn.Linear, nn.Conv2d) and "forward" not in module.__dict__
    alone = len(module._forward_hooks) == 1 and not _global_forward_hooks
    return plain and alone and not output.requires_grad and not torch.compiler.is_compiling()


def times_(low: Tensor, gain: Tensor) -> Tensor:
    """In place, row b of (B, …, R) times gain b % samples (samples, R), or of (B, R, n) times (samples, R, 1)."""
    wide = gain.view(len(gain), *[1] * (low.dim() - gain.dim()), *gain.shape[1:])
    low.view(-1, len(gain), *low.shape[1:]).mul_(wide)
    return low


class Columns:
    """The gains of all layers on one device: a flat buffer (samples, columns) in which each layer's g is a view."""

    def __init__(self, layers: Sequence[Layer], keys: Sequence[str], blocks: Sequence[str]) -> None:
        """`keys` and `blocks`: all resident adapters and their blocks, in the order of the table given to `fill`."""
        self.layers = layers
        first = {key: n * len(blocks) for n, key in enumerate(keys)}
        place = {block: n for n, block in enumerate(blocks)}
        # an entry is one adapter in one module: where in the table its gain stands, its own scale, whose it is
        self.entries = torch.tensor([first[key] + place[layer.block] for layer in layers for key in layer.keys])
        self.scales = torch.tensor([scale for layer in layers for scale in layer.scales])
        self.owners = torch.tensor([n for n, layer in enumerate(layers) for _ in layer.keys])
        ranks = torch.tensor([rank for layer in layers for rank in layer.ranks])
        self.index = torch.arange(len(ranks)).repeat_interleave(ranks).to(layers[0].down.device)  # column -> entry
        self.flat = torch.empty(0)

    def fill(self, table: Tensor) -> None:
        """Gather the gains (samples, adapters x blocks) into the buffer, in place while the samples stay as many."""
        if len(table) != len(self.flat):
            self.flat = torch.empty(len(table), len(self.index), device=self.index.device)
            views = self.flat.split([sum(layer.ranks) for layer in self.layers], 1)
            for layer, view in zip(self.layers, views, strict=True):
                layer.gain = view
        own = table.index_select(1, self.entries).mul_(self.scales)  # (samples, entries)
        torch.index_select(own.to(self.flat.device), 1, self.index, out=self.flat)
        sums = torch.zeros(len(self.layers)).index_add_(0, self.owners, own.abs().sum(0))
        for layer, total in zip(self.layers, sums.tolist(), strict=True):
            layer.idle = not total
