"""Where to compute and in which number format; several processes through accelerate.

`accelerate launch --num_processes 2 -m trainers train …` runs one training on two GPUs. On a CPU accelerate starts one
process only; there it takes `accelerate launch --multi_gpu --num_processes 2 -m trainers train … --train.device cpu`.
"""

from __future__ import annotations

import os
import resource
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from trainers.errors import ConfigError

WIDE = 640  # channels
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    """The device of this process, its number format ("fp32" | "bf16" | "fp16"), and its place among the processes."""

    state: PartialState
    precision: str

    @property
    def device(self) -> torch.device:
        device: torch.device = self.state.device
        return device

    @property
    def rank(self) -> int:
        return int(self.state.process_index)

    @property
    def world(self) -> int:
        return int(self.state.num_processes)

    @property
    def leads(self) -> bool:
        """True in the one process that writes files and tells the world."""
        return bool(self.state.is_main_process)

    @property
    def frozen_dtype(self) -> torch.dtype:
        """Half precision for the frozen base on accelerators; on a CPU it stays in float32, which is faster there."""
        return DTYPES[self.precision] if self.device.type != "cpu" else torch.float32

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, needed by float16 alone."""
        scaler = torch.amp.GradScaler(self.device.type, init_scale=1024.0, enabled=self.precision == "fp16")
        scaler.scale(torch.zeros((), device=self.device))  # makes its scale now: a resumed run sets it before any step
        return scaler

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in each of them."""
        return reduce(tensor, "sum") if self.world > 1 else tensor

    def number(self, value: float) -> float:
        """The sum of a number over all processes."""
        return float(self.sum(torch.tensor(value, device=self.device))) if self.world > 1 else value

    def sum_(self, tensor: Tensor) -> None:
        """The same, in place."""
        if self.world > 1:
            tensor.copy_(reduce(tensor, "sum"))

    def wait(self) -> None:
        self.state.wait_for_everyone()


def machine(device: str = "auto", precision: str = "auto", width: int = 0) -> Machine:
    """Open the device asked for; `width` (the base's widest layer) decides what "auto" means on a CPU.

    Raises ConfigError where the device isn't there.
    """
    if device != "auto" and not _exists(device):
        there = ", ".join(name for name in ("cpu", "cuda", "mps") if _exists(name))
        raise ConfigError(
            f"train.device={device}: this machine has no such device", [f"there: {there}"], "use --device auto"
        )
    if device.startswith(("cuda:", "mps")):
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    state = PartialState(cpu=device == "cpu" or (not torch.cuda.is_available() and not _exists("mps")))
    kind = state.device.type
    if precision == "auto":
        precision = ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if kind == "cuda" else _on_cpu(width)
    return Machine(state, precision)


def _on_cpu(width: int) -> str:
    """bfloat16 where the processor has it and the layers are wide: 2.5 times as fast on SD 1.5, no gain on tiny-sd."""
    return "bf16" if width >= WIDE and torch.cpu._is_avx512_bf16_supported() else "fp32"


def _exists(device: str) -> bool:
    kind, _, index = device.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return (index or "0") in map(str, range(count))
    return kind == "cpu" or (kind == "mps" and torch.backends.mps.is_available())


def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process has held so far, on the GPU where there is one, else in main memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
