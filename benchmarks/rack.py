"""What the rack costs: changing weights, a forward pass, a grid as one batch, loading; diffusers with peft beside it.

`python benchmarks/rack.py` takes about five minutes on two idle cores; `--append` adds its figures to RESULTS.md.
- weights: 50 adapters of rank 16 on all 128 attention layers of Stable Diffusion 1.5's UNet, every weight changed;
- loading: a file of 264 modules (UNet and text encoder), from disk to where it would act, on SD 1.5's shape;
- pictures: whole pictures by tiny-sd (64 px, 20 steps): bare, in the rack, merged; and 16 weights as one batch.
In one process, in turn. A ratio is the median over the rounds of that round's ratio. SD 1.5's weights are one zero,
spread out by strides: neither loading nor changing weights reads them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import peft
import results
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from trainers import samples
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora import fit, inject
from trainers.lora.adapter import Adapter
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair
from trainers.lora.rack import Rack

RESIDENT, RANK, CELLS = 50, 16, 16
Turn = Callable[[], object]


def hollow(model: Any) -> Any:
    """A model built on the meta device, given weights on the CPU of the right shapes that take no memory."""
    for module in model.modules():
        for name, weight in [*module._parameters.items()]:
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.zeros(()).expand(weight.shape), requires_grad=False)
        for name, buffer in [*module._buffers.items()]:
            module._buffers[name] = None if buffer is None else torch.zeros_like(buffer, device="cpu")
    return model


def sd15_unet() -> Any:
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    return hollow(unet)


def sd15_text() -> Any:
    with torch.device("meta"):
        sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        text = CLIPTextModel(CLIPTextConfig(**sizes))
    return hollow(text)


def adapter_for(parts: Mapping[str, nn.Module], seed: int, choice: str = "attention") -> Adapter:
    """A random adapter of rank 16 on a preset's modules of all parts, in half precision as files are."""
    torch.manual_seed(seed)
    shapes = fit.shapes(parts)
    names = [fit.canonical(part, path) for part in parts for path in inject.targets(part, parts[part], choice)]
    pairs = {}
    for name in names:
        out, into, *kernel = shapes[name]
        down, up = torch.randn(RANK, into, *kernel) / into, torch.randn(out, RANK, *[1] * len(kernel)) / RANK
        pairs[name] = LoraPair(down.half(), up.half(), float(RANK))
    return Adapter(pairs)


# --- measuring ------------------------------------------------------------------------------------------------------


def timed(turn: Turn) -> float:
    begun = time.perf_counter()
    turn()
    return time.perf_counter() - begun


