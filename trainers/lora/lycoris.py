"""LyCORIS' kinds of change as exact low-rank forms: up (out, R) and down (R, in[, kh, kw]) with up @ down = the change.

Formulas of "Navigating Text-To-Image Customization" (Yeh et al. 2023, LyCORIS) and of its code: a Hadamard product of
ranks r and s has rank <= r s (Khatri-Rao products of the factors), a Kronecker product has the product of the ranks.

Try it: python -c "import torch; from trainers.lora.lycoris import *; x = torch.eye(2); print(hadamard(x, x, x, x))"
"""

from __future__ import annotations

import torch
from torch import Tensor

Factors = tuple[Tensor, Tensor]  # (up, down)


def tucker(core: Tensor, down: Tensor) -> Tensor:
    """A core (r, s, kh, kw) with the input side down (s, in[, 1, 1]) made one: (r, in, kh, kw)."""
    return torch.einsum("rs...,si->ri...", core, down.flatten(1))


def hadamard(up_1: Tensor, down_1: Tensor, up_2: Tensor, down_2: Tensor) -> Factors:
    """(up_1 @ down_1) * (up_2 @ down_2), element by element, in rank r s: face-splitting and Khatri-Rao products."""
    up = torch.einsum("or,os->ors", up_1, up_2).flatten(1)
    return up, torch.einsum("ri...,si...->rsi...", down_1, down_2).flatten(0, 1)


def kronecker(one: Factors, other: Factors) -> Factors:
    """kron(up_1 @ down_1, up_2 @ down_2) in rank r s; the second may be a convolution, as `down_2` (s, in, kh, kw)."""
    (up_1, down_1), (up_2, down_2) = one, other
    up = torch.einsum("or,ps->oprs", up_1, up_2)
    down = torch.einsum("ri,sj...->rsij...", down_1, down_2)
    return up.flatten(2).flatten(0, 1), down.flatten(2, 3).flatten(0, 1)


def of_matrix(whole: Tensor) -> Factors:
    """A matrix (out, in) or kernel (out, in, kh, kw) as factors of its smaller side's rank: itself and an identity."""
    out, inner = len(whole), whole[0].numel()
    if out <= inner:
        return torch.eye(out, dtype=whole.dtype), whole
    return whole.flatten(1), torch.eye(inner, dtype=whole.dtype).reshape(inner, *whole.shape[1:])


def lean(up: Tensor, down: Tensor) -> Factors:
    """The same change in no more rank than its smaller side has."""
    if len(down) <= min(len(up), down[0].numel()):
        return up, down
    return of_matrix((up @ down.flatten(1)).reshape(len(up), *down.shape[1:]))
