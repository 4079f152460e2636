"""Train tiny-sd's text encoder and UNet on drawn scenes, with the picture encoder of vae.py.

`python sample_data/make/unet.py --work work --minutes 90` (goes on from work/unet.pt where there is one).
1. pictures and captions are drawn, encoded once and kept (work/latents.pt);
2. the text encoder learns to name the parts of a caption (a minute: it only spares the UNet that time);
3. both train together: epsilon prediction with min-SNR weights (Hang et al. 2023), 10% empty captions for
   classifier-free guidance, AdamW, cosine decay over the minutes given, an average of the weights (EMA) is kept.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from scenes import COLOURS, SETTINGS, THINGS, random_scene
from styles import KNOWN, draw
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from vae import CONFIG as VAE_CONFIG
from vae import to_floats
from words import LENGTH

PLAIN, STYLED = 14_000, 1_000  # pictures without a style, and with each named one
FIRST_SEED = 1_000_000  # the VAE's pictures have smaller seeds

UNET = {
    "sample_size": 16,
    "in_channels": 8,
    "out_channels": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [64, 128, 256],
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "attention_head_dim": 2,  # diffusers' name for the number of heads, as in SD 1.5's own config
    "norm_num_groups": 16,
}
SCHEDULER = {  # SD 1.5's
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def style_at(k: int) -> str:
    """The first PLAIN pictures are plain, then come the named styles in turn."""
    return "" if k < PLAIN else list(KNOWN)[(k - PLAIN) % len(KNOWN)]


def drawn(k: int) -> tuple[np.ndarray, str]:
    style = style_at(k)
    image, caption = draw(FIRST_SEED + k, KNOWN.get(style))
    return np.asarray(image), f"{caption}, {style}" if style else caption


def pictures(saved: Path) -> tuple[torch.Tensor, list[str]]:
    """(N, 3, 64, 64) uint8 and their captions, drawn once."""
    if not saved.exists():
        with ProcessPoolExecutor(2) as pool:
            made = list(pool.map(drawn, range(PLAIN + STYLED * len(KNOWN)), chunksize=100))
        stack = torch.from_numpy(np.stack([image for image, _ in made])).permute(0, 3, 1, 2).contiguous()
        torch.save((stack, [caption for _, caption in made]), saved)
    return torch.load(saved)


def latents(work: Path) -> tuple[torch.Tensor, torch.Tensor, list[str], float]:
    """Means and deviations of all posteriors, (N, 8, 16, 16), captions, and the factor that makes latents unit size."""
    saved = work / "latents.pt"
    if not saved.exists():
        stack, captions = pictures(work / "unet_pictures.pt")
        vae = AutoencoderKL(**VAE_CONFIG)
        vae.load_state_dict(torch.load(work / "vae.pt")["model"])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            moments = torch.cat(
                [vae.encode(to_floats(part)).latent_dist.parameters.float() for part in stack.split(64)]
            )
        mean, log_variance = moments.chunk(2, dim=1)
        torch.save((mean, (0.5 * log_variance).exp(), captions, float(1 / mean.std())), saved)
    return torch.load(saved)


def labels() -> torch.Tensor:
    """(N, 4): thing, colour, setting and style of each picture, as numbers."""
    rows = []
    for k in range(PLAIN + STYLED * len(KNOWN)):
        scene = random_scene(FIRST_SEED + k)
        style = ["", *KNOWN].index(style_at(k))
        rows.append(
            [list(THINGS).index(scene.thing), list(COLOURS).index(scene.colour), SETTINGS.index(scene.setting), style]
        )
    return torch.tensor(rows)


def teach_words(text: CLIPTextModel, ids: torch.Tensor, facts: torch.Tensor, steps: int = 400) -> None:
    """Let the encoder's last token name thing, colour, setting and style."""
    sizes = (len(THINGS), len(COLOURS), len(SETTINGS), len(KNOWN) + 1)
    head = torch.nn.Linear(128, sum(sizes))
    optimizer = torch.optim.AdamW([*text.parameters(), *head.parameters()], lr=1e-3)
    for step in range(steps):
        pick = torch.randint(len(ids), (64,), generator=torch.Generator().manual_seed(step))
        guesses = head(text(ids[pick]).last_hidden_state[:, -1]).split(sizes, dim=1)
        loss = sum(F.cross_entropy(guess, facts[pick, k]) for k, guess in enumerate(guesses))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"text encoder names parts, loss {float(loss):.4f}", flush=True)


