"""The rack's sum is that of the weighted deltas, per sample, block and step; and the base never changes by a bit."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.errors import AdapterError
from trainers.lora import fit
from trainers.lora.adapter import Adapter, content_digest
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair
from trainers.lora.rack import Gains, Rack

Parts = dict[str, nn.Module]


class Small(nn.Module):
    """A UNet in name: linear layers and convolutions in blocks IN00, IN01, MID, OUT00, OTHER."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.down_blocks = nn.ModuleList([nn.ModuleDict({"attentions": nn.ModuleList([nn.Linear(8, 8, bias=False)])})])
        self.mid_block = nn.Conv2d(8, 8, 1)
        self.up_blocks = nn.ModuleList([nn.ModuleDict({"resnets": nn.ModuleList([nn.Linear(8, 8)])})])
        self.conv_out = nn.Conv2d(8, 3, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x).tanh()
        x = x + self.down_blocks[0]["attentions"][0](x.flatten(2).mT).mT.view_as(x).tanh()
        x = x + self.mid_block(x).tanh()
        x = x + self.up_blocks[0]["resnets"][0](x.mean((2, 3)))[..., None, None].tanh()
        out: Tensor = self.conv_out(x)
        return out


@pytest.fixture
def small() -> Parts:
    torch.manual_seed(0)
    return {"unet": Small(), "text_encoder": nn.ModuleDict({"fc1": nn.Linear(6, 6)})}


def run(parts: Parts, batch: int = 4) -> Tensor:
    """Rows that differ, through both parts: (batch, 27)."""
    made = torch.Generator().manual_seed(7)
    pictures, words = torch.randn(batch, 3, 6, 6, generator=made), torch.randn(batch, 2, 6, generator=made)
    text: Any = parts["text_encoder"]
    with torch.no_grad():
        return torch.cat([parts["unet"](pictures).flatten(1), text["fc1"](words).flatten(1)], 1)


def made_for(parts: Parts, seed: int, share: float = 0.7, size: float = 0.5) -> Adapter:
    """A random adapter for about `share` of the modules; ranks 1 to 4, any scale."""
    dice, made = random.Random(seed), torch.Generator().manual_seed(seed)
    pairs = {}
    for name, shape in fit.shapes(parts).items():
        if dice.random() < share or not pairs:
            rank = dice.randint(1, 4)
            down = size * torch.randn(rank, *shape[1:], generator=made)
            up = size * torch.randn(shape[0], rank, *[1] * len(shape[2:]), generator=made)
            pairs[name] = LoraPair(down, up, dice.choice((0.5, 1.0, 3.0)) * rank)
    return Adapter(pairs)


def merged(parts: Parts, adapters: dict[str, Adapter], cell: Gains, place: float = 0.0) -> Parts:
    """A copy with the weighted deltas added to the weights: what LoRA means."""
    twin: Parts = copy.deepcopy(parts)
    for model in twin.values():
        for module in model.modules():
            module._forward_hooks.clear()
    for key, gain in cell.items():
        for path, spot in fit.locate(twin, adapters[key].pairs).items():
            spot.module.get_parameter("weight").data += gain.at(path, place) * spot.pair.delta()
    return twin


def wanted(parts: Parts, adapters: dict[str, Adapter], cells: Sequence[Gains], place: float = 0.0) -> Tensor:
    """Row by row: sample k of the cells has rows k, k + len(cells), …"""
    whole = [run(merged(parts, adapters, cell, place)) for cell in cells]
    return torch.stack([whole[row % len(cells)][row] for row in range(len(whole[0]))])


def any_gain(dice: random.Random) -> Gain:
    return Gain(
        dice.choice((0.0, 1.0, -0.6, dice.random())),
        dice.choice((None, None, 0.0, 0.7)),
        {label: dice.random() for label in ("IN00", "MID", "OUT00", "BASE", "OTHER") if dice.random() < 0.3},
        dice.choice(((), ((0.0, 0.2), (0.5, 1.0)))),
    )


