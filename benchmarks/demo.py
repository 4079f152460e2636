"""The demo on all six sample styles at the default settings: style_gain, content_kept, time; and the README's picture.

`python benchmarks/demo.py [--append] [--set lora.rank=8 …]` runs `stylora demo` once a style, each in a fresh folder.
Bars: mean style_gain >= 0.5, none under 0.3, content_kept >= 0.8, 180 s each on two cores. `--picture FILE` writes the
sheet of all styles.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from results import Figure, report

from studio import demo
from studio.draw import generate
from studio.draw.recipe import Recipe
from trainers import plot, samples
from trainers.lora.adapter import Adapter
from trainers.lora.gains import Gain
from trainers.lora.rack import Rack

ROOT = Path(__file__).resolve().parent.parent


def run(style: str, out: Path, sets: list[str]) -> dict[str, Any]:
    """One demo as a process of its own; its report. A finished run that stands there already is taken as it is."""
    if (out / "before_after.png").exists():
        return demo.read_report(out)
    options = [word for one in sets for word in ("--set", one)]
    command = [sys.executable, "-m", "studio.cli", "demo", "--style", style, "--out", str(out), *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return demo.read_report(out)


def picture(folder: Path, styles: list[str], target: Path) -> None:
    """One sheet: the base, then each style, the same prompts and seeds in every row."""
    family = generate.load(Recipe("", base=demo.BASE)).family
    asked = demo.prompts("")[: demo.SHOWN]
    names = [prompt.text.removesuffix(",  style") for prompt in asked]
    seeds = range(demo.FIRST_SEED, demo.FIRST_SEED + demo.SHOWN)
    rows = [family.sample(names, seeds, steps=demo.STEPS, guidance=demo.GUIDANCE)]
    for style in styles:
        with Rack(family.parts()) as rack:
            rack.set([{rack.add(Adapter.load(folder / style / f"{style}.safetensors")): Gain()}])
            rows.append(
                family.sample([f"{n}, {style} style" for n in names], seeds, steps=demo.STEPS, guidance=demo.GUIDANCE)
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    plot.grid(rows, ["tiny-sd", *(f"+ {style}" for style in styles)], names, side=128).save(target, optimize=True)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--append", action="store_true", help="add dated rows to benchmarks/RESULTS.md")
    ask.add_argument("--picture", type=Path, help="where to write the sheet of all styles")
    ask.add_argument("--keep", type=Path, help="folder for the runs, finished ones are kept; default: temporary")
    ask.add_argument("--set", dest="sets", action="append", default=[], help="a setting that differs from the default")
    ask.add_argument("--styles", nargs="+", default=list(samples.style_names()))
    args = ask.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        reports = {}
        for style in args.styles:
            reports[style] = run(style, folder / style, args.sets)
            print(
                style,
                {key: reports[style][key] for key in ("style_gain", "content_kept", "seconds_whole_demo")},
                flush=True,
            )
        if args.picture:
            picture(folder, args.styles, args.picture)
    gains = [facts["style_gain"] for facts in reports.values()]
    kept = [facts["content_kept"] for facts in reports.values()]
    mean, slowest = sum(gains) / len(gains), max(facts["seconds_whole_demo"] for facts in reports.values())
    figures = [
        Figure("mean style_gain over the styles", f"{mean:.2f}", ">= 0.5", mean >= 0.5),
        Figure("lowest style_gain", f"{min(gains):.2f}", ">= 0.3", min(gains) >= 0.3),
        Figure("mean content_kept", f"{sum(kept) / len(kept):.2f}", ">= 0.8", sum(kept) / len(kept) >= 0.8),
        Figure("lowest content_kept", f"{min(kept):.2f}", ">= 0.8", min(kept) >= 0.8),
        Figure("slowest style, whole command", f"{slowest:.0f} s", "<= 180 s", slowest <= 180),
        *(
            Figure(f"{style}: gain, kept", f"{f['style_gain']:.2f}, {f['content_kept']:.2f}")
            for style, f in reports.items()
        ),
    ]
    report("demo", figures, args.append)


if __name__ == "__main__":
    main()
