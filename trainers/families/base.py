"""The seam between the one training loop and the kinds of models: what a family must be able to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainers.attention import Attention
from trainers.batches import generator_for

Encoding = Mapping[str, Tensor]
"""What the loop knows of a sample: named tensors without a batch dimension, made once by the family's encoders."""


@dataclass(frozen=True)
class Example:
    """One sample in one step. All its random numbers come from (seed, step, slot)."""

    encoding: Encoding
    weight: float
    seed: int
    step: int
    slot: int  # position in the step's whole batch
    of: int  # samples of one kind in the step: slots from here on are class pictures'

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator of its own for each purpose: adding a purpose changes no other's numbers."""
        return generator_for(self.seed, self.step, self.slot, purpose)


@dataclass(frozen=True)
class Loss:
    """A micro-batch's loss: what is added up over a step, and what the step's sum is divided by, once.

    `total` is the sum over examples of weight x loss, a scalar with a graph; `each` is each example's mean loss (B,),
    detached; `weight` counts what was learned from: pictures that are no class pictures, supervised tokens of text.
    """

    total: Tensor
    each: Tensor
    weight: float


class Family(Protocol):
    """A frozen base model, seen from a run. Parts are loaded when first asked for, and can be let go."""

    device: torch.device
    dtype: torch.dtype  # of the frozen weights
    attention: Attention

    def part(self, name: str) -> Any:
        """One of its models, or its tokenizer."""

    def parts(self) -> dict[str, nn.Module]:
        """The modules that may get LoRA, by component name ("unet", "text_encoder"; "model" of a language model)."""

    def loaded_parts(self) -> dict[str, nn.Module]:
        """Those of them that are in memory now."""

    def unload(self, name: str) -> None:
        """Let a part go."""

    def digest(self, part: str) -> str:
        """sha256 over a part's files."""

    def save_memory(self, on: bool) -> None:
        """Gradient checkpointing: activations are computed twice instead of kept."""

    def loss(self, examples: Sequence[Example]) -> Loss:
        """Forward pass and loss of one micro-batch."""


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own mode afterwards: a preview must not end the dropout of the training."""
    before = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training
