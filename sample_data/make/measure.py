"""Measure tiny-sd against its bars and write its README.md, samples.png and loss.png.

`python sample_data/make/measure.py --vae-minutes 20 --unet-minutes 80` takes about four minutes on two idle cores;
`--quick` asks for fewer pictures, for tries. Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import csv
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from scenes import COLOURS, SETTINGS, THINGS, Scene, random_scene
from styles import KNOWN, SAMPLES
from vae import held_out, psnr

from studio.demo import GUIDANCE, STEPS
from studio.judge import SceneJudge
from trainers import plot

DATA = Path(__file__).resolve().parent.parent
BASE = DATA / "bases" / "tiny-sd"
FIRST_PROMPT = 20_000_000  # seeds of the prompts: no training picture has them
AT_ONCE = 20  # pictures in one batch
LARGEST = 32.0  # MB, all files of the base together
PLAIN_DB, STYLE_DB, RIGHT = 26.0, 20.0, 90.0


@dataclass(frozen=True)
class Bar:
    """One row of the table; `wanted` None means that it is only told, `most` that less is better."""

    name: str
    measured: float
    unit: str
    wanted: float | None = None
    most: bool = False

    @property
    def met(self) -> bool:
        if self.wanted is None:
            return True
        return self.measured <= self.wanted if self.most else self.measured >= self.wanted

    @property
    def row(self) -> str:
        wish = "–" if self.wanted is None else f"{'≤' if self.most else '≥'} {self.wanted:g} {self.unit}"
        missed = "" if self.met else " (missed)"
        return f"| {self.name} | {wish} | {self.measured:.1f} {self.unit}{missed} |"


def opened(base: Path = BASE) -> StableDiffusionPipeline:
    """The base as anyone would load it."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prompts(count: int) -> list[Scene]:
    """Random scenes; their captions are the prompts, their things and colours the right answers."""
    return [random_scene(FIRST_PROMPT + k) for k in range(count)]


def generated(
    pipeline: StableDiffusionPipeline, captions: Sequence[str], guidance: float, what: str = ""
) -> list[Image.Image]:
    """One picture a caption, picture k from seed k; says how far it is when `what` names the pictures."""
    made: list[Image.Image] = []
    begun = time.monotonic()
    while len(made) < len(captions):
        part = list(captions[len(made) : len(made) + AT_ONCE])
        seeds = [torch.Generator().manual_seed(len(made) + k) for k in range(len(part))]
        made += pipeline(part, num_inference_steps=STEPS, guidance_scale=guidance, generator=seeds).images
        if what:
            print(f"{what}: {len(made)}/{len(captions)} pictures, {time.monotonic() - begun:.0f} s", flush=True)
    return made


