"""Train the judge of scenes (object and colour) on drawn pictures in every look, and print what it is worth.

`python sample_data/make/judge.py --work work` draws 6,000 pictures once (work/judge_pictures.pt), trains for about
three minutes on one core and writes sample_data/judge.safetensors. Colour is only learnt where the look keeps it.
"""

from __future__ import annotations

import argparse
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scenes import COLOURS, THINGS, random_scene
from styles import KNOWN, SAMPLES, draw
from torch import Tensor

from studio.judge import SceneJudge

HELD_OUT = 10_000_000  # seeds from here on are never trained on
LOOKS: dict[str, float] = {"plain": 0.34, **dict.fromkeys(KNOWN, 0.06), **dict.fromkeys(SAMPLES, 0.08)}
KEEP_COLOUR = ("plain", "pixel art")
IGNORED = -100  # cross_entropy's mark for "no answer here"

Example = tuple[np.ndarray, int, int]  # picture (64, 64, 3), index of the object, index of the colour


def look_of(k: int) -> str:
    """The look of training picture k, so that the shares come out as in LOOKS."""
    bounds = np.cumsum(list(LOOKS.values()))
    return list(LOOKS)[int(np.searchsorted(bounds, (k * 0.6180339887) % 1.0 * bounds[-1], side="right"))]


def example(seed: int, look: str) -> Example:
    """One picture and its answers; the colour is IGNORED where the look doesn't keep it."""
    scene = random_scene(seed)
    picture = np.asarray(draw(seed, {**KNOWN, **SAMPLES}.get(look))[0])
    colour = list(COLOURS).index(scene.colour) if look in KEEP_COLOUR else IGNORED
    return picture, list(THINGS).index(scene.thing), colour


def training_example(k: int) -> Example:
    return example(5_000_000 + k, look_of(k))  # away from the first seeds, which the base itself is trained on


def stacked(examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 3, 64, 64) uint8, (N,), (N,)."""
    pictures, things, colours = zip(*examples, strict=True)
    return (
        torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(things),
        torch.tensor(colours),
    )


def drawn(count: int, cache: Path) -> tuple[Tensor, Tensor, Tensor]:
    """The training pictures, drawn once."""
    if not cache.exists():
        with ProcessPoolExecutor(2) as pool:
            torch.save(stacked(list(pool.map(training_example, range(count), chunksize=64))), cache)
    found: tuple[Tensor, Tensor, Tensor] = torch.load(cache)
    return found


# --- what a generator does to a picture that a pen doesn't: each (B, 3, 64, 64) in 0..1 -> the same ----------------


def moved(batch: Tensor, rng: torch.Generator) -> Tensor:
    """Mirrored, shifted by up to 5 pixels, and made 10% larger or smaller, each picture on its own."""
    n = len(batch)
    scale = 1 + 0.2 * (torch.rand(n, generator=rng) - 0.5)
    flip = torch.where(torch.rand(n, generator=rng) < 0.5, -1.0, 1.0)
    shift = (torch.rand(n, 2, generator=rng) - 0.5) * (20 / 64)
    zero = torch.zeros(n)
    rows = [torch.stack([scale * flip, zero, shift[:, 0]], 1), torch.stack([zero, scale, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)


def smoothed(batch: Tensor, rng: torch.Generator) -> Tensor:
    """A lossy encoder's softness: down to 0.4 .. 0.9 of the size and up again."""
    side = int(torch.randint(26, 58, (), generator=rng))
    small = F.interpolate(batch, (side, side), mode="bilinear", antialias=True)
    return F.interpolate(small, batch.shape[-2:], mode="bicubic")


def quantised(batch: Tensor, rng: torch.Generator) -> Tensor:
    """JPEG-like: 8 x 8 cosine blocks, coarser the higher the frequency."""
    k = torch.arange(8.0)
    basis = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) * math.sqrt(2 / 8)
    basis[0] /= math.sqrt(2)
    step = (0.02 + 0.1 * torch.rand((), generator=rng)) * (1 + (k[:, None] + k[None]) / 2)
    blocks = batch.unflatten(-1, (8, 8)).unflatten(-3, (8, 8)).transpose(-3, -2)  # (B, 3, 8, 8 blocks, 8, 8)
    waves = basis @ blocks @ basis.T
    back = basis.T @ ((waves / step).round() * step) @ basis
    return back.transpose(-3, -2).reshape(batch.shape)