def bits(parts: Parts) -> dict[str, bytes]:
    return {f"{part}.{name}": tensor.numpy().tobytes() for part, model in parts.items()
            for name, tensor in model.state_dict().items()}  # fmt: skip


def hooks(parts: Parts) -> int:
    return sum(len(module._forward_hooks) for model in parts.values() for module in model.modules())


# --- what acts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_rows_have_their_samples_weights_blocks_and_schedules(small: Parts, samples: int) -> None:
    """A batch of 4: samples 2 is what classifier-free guidance makes of two pictures."""
    dice = random.Random(samples)
    with Rack(small) as rack:
        adapters = {rack.add(adapter): adapter for adapter in (made_for(small, seed) for seed in range(3))}
        cells = [{key: any_gain(dice) for key in dice.sample(sorted(adapters), 2)} for _ in range(samples)]
        rack.set(cells)
        for place in (0.0, 0.25, 0.9):
            rack.at(place)
            torch.testing.assert_close(run(small), wanted(small, adapters, cells, place), atol=1e-4, rtol=1e-4)
        one = run(small)
        for row, cell in enumerate(cells):  # cell i of the batch is the single run i
            rack.set([cell], 0.9)
            torch.testing.assert_close(run(small)[row], one[row], atol=1e-5, rtol=1e-5)


def test_an_adapter_is_silent_until_it_is_set(small: Parts) -> None:
    base = run(small)
    with Rack(small) as rack:
        one, two = made_for(small, 1), made_for(small, 2)
        rack.set([{rack.add(one): Gain()}])
        alone = run(small)
        assert not torch.equal(alone, base)
        key = rack.add(two)
        assert torch.equal(run(small), alone)
        rack.set([{}])
        assert torch.equal(run(small), base)
        rack.set([{key: Gain(0.0)}])
        assert torch.equal(run(small), base)


def test_its_key_is_its_content(small: Parts) -> None:
    with Rack(small) as rack:
        key = rack.add(made_for(small, 1))
        assert key == content_digest(made_for(small, 1)) == rack.add(made_for(small, 1))
        assert rack.resident == (key,)
        for wrong in (
            lambda: rack.remove("?"),
            lambda: rack.set([{"?": Gain()}]),
            lambda: rack.replace("?", Adapter({})),
        ):
            with pytest.raises(KeyError):
                wrong()
        with pytest.raises(AdapterError, match="without modules"):
            rack.add(Adapter({}))
        assert rack.resident == (key,)


def test_the_adapters_own_tensors_are_copied(small: Parts) -> None:
    adapter = made_for(small, 1)
    with Rack(small) as rack:
        rack.set([{rack.add(adapter): Gain()}])
        before = run(small)
        for pair in adapter.pairs.values():
            pair.down.zero_()
        assert torch.equal(run(small), before)


def test_inference_mode_leaves_nothing_behind(small: Parts) -> None:
    with Rack(small) as rack:
        with torch.inference_mode():
            key = rack.add(made_for(small, 1))
            rack.set([{key: Gain()}])
            before = run(small)
        rack.set([{key: Gain(0.5)}])
        rack.set([{key: Gain(1.0)}])
        assert torch.equal(run(small), before)


# --- in and out -------------------------------------------------------------------------------------------------------


def test_removing_and_adding_leave_the_others_numbers_alone(small: Parts) -> None:
    with Rack(small) as rack:
        keys = [rack.add(made_for(small, seed)) for seed in range(4)]
        rack.set([{key: Gain(0.3 + n) for n, key in enumerate(keys)}])
        rack.remove(keys[1])
        rack.add(made_for(small, 9))
        got = run(small)
    with Rack(small) as fresh:
        fresh.set([{fresh.add(made_for(small, n)): Gain(0.3 + n) for n in (0, 2, 3)}])
        torch.testing.assert_close(got, run(small), atol=1e-5, rtol=1e-5)


