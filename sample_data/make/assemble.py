"""Put the trained parts together: a complete diffusers folder in float16, with the loss curves beside it.

`python sample_data/make/assemble.py --work work` writes sample_data/bases/tiny-sd; measure.py then writes its README.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer
from unet import SCHEDULER, Trainee
from vae import CONFIG

TARGET = Path(__file__).resolve().parent.parent / "bases" / "tiny-sd"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--work", type=Path, required=True)
    ask.add_argument("--out", type=Path, default=TARGET)
    args = ask.parse_args()
    pictures, scenes = torch.load(args.work / "vae.pt"), torch.load(args.work / "unet.pt")
    vae = AutoencoderKL(**CONFIG, scaling_factor=scenes["scale"])
    vae.load_state_dict(pictures["model"])
    tokenizer = CLIPTokenizer.from_pretrained(args.work / "tokenizer")
    trained = Trainee(tokenizer)
    trained.load_state_dict(scenes["average"])
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=trained.text,
        tokenizer=tokenizer,
        unet=trained.unet.to(memory_format=torch.contiguous_format),
        scheduler=DDIMScheduler(**SCHEDULER, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for model in (pipeline.unet, pipeline.vae):
        model.half()
    pipeline.save_pretrained(args.out)  # the text encoder in float32: transformers loads it as it is stored
    for name in ("vocab.json", "merges.txt"):  # older tools read these, newer ones tokenizer.json
        shutil.copyfile(args.work / "tokenizer" / name, args.out / "tokenizer" / name)
    for name, state in (("vae", pictures), ("unet", scenes)):
        lines = [f"{step},{loss:.5f}" for step, loss in state["curve"]]
        (args.out / f"loss_{name}.csv").write_text("\n".join(["step,loss", *lines]) + "\n")
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB, UNet after {scenes['step']} steps")


if __name__ == "__main__":
    main()
