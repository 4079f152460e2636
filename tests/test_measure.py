"""Strength and disturbance measured on a tiny base: equal to a computation by hand, and to what must hold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from studio.look import measure
from studio.look.measure import Probes, disturbance, equal_feel, predictions, probes, rising, strength, with_triggers
from trainers.errors import AdapterError, ConfigError
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora.adapter import Adapter, AdapterInfo, content_digest
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair
from trainers.lora.rack import Rack

PROMPTS = ("a red house", "a cat")
ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn"
WORDS = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def style(seed: int, size: float = 0.4) -> Adapter:
    """Random changes of queries, keys and the text encoder, as a file would hold them."""
    g = torch.Generator().manual_seed(seed)
    paths = (f"{ATTENTION}1.to_q", f"{ATTENTION}2.to_k", WORDS)
    pairs = {
        path: LoraPair(torch.randn(4, 32, generator=g), torch.randn(32, 4, generator=g) * size, 4.0) for path in paths
    }
    return Adapter(pairs)


def scaled(adapter: Adapter, factor: float) -> Adapter:
    return Adapter({path: LoraPair(p.down, p.up, p.alpha * factor) for path, p in adapter.pairs.items()})


@pytest.fixture(scope="module")
def family(tiny_base: Path) -> StableDiffusion:
    return StableDiffusion(tiny_base)


@pytest.fixture
def rack(family: StableDiffusion) -> Iterator[Rack]:
    with Rack(family.parts()) as made:
        yield made


@torch.no_grad()
def by_hand(family: StableDiffusion, asked: Probes, *styles: Adapter) -> Tensor:
    """(P * K, C * h * w): the prediction with the dense deltas added to the weights of the models."""
    modules = {**dict(family.part("unet").named_modules(prefix="unet"))}
    text = family.part("text_encoder")
    modules |= {f"text_encoder.text_model.{name.removeprefix('text_model.')}": m for name, m in text.named_modules()}
    changed = [(modules[path], pair.delta()) for adapter in styles for path, pair in adapter.pairs.items()]
    for module, delta in changed:
        module.weight.data += delta
    states = text(asked.ids).last_hidden_state
    rows = [
        family.part("unet")(asked.latents[p, k][None], t, states[p][None]).sample.double().flatten()
        for p in range(len(asked.prompts))
        for k, t in enumerate(asked.timesteps)
    ]
    for module, delta in changed:
        module.weight.data -= delta
    return torch.stack(rows)


def test_measured_is_what_merged_weights_say(family: StableDiffusion, rack: Rack) -> None:
    one, other = style(1), style(2)
    keys = rack.add(one), rack.add(other)
    asked = probes(family, rack, PROMPTS)
    found = disturbance(family, rack, asked, (keys[0], Gain()), (keys[1], Gain()))
    effect = strength(family, rack, asked, keys[0], [1.0])
    rack.close()
    bare, a, b, both = (by_hand(family, asked, *used) for used in ((), (one,), (other,), (one, other)))
    assert found.share == pytest.approx(float((both - a - b + bare).norm() / (both - bare).norm()), rel=1e-2)
    assert found.effects[0] == pytest.approx(effect.effects[0], rel=1e-3)
    assert effect.effects[0] == pytest.approx(float(((a - bare).norm(dim=1) / bare.norm(dim=1)).mean()), rel=1e-2)
    agreement = torch.cosine_similarity((a - bare).flatten(), (b - bare).flatten(), dim=0)
    assert found.agreement == pytest.approx(float(agreement), abs=1e-2)
    assert list(found.by_timestep) == asked.timesteps.tolist()


def test_probes_are_the_bare_bases_and_always_the_same(family: StableDiffusion, rack: Rack) -> None:
    key = rack.add(style(1))
    rack.set([{key: Gain(3.0)}])
    asked, again = probes(family, rack, PROMPTS), probes(family, rack, PROMPTS[:1])
    assert asked.latents.shape == (2, 3, 4, 8, 8)
    assert asked.timesteps.tolist() == [799, 499, 199]
    assert torch.allclose(asked.latents[:1], again.latents, atol=1e-4)
    rack.close()
    assert torch.allclose(asked.latents, probes(family, rack, PROMPTS).latents, atol=1e-5)


def test_rows_are_the_same_in_any_batch(family: StableDiffusion, rack: Rack, monkeypatch: pytest.MonkeyPatch) -> None:
    key = rack.add(style(1))
    asked = probes(family, rack, PROMPTS)
    whole = predictions(family, rack, asked, [{}, {key: Gain(0.5)}, {key: Gain()}])
    monkeypatch.setattr(measure, "MOST_PLACES", 1)
    parts = predictions(family, rack, asked, [{}, {key: Gain(0.5)}, {key: Gain()}])
    assert whole.shape == (6, 3, 4 * 8 * 8)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert torch.allclose(whole[:, 1:2], predictions(family, rack, asked, [{key: Gain(0.5)}]), atol=1e-5)


def test_strength_rises_from_zero_and_halves_for_the_double(family: StableDiffusion, rack: Rack) -> None:
    keys = rack.add(style(1)), rack.add(scaled(style(1), 2.0))
    asked = probes(family, rack, PROMPTS)
    single = strength(family, rack, asked, keys[0], [0, 0.25, 0.5, 0.75, 1], 0.01)
    double = strength(family, rack, asked, keys[1], [0, 0.125, 0.25, 0.375, 0.5], 0.01)
    assert single.effects[0] == 0
    assert list(single.effects) == sorted(single.effects)
    assert double.effects == pytest.approx(single.effects, abs=1e-5)
    assert single.equal_feel is not None
    assert double.equal_feel == pytest.approx(single.equal_feel / 2, rel=1e-2)


def test_the_text_encoders_part_is_measured(family: StableDiffusion, rack: Rack) -> None:
    words = Adapter({WORDS: style(1, 2.0).pairs[WORDS]})
    key = rack.add(words)
    found = strength(family, rack, probes(family, rack, PROMPTS), key, [0, 1])
    assert found.effects[1] > 1e-5


@pytest.mark.parametrize(
    ("effects", "wanted"),
    [
        ((0.0, 0.1, 0.3), 1.5),
        ((0.0, 0.3, 0.1), 2 / 3),
        ((0.0, 0.1, 0.1), None),
        ((0.0, 0.1, 0.15), None),
        ((0.0, 0.2, 0.3), 1.0),
    ],
)
def test_equal_feel(effects: tuple[float, ...], wanted: float | None) -> None:
    assert equal_feel((0.0, 1.0, 2.0), effects, 0.2) == (None if wanted is None else pytest.approx(wanted))
    assert equal_feel((-1.0, 1.0, 2.0), (9.0, *effects[1:]), 0.2) == (None if wanted is None else pytest.approx(wanted))


# --- a linear model, where everything is known -----------------------------------------------------------------------


class Linear(nn.Module):
    """A "UNet" that puts two layers' answers beside each other: what acts on one can't disturb the other."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=2, sample_size=3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.left, self.right = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, t: Tensor, states: Tensor) -> Any:
        return SimpleNamespace(sample=torch.cat([self.left(x[:, :1]), self.right(x[:, 1:])], 1))


