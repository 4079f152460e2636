"""How quick the studio feels: a slider moved -> the first new preview; what previews cost; memory over many pictures.

`python benchmarks/studio.py` takes about four minutes on two idle cores; `--append` adds its figures to RESULTS.md.
The engine runs in this process with tiny-sd (64 px, 20 steps) and two random adapters, as the pages use it; there is no
browser. A move comes while the last picture is still being drawn, at a moment of its own each time.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import results
import torch

sys.path.append(sys.path.pop(0))  # `studio` is the package, not this file

from studio.desk.engine import Draw, Engine
from studio.draw.recipe import Recipe
from studio.draw.use import Use
from trainers import samples
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora import fit
from trainers.lora.adapter import Adapter
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair

STEPS, RANK, SHARE = 20, 8, 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--append", action="store_true", help="add the figures to RESULTS.md")
    parser.add_argument("--moves", type=int, default=60, help="of the slider")
    parser.add_argument("--pictures", type=int, default=200, help="for the memory's sake")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        recipe = Recipe("a blue boat at night", adapters=hung(home), steps=STEPS)
        engine = Engine(home)
        engine.start()
        engine.wait(engine.submit("bench", Draw(recipe)))
        figures = [
            *latency(moves(engine, recipe, asked.moves)),
            cost(engine, recipe),
            memory(engine, recipe, asked.pictures),
        ]
        engine.close()
    results.report("studio.py", figures, asked.append)


def hung(home: Path, names: Sequence[str] = ("one", "other")) -> tuple[Use, ...]:
    """Adapters of random numbers on tiny-sd's attention, in the home folder."""
    shapes = fit.shapes(StableDiffusion(samples.base_folder("tiny-sd")).parts())
    uses = []
    for seed, name in enumerate(names):
        g = torch.Generator().manual_seed(seed)
        pairs = {
            path: LoraPair(torch.randn(RANK, into, generator=g) / into, torch.randn(out, RANK, generator=g) / RANK, 4.0)
            for path, (out, into, *kernel) in shapes.items()
            if ".attn" in path and not kernel
        }
        uses.append(Use(Adapter(pairs).save(home / f"{name}.safetensors")))
    return tuple(uses)


def weighed(recipe: Recipe, weight: float) -> Recipe:
    first, *others = recipe.adapters
    return replace(recipe, adapters=(replace(first, gain=Gain(weight)), *others))


# --- figures ---------------------------------------------------------------------------------------------------------


def moves(engine: Engine, recipe: Recipe, count: int) -> list[float]:
    """Seconds from each move of the slider to the first preview of what it asks for."""
    chance, found = random.Random(0), []
    for _ in range(count):
        begun = time.perf_counter()
        job = engine.submit("bench", Draw(weighed(recipe, chance.uniform(-1, 2))), slot="canvas")
        while not engine.snapshot(job).shown and not engine.snapshot(job).over:
            time.sleep(0.002)
        found.append(time.perf_counter() - begun)
        time.sleep(chance.uniform(0.1, 0.6))
    engine.wait(job)
    return found


def latency(seconds: Sequence[float], what: str = "slider moved -> first new preview") -> list[results.Figure]:
    ordered = sorted(seconds)
    p50, p95 = statistics.median(ordered), ordered[min(len(ordered) - 1, int(SHARE * len(ordered)))]
    return [
        results.Figure(f"{what}, tiny-sd, 64 px, p50", f"{p50:.2f} s"),
        results.Figure(f"{what}, tiny-sd, 64 px, p95", f"{p95:.2f} s (longest {ordered[-1]:.2f} s)", "≤ 1 s", p95 <= 1),
    ]


def cost(engine: Engine, recipe: Recipe, rounds: int = 8) -> results.Figure:
    """A picture with previews over the same without, in turn; the median of the rounds' ratios."""
    ratios = []
    for k in range(rounds):
        taken = []
        for previews in (False, True):
            begun = time.perf_counter()
            engine.wait(engine.submit("bench", Draw(replace(recipe, seed=k), previews)))
            taken.append(time.perf_counter() - begun)
        ratios.append(taken[1] / taken[0])
    ratio = statistics.median(ratios)
    return results.Figure("drawing with previews / without, tiny-sd", f"{ratio:.2f}", "≤ 1.15", ratio <= 1.15)


def memory(engine: Engine, recipe: Recipe, count: int) -> results.Figure:
    """This process's memory after a tenth of the pictures, and after all of them."""
    taken = []
    for k in range(count):
        engine.wait(engine.submit(f"desk{k % 8}", Draw(weighed(replace(recipe, seed=k, steps=4), k / count))))
        if k + 1 in (count // 10, count):
            gc.collect()
            taken.append(resident())
    growth = taken[-1] / taken[0] - 1
    number = f"{growth:+.1%} ({taken[0] >> 20} -> {taken[-1] >> 20} MiB)"
    return results.Figure(f"memory over {count} pictures", number, "≤ 5%", growth <= 0.05)


def resident() -> int:
    """Bytes of main memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
