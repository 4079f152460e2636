"""What a merged model costs while drawing: as much as the bare base. Beside it, what the adapter costs in the rack.

`python benchmarks/merge.py` merges random numbers into tiny-sd and draws with both in turns; `--append` notes it.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import results
import torch

from studio.draw.use import Use
from studio.merge.merge import merge
from studio.merge.weights import Weights, open_base
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora.adapter import Adapter
from trainers.lora.pair import LoraPair
from trainers.lora.rack import Rack

BASE, RANK, STEPS, PICTURES, ROUNDS = "tiny-sd", 8, 10, 2, 15
GOAL = 1.02


def adapter_for(base: Weights) -> Adapter:
    """A pair on every attention layer of the UNet."""
    g = torch.Generator().manual_seed(0)
    pairs = {}
    for path, shape in base.shapes.items():
        if path.startswith("unet.") and ".attn" in path:
            down, up = torch.randn(RANK, shape[1], generator=g), torch.randn(shape[0], RANK, generator=g)
            pairs[path] = LoraPair(0.05 * down, 0.05 * up, float(RANK))
    return Adapter(pairs)


def drawing(family: StableDiffusion) -> Callable[[], float]:
    """Seconds it takes to draw the same pictures once more."""

    def draw() -> float:
        begun = time.perf_counter()
        family.sample(["a red house"] * PICTURES, list(range(PICTURES)), steps=STEPS)
        return time.perf_counter() - begun

    return draw


def ratio(ways: dict[str, list[float]], way: str) -> float:
    """Median over rounds of a way's time over the bare base's in the same round."""
    return statistics.median(taken / bare for taken, bare in zip(ways[way], ways["bare"], strict=True))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        base = open_base(BASE)
        adapter = adapter_for(base)
        path = adapter.save(Path(name) / "random.safetensors")
        begun = time.perf_counter()
        done = merge(BASE, [Use(path)], Path(name) / "merged")
        seconds = time.perf_counter() - begun
        families = [StableDiffusion(folder) for folder in (base.root, done.path, base.root, base.root)]
        with Rack(families[2].parts()) as rack:
            rack.set([{rack.add(adapter): Use(path).gain}])
            draws = dict(zip(("bare", "merged", "rack", "bare again"), map(drawing, families), strict=True))
            ways: dict[str, list[float]] = {way: [] for way in draws}
            order = random.Random(0)
            for number in range(-1, ROUNDS):  # the first round warms up
                for way in order.sample(list(draws), len(draws)):
                    taken = draws[way]()
                    ways[way] += [taken] if number >= 0 else []
    again = ratio(ways, "bare again")
    merged, racked = ratio(ways, "merged"), ratio(ways, "rack")
    unet = next(one for one in done.compared if one.what == "unet")
    drawn = results.Figure(
        "merged / bare, drawing on tiny-sd", f"{merged:.3f} (noise: {again:.3f})", f"≤ {GOAL}", merged <= GOAL
    )
    proved = results.Figure(
        "receipt, fp16: UNet's error of its size", f"{unet.relative:.1e}", f"≤ {unet.bound:.1e}", not unet.faults()
    )
    rack_figure = results.Figure("one adapter in the rack / bare base", f"{racked:.3f}")
    whole = results.Figure("merge into tiny-sd with its receipt", f"{seconds:.1f} s")
    results.report("merge.py", [drawn, rack_figure, whole, proved], "--append" in sys.argv)


if __name__ == "__main__":
    main()