def rounds_of(turns: Mapping[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Seconds by variant; A B C A B C, the first round thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(1 + rounds):
        for name, turn in turns.items():
            taken[name].append(timed(turn))
    return {name: seconds[1:] for name, seconds in taken.items()}


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def figure(words: str, above: list[float], below: list[float], goal: float, most: bool = True) -> results.Figure:
    """A ratio of medians' rounds with both times; the goal is the most or the least it may be."""
    found = ratio(above, below)
    number = f"{found:.2f} ({statistics.median(above):.3f} s / {statistics.median(below):.3f} s)"
    met = found <= goal if most else found >= goal
    return results.Figure(words, number, f"{'≤' if most else '≥'} {goal}", met)


# --- what is measured -----------------------------------------------------------------------------------------------


def weights() -> Iterator[results.Figure]:
    """The rack's `set` with new weights, blocks and samples, and diffusers' set_adapters on a twin of the model."""
    parts, theirs = {"unet": sd15_unet()}, sd15_unet()
    config = peft.LoraConfig(r=RANK, target_modules=inject.targets("unet", theirs, "attention"))
    names = [f"adapter{n}" for n in range(RESIDENT)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            peft.inject_adapter_in_model(config, theirs, adapter_name=name, low_cpu_mem_usage=True)
    theirs._hf_peft_config_loaded = True
    made = torch.Generator().manual_seed(0)

    def draw() -> list[float]:
        return torch.rand(RESIDENT, generator=made).tolist()

    with Rack(parts) as rack:
        keys = [rack.add(adapter_for(parts, seed)) for seed in range(RESIDENT)]
        blocks = {"IN04": 0.5, "MID": 0.0, "OUT05": 1.5}
        turns = {
            "all weights": lambda: rack.set([{key: Gain(w) for key, w in zip(keys, draw(), strict=True)}]),
            "all weights and blocks": lambda: rack.set(
                [{key: Gain(w, blocks=blocks) for key, w in zip(keys, draw(), strict=True)}]
            ),
            "all weights of 16 samples": lambda: rack.set(
                [{key: Gain(w) for key, w in zip(keys, draw(), strict=True)} for _ in range(CELLS)]
            ),
            "diffusers' set_adapters": lambda: theirs.set_adapters(names, draw()),
        }
        taken = {name: seconds for name, turn in turns.items() for seconds in rounds_of({name: turn}, 20).values()}
    shown = f"{RESIDENT} x r{RANK} on SD 1.5's 128 attention layers"
    for name in turns:
        milliseconds = 1000 * statistics.median(taken[name])
        goal, met = ("≤ 1 ms", milliseconds <= 1) if name == "all weights" else ("–", None)
        yield results.Figure(f"{name}, {shown}", f"{milliseconds:.2f} ms", goal, met)


def loading(rounds: int = 5) -> Iterator[results.Figure]:
    """From one file on disk; each way then takes it out again, which isn't timed."""
    ours = {"unet": sd15_unet(), "text_encoder": sd15_text()}
    nothing = dict.fromkeys(("vae", "tokenizer", "safety_checker", "feature_extractor"))
    pipeline: Any = diffusers.StableDiffusionPipeline(
        unet=sd15_unet(), text_encoder=sd15_text(), scheduler=diffusers.DDIMScheduler(clip_sample=False),
        requires_safety_checker=False, **nothing,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place, Rack(ours) as rack:
        adapter = adapter_for(ours, 0, "attention+ff")
        projections = adapter_for({"unet": ours["unet"]}, 0, r"attentions\.\d+\.proj_(in|out)$")
        file = Adapter(adapter.pairs | projections.pairs).save(Path(place) / "some.safetensors", "diffusers")
        taken: dict[str, list[float]] = {"rack": [], "theirs": []}
        for _ in range(1 + rounds):
            taken["rack"].append(timed(lambda: rack.set([{rack.add(Adapter.load(file)): Gain(0.8)}])))
            rack.remove(rack.resident[0])
            taken["theirs"].append(timed(lambda: pipeline.load_lora_weights(place, weight_name=file.name)))
            pipeline.unload_lora_weights()
    count = len(adapter.pairs | projections.pairs)
    words = f"load_lora_weights / rack, {count} modules of rank {RANK}, SD 1.5's shape"
    yield figure(words, taken["theirs"][1:], taken["rack"][1:], 1.0, most=False)


def pictures(rounds: int) -> Iterator[results.Figure]:
    """Whole pictures by the product's own `sample`, and 16 weights of one adapter as one batch."""
    family, merged = (StableDiffusion(samples.base_folder("tiny-sd")) for _ in range(2))
    adapter = adapter_for(family.parts(), 0)
    for spot in fit.locate(merged.parts(), adapter.pairs).values():
        spot.module.get_parameter("weight").data += 0.8 * spot.pair.delta()
    words = ["a house by the sea"] * CELLS

    def in_rack(cells: list[float]) -> None:
        with Rack(family.parts()) as rack:
            key = rack.add(adapter)
            rack.set([{key: Gain(weight)} for weight in cells])
            family.sample(words[: len(cells)], range(len(cells)), steps=20)

    grid = [n / CELLS for n in range(1, CELLS + 1)]
    turns: dict[str, Turn] = {
        "bare": lambda: family.sample(words[:1], [0], steps=20),
        "rack": lambda: in_rack([0.8]),
        "merged": lambda: merged.sample(words[:1], [0], steps=20),
    }
    taken = rounds_of(turns, rounds)
    yield figure("rack with one adapter / bare base, tiny-sd", taken["rack"], taken["bare"], 1.15)
    yield figure("merged / bare base, tiny-sd", taken["merged"], taken["bare"], 1.02)
    turns = {
        "grid": lambda: in_rack(grid),
        "equal": lambda: in_rack([0.8] * CELLS),
        "apart": lambda: [in_rack([weight]) for weight in grid],
    }
    taken = rounds_of(turns, max(2, rounds // 4))
    yield figure("16 runs of one / 16 weights as one batch, tiny-sd", taken["apart"], taken["grid"], 1.8, most=False)
    yield figure("16 weights / 16 equal weights as one batch, tiny-sd", taken["grid"], taken["equal"], 1.05)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--append", action="store_true", help="add the figures to RESULTS.md")
    ask.add_argument("--only", choices=("weights", "loading", "pictures"))
    ask.add_argument("--rounds", type=int, default=20, help="of single pictures; grids take a quarter of it")
    args = ask.parse_args()
    print(f"{results.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    for name, made in (("weights", weights()), ("loading", loading()), ("pictures", pictures(args.rounds))):
        if args.only in (None, name):
            for found in made:
                results.report("rack.py", [found], args.append)


if __name__ == "__main__":
    main()