def test_a_replacement_gets_the_gains_even_if_it_was_resident(small: Parts) -> None:
    one, two, three = (made_for(small, seed) for seed in (1, 2, 3))
    for resident in (False, True):
        with Rack(small) as rack:
            first, other = rack.add(one), rack.add(three)
            cells = [{first: Gain(0.5), other: Gain(-1.0)}, {first: Gain(2.0)}]
            if resident:
                cells[0][rack.add(two)] = Gain(7.0)
            rack.set(cells)
            new = rack.replace(first, two)
            assert rack.resident == (new, other)
            expected = [{new: Gain(0.5), other: Gain(-1.0)}, {new: Gain(2.0)}]
            torch.testing.assert_close(
                run(small), wanted(small, {new: two, other: three}, expected), atol=1e-4, rtol=1e-4
            )
            assert rack.replace(new, two) == new


def test_an_adapter_that_does_not_fit_changes_nothing(small: Parts) -> None:
    good = made_for(small, 1, share=1.0)
    wrong = {
        "unet.conv_in": LoraPair(torch.ones(2, 3, 1, 1), torch.ones(8, 2, 1, 1), 1.0),
        "unet.nowhere": LoraPair(torch.ones(2, 3), torch.ones(8, 2), 1.0),
        "text_encoder_2.text_model.fc1": LoraPair(torch.ones(2, 6), torch.ones(6, 2), 1.0),
    }
    with Rack(small) as rack:
        rack.set([{rack.add(good): Gain()}])
        before, resident, there = run(small), rack.resident, hooks(small)
        for change in (rack.add, lambda adapter: rack.replace(resident[0], adapter)):
            with pytest.raises(AdapterError) as caught:
                change(Adapter(good.pairs | wrong))
            assert {fault.partition(":")[0] for fault in caught.value.faults} == wrong.keys()
            assert (rack.resident, hooks(small)) == (resident, there)
            assert torch.equal(run(small), before)


def test_two_racks_in_one_model_add_up(small: Parts) -> None:
    base = run(small)
    one, two = made_for(small, 1), made_for(small, 2)
    first, second = Rack(small), Rack(small)
    cell = {first.add(one): Gain(0.5), second.add(two): Gain(-1.0)}
    first.set([{content_digest(one): Gain(0.5)}])
    second.set([{content_digest(two): Gain(-1.0)}])
    expected = wanted(small, {content_digest(one): one, content_digest(two): two}, [cell])
    torch.testing.assert_close(run(small), expected, atol=1e-4, rtol=1e-4)
    first.close()
    second.close()
    assert torch.equal(run(small), base)


def operations(rack: Rack, parts: Parts, dice: random.Random, count: int) -> Iterator[str]:
    """Random use of the rack, the wrong kind too; yields what was done."""
    shelf = [made_for(parts, seed, size=0.2) for seed in range(8)]
    misfit = Adapter({"unet.nowhere": LoraPair(torch.ones(2, 3), torch.ones(8, 2), 1.0)})
    for _ in range(count):
        what = dice.choice(("add", "add", "remove", "replace", "set", "set", "at", "run", "misfit", "batch"))
        keys = rack.resident
        if what == "add":
            rack.add(dice.choice(shelf))
        elif what == "remove" and keys:
            rack.remove(dice.choice(keys))
        elif what == "replace" and keys:
            rack.replace(dice.choice(keys), dice.choice(shelf))
        elif what == "set":
            cells = [{k: any_gain(dice) for k in keys if dice.random() < 0.7} for _ in range(dice.choice((1, 2, 4)))]
            rack.set(cells, dice.random())
        elif what == "at":
            rack.at(dice.random())
        elif what == "run":
            run(parts)
        elif what == "misfit":
            with pytest.raises(AdapterError):
                rack.add(misfit) if dice.random() < 0.5 or not keys else rack.replace(keys[0], misfit)
        elif what == "batch" and any(len(layer.gain) == 4 and not layer.idle for layer in rack._layers.values()):
            with pytest.raises(AdapterError):
                run(parts, batch=3)
        yield what


