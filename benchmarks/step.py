"""What a training step costs: over its floor and against the plain way, on tiny-sd and on Stable Diffusion 1.5's shape.

`python benchmarks/step.py` takes about three minutes on two idle cores; `--append` adds its figures to RESULTS.md.
In one process, in turn, on the same pictures and the same base:
- floor: forward and backward of the frozen UNet alone, to its inputs, stylora's objective; no LoRA, no text encoder;
- stylora: `trainers.loop.train` with the default settings, LoRA on the UNet and the text encoder;
- plain: as diffusers' train_dreambooth_lora.py --train_text_encoder trains: pictures and captions read, the VAE and the
  text encoder run in every step, torch's AdamW over peft's own layers, float32; the same modules and ranks.
A ratio is the median over the rounds of that round's ratio. The 1.5 shape has random weights, which cost the same time.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import results
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from trainers import loop, objective, optim, prepare, run, samples
from trainers.config import TrainConfig
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora import inject

FLOOR_GOAL, SPEEDUP_GOALS = 1.25, {"tiny-sd": 1.4, "SD 1.5": 2.0}
PARTS = ("unet", "vae", "text_encoder")
Turn = Callable[[], object]  # one step of one variant


@dataclass
class Case:
    """A base ready to be trained, its parts not yet touched, and a batch's worth of its data."""

    name: str
    config: TrainConfig
    opened: run.Opened
    data: prepare.Data
    plain: Mapping[str, Any]  # the parts in float32, as a script loads them

    @property
    def batch(self) -> int:
        return self.config.train.batch

    @property
    def shown(self) -> str:
        size = self.data.resolution
        return f"{self.name}, {self.batch} x {size} x {size} px, {self.opened[0].precision}"

    def read(self) -> tuple[Tensor, Tensor]:
        """The first batch from its files: (B, 3, H, W) in -1..1, (B, T) token ids."""
        samples, side = self.data.samples[: self.batch], self.data.resolution
        arrays = [np.asarray(Image.open(s.path).convert("RGB").resize((side, side))) for s in samples]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return pixels, self.opened[1].tokens([s.caption for s in samples])


def shared(model: nn.Module) -> nn.Module:
    """A second model over the very same frozen weights."""
    kept = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, kept)


# --- the two bases --------------------------------------------------------------------------------------------------


def tiny_case(place: Path, precision: str) -> Case:
    folder = samples.base_folder("tiny-sd")
    parts = StableDiffusion(folder)
    plain = {name: parts.part(name) for name in PARTS}
    return open_case("tiny-sd", place, "tiny-sd", samples.style_folder("ink"), plain, f"train.precision={precision}")


def full_case(place: Path, precision: str, size: int) -> Case:
    """SD 1.5's real UNet and VAE and CLIP-L's text encoder: configs on disk, weights random and only in memory."""
    folder, pictures = place / "sd15", place / "pictures"
    torch.manual_seed(0)
    clip = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    parts = {
        "unet": diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        "vae": diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            sample_size=512,
        ),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**clip)),
    }
    for name, model in parts.items():
        (model.config.save_pretrained if name == "text_encoder" else model.save_config)(folder / name)
        model.requires_grad_(False).eval()
    tiny = samples.base_folder("tiny-sd")
    shutil.copytree(tiny / "scheduler", folder / "scheduler")  # SD 1.5's
    shutil.copytree(tiny / "tokenizer", folder / "tokenizer")
    settings = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 77}))
    shutil.copy(tiny / "model_index.json", folder)
    pictures.mkdir()
    for file in sorted(samples.style_folder("ink").glob("*_0[1-4].png")):
        Image.open(file).resize((size, size)).save(pictures / file.name)
        shutil.copy(file.with_suffix(".txt"), pictures)
    sets = ("train.batch=1", f"dataset.resolution={size}", f"train.precision={precision}")
    return open_case("SD 1.5", place, str(folder), pictures, parts, *sets)


def open_case(name: str, place: Path, base: str, pictures: Path, plain: dict[str, Any], *sets: str) -> Case:
    """Through stylora's own door, but with models that may not be on disk; one copy where both ways use float32."""
    values = {"base": base, "data": str(pictures), "out": str(place / f"{name} run")}
    config = TrainConfig.build(values=values, sets=[f"dataset.cache={place / 'cache'}", *sets])
    machine, family = run.open_base(config)
    half = family.dtype != torch.float32
    family._parts.update({n: copy.deepcopy(m).to(family.dtype) if half else m for n, m in plain.items()})
    data = returned(prepare.encode(config, family, prepare.scan(config, family), machine))
    return Case(name, config, (machine, family), data, plain)


