"""LyCORIS' forms: each product of factors equals the dense product, element by element."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainers.lora.lycoris import hadamard, kronecker, lean, of_matrix, tucker


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def product(up: Tensor, down: Tensor) -> Tensor:
    return torch.einsum("or,ri...->oi...", up, down)


def test_hadamard_of_ranks_2_and_3_has_rank_6() -> None:
    one, other = (rand(7, 2), rand(2, 5)), (rand(7, 3), rand(3, 5))
    up, down = hadamard(*one, *other)
    assert (up.shape, down.shape) == ((7, 6), (6, 5))
    torch.testing.assert_close(product(up, down), (one[0] @ one[1]) * (other[0] @ other[1]))


def test_kronecker_of_a_matrix_and_a_kernel() -> None:
    one, kernel = (rand(2, 2), rand(2, 3)), rand(4, 5, 3, 3)
    up, down = kronecker(one, of_matrix(kernel))
    assert (up.shape, down.shape) == ((8, 8), (8, 15, 3, 3))
    torch.testing.assert_close(product(up, down), torch.kron((one[0] @ one[1])[..., None, None], kernel))


def test_tucker_contracts_the_input_side() -> None:
    core, down = rand(4, 2, 3, 3), rand(2, 5, 1, 1)
    torch.testing.assert_close(tucker(core, down), torch.einsum("rskl,si->rikl", core, down[..., 0, 0]))


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (3, 2, 3, 3), (20, 2, 3, 3)])
def test_a_matrix_is_itself_in_the_rank_of_its_smaller_side(shape: tuple[int, ...]) -> None:
    whole = rand(*shape)
    up, down = of_matrix(whole)
    assert len(down) == min(shape[0], whole[0].numel())
    assert torch.equal(product(up, down), whole)


def test_lean_keeps_what_is_lean_and_shortens_what_is_not() -> None:
    up, down = rand(4, 3), rand(3, 5)
    assert lean(up, down) == (up, down)
    up, down = rand(4, 9), rand(9, 5)
    less = lean(up, down)
    assert len(less[1]) == 4
    torch.testing.assert_close(product(*less), product(up, down))
