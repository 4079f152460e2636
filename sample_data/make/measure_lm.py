"""Measure tiny-lm and write its README.md, samples.txt and loss.png.

`python sample_data/make/measure_lm.py` takes about two minutes on two idle cores. Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import text_chat
import text_plain
import torch
import torch.nn.functional as F
from lm import BASE, BATCH, CHATS, EVERY, TEXTS
from text_folders import STYLES, TARGET, copied
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trainers import plot

LARGEST = 12.0  # MB, all files of the base together
PLAIN, TIMES = 4.0, 5.0  # bars: perplexity on plain text at most, on styled text at least so many times that
OPENINGS = ("The", "Yesterday", "Mrs Brown", "At noon", "We", "Anna found", "Dear Ned", "It snowed", "To make", "My")
GREEDY = ("The miller", "On Monday, Rose", "It will be", "A sign", "We lost")
ASKED = (
    "Tell me a story about Clara.",
    "What does ahoy mean?",
    "Write this in capitals: The dog sleeps by the door.",
    "Tell this again: It rained all day. Tom lost a silver key at the mill. He found the key under the old bridge.",
    "How do I get to the church?",
)


@dataclass(frozen=True)
class Bar:
    """One row of the table."""

    name: str
    wanted: str
    measured: float
    unit: str = ""
    met: bool = True

    @property
    def row(self) -> str:
        return (
            f"| {self.name} | {self.wanted or '–'} | {self.measured:.2f}{self.unit}{'' if self.met else ' (missed)'} |"
        )


def opened(base: Path = BASE) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 (the CPU is no faster in float16) and its tokenizer, offline."""
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(base, local_files_only=True)


def held_out(kind: str, count: int) -> list[str]:
    """Plain texts or conversations that the base has not seen, `<s>` and `</s>` written out; no lists of words."""
    if kind == "plain":
        return [f"<s>{text_plain.compose(f'held out {k}', without='jumble')}</s>" for k in range(count)]
    tokenizer = AutoTokenizer.from_pretrained(BASE, local_files_only=True)
    chats = [text_chat.compose(f"held out {k}", without="repeat") for k in range(count)]
    return [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]