def rights(judge: SceneJudge, pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> tuple[int, int]:
    """In how many pictures the judge finds the object, and the colour, that was asked for."""
    verdicts = list(zip(judge.judge(pictures), scenes, strict=True))
    return sum(v.thing == s.thing for v, s in verdicts), sum(v.colour == s.colour for v, s in verdicts)


def reconstruction(pipeline: StableDiffusionPipeline, count: int) -> Iterator[Bar]:
    """PSNR of the VAE on scenes it never saw, plain and in each sample style."""
    for name in (None, *SAMPLES):
        value = psnr(pipeline.vae, held_out(name, count))
        print(f"VAE on {name or 'plain scenes'}: {value:.1f} dB", flush=True)
        yield Bar(f"VAE PSNR, {name or 'plain'}: {count} held-out scenes", value, "dB", STYLE_DB if name else PLAIN_DB)


def agreement(pipeline: StableDiffusionPipeline, judge: SceneJudge, count: int, guidance: float) -> Iterator[Bar]:
    """Whether the base draws what it is asked for: plain prompts, then each named style's."""
    scenes = prompts(count)
    things, colours = rights(judge, generated(pipeline, [s.caption for s in scenes], guidance, "plain"), scenes)
    yield Bar(f"object right: {count} random prompts", 100 * things / count, "%", RIGHT)
    yield Bar(f"colour right: {count} random prompts", 100 * colours / count, "%", RIGHT)
    each = max(AT_ONCE // 2, count // 5)
    for name in KNOWN:
        things, _ = rights(
            judge, generated(pipeline, [f"{s.caption}, {name}" for s in scenes[:each]], guidance, name), scenes[:each]
        )
        yield Bar(f"object right, “{name}”: {each} prompts", 100 * things / each, "%")


def size_of(base: Path) -> float:
    """MB of all files together."""
    return sum(path.stat().st_size for path in base.rglob("*") if path.is_file()) / 1e6


# --- pictures -----------------------------------------------------------------------------------------------------


def sample_captions() -> list[str]:
    """All twelve things twice; colours and settings in turn."""
    made = []
    for k in range(2 * len(THINGS)):
        colour = list(COLOURS)[(3 * k + k // len(COLOURS)) % len(COLOURS)]
        article = "an" if colour[0] in "aeiou" else "a"
        setting = SETTINGS[(k + 2 * (k // len(THINGS))) % len(SETTINGS)]
        made.append(f"{article} {colour} {list(THINGS)[k % len(THINGS)]} {setting}")
    return made


def captioned(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int = 6) -> Image.Image:
    """A sheet with each picture's caption above it."""
    rows = [
        plot.grid([pictures[k : k + columns]], [""], captions[k : k + columns], side=128)
        for k in range(0, len(pictures), columns)
    ]
    return stacked(rows)


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """One above the other."""
    sheet = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), plot.PAPER)
    y = 0
    for image in images:
        sheet.paste(image, (0, y))
        y += image.height
    return sheet


def loss_curve(file: Path, title: str) -> Image.Image:
    """The curve without its first 2%, whose height would flatten the rest."""
    with file.open() as stream:
        points = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(stream)]
    kept = points[len(points) // 50 + 1 :]
    every = kept[1][0] - kept[0][0]
    text = f"{title}, steps {kept[0][0]:,} to {kept[-1][0]:,} (the first {kept[0][0] - every:,} left out)"
    return plot.loss_plot([loss for _, loss in kept], text, first_step=kept[0][0], every=every, reach=4)


# --- README -------------------------------------------------------------------------------------------------------

WHAT = """\
A text-to-picture base small enough to travel with the code: a complete diffusers folder of the same classes and
module paths as Stable Diffusion 1.5, {parameters}, fp16, pictures of 64 x 64 pixels. It draws illustrated scenes, one
object ({things}) in one of {colours} colours, {settings}, and knows {known} as styles by name. It knows nothing else.
Everything it was trained on is drawn by `sample_data/make/`, so it is under this project's licence."""

README = """<!-- written by sample_data/make/measure.py -->
# tiny-sd

{what}

![24 samples](samples.png)

## How it was made
In this order, on two CPU cores, seed 0; the two long trainings go on where they were stopped:

```sh
{recipe}
```

![loss curves](loss.png)

## Bars
Pictures are made with guidance {guidance:g} in {steps} steps of the folder's own scheduler, picture k from seed k.
Object and colour are read off them by `sample_data/judge.safetensors`, a small classifier. Scenes and prompts have
seeds that no training picture has.

| bar | wanted | measured |
| --- | --- | --- |
{rows}

{judge}
"""


def recipe(vae_minutes: float, unet_minutes: float, guidance: float) -> str:
    """The commands that lead from nothing to this folder."""
    asked = "" if guidance == GUIDANCE else f" --guidance {guidance:g}"
    lines = [
        "words.py work/tokenizer",
        f"vae.py --work work --minutes {vae_minutes:g}",
        f"unet.py --work work --minutes {unet_minutes:g}",
        "assemble.py --work work",
        "judge.py --work work",
        f"measure.py --vae-minutes {vae_minutes:g} --unet-minutes {unet_minutes:g}{asked}",
    ]
    return "\n".join(f"python sample_data/make/{line}" for line in lines)


def parameters(pipeline: StableDiffusionPipeline) -> str:
    parts = {"UNet": pipeline.unet, "text encoder": pipeline.text_encoder, "VAE": pipeline.vae}
    counts = {name: sum(p.numel() for p in model.parameters()) / 1e6 for name, model in parts.items()}
    return f"{sum(counts.values()):.1f} M parameters (" + ", ".join(f"{n} {c:.1f} M" for n, c in counts.items()) + ")"


def write_readme(
    pipeline: StableDiffusionPipeline, judge: SceneJudge, bars: Sequence[Bar], guidance: float, commands: str
) -> Bar:
    """Writes it and returns the last bar, the size of the folder with the README in it."""
    size = Bar("all files of the base", size_of(BASE), "MB", LARGEST, most=True)
    what = WHAT.format(
        parameters=parameters(pipeline),
        things=", ".join(THINGS),
        colours=len(COLOURS),
        settings=", ".join(SETTINGS[:-1]) + f" or {SETTINGS[-1]}",
        known=", ".join(list(KNOWN)[:-1]) + f" and {list(KNOWN)[-1]}",
    )
    judged = ", ".join(f"{name} {100 * value:.1f}%" for name, value in judge.accuracies.items())
    text = README.format(
        what=textwrap.fill(what, 120),
        recipe=commands,
        guidance=guidance,
        steps=STEPS,
        rows="\n".join(bar.row for bar in (*bars, size)),
        judge=textwrap.fill(f"The judge's own accuracy on held-out drawn pictures: {judged}.", 120),
    )
    (BASE / "README.md").write_text(text)
    return size


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--vae-minutes", type=float, required=True, help="how long vae.py trained")
    ask.add_argument("--unet-minutes", type=float, required=True, help="how long unet.py trained")
    ask.add_argument("--guidance", type=float, default=GUIDANCE)
    ask.add_argument("--quick", action="store_true", help="40 prompts and 16 scenes instead of 200 and 64")
    args = ask.parse_args()
    pipeline, judge = opened(), SceneJudge.load(DATA / "judge.safetensors")
    bars = [
        *reconstruction(pipeline, 16 if args.quick else 64),
        *agreement(pipeline, judge, 40 if args.quick else 200, args.guidance),
    ]
    captions = sample_captions()
    captioned(generated(pipeline, captions, args.guidance, "samples"), captions).save(
        BASE / "samples.png", optimize=True
    )
    curves = [loss_curve(BASE / f"loss_{name}.csv", title) for name, title in (("vae", "VAE"), ("unet", "UNet"))]
    stacked(curves).save(BASE / "loss.png", optimize=True)
    commands = recipe(args.vae_minutes, args.unet_minutes, args.guidance)
    write_readme(pipeline, judge, bars, args.guidance, commands)
    bars.append(write_readme(pipeline, judge, bars, args.guidance, commands))  # again: now its own size is in it
    print("\n".join(bar.row for bar in bars))
    return 0 if all(bar.met for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
