"""What a base is taken for: as it is stored, or as quantisation left it where adapters were trained on that (QLoRA).

An adapter trained on an NF4 or int8 base has learned to undo some of its error. So both bases are asked, with the
adapters, what comes next, and compared with what was trained on: the quantised base with the adapters in the rack.

Try it: `stylora merge --base tiny-lm --adapter runs/pirate_nf4 --out merged/pirate --onto auto`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from studio.merge.likeness import Likeness, likeness
from studio.merge.probe import Answers, Probe, answers, family_of, probe_for
from studio.merge.rewrite import REFUSED
from studio.merge.weights import Weights
from trainers.errors import ConfigError
from trainers.lora.fit import modules
from trainers.lora.rack import Rack

if TYPE_CHECKING:
    from studio.merge.ingredients import Ingredient
    from trainers.families.quantized import Quantization

QUANTISED = ("Linear4bit", "Linear8bitLt")  # bitsandbytes' layers


@dataclass(frozen=True)
class Onto:
    """What the adapters went onto, and how like what they were trained on either base is with them."""

    quantization: str  # of the base in training: nf4 or int8
    chosen: str  # 16bit or dequantised
    asked: str  # auto, or one of the two
    likeness: dict[str, Likeness]  # of 16bit and of dequantised

    def facts(self) -> dict[str, Any]:
        """For the receipt."""
        measured = {name: one.facts() for name, one in self.likeness.items()}
        return {"trained_on": self.quantization, "chosen": self.chosen, "asked": self.asked, "measured": measured}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Rows for people: the base, KL in nats (mean, largest), where the likeliest token is the same."""
        return [
            (name, f"{one.kl_mean:.2e}", f"{one.kl_max:.2e}", f"{one.agreement:.1%}")
            for name, one in self.likeness.items()
        ]

    def __str__(self) -> str:
        why = "the smaller KL" if self.asked == "auto" else f"--onto {self.asked}"
        return f"merged onto the {self.chosen} base ({why})"


def choose(weights: Weights, parts: Sequence[Ingredient], asked: str) -> tuple[Weights, Onto | None]:
    """The base's weights as they are to be merged onto; None where no adapter was trained on a quantised base.

    Raises ConfigError: `asked` can't be had.
    """
    kinds = {part.quantization for part in parts} - {"none"}
    if not kinds:
        if asked == "dequantised":
            fault = "--onto dequantised: no adapter was trained on a quantised base"
            raise ConfigError(REFUSED, [fault], "leave it out")
        return weights, None
    if len(kinds) > 1:
        faults = [f"{part.use.title}: trained on the base in {part.quantization}" for part in parts]
        raise ConfigError(REFUSED, faults, "merge adapters that were trained on one base")
    (kind,) = kinds
    measured, through = measure(weights, parts, kind)
    nearest = min(measured, key=lambda name: measured[name].kl_mean)
    chosen = nearest if asked == "auto" else asked
    return through if chosen == "dequantised" else weights, Onto(kind, chosen, asked, measured)


def measure(weights: Weights, parts: Sequence[Ingredient], kind: Quantization) -> tuple[dict[str, Likeness], Weights]:
    """({16bit, dequantised: how like the quantised base with the adapters}, the weights as dequantised)."""
    from trainers.families.causal_lm import CausalLM

    family: Any = CausalLM(weights.root, device="cpu", dtype=torch.float32, quantization=kind)
    probe = probe_for(family, words_of(parts))
    layers = [path for path, module in modules(family.parts()).items() if type(module).__name__ in QUANTISED]
    through = dequantised(weights, layers, kind)
    trained = with_rack(family, parts, probe)
    del family  # as large as the next
    family = family_of(weights.root, {}, Path())
    plain = with_rack(family, parts, probe)
    settle(family.parts(), through)
    after = with_rack(family, parts, probe)
    found = {"16bit": plain, "dequantised": after}
    return {name: likeness(trained["logits"], said["logits"]) for name, said in found.items()}, through


def dequantised(weights: Weights, layers: Sequence[str], kind: Quantization) -> Weights:
    """The weights with each of these layers as it is after quantising."""
    from trainers.families.quantized import dequantised as round_trip

    through: Any = partial(round_trip, kind=kind)
    names = {f"{path}.weight" for path in layers}
    tensors = {
        name: replace(source, through=through) if name in names else source for name, source in weights.tensors.items()
    }
    return replace(weights, tensors=tensors)


@torch.no_grad()
def settle(parts: dict[str, nn.Module], weights: Weights) -> None:
    """Give live models the numbers of those weights that are read through something."""
    live = modules(parts)
    for name, source in weights.tensors.items():
        if source.through:
            there: Tensor = live[name.removesuffix(".weight")].weight  # type: ignore[assignment]
            there.copy_(source.tensor().T if source.transposed else source.tensor())


def words_of(parts: Sequence[Ingredient]) -> str:
    """The adapters' own words: what they are called by in a prompt."""
    return ", ".join(part.adapter.info.trigger for part in parts if part.adapter.info.trigger)


def with_rack(family: Any, parts: Sequence[Ingredient], probe: Probe) -> Answers:
    """What a base says with the adapters in the rack."""
    with Rack(family.parts()) as rack:
        rack.set([{rack.add(part.adapter): part.use.gain for part in parts}])
        return answers(family, probe)
