"""Columns that are never stored: orthonormal, of the right space, and Householder's where Cholesky would lose the digits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from studio.blend.span import Span, layer_of, spanned, stored


def parts(*ranks: int, size: int = 40) -> list[list[Tensor]]:
    numbers = torch.Generator().manual_seed(sum(ranks))
    return [[torch.randn(size, rank, generator=numbers) for rank in ranks] for _ in range(3)]


def whole(found: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.cat(own, 1).double() for own in found])


def check(found: list[list[Tensor]]) -> object:
    columns, r = spanned(found)
    q = stored(columns)
    assert torch.allclose(q.mT @ q, torch.eye(q.shape[2]).double().expand(len(q), -1, -1), atol=1e-10)
    assert torch.allclose(q @ r, whole(found), atol=1e-6)
    assert torch.allclose(columns @ r, whole(found), atol=1e-6)
    assert torch.allclose(stored(layer_of(columns, 1)), q[1:2], atol=1e-12)
    return columns


@pytest.mark.parametrize("transposed", [False, True])
def test_well_apart_they_are_not_stored(transposed: bool) -> None:
    found = parts(4, 3)
    if transposed:  # as `down` lies in memory
        found = [[part.mT.contiguous().mT for part in own] for own in found]
    assert isinstance(check(found), Span)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found[1][1].copy_(found[1][0][:, :3]),  # the same columns twice
        lambda found: found[1][1].copy_(found[1][0][:, :3] + 1e-6 * found[0][1]),  # nearly
        lambda found: found[2][1].zero_(),
    ],
    ids=["twice", "nearly twice", "zero"],
)
def test_dependent_columns_are_householders(change: object) -> None:
    found = parts(4, 3)
    change(found)  # type: ignore[operator]
    assert isinstance(check(found), Tensor)


def test_more_columns_than_rows() -> None:
    assert isinstance(check(parts(4, 3, size=5)), Tensor)
