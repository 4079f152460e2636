"""In one module the rack's sum is that of the deltas, whatever the module is, and its output is nobody else's harm."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.errors import AdapterError
from trainers.lora.adapter import Adapter
from trainers.lora.fit import weight_shape
from trainers.lora.gains import Gain
from trainers.lora.packed import times_
from trainers.lora.pair import LoraPair
from trainers.lora.rack import Rack

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": (0, 2), "dilation": (1, 2), "bias": False},
    {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
    {"kernel_size": (1, 3)},
    {"kernel_size": 1},
]


def random_pair(shape: tuple[int, ...], rank: int, seed: int) -> LoraPair:
    made = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=made) / 4
    return LoraPair(down, torch.randn(shape[0], rank, *[1] * len(shape[2:]), generator=made) / 4, 1.0 + seed)


def racked(module: nn.Module, weights: list[list[float]]) -> tuple[nn.Module, Rack, list[LoraPair]]:
    """A model of this one module with an adapter for each column of `weights` (samples, adapters) acting in it."""
    model = nn.Sequential(module)
    rack = Rack({"unet": model})
    pairs = [random_pair(weight_shape(module), 2 + n, n) for n in range(len(weights[0]))]
    keys = [rack.add(Adapter({"unet.0": pair})) for pair in pairs]
    rack.set([{key: Gain(weight) for key, weight in zip(keys, row, strict=True)} for row in weights])
    return model, rack, pairs


def wanted(module: nn.Module, x: Tensor, pairs: list[LoraPair], weights: list[list[float]]) -> Tensor:
    """Row by row with the weighted deltas added to the weight itself."""
    rows = []
    for number, row in enumerate(x):
        twin = copy.deepcopy(module)
        twin._forward_hooks.clear()
        weight: Any = twin.weight
        for factor, pair in zip(weights[number % len(weights)], pairs, strict=True):
            weight.data += factor * pair.delta().view(weight.shape)
        rows.append(twin(row[None]))
    return torch.cat(rows)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("shape", [(4,), (5, 4), (3, 5, 4)], ids=str)
def test_linear_layers(shape: tuple[int, ...], samples: int) -> None:
    module, weights = nn.Linear(4, 6), [[0.5, -1.2], [2.0, 0.0]][:samples]
    model, _, pairs = racked(module, weights)
    x = torch.randn(4, *shape)
    with torch.no_grad():
        torch.testing.assert_close(model(x), wanted(module, x, pairs, weights), atol=1e-5, rtol=1e-5)
        turned = x.transpose(0, -1).contiguous().transpose(0, -1)
        torch.testing.assert_close(model(turned), model(x))


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
@torch.no_grad()
def test_convolutions(settings: dict[str, Any], samples: int) -> None:
    module, weights = nn.Conv2d(4, 6, **settings), [[0.5, -1.2], [2.0, 0.0]][:samples]
    model, _, pairs = racked(module, weights)
    x = torch.randn(4, 4, 9, 8)
    expected = wanted(module, x, pairs, weights)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    last = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), expected, atol=1e-5, rtol=1e-5)


def four_bits(layer: nn.Linear) -> nn.Linear:
    import bitsandbytes

    packed = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, quant_type="nf4")
    packed.load_state_dict(layer.state_dict())
    made: nn.Linear = packed.to("cpu")
    return made


def eight_bits(layer: nn.Linear) -> nn.Linear:
    import bitsandbytes

    packed = bitsandbytes.nn.Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False)
    packed.load_state_dict(layer.state_dict())
    made: nn.Linear = packed.to("cpu")
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pack", [four_bits, eight_bits])
@torch.no_grad()
def test_bases_of_few_bits(pack: Callable[[nn.Linear], nn.Linear], dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bitsandbytes, about kernels the CPU lacks
        module = pack(nn.Linear(64, 64))
        x = torch.randn(2, 3, 64, dtype=dtype)
        base = module(x)
        assert module.weight.shape != (64, 64) or module.weight.dtype == torch.int8
        model, _, pairs = racked(module, [[0.5], [-1.0]])
        out = model(x)
    assert out.dtype == base.dtype
    change = torch.stack(
        [weight * row.float() @ pairs[0].delta().T for weight, row in zip((0.5, -1.0), x, strict=True)]
    )
    torch.testing.assert_close(
        out.float(), base.float() + change, atol=0.05 if dtype == torch.bfloat16 else 1e-4, rtol=0.01
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@torch.no_grad()
def test_bases_in_other_number_formats(dtype: torch.dtype) -> None:
    module = nn.Linear(4, 6).to(dtype)
    model, _, pairs = racked(module, [[0.5, 1.5]])
    x = torch.randn(2, 3, 4, dtype=dtype)
    assert model(x).dtype == dtype
    expected = wanted(copy.deepcopy(module).double(), x.double(), pairs, [[0.5, 1.5]])
    torch.testing.assert_close(model(x).double(), expected, atol=0.02, rtol=0.02)


@torch.no_grad()
def test_autocast() -> None:
    model, _, _ = racked(nn.Linear(4, 6), [[0.5, 1.5]])
    x = torch.randn(2, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), model(x), atol=0.05, rtol=0.05)


def test_a_batch_that_is_no_multiple_of_the_samples_is_refused() -> None:
    model, _, _ = racked(nn.Linear(4, 6), [[0.5], [1.0]])
    assert model(torch.ones(4, 4)).shape == (4, 6)
    with pytest.raises(AdapterError, match=r"a batch of 3 .* 2 samples"):
        model(torch.ones(3, 4))


def test_rows_take_their_samples_gains_in_turn() -> None:
    low, gain = torch.ones(4, 2, 3), torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 5.0]])
    assert torch.equal(times_(low.clone(), gain)[:, 1], gain.repeat(2, 1))
    assert torch.equal(times_(torch.ones(4, 3, 2), gain[..., None])[..., 0], gain.repeat(2, 1))


# --- whose output it is -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_an_output_that_another_hook_has_kept_stays_as_it_was() -> None:
    module, kept = nn.Linear(4, 6), []
    watch = module.register_forward_hook(lambda _, __, out: kept.append(out))
    model, _, _ = racked(module, [[0.5]])
    x = torch.ones(2, 4)
    out = model(x)
    assert torch.equal(kept[0], nn.functional.linear(x, module.weight, module.bias))
    assert not torch.equal(out, kept[0])
    watch.remove()
    assert torch.equal(model(x), out)  # added in place now, to the same numbers


@torch.no_grad()
def test_a_layer_that_hands_out_the_same_tensor_again_is_not_added_to() -> None:
    class Same(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return self.table

    module = Same(4, 6)
    module.table = torch.zeros(2, 6)
    model, _, _ = racked(module, [[0.5]])
    assert torch.equal(model(torch.ones(2, 4)), model(torch.ones(2, 4)))
    assert not module.table.any()


def test_gradients_pass_through_it() -> None:
    module = nn.Linear(4, 6)
    model, rack, pairs = racked(module, [[0.5, -1.0], [1.0, 2.0]])
    x = torch.randn(2, 3, 4, requires_grad=True)
    model(x).square().sum().backward()
    assert x.grad is not None
    assert module.weight.grad is not None
    got, x.grad = x.grad, None
    rack.close()
    rows = [wanted(module, x[n : n + 1], pairs, [row]) for n, row in enumerate([[0.5, -1.0], [1.0, 2.0]])]
    torch.cat(rows).square().sum().backward()
    torch.testing.assert_close(got, x.grad, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_zero_gain_is_the_bare_module_itself() -> None:
    module = nn.Linear(4, 6)
    model, rack, _ = racked(module, [[0.0, 0.0]])
    x = torch.randn(2, 4)
    assert torch.equal(model(x), nn.functional.linear(x, module.weight, module.bias))
    assert all(layer.idle for layer in rack._layers.values())