def grained(batch: Tensor, rng: torch.Generator) -> Tensor:
    """Noise, fine or in blotches, as an unfinished denoising leaves it."""
    side = int(torch.tensor([64, 32, 16])[torch.randint(3, (), generator=rng)])
    noise = torch.randn(len(batch), 3, side, side, generator=rng)
    strength = 0.06 * torch.rand(len(batch), 1, 1, 1, generator=rng)
    return batch + strength * F.interpolate(noise, batch.shape[-2:], mode="bilinear")


def relit(batch: Tensor, rng: torch.Generator) -> Tensor:
    """Brightness, contrast and a slight tint: too slight to turn orange into red."""
    n = len(batch)
    light = 0.08 * torch.randn(n, 1, 1, 1, generator=rng).clamp(-2, 2)
    contrast = 1 + 0.1 * torch.randn(n, 1, 1, 1, generator=rng).clamp(-2, 2)
    tint = 1 + 0.03 * torch.randn(n, 3, 1, 1, generator=rng).clamp(-2, 2)
    middle = batch.mean((1, 2, 3), keepdim=True)
    return (((batch - middle) * contrast + middle) * tint) + light


def worn(batch: Tensor, rng: torch.Generator) -> Tensor:
    """All of the above, each on about half of the batches."""
    batch = moved(batch, rng)
    for wear in (smoothed, quantised, grained, relit):
        if torch.rand((), generator=rng) < 0.5:
            batch = wear(batch, rng)
    return batch.clamp(0, 1)


def trained(judge: SceneJudge, data: tuple[Tensor, Tensor, Tensor], epochs: int, batch: int, lr: float) -> None:
    """AdamW, one rise and fall of the learning rate; order and wear are functions of the epoch and step."""
    pictures, things, colours = data
    optimizer = torch.optim.AdamW(judge.parameters(), lr=lr, weight_decay=0.02)
    steps = epochs * (len(pictures) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.15)
    begun, step = time.time(), 0
    for epoch in range(epochs):
        rng = torch.Generator().manual_seed(epoch)
        for pick in torch.randperm(len(pictures), generator=rng)[: len(pictures) // batch * batch].split(batch):
            judge.train()
            thing, colour = judge(worn(pictures[pick].float() / 255, rng))
            loss = F.cross_entropy(thing, things[pick], label_smoothing=0.02)
            loss = loss + F.cross_entropy(colour, colours[pick], ignore_index=IGNORED, label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
        print(f"epoch {epoch + 1}/{epochs} step {step} loss {loss.item():.3f} {time.time() - begun:.0f} s", flush=True)


def held_out(judge: SceneJudge, count: int) -> dict[str, float]:
    """Accuracy on pictures never trained on: `object: <look>` for each look, `colour: <look>` where it is kept."""
    found = {}
    for look in LOOKS:
        pictures, things, colours = stacked([example(HELD_OUT + k, look) for k in range(count)])
        verdicts = judge.judge(pictures)
        right = [v.thing == judge.things[t] for v, t in zip(verdicts, things.tolist(), strict=True)]
        found[f"object: {look}"] = sum(right) / count
        if look in KEEP_COLOUR:
            right = [v.colour == judge.colours[c] for v, c in zip(verdicts, colours.tolist(), strict=True)]
            found[f"colour: {look}"] = sum(right) / count
    return {name: round(value, 4) for name, value in found.items()}


def measured(path: Path, count: int) -> None:
    """Measure what was written, and write the result into it: to be done anew whenever a look's drawing changes."""
    judge = SceneJudge.load(path)
    judge.accuracies = held_out(judge, count)
    judge.save(path)
    for name, value in judge.accuracies.items():
        print(f"{name:24s} {value:.3f}")


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--work", type=Path, default=Path("work"), help="where the drawn pictures are kept")
    ask.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "judge.safetensors")
    ask.add_argument("--pictures", type=int, default=6000)
    ask.add_argument("--epochs", type=int, default=14)
    ask.add_argument("--batch", type=int, default=64)
    ask.add_argument("--lr", type=float, default=4e-3)
    ask.add_argument("--check", type=int, default=300, help="held-out pictures per look")
    ask.add_argument("--measure", action="store_true", help="don't train: measure the file in --out again")
    args = ask.parse_args()
    if not args.measure:
        torch.manual_seed(0)
        args.work.mkdir(parents=True, exist_ok=True)
        data = drawn(args.pictures, args.work / "judge_pictures.pt")
        judge = SceneJudge(list(THINGS), list(COLOURS))
        print(f"{sum(p.numel() for p in judge.parameters()):,} parameters, {len(data[0]):,} pictures", flush=True)
        trained(judge, data, args.epochs, args.batch, args.lr)
        judge.save(args.out)
    measured(args.out, args.check)


if __name__ == "__main__":
    main()
