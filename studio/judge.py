"""Says what a drawn scene shows: a small classifier with two heads, the object and its colour.

It measures whether a style adapter keeps the content (`content_kept`) and whether the embedded base draws what was
asked. Trained by `python sample_data/make/judge.py` on drawn scenes in every look; its own held-out accuracy travels
in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from studio.style import Pictures, tensors
from trainers.errors import StyloraError

SIDE = 64  # pictures are brought to this size first
WIDTHS = (24, 48, 64, 96, 96)
STRIDES = (2, 2, 1, 2, 1)  # 64 -> 32 -> 16 -> 16 -> 8 -> 8


@dataclass(frozen=True)
class Verdict:
    """What a picture shows, and the probability given to each answer."""

    thing: str
    colour: str
    p_thing: float
    p_colour: float


class Glance(nn.Module):
    """One answer from a feature map: the map averaged where a learnt attention looks, beside its maximum."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(width, 1, 1)
        self.answer = nn.Linear(2 * width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes)."""
        where = self.look(features).flatten(2).softmax(-1)  # (B, 1, H*W)
        flat = features.flatten(2)  # (B, C, H*W)
        return self.answer(torch.cat([(flat * where).sum(-1), flat.amax(-1)], dim=-1))  # type: ignore[no-any-return]


class SceneJudge(nn.Module):
    """Five convolutions and two heads; class names and held-out accuracies (0..1, by name) belong to it."""

    def __init__(
        self, things: Sequence[str], colours: Sequence[str], accuracies: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.things, self.colours = tuple(things), tuple(colours)
        self.accuracies = dict(accuracies or {})
        layers: list[nn.Module] = []
        for before, width, stride in zip((3, *WIDTHS), WIDTHS, STRIDES, strict=False):
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.thing = Glance(WIDTHS[-1], len(self.things))
        self.colour = Glance(WIDTHS[-1], len(self.colours))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 64, 64) in 0..1 -> logits (B, things), (B, colours)."""
        features = self.trunk(pictures * 2 - 1)
        return self.thing(features), self.colour(features)

    @torch.no_grad()
    def judge(self, pictures: Pictures) -> list[Verdict]:
        """One verdict per picture."""
        if not len(pictures):
            return []
        self.eval()
        batch = torch.cat([fitted(picture) for picture in tensors(pictures)])
        device = next(self.parameters()).device
        things, colours = (logits.softmax(-1).max(-1) for logits in self(batch.to(device)))
        found = zip(
            *(x.tolist() for x in (things.indices, colours.indices, things.values, colours.values)), strict=True
        )
        return [Verdict(self.things[t], self.colours[c], p, q) for t, c, p, q in found]

    def save(self, path: Path | str, dtype: torch.dtype = torch.float16) -> None:
        """One safetensors file; names and accuracies in its header, weights in `dtype`."""
        facts = {"things": self.things, "colours": self.colours, "accuracies": self.accuracies}
        weights = {
            name: value.to(dtype if value.is_floating_point() else value.dtype).contiguous()
            for name, value in self.state_dict().items()
        }
        Path(path).write_bytes(save(weights, {name: json.dumps(fact) for name, fact in facts.items()}))

    @classmethod
    def load(cls, path: Path | str) -> SceneJudge:
        """The judge in a file that `save` wrote, in float32 and ready to judge; StyloraError when it isn't one."""
        try:
            with safe_open(str(path), "pt") as file:
                header = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError) as error:
            raise StyloraError(
                f"The judge's file {path} can't be read.", [str(error)], "Train one: python sample_data/make/judge.py"
            ) from error
        judge = cls(*facts_of(header, path))
        check_shapes(weights, judge.state_dict(), path)
        judge.load_state_dict(weights)
        return judge.eval()


def fitted(picture: Tensor) -> Tensor:
    """(3, H, W) in 0..1 -> (1, 3, SIDE, SIDE)."""
    if picture.shape[-2:] == (SIDE, SIDE):
        return picture[None]
    return F.interpolate(picture[None], (SIDE, SIDE), mode="bilinear", antialias=True)


def facts_of(header: Mapping[str, str], path: Path | str) -> tuple[list[str], list[str], dict[str, float]]:
    """Class names and accuracies from a file's header; every missing one named."""
    faults = [f"{name}: missing in the header" for name in ("things", "colours", "accuracies") if name not in header]
    if faults:
        raise StyloraError(f"{path} is not a judge.", faults, "Give a file that sample_data/make/judge.py wrote.")
    return json.loads(header["things"]), json.loads(header["colours"]), json.loads(header["accuracies"])


def check_shapes(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path | str) -> None:
    """Every tensor there, no other, each of the right shape; else all faults at once."""

    def shape(table: Mapping[str, Tensor], name: str) -> str:
        return str(list(table[name].shape)) if name in table else "nothing"

    faults = [
        f"{name}: got {shape(got, name)}, wanted {shape(wanted, name)}"
        for name in sorted({*got, *wanted})
        if shape(got, name) != shape(wanted, name)
    ]
    if faults:
        raise StyloraError(f"{path} is a judge of another build.", faults, "Train it again: sample_data/make/judge.py")