class Words(nn.Module):
    def forward(self, ids: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=ids[..., None].float())


@pytest.fixture
def toy() -> Any:
    parts = {"unet": Linear(), "text_encoder": Words()}
    return SimpleNamespace(
        part=parts.__getitem__, parts=lambda: parts, device="cpu", dtype=torch.float32, autocast=nullcontext,
        tokens=lambda prompts: torch.zeros(len(prompts), 4), prediction="epsilon",
        noise=SimpleNamespace(alphas_cumprod=torch.linspace(0.99, 0.01, 100)),
    )  # fmt: skip


def on(layer: str, seed: int = 1) -> Adapter:
    g = torch.Generator().manual_seed(seed)
    return Adapter({f"unet.{layer}": LoraPair(torch.randn(2, 3, generator=g), torch.randn(3, 2, generator=g), 2.0)})


@pytest.mark.parametrize("layers", [("left", "right"), ("left", "left")])
def test_a_linear_model_only_adds_up(toy: Any, layers: tuple[str, str]) -> None:
    with Rack(toy.parts()) as rack:
        keys = rack.add(on(layers[0])), rack.add(on(layers[1], 2))
        asked = probes(toy, rack, PROMPTS)
        found = disturbance(toy, rack, asked, (keys[0], Gain()), (keys[1], Gain(0.5)))
    assert found.share == pytest.approx(0, abs=1e-5)
    assert found.alone == pytest.approx((0, 0), abs=1e-5)
    assert found.verdict.startswith("they add up")
    if layers == ("left", "right"):
        assert found.agreement == pytest.approx(0, abs=1e-9)


