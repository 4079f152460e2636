"""Train tiny-sd's picture encoder: an f4 AutoencoderKL at 64 pixels, on drawn scenes in every look.

`python sample_data/make/vae.py --work work --minutes 30` (goes on from work/vae.pt where there is one).
Loss: L1 + L1 of the picture's gradients + a small KL; AdamW, cosine decay over the minutes given.
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
from diffusers import AutoencoderKL
from styles import KNOWN, SAMPLES, draw

HELD_OUT = 10_000_000  # seeds from here on are never trained on

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 1,
    "latent_channels": 8,
    "norm_num_groups": 16,
    "sample_size": 64,
    "mid_block_add_attention": True,
}


def look_of(k: int) -> str | None:
    """A mix by index: 40% plain, 15% the base's named styles, 45% sample styles (their texture must survive)."""
    u = (k * 0.6180339887) % 1.0
    if u < 0.40:
        return None
    names = list(KNOWN) if u < 0.55 else list(SAMPLES)
    return names[k % len(names)]


def draw_index(k: int) -> np.ndarray:
    name = look_of(k)
    style = {**KNOWN, **SAMPLES}[name] if name else None
    return np.asarray(draw(k, style)[0])


def pictures(count: int) -> torch.Tensor:
    """(N, 3, 64, 64) uint8."""
    with ProcessPoolExecutor(2) as pool:
        drawn = list(pool.map(draw_index, range(count), chunksize=64))
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()


def to_floats(batch: torch.Tensor) -> torch.Tensor:
    """uint8 -> -1..1."""
    return batch.float() / 127.5 - 1


def augment(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror and shift by up to 3 pixels, the whole batch alike: textures must not sit on one grid."""
    if torch.rand((), generator=generator) < 0.5:
        batch = batch.flip(-1)
    dy, dx = torch.randint(0, 7, (2,), generator=generator).tolist()
    return F.pad(batch, (3, 3, 3, 3), mode="reflect")[..., dy : dy + 64, dx : dx + 64]


def loss_of(vae: AutoencoderKL, batch: torch.Tensor) -> torch.Tensor:
    posterior = vae.encode(batch).latent_dist
    out = vae.decode(posterior.sample()).sample
    dx = F.l1_loss(out.diff(dim=-1), batch.diff(dim=-1))
    dy = F.l1_loss(out.diff(dim=-2), batch.diff(dim=-2))
    return F.l1_loss(out, batch) + 0.5 * (dx + dy) + 1e-6 * posterior.kl().mean()


@torch.no_grad()
def psnr(vae: AutoencoderKL, batch: torch.Tensor) -> float:
    """Mean PSNR in dB over a batch in -1..1, reconstructed from the posterior's mode."""
    out = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1) for part in batch.split(32)])
    mse = ((out - batch) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * mse.log10()).mean())


def held_out(name: str | None, count: int = 64) -> torch.Tensor:
    style = {**KNOWN, **SAMPLES}[name] if name else None
    drawn = [np.asarray(draw(HELD_OUT + k, style)[0]) for k in range(count)]
    return to_floats(torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2))


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--work", type=Path, required=True)
    ask.add_argument("--minutes", type=float, default=30)
    ask.add_argument("--pictures", type=int, default=9000)
    ask.add_argument("--batch", type=int, default=16)
    ask.add_argument("--lr", type=float, default=1e-3)
    args = ask.parse_args()
    args.work.mkdir(exist_ok=True, parents=True)
    torch.manual_seed(0)
    cache = args.work / "vae_pictures.pt"
    if not cache.exists():
        torch.save(pictures(args.pictures), cache)
    data = torch.load(cache)
    vae = AutoencoderKL(**CONFIG)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, weight_decay=1e-4, betas=(0.9, 0.99))
    step, spent, curve = 0, 0.0, []
    saved = args.work / "vae.pt"
    if saved.exists():
        state = torch.load(saved)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent, curve = state["step"], state["spent"], state["curve"]
    tests = {name or "plain": held_out(name, 24) for name in (None, *SAMPLES)}
    begun, last = time.time() - spent, time.time()
    while (spent := time.time() - begun) < args.minutes * 60:
        generator = torch.Generator().manual_seed(step)
        share = spent / (args.minutes * 60)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * share)) + 1e-5
        pick = torch.randint(len(data), (args.batch,), generator=generator)
        batch = augment(to_floats(data[pick]), generator)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(vae, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            curve.append((step, float(loss.detach())))
        if time.time() - last > 120 or step == 20:
            last = time.time()
            scores = " ".join(f"{name} {psnr(vae, test):.1f}" for name, test in tests.items())
            print(f"step {step} {spent / 60:.1f} min loss {float(loss):.4f} dB: {scores}", flush=True)
            torch.save(
                {
                    "model": vae.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "spent": spent,
                    "curve": curve,
                },
                saved,
            )
    torch.save(
        {"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": spent, "curve": curve},
        saved,
    )


if __name__ == "__main__":
    main()