class Trainee(torch.nn.Module):
    """UNet and text encoder as one module, so that one optimizer and one average hold both."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**UNET).to(memory_format=torch.channels_last)
        self.unet.set_attn_processor(AttnProcessor())  # at 16 x 16 on a CPU faster than the fused kernel
        self.text = CLIPTextModel(text_config(tokenizer))

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.unet(noisy, t, self.text(ids).last_hidden_state).sample


def batch_loss(
    model: Trainee, noise: DDPMScheduler, x: torch.Tensor, ids: torch.Tensor, g: torch.Generator
) -> torch.Tensor:
    t = torch.randint(0, 1000, (len(x),), generator=g)
    e = torch.randn(x.shape, generator=g)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(noise.add_noise(x, e, t), t, ids)
    snr = noise.alphas_cumprod[t] / (1 - noise.alphas_cumprod[t])
    return ((out.float() - e).square().mean(dim=(1, 2, 3)) * snr.clamp(max=5) / snr).mean()


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--work", type=Path, required=True)
    ask.add_argument("--minutes", type=float, default=90)
    ask.add_argument("--batch", type=int, default=32)
    ask.add_argument("--lr", type=float, default=1e-3)
    ask.add_argument("--draw", action="store_true", help="only draw the pictures")
    args = ask.parse_args()
    if args.draw:
        pictures(args.work / "unet_pictures.pt")
        return
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
    mean, deviation, captions, scale = latents(args.work)
    ids = tokenizer(captions, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    empty = tokenizer([""], padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    noise = DDPMScheduler(**SCHEDULER)
    model = Trainee(tokenizer)
    print(
        f"{len(ids)} pictures, latents x {scale:.3f}",
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters",
        flush=True,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=1e-2, betas=(0.9, 0.99), fused=True)
    step, spent, curve = 0, 0.0, []
    saved = args.work / "unet.pt"
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent, curve = state["step"], state["spent"], state["curve"]
        average = copy.deepcopy(model)
        average.load_state_dict(state["average"])
    else:
        teach_words(model.text, ids, labels())
        average = copy.deepcopy(model)
    average.requires_grad_(False)

    def save() -> None:
        state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "step": step, "spent": spent, "curve": curve, "scale": scale}, saved.with_suffix(".tmp"))
        saved.with_suffix(".tmp").rename(saved)

    begun, last, losses = time.time() - spent, time.time(), []
    while (spent := time.time() - begun) < args.minutes * 60:
        g = torch.Generator().manual_seed(step)
        share = spent / (args.minutes * 60)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * share)) + 2e-6
        pick = torch.randint(len(ids), (args.batch,), generator=g)
        x = (mean[pick] + deviation[pick] * torch.randn(mean[pick].shape, generator=g)) * scale
        words = torch.where(torch.rand((args.batch, 1), generator=g) < 0.1, empty, ids[pick])
        loss = batch_loss(model, noise, x, words, g)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(0.9995, (step + 1) / (step + 20))
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in model.parameters()], 1 - keep)
        step += 1
        losses.append(float(loss.detach()))
        if step % 50 == 0:
            curve.append((step, sum(losses[-50:]) / len(losses[-50:])))
        if time.time() - last > 180 or step == 50:
            last = time.time()
            print(f"step {step} {spent / 60:.1f} min loss {sum(losses[-200:]) / len(losses[-200:]):.4f}", flush=True)
            save()
    save()


if __name__ == "__main__":
    main()
