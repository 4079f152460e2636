"""The family against the libraries' own parts: encodings, loss, timesteps, samplers, digests, broken files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_picture
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from trainers.errors import BaseError, ConfigError
from trainers.families.base import Example
from trainers.families.stable_diffusion import SAMPLERS, StableDiffusion
from trainers.families.stepping import has_steps, steps_over

UNET, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
TEXT = "text_encoder/model.safetensors"
OTHERS = {"dpm++2m": 998, "dpm++2m-karras": 1000, "unipc": 998}  # samplers that can't take 999 steps, or 1000 too


@pytest.fixture(scope="module")
def family(tiny_base: Path) -> StableDiffusion:
    """Only to be read."""
    return StableDiffusion(tiny_base)


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    """A base of links into tiny_base; `put` gives one of its files a content of its own."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_base, folder, copy_function=os.symlink)
    return folder


def put(file: Path, content: bytes | str | dict[str, Tensor] | None) -> None:
    file.unlink()
    if isinstance(content, dict):
        save_file(content, file, metadata={"format": "pt"})
    elif content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)


def changed_json(file: Path, **changes: Any) -> None:
    facts = json.loads(file.read_text()) | changes
    put(file, json.dumps({key: value for key, value in facts.items() if value is not None}))


def encoding(number: int, words: str = "text") -> dict[str, Tensor]:
    """Moments with some variance, and text states or token ids."""
    g = torch.Generator().manual_seed(number)
    moments = torch.cat([torch.randn(4, 8, 8, generator=g), torch.full((4, 8, 8), -1.0)])
    if words == "ids":
        return {"moments": moments, "ids": torch.randint(0, 500, (77,), generator=g)}
    return {"moments": moments, "text": torch.randn(77, 32, generator=g)}


def example(
    number: int, slot: int = 0, of: int = 2, step: int = 3, weight: float = 1.0, words: str = "text"
) -> Example:
    return Example(encoding(number, words), weight, seed=5, step=step, slot=slot, of=of)


