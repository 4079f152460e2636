"""Orthonormal columns of the space that some factors span, made when they are asked for: the factors stay as they are.

CholeskyQR (Yamamoto et al. 2015): with r^T r = F^T F, F r^-1 has orthonormal columns. Only r, as small as the ranks, is
computed and kept, so factorising many layers touches each factor once and stores nothing of its size.

Try it: python -c "import torch; from studio.blend.span import *; print(spanned([[torch.eye(3, 2)]])[1])"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 300.0  # norm of r^-1 for columns of length 1: the error of F r^-1 is 10^-16 * its square, times at most 8


@dataclass(frozen=True)
class Span:
    """A stack (n, m, k) of orthonormal columns: the parts of layer i side by side, @ small[i]."""

    parts: Sequence[Sequence[Tensor]]  # n times some (m, r), in whatever number format the pairs have
    small: Tensor  # (n, sum of r, k), float64

    def __matmul__(self, other: Tensor) -> Tensor:
        """(n, m, k) @ (n, k, p) -> (n, m, p)."""
        small = self.small @ other
        made = small.new_empty(len(small), len(self.parts[0][0]), small.shape[2])
        for parts, own, whole in zip(self.parts, small, made, strict=True):
            torch.mm(_whole(parts), own, out=whole)
        return made

    def at(self, layer: int) -> Span:
        return Span([self.parts[layer]], self.small[layer : layer + 1])


Columns = Tensor | Span


def stored(columns: Columns) -> Tensor:
    """The columns as a tensor."""
    return columns if isinstance(columns, Tensor) else columns @ torch.eye(columns.small.shape[2]).to(columns.small)


def layer_of(columns: Columns, layer: int) -> Columns:
    """One layer's columns, as a stack of one."""
    return columns[layer : layer + 1] if isinstance(columns, Tensor) else columns.at(layer)


def spanned(parts: Sequence[Sequence[Tensor]]) -> tuple[Columns, Tensor]:
    """(columns (n, m, k), r (n, k, sum of r)), float64: the parts of each layer, side by side, are columns @ r.

    Where F r^-1 would be orthonormal to less than 1e-10 (columns near to dependent, or more than m), all of the stack's
    come from Householder's QR and are stored. How long single columns are doesn't matter.
    """
    gram = torch.stack([whole.mT @ whole for whole in map(_whole, parts)])
    r, failed = torch.linalg.cholesky_ex(gram, upper=True)
    if not failed.any():
        inverse = torch.linalg.solve_triangular(r, torch.eye(r.shape[1]).to(r).expand_as(r), upper=True)
        lengths = gram.diagonal(dim1=1, dim2=2).sqrt()
        if bool(((lengths[..., None] * inverse).flatten(1).norm(dim=1) <= LARGEST).all()):
            return Span(parts, inverse), r
    q, r = torch.linalg.qr(torch.stack([_whole(own) for own in parts]))
    return q, r


def _whole(parts: Sequence[Tensor]) -> Tensor:
    """(m, sum of r), float64; parts that are transposed views are put together the way they lie in memory."""
    if all(part.mT.is_contiguous() for part in parts):
        return torch.cat([part.mT for part in parts]).double().mT
    return torch.cat(list(parts), 1).double()
