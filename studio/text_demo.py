"""The whole road on text: teach tiny-lm a sample writing style, show before and after on five prompts, report.

`stylora demo --text --style pirate --out runs/text` writes the run, `before_after.md` and `report.json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainers import checkpoint, run, samples, session
from trainers.config import TrainConfig
from trainers.events import Busy, Event
from trainers.families.causal_lm import CausalLM
from trainers.families.sampling import Sampling
from trainers.lora.adapter import Adapter
from trainers.lora.gains import Gain
from trainers.lora.rack import Rack

BASE, STYLE = "tiny-lm", "pirate"
PROMPTS = (
    "It rained all morning, and", "My grandmother went to the market", "On Monday, the baker", "Dear Agnes,",
    "In the evening, we saw",
)  # fmt: skip
SAMPLING = Sampling(max_tokens=90, temperature=0.6, top_p=0.9)
FIRST_SEED = 1000
SHEET = "before_after.md"

Pair = tuple[str, str, str]  # prompt, what the bare base writes after it, what it writes with the adapter


def config_for(style: str, out: Path, sets: list[str]) -> TrainConfig:
    """The defaults of `stylora train` on text; `sets` may change any of them."""
    values = {"base": BASE, "data": str(samples.text_folder(style)), "out": str(out), "name": style}
    return run.for_base(TrainConfig.build(values=values, sets=sets))


def events(style: str, out: Path, sets: list[str]) -> Iterator[Event]:
    """Train, then write before and after; the report then holds both."""
    begun = time.monotonic()
    config = config_for(style, out, sets)
    run.check_folder(out)
    opened = run.open_base(config)
    yield from run.start(config, opened)
    yield Busy("texts for the sheet", 0, len(PROMPTS))
    pairs = before_and_after(opened, Adapter.load(run.adapter_path(config)), PROMPTS)
    yield Busy("texts for the sheet", len(PROMPTS), len(PROMPTS))
    checkpoint.write_atomically(out / SHEET, sheet(style, pairs).encode())
    report = json.loads((out / session.REPORT).read_text())
    report |= {"style": style, "before_after": pairs, "seconds_whole_demo": round(time.monotonic() - begun, 1)}
    checkpoint.write_atomically(out / session.REPORT, json.dumps(report, indent=2).encode())


def before_and_after(opened: run.Opened, adapter: Adapter, prompts: Sequence[str]) -> list[Pair]:
    """Each prompt with the same seed without and with the adapter: one batch, a gain of its own for each row."""
    family = opened.family
    assert isinstance(family, CausalLM)
    tokenizer = family.part("tokenizer")
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    seeds = [FIRST_SEED + k for k in range(len(prompts))]
    with Rack(family.parts()) as rack:
        key = rack.add(adapter)
        rack.set([{key: Gain(weight)} for weight in (0.0, 1.0) for _ in prompts])
        rows = [tokenizer.decode(row).strip() for row in family.write(ids * 2, seeds * 2, SAMPLING)]
    return list(zip(prompts, rows[: len(prompts)], rows[len(prompts) :], strict=True))


def sheet(style: str, pairs: Sequence[Pair]) -> str:
    """The pairs as a page of markdown."""
    parts = [f"# {BASE} before and after learning {style}\n"]
    for prompt, before, after in pairs:
        parts.append(f"## {prompt} …\n\n{BASE}: {_quoted(before)}\n\nwith {style}: {_quoted(after)}\n")
    return "\n".join(parts)


def _quoted(text: str) -> str:
    return "\n> " + text.replace("\n", "\n> ")
