"""Blending 2 adapters of rank 16 into one of rank 16 over SD 1.5's 128 attention layers, beside peft in the same run.

`python benchmarks/blend.py [--append]`. peft's `add_weighted_adapter(combination_type="svd")` makes each delta dense
and takes its full SVD: minutes. `--layers N` gives peft only N layers of each shape and multiplies; the row says so.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from peft import LoraConfig, get_peft_model
from results import Figure, report
from torch import Tensor, nn

from studio.blend.factored import Factored
from trainers.lora.algebra import matrices
from trainers.lora.pair import LoraPair, Pairs

RANK, WEIGHTS = 16, (0.6, 0.4)
WORDS = 768  # width of the text encoder's output, which attn2's k and v read
LEVELS = ((320, 2), (640, 2), (1280, 2), (1280, 1), (1280, 3), (640, 3), (320, 3))  # width, transformer blocks
TIMES_FASTER = 200


def shapes() -> dict[str, tuple[int, int]]:
    """{path: (out, in)} of the linear layers in SD 1.5's attention: 16 transformer blocks of 8."""
    widths = [width for width, count in LEVELS for _ in range(count)]
    return {
        f"unet.blocks.{k}.{attention}.{name}": (
            width,
            WORDS if attention == "attn2" and name in ("to_k", "to_v") else width,
        )
        for k, width in enumerate(widths)
        for attention in ("attn1", "attn2")
        for name in ("to_q", "to_k", "to_v", "to_out")
    }


def adapter(seed: int, sizes: dict[str, tuple[int, int]]) -> Pairs:
    """Random factors whose singular values fall off, as trained ones do."""
    numbers = torch.Generator().manual_seed(seed)
    fall = torch.logspace(0, -1.5, RANK)[:, None]
    return {
        path: LoraPair(
            torch.randn(RANK, inner, generator=numbers) / inner**0.5 * fall,
            torch.randn(out, RANK, generator=numbers) / RANK**0.5,
            float(RANK),
        )
        for path, (out, inner) in sizes.items()
    }


def sampled(sizes: dict[str, tuple[int, int]], layers: int | None) -> tuple[list[str], dict[tuple[int, int], float]]:
    """The paths that peft gets, and by what to multiply the time of each shape."""
    alike: dict[tuple[int, int], list[str]] = defaultdict(list)
    for path, size in sizes.items():
        alike[size].append(path)
    taken = {size: list(islice(paths, layers)) for size, paths in alike.items()}
    return [p for paths in taken.values() for p in paths], {s: len(alike[s]) / len(taken[s]) for s in taken}


class Layers(nn.Module):
    """Nothing but linear layers under their names, which is all that peft looks at."""

    def __init__(self, sizes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        for path, (out, inner) in sizes.items():
            self.add_module(path.replace(".", "_"), nn.Linear(inner, out, bias=False))


def peft_blend(adapters: Sequence[Pairs], sizes: dict[str, tuple[int, int]]) -> tuple[float, dict[str, Tensor]]:
    """(seconds, {path: the blended delta}) of add_weighted_adapter; building the model isn't counted."""
    names = [path.replace(".", "_") for path in sizes]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names)
    model = get_peft_model(Layers(sizes), config, adapter_name="0")
    model.add_adapter("1", config)
    layers = {path: model.base_model.model.get_submodule(name) for path, name in zip(sizes, names, strict=True)}
    for k, pairs in enumerate(adapters):
        for path, layer in layers.items():
            layer.lora_A[str(k)].weight.data.copy_(pairs[path].down)
            layer.lora_B[str(k)].weight.data.copy_(pairs[path].up)
    begun = time.perf_counter()
    model.add_weighted_adapter(["0", "1"], list(WEIGHTS), "blend", combination_type="svd", svd_rank=RANK)
    seconds = time.perf_counter() - begun
    return seconds, {path: layer.get_delta_weight("blend").detach() for path, layer in layers.items()}


def seconds_of(work: Callable[[], object], times: int = 5) -> float:
    """The median."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return sorted(taken)[times // 2]


def error(adapters: Sequence[Pairs], path: str, got: Tensor) -> float:
    """The relative distance of a blended delta from the dense sum."""
    parts = [matrices(pairs[path]) for pairs in adapters]
    wanted = sum((w * up @ down for w, (up, down) in zip(WEIGHTS, parts, strict=True)), torch.zeros(()).double())
    return float((got.double() - wanted).norm() / wanted.norm())


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--append", action="store_true", help="add dated rows to benchmarks/RESULTS.md")
    ask.add_argument("--layers", type=int, help="layers of each shape that peft blends; default: all")
    args = ask.parse_args()
    sizes = shapes()
    adapters = [adapter(seed, sizes) for seed in (1, 2)]

    begun = time.perf_counter()
    Factored(adapters).blend(WEIGHTS, rank=RANK)
    cold = time.perf_counter() - begun
    first = seconds_of(lambda: Factored(adapters).blend(WEIGHTS, rank=RANK))
    factored = Factored(adapters)
    again = seconds_of(lambda: factored.blend((0.3, -0.8), rank=RANK))
    ours = factored.blend(WEIGHTS, rank=RANK)

    paths, times = sampled(sizes, args.layers)
    theirs, deltas, scaled = 0.0, dict[str, Tensor](), ""
    for size, factor in times.items():
        part = {path: size for path in paths if sizes[path] == size}
        seconds, made = peft_blend(adapters, part)
        theirs, deltas = theirs + seconds * factor, deltas | made
        print(f"peft, {size}: {seconds:.1f} s for {len(part)} layers", flush=True)
    if args.layers:
        scaled = f", scaled from {len(paths)} layers"

    errors = {path: (error(adapters, path, ours[path].cut.pair.delta()), error(adapters, path, deltas[path]))
              for path in paths}  # fmt: skip
    worst = max(one - other for one, other in errors.values())
    largest = [max(pair[k] for pair in errors.values()) for k in (0, 1)]
    figures = [
        Figure(
            "svd of 2 x r16 -> r16, 128 layers, factorisation included", f"{first:.3f} s ({cold:.3f} s as the first)"
        ),
        Figure("the same with new weights", f"{again:.3f} s"),
        Figure(f"peft add_weighted_adapter svd{scaled}", f"{theirs:.1f} s"),
        Figure("times faster than peft", f"{theirs / first:.0f}", f">= {TIMES_FASTER}", theirs / first >= TIMES_FASTER),
        Figure("largest relative error, ours and peft's", f"{largest[0]:.6f}, {largest[1]:.6f}"),
        Figure("ours above peft's in any layer by", f"{max(0.0, worst):.1e}", "<= 1e-06 (rounding)", worst <= 1e-6),
    ]
    report("blend", figures, args.append)


if __name__ == "__main__":
    main()
