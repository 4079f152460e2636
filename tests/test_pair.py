"""A LoraPair's numbers, and the faults found in one."""

from __future__ import annotations

import pytest
import torch

from trainers.lora.pair import LoraPair, pair_faults


def test_delta_of_a_linear_pair_is_scale_times_up_times_down() -> None:
    pair = LoraPair(down=torch.tensor([[1.0, 2.0, 3.0]]), up=torch.tensor([[1.0], [10.0]]), alpha=0.5)
    assert (pair.rank, pair.scale) == (1, 0.5)
    assert torch.equal(pair.delta(), torch.tensor([[0.5, 1.0, 1.5], [5.0, 10.0, 15.0]]))


def test_delta_of_a_convolution_does_what_its_two_convolutions_do() -> None:
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 3, 3, 3, generator=generator), torch.randn(5, 2, 1, 1, generator=generator)
    pair = LoraPair(down, up, alpha=4.0)
    x = torch.randn(1, 3, 6, 6, generator=generator)
    conv = torch.nn.functional.conv2d
    assert pair.delta().shape == (5, 3, 3, 3)
    torch.testing.assert_close(conv(x, pair.delta()), 2.0 * conv(conv(x, down), up))


def test_delta_of_half_precision_is_computed_in_float32() -> None:
    down, up = torch.full((1, 1), 300.0, dtype=torch.float16), torch.full((1, 1), 300.0, dtype=torch.float16)
    assert LoraPair(down, up, alpha=1.0).delta().item() == 90000.0


NAN = float("nan")


@pytest.mark.parametrize(
    ("down", "up", "alpha", "fault"),
    [
        (torch.ones(2, 3), torch.ones(4, 3), 1.0, "up is [4, 3], but down [2, 3] wants [out, 2]"),
        (torch.ones(2, 3, 1, 1), torch.ones(4, 2), 1.0, "must both be matrices or both be 4-D"),
        (torch.ones(2, 3, 1, 1), torch.ones(4, 2, 3, 3), 1.0, "wants [out, 2, 1, 1]"),
        (torch.ones(3), torch.ones(3), 1.0, "must both be matrices"),
        (torch.ones(0, 3), torch.ones(3, 0), 1.0, "must both be matrices"),
        (torch.ones(2, 3).int(), torch.ones(4, 2), 1.0, "down is torch.int32, not floating point"),
        (torch.full((2, 3), NAN), torch.full((4, 2), torch.inf), 1.0, "NaN or Inf in down and up"),
        (torch.ones(2, 3), torch.ones(4, 2), NAN, "NaN or Inf in alpha"),
    ],
)
def test_faults_name_the_path_and_what_is_wrong(down: torch.Tensor, up: torch.Tensor, alpha: float, fault: str) -> None:
    [found] = pair_faults("unet.x", LoraPair(down, up, alpha))
    assert found.startswith("unet.x: ")
    assert fault in found


def test_a_good_pair_has_no_faults() -> None:
    assert pair_faults("unet.x", LoraPair(torch.ones(2, 3), torch.ones(4, 2), 0.0)) == []
