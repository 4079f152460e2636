"""The seam between the one training loop and the kinds of models: what a family must be able to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

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
    of: int  # pictures of one kind in the step: slots from here on are class pictures'

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator of its own for each purpose: adding a purpose changes no other's numbers."""
        return generator_for(self.seed, self.step, self.slot, purpose)


@dataclass(frozen=True)
class Loss:
    """Sum over examples of weight x loss (a scalar with a graph), and each example's plain loss (B,), detached."""

    total: Tensor
    each: Tensor


class Family(Protocol):
    """A frozen base model with LoRA in it, seen from the loop."""

    resolution: int  # side of the pictures it was made for
    multiple: int  # picture sides must be multiples of this

    def parts(self) -> dict[str, nn.Module]:
        """The modules that may get LoRA, by component name ("unet", "text_encoder")."""

    def loss(self, examples: Sequence[Example]) -> Loss:
        """Forward pass and loss of one micro-batch; all examples have tensors of one shape."""


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