# --- encoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (32, 16)])
def test_moments_are_the_vaes(family: StableDiffusion, tiny_base: Path, size: tuple[int, int]) -> None:
    picture = draw_picture(1, size)
    vae = AutoencoderKL.from_pretrained(tiny_base / "vae")
    pixels = np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(torch.tensor(pixels)[None]).latent_dist
    moments = family.encode_picture(picture)["moments"]
    assert moments.shape == (8, size[1] // 2, size[0] // 2)
    assert moments.dtype == torch.float32
    mean, log_variance = moments.chunk(2)
    torch.testing.assert_close(mean, posterior.mean[0])
    torch.testing.assert_close(log_variance.clamp(-30, 20), posterior.logvar[0])


def test_tokens_are_the_tokenizers(family: StableDiffusion, tiny_base: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    captions = ["a red house", "", "a blue boat by the sea at night"]
    ids = family.tokens(captions)
    assert ids.shape == (3, 77)
    for row, caption in zip(ids.tolist(), captions, strict=True):
        own = tokenizer(caption).input_ids
        assert row[: len(own)] == own
        assert set(row[len(own) :]) == {tokenizer.pad_token_id}
        assert family.token_count(caption) == (len(own), 77)
    assert family.encode_ids(captions[2])["ids"].tolist() == ids[2].tolist()


def test_a_long_caption_is_cut_at_its_end(family: StableDiffusion) -> None:
    long, short = family.tokens(["house " * 100, "house " * 75]).tolist()
    assert len(long) == 77
    assert long == short  # 75 words, start and end
    assert family.token_count("house " * 100) == (102, 77)
    assert family.token_count("house " * 75) == (77, 77)


def test_text_states_are_the_text_encoders(family: StableDiffusion, tiny_base: Path) -> None:
    model = CLIPTextModel.from_pretrained(tiny_base / "text_encoder")
    with torch.no_grad():
        wanted = model(family.tokens(["a red house"]))[0][0]
    states = family.encode_text("a red house")["text"]
    assert not states.requires_grad
    torch.testing.assert_close(states, wanted)


# --- loss ------------------------------------------------------------------------------------------------------------


def ddpm_loss(folder: Path, draws: list[dict[str, Any]], prediction: str, gamma: float | None) -> Tensor:
    """(B,) with diffusers' scheduler and a UNet of its own; min-SNR as in diffusers' training scripts."""
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    losses = []
    for draw in draws:
        t = torch.tensor([draw["timestep"]])
        latents, noise = draw["latents"][None], draw["noise"][None]
        noisy = scheduler.add_noise(latents, noise, t)
        target = noise if prediction == "epsilon" else scheduler.get_velocity(latents, noise, t)
        with torch.no_grad():
            guess = unet(noisy, t, draw["words"]["text"][None]).sample
        snr = float(scheduler.alphas_cumprod[t] / (1 - scheduler.alphas_cumprod[t]))
        weight = 1.0 if gamma is None else min(snr, gamma) / (snr if prediction == "epsilon" else snr + 1)
        losses.append(weight * torch.nn.functional.mse_loss(guess, target))
    return torch.stack(losses)


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_loss_is_ddpms(tiny_base: Path, prediction: Any, gamma: float | None) -> None:
    family = StableDiffusion(tiny_base, prediction=prediction, min_snr_gamma=gamma)
    examples = [example(k, slot=k, of=3, weight=w) for k, w in enumerate((1.0, 0.5, 2.0))]
    got = family.loss(examples)
    wanted = ddpm_loss(tiny_base, [family._draw(one) for one in examples], prediction, gamma)
    torch.testing.assert_close(got.each, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.total.detach(), (wanted * torch.tensor([1.0, 0.5, 2.0])).sum(), rtol=1e-4, atol=1e-5)


def test_latents_are_the_posteriors_sample(family: StableDiffusion) -> None:
    """The scaled sample of N(mean, variance) and noise that has nothing to do with it."""
    draws = [family._draw(example(1, slot=k, of=64)) for k in range(64)]
    mean, log_variance = encoding(1)["moments"].chunk(2)
    drawn = torch.stack([(d["latents"] / 0.18215 - mean) / (0.5 * log_variance).exp() for d in draws])
    noise = torch.stack([d["noise"] for d in draws])
    for numbers in (drawn, noise):
        assert abs(float(numbers.mean())) < 0.02
        assert abs(float(numbers.std()) - 1) < 0.02
    assert abs(float((drawn * noise).mean())) < 0.02
    assert abs(float((noise[0] * noise[1]).mean())) < 0.25


def test_an_examples_numbers_depend_on_seed_step_and_slot_alone(family: StableDiffusion) -> None:
    first, again = family._draw(example(1)), family._draw(example(1))
    assert torch.equal(first["noise"], again["noise"])
    assert first["timestep"] == again["timestep"]
    others = [example(1, slot=1), example(1, step=4), Example(encoding(1), 1.0, seed=6, step=3, slot=0, of=2)]
    for other in others:
        assert not torch.equal(first["noise"], family._draw(other)["noise"])


def test_a_micro_batch_is_the_sum_of_its_examples(family: StableDiffusion) -> None:
    examples = [example(k, slot=k, of=4) for k in range(4)]
    whole = family.loss(examples).each
    apart = torch.cat([family.loss([one]).each for one in examples])
    torch.testing.assert_close(whole, apart, rtol=1e-4, atol=1e-5)


def test_noise_offset_shifts_whole_channels(tiny_base: Path, family: StableDiffusion) -> None:
    offset = StableDiffusion(tiny_base, noise_offset=0.5)
    shift = offset._draw(example(1))["noise"] - family._draw(example(1))["noise"]  # (4, 8, 8)
    torch.testing.assert_close(shift, shift[:, :1, :1].expand_as(shift), atol=1e-5, rtol=0)
    assert len({round(float(x), 4) for x in shift[:, 0, 0]}) == 4


@pytest.mark.parametrize(("share", "few", "many"), [(0.0, 0, 0), (0.5, 70, 130), (1.0, 200, 200)])
def test_caption_dropout(tiny_base: Path, share: float, few: int, many: int) -> None:
    family = StableDiffusion(tiny_base, caption_dropout=share)
    family.set_empty(empty := {"text": torch.zeros(77, 32)})
    dropped = sum(family._draw(example(1, slot=k, of=200))["words"] is empty for k in range(200))
    assert few <= dropped <= many


def test_mirrored_pictures_are_taken_half_of_the_time(family: StableDiffusion) -> None:
    both = encoding(1) | {"mirrored_moments": torch.cat([torch.full((4, 8, 8), 50.0), torch.full((4, 8, 8), -30.0)])}
    draws = [family._draw(Example(both, 1.0, 5, 3, slot, 200)) for slot in range(200)]
    assert 70 < sum(float(draw["latents"].mean()) > 5 for draw in draws) < 130


def test_each_slot_draws_from_its_own_part_of_the_schedule(family: StableDiffusion) -> None:
    """Turned back by some number that all slots share, slot i of 8 lies in the i-th eighth; over steps all is seen."""
    of, total, part = 8, 1000, 125
    table = [[family._draw(example(1, slot=k, of=of, step=s))["timestep"] for k in range(of)] for s in range(60)]
    for row in table:
        turned = ([(t - turn - part * k) % total for k, t in enumerate(row)] for turn in range(total))
        assert any(max(places) <= part for places in turned)  # whole numbers: one too many at the border
    drawn = np.array(table)
    assert drawn.min() >= 0
    assert drawn.max() < total
    assert abs(drawn.mean() - 499.5) < 20
    for slot in range(of):
        assert np.ptp(drawn[:, slot]) > 800


def test_the_text_encoder_learns_through_token_ids(tiny_base: Path) -> None:
    family = StableDiffusion(tiny_base)
    weight = family.part("text_encoder").get_parameter("encoder.layers.0.self_attn.q_proj.weight").requires_grad_()
    family.loss([example(1, words="ids")]).total.backward()
    assert float(weight.grad.abs().max()) > 0
    ids = encoding(1, "ids")["ids"]
    with torch.no_grad():
        states = family.part("text_encoder")(ids[None]).last_hidden_state[0]
    same = Example(encoding(1) | {"text": states}, 1.0, 5, 3, 0, 2)
    plain = Example(encoding(1) | {"ids": ids}, 1.0, 5, 3, 0, 2)
    del plain.encoding["text"]  # type: ignore[attr-defined]
    torch.testing.assert_close(family.loss([same]).each, family.loss([plain]).each)


def test_checkpointing_computes_twice_and_changes_nothing(tiny_base: Path) -> None:
    """In the text encoder too, which transformers checkpoints in training mode only."""
    family = StableDiffusion(tiny_base)
    text = family.part("text_encoder")
    text.requires_grad_(True)
    calls: list[int] = []
    text.get_submodule("encoder.layers.0.mlp").register_forward_pre_hook(lambda *_: calls.append(1))
    seen = {}
    for on in (False, True, False):
        family.save_memory(on)
        calls.clear()
        text.zero_grad()
        family.loss([example(1, words="ids")]).total.backward()
        gradient = text.get_parameter("encoder.layers.0.mlp.fc1.weight").grad.clone()
        seen[on] = gradient
        assert len(calls) == (2 if on else 1)
    torch.testing.assert_close(seen[True], seen[False])


# --- sampling --------------------------------------------------------------------------------------------------------


def difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of a pixel, of 255."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.mark.parametrize("sampler", [None, "euler-a"])
def test_a_picture_is_the_same_alone_and_in_a_batch(family: StableDiffusion, sampler: str | None) -> None:
    prompts, seeds = ["a red house", "a blue boat", "a red house"], [3, 4, 5]
    together = family.sample(prompts, seeds, steps=4, sampler=sampler)
    for prompt, seed, picture in zip(prompts, seeds, together, strict=True):
        assert difference(picture, family.sample([prompt], [seed], steps=4, sampler=sampler)[0]) <= 1
    assert difference(together[0], together[2]) > 10


def test_sizes_and_progress(family: StableDiffusion) -> None:
    told: list[tuple[int, int]] = []
    picture = family.sample(["a"], [0], steps=3, size=(24, 16), sampler="pndm", on_step=lambda *x: told.append(x))[0]
    assert picture.size == (24, 16)
    assert family.sample(["a"], [0], steps=1)[0].size == (16, 16)
    assert told[-1] == (3, 3)
    assert max(step for step, _ in told) == 3


@pytest.mark.parametrize(
    ("timesteps", "steps", "over"),
    [
        ([9, 5, 1], 3, [1, 2, 3]),
        ([9, 5, 5, 1], 3, [1, 1, 2, 3]),  # PNDM
        ([9, 5, 5, 1, 1], 3, [1, 1, 2, 2, 3]),  # Heun
        ([9, 7, 5, 3, 1], 3, [0, 1, 1, 2, 3]),  # KDPM2: a timestep between each two
        ([9, 1, 1, 1], 4, [1, 2, 3, 4]),  # Karras' sigmas, rounded
        ([9], 1, [1]),
    ],
)
def test_steps_that_are_over(timesteps: list[float], steps: int, over: list[int]) -> None:
    assert [steps_over(timesteps, call, steps) for call in range(len(timesteps))] == over


@pytest.mark.parametrize(("sampler", "most"), {None: 999, **dict.fromkeys(SAMPLERS, 999), **OTHERS}.items())
def test_more_steps_than_a_sampler_can_take_are_refused(copy: Path, sampler: str | None, most: int) -> None:
    """Whatever isn't refused runs to its end; SD 1.x's own settings of its scheduler decide."""
    sd1 = {"num_train_timesteps": 1000, "timestep_spacing": "leading", "steps_offset": 1}
    changed_json(copy / "scheduler/scheduler_config.json", **sd1)
    family = StableDiffusion(copy)
    family.check_steps(most, sampler)
    family.check_steps(1, sampler)
    scheduler, latents = family._scheduler(sampler), torch.ones(1, 4, 2, 2)
    assert has_steps(scheduler, most)
    for timestep in scheduler.timesteps:
        latents = scheduler.step(torch.zeros_like(latents), timestep, latents).prev_sample
    assert latents.isfinite().all()
    if most < 1000:
        with pytest.raises(ConfigError, match=f"got {most + 1}, wanted at most {most}, as many as"):
            family.sample(["a"], [0], steps=most + 1, sampler=sampler)
        with pytest.raises(ConfigError, match=f"wanted at most {most}, as many as"):
            family.check_steps(2000, sampler)


def test_modes_are_what_they_were(tiny_base: Path) -> None:
    family = StableDiffusion(tiny_base)
    unet, text = family.part("unet"), family.part("text_encoder")
    unet.conv_in.train()
    text.encoder.train()
    modes: list[bool] = []
    unet.conv_in.register_forward_hook(lambda module, *_: modes.append(module.training))
    before = {name: m.training for model in (unet, text) for name, m in model.named_modules()}
    family.sample(["a"], [0], steps=1)
    assert modes == [False]
    assert before == {name: m.training for model in (unet, text) for name, m in model.named_modules()}


def knowing(family: StableDiffusion, wanted: Tensor, says: str) -> Callable[..., Any]:
    """A UNet for data that is one point, x_0 = wanted: with noisy = a x_0 + s ε it knows ε and v = a ε - s x_0."""
    alphas = family.noise.alphas_cumprod.double()
    sigmas = ((1 - alphas) / alphas).sqrt().numpy()

    def forward(noisy: Tensor, t: Tensor, **_: Any) -> tuple[Tensor]:
        sigma = float(np.interp(float(t), np.arange(len(sigmas)), sigmas))  # Euler's timesteps lie between
        a = 1 / (1 + sigma**2) ** 0.5
        s = sigma * a
        noise = (noisy - a * wanted) / s
        return (noise if says == "epsilon" else a * noise - s * wanted,)

    return forward


def distance(family: StableDiffusion, sampler: str | None, says: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """How far the sampled latents end from the one point there is, relative to its size."""
    wanted = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ends: list[Tensor] = []
    decode = family.part("vae").decode

    def listening(latents: Tensor, **given: Any) -> Any:
        ends.append(latents * 0.18215)
        return decode(latents, **given)

    with monkeypatch.context() as patch:
        patch.setattr(family.part("unet"), "forward", knowing(family, wanted, says))
        patch.setattr(family.part("vae"), "decode", listening)
        family.sample(["a"], [0], steps=20, guidance=1.0, sampler=sampler)
    return float((ends[0] - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
def test_every_sampler_finds_what_the_model_means(
    tiny_base: Path, sampler: str | None, prediction: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = StableDiffusion(tiny_base, prediction=prediction)
    assert family._scheduler(sampler).config.prediction_type == {"epsilon": "epsilon", "v": "v_prediction"}[prediction]
    assert distance(family, sampler, prediction, monkeypatch) < 0.2


def test_the_measure_sees_a_prediction_misunderstood(family: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    assert distance(family, None, "v", monkeypatch) > 0.4


def test_the_bases_own_prediction_counts_unless_told_otherwise(copy: Path) -> None:
    assert StableDiffusion(copy).prediction == "epsilon"
    changed_json(copy / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    family = StableDiffusion(copy)
    assert family.prediction == "v"
    assert family._scheduler(None).config.prediction_type == "v_prediction"
    assert StableDiffusion(copy, prediction="epsilon")._scheduler("euler").config.prediction_type == "epsilon"


def test_the_bases_own_scheduler_is_kept(family: StableDiffusion, tiny_base: Path) -> None:
    own = family._scheduler(None)
    assert type(own).__name__ == "DDIMScheduler"
    stored = json.loads((tiny_base / "scheduler" / "scheduler_config.json").read_text())
    assert {key: own.config[key] for key in stored if key[0] != "_"} == {k: v for k, v in stored.items() if k[0] != "_"}
    assert family._scheduler("dpm++2m-karras").config.use_karras_sigmas
    assert not family._scheduler("dpm++2m").config.use_karras_sigmas


# --- the base's files ------------------------------------------------------------------------------------------------


def test_sizes_of_sd15(copy: Path) -> None:
    changed_json(copy / "unet" / "config.json", sample_size=64, block_out_channels=[320, 640, 1280, 1280])
    changed_json(copy / "vae" / "config.json", block_out_channels=[128, 256, 512, 512])
    family = StableDiffusion(copy)
    assert (family.multiple, family.resolution) == (64, 512)
    assert family.latent_scale == 0.18215


def test_sizes_of_the_miniature(family: StableDiffusion) -> None:
    assert (family.multiple, family.resolution) == (8, 16)


def test_parts_are_frozen_and_come_back(tiny_base: Path) -> None:
    family = StableDiffusion(tiny_base)
    assert family.loaded_parts() == {}
    vae, unet = family.part("vae"), family.part("unet")
    for model in (vae, unet):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    assert list(family.loaded_parts()) == ["unet"]
    family.unload("vae")
    assert family.part("vae") is not vae
    assert family.part("unet") is unet


def test_a_digest_knows_every_weight(copy: Path, tiny_base: Path) -> None:
    parts = ("unet", "vae", "text_encoder", "tokenizer")
    first = {part: StableDiffusion(tiny_base).digest(part) for part in parts}
    assert {part: StableDiffusion(copy).digest(part) for part in parts} == first  # wherever it lies
    weights = load_file(copy / VAE)
    name = min(weights)
    weights[name] = weights[name].clone()
    weights[name].view(-1)[0] += 1e-3
    put(copy / VAE, weights)
    second = {part: StableDiffusion(copy).digest(part) for part in parts}
    assert {part for part in parts if first[part] != second[part]} == {"vae"}


def truncated(name: str) -> Callable[[Path], None]:
    return lambda base: put(base / name, (base / name).read_bytes()[:-100])


def cut_out(name: str, part: str) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        put(base / name, {key: tensor for key, tensor in load_file(base / name).items() if part not in key})

    return change


def reshaped(name: str) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        weights = load_file(base / name)
        key = max(key for key in weights if weights[key].dim() == 2)
        put(base / name, weights | {key: torch.zeros(3, 5)})

    return change


BROKEN: dict[str, tuple[str, Callable[[Path], None]]] = {
    "unet cut short": ("unet", truncated(UNET)),
    "unet garbage": ("unet", lambda base: put(base / UNET, b"no weights at all, but some text instead")),
    "unet gone": ("unet", lambda base: put(base / UNET, None)),
    "unet not whole": ("unet", cut_out(UNET, "mid_block.attentions")),
    "unet of another shape": ("unet", reshaped(UNET)),
    "vae cut short": ("vae", truncated(VAE)),
    "vae not whole": ("vae", cut_out(VAE, "decoder.conv_out")),
    "text encoder cut short": ("text_encoder", truncated(TEXT)),
    "text encoder gone": ("text_encoder", lambda base: put(base / TEXT, None)),
    "text encoder not whole": ("text_encoder", cut_out(TEXT, "layers.1.self_attn")),
    "text encoder of another shape": ("text_encoder", reshaped(TEXT)),
    "tokenizer garbage": ("tokenizer", lambda base: [put(file, "{") for file in (base / "tokenizer").iterdir()]),
    "unet config garbage": ("settings", lambda base: put(base / "unet" / "config.json", "{")),
    "unet config a list": ("settings", lambda base: put(base / "unet" / "config.json", "[]")),
    "unet config gone": ("settings", lambda base: put(base / "unet" / "config.json", None)),
    "no sample size": ("settings", lambda base: changed_json(base / "unet" / "config.json", sample_size=None)),
    "no text width": ("settings", lambda base: changed_json(base / "text_encoder" / "config.json", hidden_size=None)),
    "scheduler garbage": ("scheduler", lambda base: put(base / "scheduler" / "scheduler_config.json", "{")),
    "scheduler gone": ("scheduler", lambda base: put(base / "scheduler" / "scheduler_config.json", None)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_one_line(copy: Path, case: str) -> None:
    part, change = BROKEN[case]
    change(copy)
    with pytest.raises(BaseError) as caught:
        StableDiffusion(copy).part(part)
    error = caught.value
    assert error.what.startswith(f"base {copy}: its {part} can't be read: ")
    assert "\n" not in error.what
    assert error.next_step


def test_parts_of_two_models_are_refused(copy: Path) -> None:
    changed_json(copy / "text_encoder" / "config.json", hidden_size=48)
    with pytest.raises(BaseError, match=r"UNet reads text of width 32, its text encoder writes 48"):
        StableDiffusion(copy)


def test_an_unknown_scheduler_is_one_line(copy: Path) -> None:
    changed_json(copy / "model_index.json", scheduler=["diffusers", "NoSuchScheduler"])
    with pytest.raises(BaseError, match="NoSuchScheduler"):
        StableDiffusion(copy).sample(["a"], [0], steps=1)
