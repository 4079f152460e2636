"""The measures: equal to what must hold on models where everything is known; words, prompts and headers."""

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
from studio.look.measure import disturbance, divergence, equal_feel, rising, with_triggers
from studio.look.measure_pictures import Pictures
from trainers.errors import AdapterError, ConfigError
from trainers.lora.adapter import Adapter, AdapterInfo, content_digest
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair

PROMPTS = ("a red house", "a cat")
QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def style(seed: int) -> Adapter:
    g = torch.Generator().manual_seed(seed)
    return Adapter({QUERY: LoraPair(torch.randn(4, 32, generator=g), torch.randn(32, 4, generator=g), 4.0)})


def test_the_divergence_is_that_of_the_distributions() -> None:
    p, q = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], dtype=torch.float64)
    said = torch.stack([q.log() + 3, p.log() - 1, q.log()])[None]  # (1, 3 cells, 3): logits, each shifted
    assert divergence(said)[0].tolist() == pytest.approx([0, float((p * (p / q).log()).sum()), 0], abs=1e-12)


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
def toy() -> Iterator[Pictures]:
    parts = {"unet": Linear(), "text_encoder": Words()}
    family: Any = SimpleNamespace(
        part=parts.__getitem__, parts=lambda: parts, device="cpu", dtype=torch.float32, autocast=nullcontext,
        tokens=lambda prompts: torch.zeros(len(prompts), 4), prediction="epsilon",
        noise=SimpleNamespace(alphas_cumprod=torch.linspace(0.99, 0.01, 100)),
    )  # fmt: skip
    base = Pictures(family)
    with base.rack:
        yield base


def on(layer: str, seed: int = 1) -> Adapter:
    g = torch.Generator().manual_seed(seed)
    return Adapter({f"unet.{layer}": LoraPair(torch.randn(2, 3, generator=g), torch.randn(3, 2, generator=g), 2.0)})


@pytest.mark.parametrize("layers", [("left", "right"), ("left", "left")])
def test_a_linear_model_only_adds_up(toy: Pictures, layers: tuple[str, str]) -> None:
    keys = toy.rack.add(on(layers[0])), toy.rack.add(on(layers[1], 2))
    found = disturbance(toy.probes(PROMPTS), (keys[0], Gain()), (keys[1], Gain(0.5)))
    assert found.share == pytest.approx(0, abs=1e-5)
    assert found.alone == pytest.approx((0, 0), abs=1e-5)
    assert found.verdict.startswith("they add up")
    if layers == ("left", "right"):
        assert found.agreement == pytest.approx(0, abs=1e-9)


def test_adapters_that_do_nothing_and_one_twice(toy: Pictures) -> None:
    off = [Adapter({p: LoraPair(v.down, 0 * v.up, a) for p, v in on("left").pairs.items()}) for a in (1.0, 2.0)]
    keys = [toy.rack.add(adapter) for adapter in off]
    found = disturbance(toy.probes(PROMPTS), (keys[0], Gain()), (keys[1], Gain()))
    assert (found.share, found.agreement, found.effects) == (0, 0, (0, 0, 0))
    with pytest.raises(ValueError, match="twice"):
        disturbance(toy.probes(PROMPTS), (keys[0], Gain()), (keys[0], Gain(0.5)))


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
    words = Adapter({"model.layers.0.mlp.up_proj": on("x").pairs["unet.x"]})
    odd = {"ink": on("no_such"), "neon": Adapter({QUERY: on("x").pairs["unet.x"]}), "pirate": words}
    with pytest.raises(AdapterError, match="don't fit the base") as caught:
        measure.on_base(str(tiny_base), {**odd, "good": style(1)}, "cpu")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["ink", "neon", "pirate"]
    assert caught.value.faults[2] == "pirate: is an adapter for text"
    base, keys = measure.on_base(str(tiny_base), {"good": style(1)}, "cpu")
    assert (base.kind, base.reference, len(base.prompts)) == ("pictures", 0.2, 8)
    assert tuple(keys) == base.rack.resident == (content_digest(style(1)),)


def test_trigger_words_are_added_once() -> None:
    assert with_triggers(["a cat", "a cat, sks"], ["sks", "", "sks", "ink"]) == ("a cat, sks, ink", "a cat, sks, ink")
    assert with_triggers(["a cat"], [""]) == ("a cat",)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa red house\n\n  a cat \n")
    assert measure.read_prompts(file) == ("a red house", "a cat")
    assert measure.read_prompts(None) == ()
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


def test_a_folder_has_its_header_in_its_files(tmp_path: Path) -> None:
    folder = style(1).save(tmp_path / "a.peft", "peft", torch.float32)
    before = content_digest(Adapter.load(folder))
    measure.with_metadata(folder, {"stylora.equal_feel": "1"})
    assert Adapter.load(folder).info.metadata["stylora.equal_feel"] == "1"
    assert content_digest(Adapter.load(folder)) == before


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
    assert measure._ratio(0.0, 0.0) == 0
    assert math.isinf(measure._ratio(1.0, 0.0))
    assert measure._ratio(4.0, 16.0) == 0.5