def test_adapters_that_do_nothing_and_one_twice(toy: Any) -> None:
    off = [Adapter({p: LoraPair(v.down, 0 * v.up, a) for p, v in on("left").pairs.items()}) for a in (1.0, 2.0)]
    with Rack(toy.parts()) as rack:
        keys = [rack.add(adapter) for adapter in off]
        found = disturbance(toy, rack, probes(toy, rack, PROMPTS), (keys[0], Gain()), (keys[1], Gain()))
        assert (found.share, found.agreement, found.effects) == (0, 0, (0, 0, 0))
        with pytest.raises(ValueError, match="twice"):
            disturbance(toy, rack, probes(toy, rack, PROMPTS), (keys[0], Gain()), (keys[0], Gain(0.5)))


def test_verdicts() -> None:
    def of(share: float) -> str:
        return measure.Disturbance(share, (0.5, 0.7), 0.0, (1.0, 1.0, 1.0), {}).verdict

    assert of(0.25).startswith("they add up")
    assert of(0.7).startswith("they bend each other")
    assert of(0.71).startswith("they disturb each other")


def test_half_a_gain_is_half_of_both_weights() -> None:
    half = measure.halved(Gain(0.8, 0.4, {"MID": 0.5}))
    assert half == Gain(0.4, 0.2, {"MID": 0.5})
    assert measure.halved(Gain(1.0)).text_encoder is None


# --- bases, words and files ------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named_for_each(tiny_base: Path) -> None:
    odd = {"ink": on("no_such"), "neon": Adapter({f"{ATTENTION}1.to_q": on("x").pairs["unet.x"]})}
    with pytest.raises(AdapterError, match="don't fit the base") as caught:
        measure.on_base(str(tiny_base), {**odd, "good": style(1)}, "cpu")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["ink", "neon"]
    family, rack, keys = measure.on_base(str(tiny_base), {"good": style(1)}, "cpu")
    assert tuple(keys) == rack.resident == (content_digest(style(1)),)
    assert len(measure.pictures_of(family, rack, [{}, {keys[0]: Gain()}], "a cat")) == 2


def test_trigger_words_are_added_once() -> None:
    assert with_triggers(["a cat", "a cat, sks"], ["sks", "", "sks", "ink"]) == ("a cat, sks, ink", "a cat, sks, ink")
    assert with_triggers(["a cat"], [""]) == ("a cat",)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa red house\n\n  a cat \n")
    assert measure.read_prompts(file) == ("a red house", "a cat")
    assert measure.read_prompts(None) == measure.PROMPTS
    for content in (b"", b" \n", b"\xff\xfe\x00"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"prompts\.txt"):
            measure.read_prompts(file)
    with pytest.raises(ConfigError, match="can't be read"):
        measure.read_prompts(tmp_path)


def test_weights_in_rising_order() -> None:
    assert rising([1, 0, 1, 0.5]) == (0, 0.5, 1)
    for few in ([], [1], [1, 1.0]):
        with pytest.raises(ConfigError):
            rising(few)


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_new_header_leaves_the_tensors_alone(tmp_path: Path, format: str, dtype: torch.dtype) -> None:
    path = Adapter(style(1).pairs, AdapterInfo({"ss_output_name": "Größe"})).save(
        tmp_path / "a.safetensors", format, dtype
    )
    before, old = path.read_bytes(), Adapter.load(path)
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    measure.with_metadata(link, {"stylora.equal_feel": json.dumps({"weight": 0.8})})
    after, new = path.read_bytes(), Adapter.load(path)
    assert link.is_symlink()
    assert data_of(after) == data_of(before)
    assert content_digest(new) == content_digest(old)
    assert new.info.metadata == {**old.info.metadata, "stylora.equal_feel": '{"weight": 0.8}'}
    measure.with_metadata(path, {"stylora.equal_feel": '{"weight": 0.8}'})
    assert path.read_bytes() == after


def data_of(file: bytes) -> bytes:
    start = 8 + int.from_bytes(file[:8], "little")
    assert start % 8 == 0
    return file[start:]


def test_a_header_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AdapterError, match="no header"):
        measure.with_metadata(tmp_path, {"a": "b"})
    path = style(1).save(tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(AdapterError, match="can't be written"):
        measure.with_metadata(path, {"a": "b"})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_ratio_of_nothing() -> None:
    assert measure._ratio(torch.zeros(3), torch.zeros(3)) == 0
    assert math.isinf(measure._ratio(torch.ones(3), torch.zeros(3)))
