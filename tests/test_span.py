"""Columns that are never stored: orthonormal, of the right space, Householder's where Cholesky would lose digits."""

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


@pytest.mark.parametrize(("condition", "kind"), [(30, Span), (1e4, Tensor), (1e8, Tensor)])
def test_the_condition_decides_where_no_single_column_shows_it(condition: float, kind: type) -> None:
    shear = torch.full((4, 4), condition**0.25).double().triu(1) + torch.eye(4)
    found = [[part.double() @ shear for part in own] for own in parts(4)]
    assert isinstance(check(found), kind)


def test_how_long_columns_are_does_not_matter() -> None:
    found = parts(4, 3)
    for own in found:
        own[0] *= 1e-6
        own[1][:, 0] *= 1e5
    assert isinstance(check(found), Span)


def test_more_columns_than_rows() -> None:
    assert isinstance(check(parts(4, 3, size=5)), Tensor)