def test_a_thousand_operations_leave_the_base_as_it_was(small: Parts) -> None:
    weights, output = bits(small), run(small)
    made = 0
    with Rack(small) as rack:
        for step, what in enumerate(operations(rack, small, random.Random(3), 1000)):
            made += what == "run"
            if step % 100 == 99:
                assert bits(small) == weights
                cells, place = rack._cells, rack._place
                shelf = {content_digest(a): a for a in (made_for(small, seed, size=0.2) for seed in range(8))}
                torch.testing.assert_close(run(small), wanted(small, shelf, cells, place), atol=1e-3, rtol=1e-3)
    assert made > 50
    assert hooks(small) == 0
    assert bits(small) == weights
    assert torch.equal(run(small), output)


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.fixture
def compiles() -> Iterator[list[int]]:
    torch.compiler.reset()
    yield []
    torch.compiler.reset()


@pytest.mark.parametrize("samples", [1, 2])
def test_new_weights_recompile_nothing_and_new_adapters_are_noticed(
    small: Parts, compiles: list[int], samples: int
) -> None:
    def count(graph: Any, _: Any) -> Any:
        compiles.append(1)
        return graph.forward

    compiled = {**small, "unet": torch.compile(small["unet"], backend=count, fullgraph=True)}
    base, first, second = run(small), made_for(small, 1), made_for(small, 2, share=1.0)
    assert torch.equal(run(compiled), base)
    with Rack(compiled) as rack:
        key = rack.add(first)
        gains = [Gain(0.5, schedule=((0.0, 0.0), (1.0, 1.0))), Gain(0.0), Gain(-2.0, blocks={"MID": 0.0})]
        rack.set([{key: gains[0]}] * samples, 0.5)
        torch.testing.assert_close(run(compiled), run(small))
        once = len(compiles)
        for gain in gains[1:]:
            rack.set([{key: gain}] * (samples - 1) + [{}])
            torch.testing.assert_close(run(compiled), run(small))
            rack.set([{key: gain}, {key: gains[0]}][:samples])
            rack.at(0.7)
            torch.testing.assert_close(run(compiled), run(small))
        assert len(compiles) == once
        rack.set([{key: gains[2], rack.add(second): gains[0]}] * samples, 0.3)
        torch.testing.assert_close(run(compiled), run(small))
        assert not torch.allclose(run(compiled), base)
    assert torch.equal(run(compiled), base)


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(1.0,), (0.7, -0.4, 1.1)], ids=str)
def test_diffusers_with_peft_makes_the_same_of_the_files(
    tiny_base: Path, tmp_path: Path, weights: tuple[float, ...]
) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_base)
    pipeline.set_progress_bar_config(disable=True)
    parts: Parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    linear = {name: shape for name, shape in fit.shapes(parts).items() if ".attn" in name or "self_attn" in name}

    def picture() -> Tensor:
        made = torch.Generator().manual_seed(3)
        call = {"num_inference_steps": 2, "output_type": "latent", "generator": made}
        out: Tensor = pipeline("a red boat by the sea", **call).images
        return out

    files = []
    for number in range(len(weights)):
        made = torch.Generator().manual_seed(number)
        pairs = {
            name: LoraPair(
                torch.randn(2 + number, into, generator=made) / into**0.5,
                torch.randn(out, 2 + number, generator=made),
                1.5,
            )
            for name, (out, into) in linear.items()
        }
        files.append(Adapter(pairs).save(tmp_path / f"{number}.safetensors", dtype=torch.float32))
    base = picture()
    with Rack(parts) as rack:
        rack.set([{rack.add(Adapter.load(file)): Gain(weight) for file, weight in zip(files, weights, strict=True)}])
        ours = picture()
    assert torch.equal(picture(), base)
    names = [f"adapter{number}" for number in range(len(files))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*already found a.*peft_config.*")  # several adapters are meant
        for name, file in zip(names, files, strict=True):
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipeline.set_adapters(names, list(weights))
    theirs = picture()
    assert float((theirs - base).abs().mean()) > 1e-2
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