def returned(events: Iterator[Any]) -> Any:
    """What a generator returns at its end."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


# --- the three ways to make a step ----------------------------------------------------------------------------------


def floor(case: Case) -> Turn:
    """Forward and backward to latents and text states; no parameter has a gradient."""
    family = case.opened[1]
    unet, (pixels, ids) = shared(family.part("unet")), case.read()
    with torch.no_grad():
        states = case.plain["text_encoder"](ids).last_hidden_state
        latents = case.plain["vae"].encode(pixels).latent_dist.mode() * family.latent_scale
    alphas, gamma = family.noise.alphas_cumprod, family.min_snr_gamma

    def turn() -> None:
        x, words = latents.clone().requires_grad_(), states.clone().requires_grad_()
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (case.batch,))
        with family.autocast():
            guess = unet(objective.add_noise(x, noise, alphas, t), t, words).sample
        each = objective.loss_per_sample(guess, objective.target(family.prediction, latents, noise, alphas, t))
        (each * objective.min_snr_weight(objective.snr(alphas, t), gamma, family.prediction)).sum().backward()

    return turn


def plain(case: Case) -> Turn:
    """The loop of diffusers' example with its defaults: float32, AdamW, norm clipped at 1, the loss read every step."""
    family, lora = case.opened[1], case.config.lora
    unet, text, vae = shared(case.plain["unet"]), shared(case.plain["text_encoder"]), case.plain["vae"]
    for part, model, rank, wish in (
        ("unet", unet, lora.rank, lora.targets),
        ("text_encoder", text, lora.text_encoder_rank, lora.text_targets),
    ):
        inject.inject(part, model, inject.targets(part, model, wish), inject.Shape(rank), seed=0)
        for _, layer in inject.layers(model):
            layer.lora_variant.clear()  # peft's own forward
        model.train()
    parameters = [p for model in (unet, text) for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-2)

    def turn() -> float:
        pixels, ids = case.read()
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample() * family.latent_scale
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (case.batch,))
        guess = unet(family.noise.add_noise(latents, noise, t), t, text(ids).last_hidden_state).sample
        loss = F.mse_loss(guess, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return turn


def stylora(case: Case, steps: int) -> tuple[Turn, loop.Update]:
    """The product's own loop, a step at a time."""
    machine, family = case.opened
    prepare.put_lora(case.config, family)
    update = prepare.update(case.config, family, machine)
    data = case.data
    made = loop.train(family, data.plan, data.encodings, data.names, update, machine, first=0, steps=steps)
    return lambda: next(made), update


# --- measuring ------------------------------------------------------------------------------------------------------


def timed(turn: Turn) -> float:
    begun = time.perf_counter()
    turn()
    return time.perf_counter() - begun


def rounds_of(turns: dict[str, Turn], rounds: int, warmup: int) -> dict[str, list[float]]:
    """Seconds by variant; A B C A B C, so that whatever else the machine does falls on all alike."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(warmup + rounds):
        for name, turn in turns.items():
            taken[name].append(timed(turn))
    return {name: seconds[warmup:] for name, seconds in taken.items()}


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def step_figures(case: Case, rounds: int, warmup: int) -> Iterator[results.Figure]:
    """Both ratios of a case, then what its update costs in three ways."""
    turns = {"floor": floor(case), "plain": plain(case)}
    turns["stylora"], update = stylora(case, rounds + warmup)
    taken = rounds_of({name: turns[name] for name in ("floor", "stylora", "plain")}, rounds, warmup)
    base, ours, theirs = (statistics.median(taken[name]) for name in ("floor", "stylora", "plain"))
    over, faster = ratio(taken["stylora"], taken["floor"]), ratio(taken["plain"], taken["stylora"])
    goal = SPEEDUP_GOALS[case.name]
    number = f"{over:.2f} ({ours:.3f} s / {base:.3f} s)"
    yield results.Figure(f"step / floor, {case.shown}", number, f"≤ {FLOOR_GOAL}", over <= FLOOR_GOAL)
    number = f"{faster:.2f} ({theirs:.3f} s / {ours:.3f} s)"
    yield results.Figure(f"plain way / step, {case.shown}", number, f"≥ {goal}", faster >= goal)
    shapes = [p.shape for group in update.groups for _, p in group.named]
    yield from update_figures(case.name, shapes)


def update_figures(name: str, shapes: list[torch.Size], rounds: int = 9) -> Iterator[results.Figure]:
    """Clip, update and zero the gradients of one adapter: why the parameters lie in one flat buffer."""
    import bitsandbytes

    turns = {
        "adamw8bit, one flat buffer": flat_update(fresh(shapes), "adamw8bit"),
        "adamw8bit, separate tensors": separate_update(fresh(shapes), bitsandbytes.optim.AdamW8bit),
        "torch AdamW, separate tensors": separate_update(fresh(shapes), torch.optim.AdamW),
    }
    taken = rounds_of(turns, rounds, warmup=2)
    count = sum(shape.numel() for shape in shapes)
    for way, seconds in taken.items():
        words = f"update of {name}'s {len(shapes)} tensors ({count / 1e6:.1f} M), {way}"
        yield results.Figure(words, f"{1000 * statistics.median(seconds):.1f} ms")


def fresh(shapes: list[torch.Size]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def flat_update(parameters: list[nn.Parameter], name: str) -> Turn:
    group = optim.FlatGroup([(f"{k:04}", p) for k, p in enumerate(parameters)])
    optimizer = optim.build(name, [group], weight_decay=0.01, betas=(0.9, 0.99))
    group.grad.normal_()
    return lambda: optim.step([group], optimizer, [1e-4], 1.0, 1.0)


def separate_update(parameters: list[nn.Parameter], kind: Callable[..., torch.optim.Optimizer]) -> Turn:
    optimizer = kind(parameters, lr=1e-4, weight_decay=0.01, betas=(0.9, 0.99))
    for p in parameters:
        p.grad = torch.randn_like(p)

    def turn() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return turn


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--append", action="store_true", help="add the figures to RESULTS.md")
    ask.add_argument("--only", choices=("tiny-sd", "sd15"))
    ask.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="stylora's and the floor's")
    ask.add_argument("--size", type=int, default=512, help="pictures' side on SD 1.5's shape")
    ask.add_argument("--rounds", type=int, help="default: 15 on tiny-sd, 3 on SD 1.5's shape")
    args = ask.parse_args()
    print(f"{results.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    with tempfile.TemporaryDirectory() as place:
        if args.only != "sd15":
            figures = list(step_figures(tiny_case(Path(place), args.precision), args.rounds or 15, warmup=3))
            results.report("step.py", figures, args.append)
        if args.only != "tiny-sd":
            figures = list(step_figures(full_case(Path(place), args.precision, args.size), args.rounds or 3, warmup=1))
            results.report("step.py", figures, args.append)


if __name__ == "__main__":
    main()
