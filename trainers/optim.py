"""Optimizers over one flat buffer per learning-rate group; the learning rate as a function of the step.

bitsandbytes keeps 8-bit state in blocks of 256 numbers with one scale each, one call per tensor and only for tensors of
4,096 numbers and more. LoRA has hundreds of small ones: in one flat buffer they cost one call and are truly 8-bit.
The one door to bitsandbytes, opened on first use.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainers.errors import ConfigError, RunError, TrainingError

BLOCK = 256  # numbers that share one scale in bitsandbytes' 8-bit state

# Progress after the warmup, from 0 to 1, -> share of the peak learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def lr_at(step: int, *, peak: float, total: int, warmup: int, schedule: str) -> float:
    """Learning rate of update number `step` (0 is the first of `total`): linear rise, then the schedule; never 0."""
    warmup = min(warmup, total)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * SCHEDULES[schedule](min(1.0, (step - warmup) / max(1, total - warmup)))


def default_lr(widths: Sequence[int], constant: float = 0.2) -> float:
    """A constant over the mean input width of the adapted layers: 1.7e-3 on tiny-sd, 2.6e-4 on SD 1.5.

    Adam's best rate for a matrix falls as one over its input width (Yang et al. 2021, Tensor Programs V, muP); the
    constants were measured on tiny-sd and, for text, on tiny-lm (docs/log.md).
    """
    return constant * len(widths) / sum(widths)


class FlatGroup:
    """The trainable parameters of one learning rate as one flat float32 parameter, with each of them a view into it.

    Autograd adds up in place in `flat.grad`, which can be summed over processes, clipped and zeroed in one call. Each
    tensor starts at a multiple of 256, so that no 8-bit block mixes two tensors. The gaps get no gradient and nobody
    reads them: save `tensors()`, not `flat` (bitsandbytes' CPU code rounds a state of 0 up, so Lion moves them).
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], name: str = "") -> None:
        self.name = name
        self.named = sorted(named, key=lambda item: item[0])
        _check_parameters(self.named, name)
        device = self.named[0][1].device
        sizes = [-(-p.numel() // BLOCK) * BLOCK for _, p in self.named]
        self.starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.flat = nn.Parameter(torch.zeros(sum(sizes), dtype=torch.float32, device=device))
        self.flat.grad = torch.zeros_like(self.flat)
        for (_, p), values, grad in zip(
            self.named, self._views(self.flat.data), self._views(self.flat.grad), strict=True
        ):
            values.copy_(p.data)
            p.data = values
            p.grad = grad

    def _views(self, flat: Tensor) -> list[Tensor]:
        return [flat[i : i + p.numel()].view(p.shape) for i, (_, p) in zip(self.starts, self.named, strict=True)]

    @property
    def grad(self) -> Tensor:
        """The flat gradient, for summing over processes."""
        assert self.flat.grad is not None
        return self.flat.grad

    @property
    def numel(self) -> int:
        """Trainable numbers, without the gaps."""
        return sum(p.numel() for _, p in self.named)

    def zero_grad(self) -> None:
        """Zeroes in place; `optimizer.zero_grad()` would cut the views off."""
        self.grad.zero_()

    def check_views(self) -> None:
        """Raises if some code gave a parameter new values or a new gradient instead of writing into the old ones."""
        faults = []
        for (name, p), values, grad in zip(
            self.named, self._views(self.flat.data), self._views(self.grad), strict=True
        ):
            if not _same_memory(p.data, values):
                faults.append(f"{name}: its values lie elsewhere, so steps no longer reach it")
            if p.grad is None or not _same_memory(p.grad, grad):
                faults.append(f"{name}: its gradient lies elsewhere, so it would not be learned from")
        if faults:
            raise TrainingError(
                f"{len(faults)} parameters were cut off from the flat buffer:",
                faults,
                "move models and clear gradients before FlatGroup is made, and use its zero_grad",
            )

    def tensors(self) -> dict[str, Tensor]:
        """Values by name, as views without gradient, in the order of the names."""
        return {name: view for (name, _), view in zip(self.named, self._views(self.flat.data), strict=True)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over values by name; other names are left to other groups."""
        views = self.tensors()
        _check_stored(views, {name: tensors[name] for name in views if name in tensors}, "parameters")
        for name, view in views.items():
            view.copy_(tensors[name])


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()


def _check_parameters(named: Sequence[tuple[str, nn.Parameter]], group: str) -> None:
    names = [name for name, _ in named]
    faults = [f"{name}: named twice" for name in sorted({n for n in names if names.count(n) > 1})]
    faults += [f"{name}: is frozen" for name, p in named if not p.requires_grad]
    faults += [
        f"{name}: lies on {p.device}, not all on one device" for name, p in named if p.device != named[0][1].device
    ]
    if len({id(p) for _, p in named}) < len(set(names)):
        faults.append("one parameter has two names")
    if not named:
        faults.append("no parameter at all")
    if faults:
        raise TrainingError(f"The group {group!r} can't be trained:", faults, "check which modules got LoRA")


Rows = list[dict[str, Any]]  # one per FlatGroup, as torch.optim wants them


def _device(rows: Rows) -> str:
    return str(rows[0]["params"][0].device.type)


def _adamw(rows: Rows, **settings: Any) -> Optimizer:
    return torch.optim.AdamW(rows, lr=0.0, fused=_device(rows) in ("cpu", "cuda"), **settings)


def _bitsandbytes(name: str, paged: bool = False) -> Callable[..., Optimizer]:
    def make(rows: Rows, **settings: Any) -> Optimizer:
        # It says at import that an optional 4-bit kernel is missing, which no optimizer needs.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        import bitsandbytes.optim

        cls: Callable[..., Optimizer] = getattr(bitsandbytes.optim, name)
        on_gpu = _device(rows) == "cuda"  # paging moves GPU state to RAM under pressure; on a CPU it lies there already
        return cls(rows, lr=0.0, min_8bit_size=0, is_paged=paged and on_gpu, **settings)

    return make


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw8bit": _bitsandbytes("AdamW8bit"),  # Dettmers et al. 2022; 2 bytes of state a number
    "adamw": _adamw,  # Loshchilov & Hutter 2019; 8 bytes
    "paged-adamw8bit": _bitsandbytes("AdamW8bit", paged=True),  # Dettmers et al. 2023
    "lion8bit": _bitsandbytes("Lion8bit"),  # Chen et al. 2023; 1 byte; wants a third to a tenth of AdamW's lr
}


def build(name: str, groups: Sequence[FlatGroup], *, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
    """An optimizer of the table, with one parameter group per FlatGroup; `step` sets the learning rates."""
    if name not in OPTIMIZERS:
        raise ConfigError("No such optimizer:", [f"optim.name: got {name!r}, wanted {'|'.join(OPTIMIZERS)}"])
    rows = [{"params": [group.flat]} for group in groups]
    return OPTIMIZERS[name](rows, betas=betas, weight_decay=weight_decay)


@torch.no_grad()
def step(
    groups: Sequence[FlatGroup], optimizer: Optimizer, lrs: Sequence[float], clip: float, total_weight: float
) -> float:
    """One update from gradients of summed losses; returns the norm of the mean gradient, before clipping.

    Divides once by the summed weight (times the loss scale, under fp16), clips by the norm over all groups (clip 0:
    never), and zeroes the gradients. A norm that is not finite changes nothing but is returned: the caller decides.
    """
    if not total_weight > 0:
        raise TrainingError("A step has nothing to learn from:", [f"summed weight: got {total_weight}, wanted > 0"])
    norm = math.hypot(*(torch.linalg.vector_norm(group.grad).item() for group in groups)) / total_weight
    if math.isfinite(norm):
        factor = min(1.0, clip / norm if clip > 0 and norm > 0 else 1.0) / total_weight
        for group, row, lr in zip(groups, optimizer.param_groups, lrs, strict=True):
            group.grad.mul_(factor)
            row["lr"] = lr
        optimizer.step()
    for group in groups:
        group.zero_grad()
    return norm


def state_bytes(optimizer: Optimizer) -> int:
    """True bytes of the optimizer's state; what tensors share is counted once."""
    stored = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in stored}.values())


def _numbered(optimizer: Optimizer) -> list[tuple[int, nn.Parameter]]:
    return list(enumerate(p for row in optimizer.param_groups for p in row["params"]))


def state_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The whole state as copies on the CPU, "group.name" -> tensor, step counters too; empty before the first step."""
    return {
        f"{i}.{key}": torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
        for i, p in _numbered(optimizer)
        for key, value in optimizer.state[p].items()
    }


def load_state_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Takes over what `state_tensors` gave, bit for bit, into an optimizer built alike."""
    if not tensors:
        optimizer.state.clear()
        return
    _allocate(optimizer)
    _check_stored(state_tensors(optimizer), tensors, "optimizer state")
    for i, p in _numbered(optimizer):
        state = optimizer.state[p]
        for key, value in state.items():
            stored = tensors[f"{i}.{key}"]
            if isinstance(value, Tensor):
                value.copy_(stored)  # in place: a paged tensor must stay the paged one
            else:
                state[key] = stored.item()


def _allocate(optimizer: Optimizer) -> None:
    """Makes the state a first step would make, by a step at learning rate 0 without any gradient."""
    if all(optimizer.state[p] for _, p in _numbered(optimizer)):
        return
    for row in optimizer.param_groups:
        row["lr"] = 0.0
        for p in row["params"]:
            p.grad.zero_()
    optimizer.step()


def _check_stored(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor], what: str) -> None:
    faults = [f"{name}: missing" for name in wanted if name not in got]
    faults += [f"{name}: not wanted here" for name in got if name not in wanted]
    faults += [
        f"{name}: got {tuple(got[name].shape)} {got[name].dtype}, wanted {tuple(tensor.shape)} {tensor.dtype}"
        for name, tensor in wanted.items()
        if name in got and (got[name].shape, got[name].dtype) != (tensor.shape, tensor.dtype)
    ]
    if faults:
        raise RunError(f"The stored {what} don't fit this run:", faults, "resume with the settings the run began with")
