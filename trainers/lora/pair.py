"""One module's LoRA as a value, and what can be wrong with it.

Try it: python -c "import torch; from trainers.lora.pair import *; x = torch.eye(2); print(LoraPair(x, x, 1.0).delta())"
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LoraPair:
    """One module's low-rank change: delta = alpha / rank * up @ down (LoRA, Hu et al. 2021, section 4.1)."""

    down: Tensor  # (r, in) or (r, in, kh, kw)
    up: Tensor  # (out, r) or (out, r, 1, 1)
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """The dense float32 change of the weight, (out, in) or (out, in, kh, kw); for tests and small use."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.scale * product).reshape(self.up.shape[0], *self.down.shape[1:])


Pairs = dict[str, LoraPair]


def pair_faults(path: str, pair: LoraPair) -> list[str]:
    """What keeps `pair` from being a LoRA of any module: shapes, kinds of number, NaN and Inf."""
    down, up = pair.down, pair.up
    if down.ndim not in (2, 4) or up.ndim != down.ndim or not down.numel() or not up.numel():
        return [f"{path}: down {list(down.shape)} and up {list(up.shape)} must both be matrices or both be 4-D"]
    if up.shape[1] != pair.rank or any(side != 1 for side in up.shape[2:]):
        wanted = ["out", pair.rank, *[1] * (up.ndim - 2)]
        return [f"{path}: up is {list(up.shape)}, but down {list(down.shape)} wants {wanted}".replace("'", "")]
    halves = {"down": down, "up": up}
    if odd := [f"{half} is {part.dtype}" for half, part in halves.items() if not part.is_floating_point()]:
        return [f"{path}: {', '.join(odd)}, not floating point"]
    bad = [half for half, part in halves.items() if not bool(torch.isfinite(part.float()).all())]
    bad += [] if math.isfinite(pair.alpha) else ["alpha"]
    return [f"{path}: NaN or Inf in {' and '.join(bad)}"] if bad else []
