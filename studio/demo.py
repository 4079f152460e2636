"""The whole road in one command: train a sample style on tiny-sd, show before and after, measure both.

`stylora demo --style ink --out runs/demo` writes the run, `before_after.png` and `report.json`.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from studio.judge import SceneJudge
from studio.style import style_gain
from trainers import checkpoint, plot, run, samples, session
from trainers.config import TrainConfig
from trainers.errors import RunError
from trainers.events import Busy, Event
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora.adapter import Adapter
from trainers.lora.gains import Gain
from trainers.lora.rack import Rack

BASE, GUIDANCE, STEPS = "tiny-sd", 4.0, 25
UNSEEN = ("fish", "mushroom", "star", "car", "balloon", "bird")  # no sample style shows them
COLOURS = ("red", "blue", "yellow", "green", "purple", "white", "orange", "pink")
SETTINGS = ("by the sea", "in a meadow", "in the snow", "in the desert", "at night")
COUNT, SHOWN = 30, 6  # pictures that are measured; columns of the sheet
FIRST_SEED = 1000


@dataclass(frozen=True)
class Prompt:
    """A scene no sample style shows; `thing` is what the judge must find."""

    thing: str
    text: str


def free_folder(wish: Path) -> Path:
    """`runs/demo`, or `runs/demo-2`, `-3` … where that is taken: nothing is ever written over."""
    taken = (wish.with_name(f"{wish.name}-{k}") if k > 1 else wish for k in itertools.count(1))
    return next(folder for folder in taken if not folder.exists())


def prompts(style: str) -> list[Prompt]:
    """COUNT prompts: the unseen things in turn, colours and settings mixed."""
    made = []
    for k in range(COUNT):
        thing, colour = UNSEEN[k % len(UNSEEN)], COLOURS[(k + k // len(COLOURS)) % len(COLOURS)]
        article = "an" if colour[0] in "aeiou" else "a"
        made.append(
            Prompt(thing, f"{article} {colour} {thing} {SETTINGS[(k + k // 6) % len(SETTINGS)]}, {style} style")
        )
    return made


def config_for(style: str, out: Path, sets: list[str]) -> TrainConfig:
    """The defaults of `stylora train`; `sets` may change any of them."""
    values = {"base": BASE, "data": str(samples.style_folder(style)), "out": str(out), "name": style}
    return TrainConfig.build(values=values, sets=sets)


def events(style: str, out: Path, sets: list[str]) -> Iterator[Event]:
    """Train, then compare; the last event before the end of the iteration is the comparison's report on disk."""
    begun = time.monotonic()
    config = config_for(style, out, sets)
    run.check_folder(out)
    opened = run.open_base(config)
    yield from run.start(config, opened)
    yield from compare(config, style, opened, begun)


def compare(config: TrainConfig, style: str, opened: run.Opened, begun: float) -> Iterator[Event]:
    """The same prompts and seeds with and without the adapter file just written; sheet and report."""
    family, asked = opened.family, prompts(style)
    assert isinstance(family, StableDiffusion)
    rows: list[list[Image.Image]] = []
    with Rack(family.parts()) as rack:
        key = rack.add(Adapter.load(run.adapter_path(config)))
        for name, weight in (("the base", 0.0), ("with the adapter", 1.0)):
            rack.set([{key: Gain(weight)}])
            yield Busy(f"pictures by {name}", 0, COUNT)
            rows.append(
                family.sample(
                    [p.text for p in asked], range(FIRST_SEED, FIRST_SEED + COUNT), steps=STEPS, guidance=GUIDANCE
                )
            )
            yield Busy(f"pictures by {name}", COUNT, COUNT)
    names = [p.text.removesuffix(f", {style} style") for p in asked[:SHOWN]]
    sheet = plot.grid([row[:SHOWN] for row in rows], ["tiny-sd", f"+ {style}"], names)
    sheet.save(config.out / "before_after.png")
    measured = measure(rows[0], rows[1], asked, style)
    report = {
        "style": style,
        **measured,
        **read_report(config.out),
        "seconds_whole_demo": round(time.monotonic() - begun, 1),
    }
    checkpoint.write_atomically(config.out / session.REPORT, json.dumps(report, indent=2).encode())


def measure(before: list[Image.Image], after: list[Image.Image], asked: list[Prompt], style: str) -> dict[str, Any]:
    """style_gain and content_kept (docs/methods.md), and the base's own agreement beside it."""
    folder = samples.style_folder(style)
    examples = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]
    judge = SceneJudge.load(samples.sample_data() / "judge.safetensors")

    def found(pictures: list[Image.Image]) -> float:
        verdicts = judge.judge(pictures)
        return sum(v.thing == p.thing for v, p in zip(verdicts, asked, strict=True)) / len(asked)

    return {
        "style_gain": round(style_gain(after, before, examples), 3),
        "content_kept": round(found(after), 3),
        "content_of_base": round(found(before), 3),
    }


def read_report(out: Path) -> dict[str, Any]:
    """The report of a finished demo."""
    try:
        report: dict[str, Any] = json.loads((out / session.REPORT).read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{out} holds no finished demo", next_step="run `stylora demo` with a new --out") from error
    return report