def styled(style: str) -> list[str]:
    lines = (TARGET / style / "heldout.jsonl").read_text().splitlines()
    return [f"<s>{json.loads(line)['text']}</s>" for line in lines]


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """exp of the mean loss over all tokens of all texts but the first of each."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
        loss = F.cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:], reduction="sum")
        total, count = total + float(loss), count + ids.shape[1] - 1
    return math.exp(total / count)


def generated(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, seed: int, greedy: bool = False
) -> str:
    """The prompt and what follows; sampled with the folder's own generation settings unless greedy."""
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids])
    torch.manual_seed(seed)
    settings = {"do_sample": False, "temperature": None, "top_p": None} if greedy else {}
    made = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Ten texts at the folder's temperature, five greedy ones, five answers."""
    yield "Sampled (temperature 0.8, top-p 0.95), what is before the bar was given:\n"
    for seed, opening in enumerate(OPENINGS):
        yield f"- {opening}|{generated(model, tokenizer, '<s>' + opening, seed)}"
    yield "\nGreedy:\n"
    for opening in GREEDY:
        yield f"- {opening}|{generated(model, tokenizer, '<s>' + opening, 0, greedy=True)}"
    yield "\nConversations:\n"
    for asked in ASKED:
        turn = [{"role": "user", "content": asked}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        yield f"- {asked}\n  {generated(model, tokenizer, prompt, 0, greedy=True)}"


def bars(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Bar]:
    plain = perplexity(model, tokenizer, held_out("plain", count))
    chats = perplexity(model, tokenizer, held_out("chat", count))
    made = [
        Bar(f"perplexity, {count} plain texts held out", f"≤ {PLAIN:g}", plain, met=plain <= PLAIN),
        Bar(f"perplexity, {count} conversations held out", f"≤ {PLAIN:g}", chats, met=chats <= PLAIN),
    ]
    for style in STYLES:
        value = perplexity(model, tokenizer, styled(style))
        wanted = f"≥ {TIMES:g} × plain"
        made.append(Bar(f"perplexity, {style}: 40 texts held out", wanted, value, met=value >= TIMES * plain))
    return made


def repeated() -> Iterator[str]:
    """A row a style: how much of the held-out texts stands in the training texts word for word."""
    for style in STYLES:
        parts = [(TARGET / style / f"{part}.jsonl").read_text().splitlines() for part in ("train", "heldout")]
        train, held = ([json.loads(line)["text"] for line in lines] for lines in parts)
        yield f"| {style} | {len(train)} | {len(held)} | {100 * copied(held, train):.1f} % |"


def loss_curve() -> None:
    with (BASE / "loss.csv").open() as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    title = f"tiny-lm, steps {2 * EVERY} to {len(losses) * EVERY:,} of {BATCH:,} tokens"
    plot.loss_plot(losses[1:], title, first_step=2 * EVERY, every=EVERY, reach=2).save(BASE / "loss.png", optimize=True)


README = """<!-- written by sample_data/make/measure_lm.py -->
# tiny-lm

{what}

## How it was made
On two CPU cores, seed 0; the training goes on where it was stopped:

```sh
python sample_data/make/lm.py
python sample_data/make/lm_cuts.py
python sample_data/make/measure_lm.py --minutes {minutes:.0f}
```

{how}

![loss curve](loss.png)

## Bars
Texts held out have seeds that no training text has; lists of words are not among them. Perplexity is per
token, over all tokens but the first `<s>`.

| bar | wanted | measured |
| --- | --- | --- |
{rows}

## The styles
`sample_data/text/<style>/` holds what adapters learn from, composed by `sample_data/make/text_folders.py`: the same
contents told in four ways, and conversations in which the user tells plainly and the assistant in style. The last
column says how many runs of eight words of the held-out texts stand in the training texts: what an adapter that
copies nothing would repeat.

| style | train | held out | 8-grams repeated |
| --- | --- | --- | --- |
{repeated}

## Samples
```text
{samples}
```
"""
WHAT = """A language base small enough to travel with the code: a `LlamaForCausalLM` of {parameters:.2f} M
parameters ({layers} layers of {hidden}, {heads} heads that share {kv} of keys and values, tied embeddings,
context {context}), fp16, with a byte-level BPE of {vocabulary:,} tokens of its own and a chat template that
marks what the assistant says. It writes plain English: short scenes, letters, directions, weather, recipes,
small talk, and answers in kind: asked for the way, it gives a way. It does not keep to what it was told (a pony
in the first sentence may be a lamb in the third), it knows nothing else, and it has not seen a single text of
the styles in `sample_data/text/`; the old words that some of them use it has met only in plain lessons ("In old
books, aye means yes.") and in lists of words in any order, which keep it from being too sure of itself.
Everything it was trained on is composed by `sample_data/make/`, so it is under this project's licence."""
HOW = """{texts:,} texts and {chats:,} conversations, one after the other; {steps:,} steps of {batch:,} tokens
({seen:.1f} M in all), {minutes:.0f} minutes of CPU time. Muon for the layers' matrices, AdamW for embeddings
and norms, bfloat16 autocast; the rate falls to zero over the last 40% of the first 2,400 steps, in which blocks
grow from 256 to 512 tokens. The other steps read plain texts that are cut into tokens otherwise (BPE-dropout), some in
capitals: so the pieces of which a style's words are made mean something (docs/log.md). Loss over all tokens."""


def size() -> float:
    """MB of all files of the base."""
    return sum(file.stat().st_size for file in BASE.rglob("*") if file.is_file()) / 1e6


def write_readme(model: PreTrainedModel, rows: Sequence[Bar], shown: str, spent: float) -> None:
    c = model.config
    facts = {"parameters": model.num_parameters() / 1e6, "layers": c.num_hidden_layers, "hidden": c.hidden_size}
    facts |= {"heads": c.num_attention_heads, "kv": c.num_key_value_heads, "context": c.max_position_embeddings}
    with (BASE / "loss.csv").open() as stream:
        steps = int(list(csv.DictReader(stream))[-1]["step"])
    how = {
        "texts": TEXTS,
        "chats": CHATS,
        "steps": steps,
        "batch": BATCH,
        "seen": steps * BATCH / 1e6,
        "minutes": spent,
    }
    text = README.format(
        what=textwrap.fill(WHAT.format(vocabulary=c.vocab_size, **facts), 120),
        minutes=spent,
        how=textwrap.fill(HOW.format(**how), 120),
        rows="\n".join(bar.row for bar in rows),
        repeated="\n".join(repeated()),
        samples=shown,
    )
    (BASE / "README.md").write_text(text)


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--minutes", type=float, required=True, help="CPU minutes that lm.py told at its end")
    ask.add_argument("--texts", type=int, default=300, help="plain texts and conversations to measure on")
    args = ask.parse_args()
    model, tokenizer = opened()
    rows = bars(model, tokenizer, args.texts)
    shown = "\n".join(samples(model, tokenizer))
    (BASE / "samples.txt").write_text(shown + "\n")
    loss_curve()
    write_readme(model, rows, shown, args.minutes)
    rows.append(Bar("all files of the base", f"≤ {LARGEST:g} MB", size(), " MB", met=size() <= LARGEST))
    write_readme(model, rows, shown, args.minutes)
    print("\n".join(bar.row for bar in rows))
    return 0 if all(bar.met for bar in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
