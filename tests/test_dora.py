"""DoRA's formula, by output and by input, against peft's own merge and against numbers done by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.lora.dora import by_output, change


def test_a_magnitude_that_is_the_norm_changes_nothing_but_the_delta() -> None:
    weight, delta = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    for side in (1, 0):
        norm = (weight + delta).norm(dim=side, keepdim=True)
        torch.testing.assert_close(change(weight, delta, norm), delta)
        torch.testing.assert_close(change(weight, delta, 2 * norm), weight + 2 * delta)


def test_numbers_by_hand() -> None:
    weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    delta = torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    by_rows = change(weight, delta, torch.tensor([[10.0], [1.0]]))  # row 0 becomes (6, 8), row 1 stays
    assert by_rows.tolist() == [[3.0, 8.0], [0.0, 0.0]]
    by_columns = change(weight, delta, torch.tensor([[6.0, 17**0.5]]))  # column 0 becomes (6, 0), column 1 (4, 1)
    torch.testing.assert_close(by_columns, torch.tensor([[3.0, 4.0], [0.0, 0.0]]).double())


def test_kernels_have_one_magnitude_per_side() -> None:
    weight, delta = torch.randn(3, 4, 3, 3).double(), torch.randn(3, 4, 3, 3).double()
    for shape, sides in (((3, 1, 1, 1), (1, 2, 3)), ((1, 4, 1, 1), (0, 2, 3))):
        magnitude = torch.rand(shape).double()
        whole = weight + delta
        wanted = magnitude * whole / whole.square().sum(sides, keepdim=True).sqrt() - weight
        torch.testing.assert_close(change(weight, delta, magnitude), wanted)


@pytest.mark.parametrize(
    ("delta", "magnitude", "says"),
    [((3, 4), (5, 1), "neither side"), ((3, 5), (3, 1), "made for"), ((3, 4), (3, 4), "neither side")],
)
def test_sizes_that_do_not_fit(delta: tuple[int, ...], magnitude: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        change(torch.ones(3, 4), torch.ones(delta), torch.ones(magnitude))


@pytest.mark.parametrize("layer", [nn.Linear(4, 4, bias=False), nn.Conv2d(4, 4, 3, bias=False)])
def test_what_peft_merges_is_what_change_says(layer: nn.Module) -> None:
    from peft import LoraConfig, get_peft_model

    before = layer.weight.detach().clone()
    model = get_peft_model(
        nn.Sequential(layer),
        LoraConfig(r=2, lora_alpha=3, target_modules=["0"], use_dora=True, init_lora_weights=False),
    )
    part = model.base_model.model[0]
    magnitude = part.lora_magnitude_vector["default"].weight
    magnitude.data *= torch.linspace(0.5, 2, 4).reshape(magnitude.shape)
    delta = part.get_delta_weight("default").detach()
    part.merge()
    wanted = part.get_base_layer().weight.detach() - before
    got = change(before, delta, by_output(magnitude.detach()))
    torch.testing.assert_close(got.float(), wanted, rtol=1e-4, atol=1e-5)
