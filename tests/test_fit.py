"""Every pair finds its module by name and size, whatever wraps the model; what doesn't fit is named with the reason."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from trainers.errors import AdapterError
from trainers.lora import fit
from trainers.lora.pair import LoraPair


def pair(out: int, into: int, *kernel: int) -> LoraPair:
    return LoraPair(torch.ones(2, into, *kernel), torch.ones(out, 2, *[1] * len(kernel)), 1.0)


@pytest.fixture
def parts() -> dict[str, nn.Module]:
    unet = nn.ModuleDict({"lin": nn.Linear(4, 6), "one": nn.Conv2d(4, 6, 1), "conv": nn.Conv2d(4, 6, 3)})
    unet["grouped"] = nn.Conv2d(4, 6, 3, groups=2)
    return {"unet": unet, "text_encoder": nn.ModuleDict({"fc1": nn.Linear(3, 5), "text_projection": nn.Linear(3, 3)})}


def test_paths_are_those_of_files_for_either_layout_of_clip() -> None:
    wanted = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    assert fit.canonical("text_encoder", "encoder.layers.0.mlp.fc1") == wanted
    assert fit.canonical("text_encoder", "text_model.encoder.layers.0.mlp.fc1") == wanted
    assert fit.canonical("text_encoder_2", "text_projection") == "text_encoder_2.text_projection"
    assert fit.canonical("unet", "conv_in") == "unet.conv_in"


def test_shapes_are_by_canonical_path(parts: dict[str, nn.Module]) -> None:
    assert fit.shapes(parts) == {
        "unet.lin": (6, 4),
        "unet.one": (6, 4, 1, 1),
        "unet.conv": (6, 4, 3, 3),
        "unet.grouped": (6, 2, 3, 3),
        "text_encoder.text_model.fc1": (5, 3),
        "text_encoder.text_projection": (3, 3),
    }


def test_a_compiled_models_modules_keep_their_names(parts: dict[str, nn.Module]) -> None:
    compiled = {name: torch.compile(model, backend="eager") for name, model in parts.items()}
    assert fit.shapes(compiled) == fit.shapes(parts)


def test_a_pair_takes_the_form_of_its_module(parts: dict[str, nn.Module]) -> None:
    given = {"unet.lin": pair(6, 4, 1, 1), "unet.one": pair(6, 4), "unet.conv": pair(6, 4, 3, 3)}
    places = fit.locate(parts, given)
    assert {name: place.module is parts["unet"][place.path] for name, place in places.items()} == dict.fromkeys(
        given, True
    )
    assert {name: place.pair.down.shape[1:] for name, place in places.items()} == {
        "unet.lin": (4,), "unet.one": (4, 1, 1), "unet.conv": (4, 3, 3),
    }  # fmt: skip
    assert all(
        torch.equal(place.pair.delta().flatten(), given[name].delta().flatten()) for name, place in places.items()
    )


def test_every_pair_that_does_not_fit_is_named_with_the_reason(parts: dict[str, nn.Module]) -> None:
    wrong = {
        "unet.nowhere": pair(6, 4),
        "unet.lin": pair(6, 9),
        "unet.conv": pair(6, 4),
        "unet.grouped": pair(6, 2, 3, 3),
        "text_encoder_2.text_model.fc1": pair(5, 3),
    }
    good = {"unet.one": pair(6, 4)}
    with pytest.raises(AdapterError) as caught:
        fit.locate(parts, wrong | good)
    faults = dict(fault.split(": ", 1) for fault in caught.value.faults)
    assert faults.keys() == wrong.keys()
    assert "(6, 9)" in faults["unet.lin"]
    assert "2 groups" in faults["unet.grouped"]
    assert "no such module" in faults["unet.nowhere"]
    assert fit.fitting(wrong | good, fit.shapes(parts)).keys() == {"unet.one", "unet.grouped"}


def test_gpt2s_layers_and_packed_ones_are_taken_as_they_compute() -> None:
    from bitsandbytes.nn import Linear8bitLt
    from transformers.pytorch_utils import Conv1D

    turned, plain = Conv1D(6, 4), nn.Linear(4, 6)
    packed = Linear8bitLt(4, 6, has_fp16_weights=False)
    packed.load_state_dict(plain.state_dict())
    model = nn.ModuleDict({"turned": turned, "plain": plain, "packed": packed.to("cpu")})
    assert fit.shapes({"model": model}) == {f"model.{name}": (6, 4) for name in ("turned", "plain", "packed")}
    assert torch.equal(fit.weight(turned), turned.weight.T)
    assert torch.equal(fit.weight(plain), plain.weight)
    assert not fit.is_transposed(nn.Conv1d(4, 6, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bitsandbytes, about number formats
        torch.testing.assert_close(fit.weight(model["packed"]), plain.weight, atol=0.01, rtol=0)
    assert fit.locate({"model": model}, {"model.turned": pair(6, 4)})["model.turned"].module is turned
