"""A layer and its LoRA in one function: autograd's own sum and gradients, in every number format."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.lora.joint import joint

Parts = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]


def parts(dtype: torch.dtype, bias: bool = True) -> Parts:
    made = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 5), (4, 5), (4,), (2, 5), (4, 2))
    x, weight, shift, down, up = (torch.randn(shape, generator=made).to(dtype) for shape in shapes)
    return x, weight, shift if bias else None, down, up


def told(out: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), wanted)


@pytest.mark.parametrize("bias", [True, False])
def test_sum_and_gradients_are_autograds(bias: bool) -> None:
    x, weight, shift, down, up = parts(torch.float64, bias)
    free = tuple(part.requires_grad_() for part in (x, down, up))
    out, wanted = joint(x, weight, shift, down, up, 1.5), F.linear(x, weight, shift) + 1.5 * x @ down.T @ up.T
    torch.testing.assert_close(out, wanted)
    for got, right in zip(told(out, *free), told(wanted, *free), strict=True):
        torch.testing.assert_close(got, right)


def test_an_input_that_needs_no_gradient_gets_none() -> None:
    x, weight, shift, down, up = parts(torch.float32)
    down.requires_grad_()
    [found] = told(joint(x, weight, shift, down, up, 1.0), down)
    assert found.any()
    assert x.grad is None


def test_factors_in_float32_beside_a_base_in_bfloat16_keep_their_format() -> None:
    x, weight, shift, down, up = parts(torch.bfloat16)
    down, up = (part.float().requires_grad_() for part in (down, up))
    out = joint(x, weight, shift, down, up, 1.0)
    assert out.dtype == torch.bfloat16
    assert {gradient.dtype for gradient in told(out, down, up)} == {torch.float32}


def test_autocast() -> None:
    x, weight, shift, down, up = parts(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = joint(x, weight, shift, down, up, 1.0)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), joint(x, weight, shift, down, up, 1.0), atol=0.1, rtol=0.05)
