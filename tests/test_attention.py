"""xformers is used where it gives torch's own numbers, and `why` says what stood in the way elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trainers import attention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def right(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What xformers' kernel promises: (batch, tokens, heads, width) in and out."""
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def raising(error: Exception) -> Callable[..., Any]:
    def kernel(*_: Any) -> Any:
        raise error

    return kernel


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Puts a module of that name in the place of the real one, with the kernel given."""

    def install(kernel: Callable[..., Any]) -> None:
        ops = ModuleType("xformers.ops")
        ops.memory_efficient_attention = kernel  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
        monkeypatch.setitem(sys.modules, "xformers.ops", ops)

    return install


def test_a_right_kernel_has_no_fault(xformers: Callable[..., None]) -> None:
    xformers(right)
    assert attention._fault(CPU, torch.float32) == ""


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (lambda q, k, v: right(q, k, q), "its numbers are wrong"),
        (lambda q, k, v: right(q, k, v) * torch.nan, "its numbers are wrong"),
        (raising(NotImplementedError("No operator found\nfor this GPU")), "No operator found"),
        (raising(RuntimeError()), "RuntimeError"),
        (raising(OSError("libxformers.so: undefined symbol")), "libxformers.so: undefined symbol"),
    ],
)
def test_a_fault_is_one_line(xformers: Callable[..., None], kernel: Callable[..., Any], why: str) -> None:
    xformers(kernel)
    assert attention._fault(CPU, torch.float32) == why


def test_no_gpu_means_torch() -> None:
    chosen = attention.choose(CPU)
    assert chosen.name == "sdpa"
    assert "no kernels for cpu" in chosen.why


@pytest.mark.parametrize(
    ("installed", "fault", "name", "why"),
    [
        (False, "", "sdpa", "not installed (extra `cuda`)"),
        (True, "no kernel", "sdpa", "xformers fails here (no kernel)"),
        (True, "", "xformers", "works on this GPU"),
    ],
)
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, installed: bool, fault: str, name: str, why: str) -> None:
    monkeypatch.setattr(attention.util, "find_spec", lambda _: object() if installed else None)
    monkeypatch.setattr(attention, "_fault", lambda *_: fault)
    chosen = attention.choose.__wrapped__(CUDA)
    assert chosen.name == name
    assert why in chosen.why
