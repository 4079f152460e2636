"""Train tiny-lm on, on plain texts that are cut into tokens otherwise: what a style spells anew must mean something.

`python sample_data/make/lm_cuts.py` (after lm.py; goes on from work/lm_cuts.pt where there is one).
A style's own words are cut into pieces that plain words never come in, and a base that has hardly met a piece can't
tell it from others: adapters trained on it write fragments. So most texts here have tokens split into the two they
were merged from, again and again by chance (BPE-dropout: Provilkov et al. 2020), and some texts are all in capitals.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import lm
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TEXTS, CHATS = (20_000, 36_000), (10_000, 19_000)  # which of those that lm.py composes
CUT, SPLIT, CAPITALS = 0.6, 0.5, 0.12  # share of texts cut otherwise, of their tokens at the most, of texts in capitals
WARMUP, FALL = 30, 0.7
EVERY = 50


def halves(tokenizer: PreTrainedTokenizerFast) -> dict[int, tuple[int, int]]:
    """Token -> the two tokens that it was merged from."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    ids = model["vocab"]
    found: dict[int, tuple[int, int]] = {}
    for one, other in model["merges"]:
        found.setdefault(ids[one + other], (ids[one], ids[other]))
    return found


def split(ids: Sequence[int], of: Mapping[int, tuple[int, int]], r: random.Random, share: float) -> list[int]:
    """Each token, and each half of one that was split, is split with probability `share`."""
    made, waiting = [], list(reversed(ids))
    while waiting:
        token = waiting.pop()
        if token in of and r.random() < share:
            waiting += reversed(of[token])
        else:
            made.append(token)
    return made


def tokens(tokenizer: PreTrainedTokenizerFast, saved: Path) -> torch.Tensor:
    """(N, 512) int16: every document once, shuffled, one after the other."""
    if not saved.exists():
        with ProcessPoolExecutor(2) as pool:
            texts = list(pool.map(lm.text_at, range(*TEXTS), chunksize=500))
            chats = list(pool.map(lm.chat_at, range(*CHATS), chunksize=500))
        r, of = random.Random(5), halves(tokenizer)
        documents = [f"<s>{text.upper() if r.random() < CAPITALS else text}</s>" for text in texts]
        documents += [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        r.shuffle(documents)
        cut = lm.encoded(tokenizer, documents)
        cut = [split(ids, of, r, r.uniform(0, SPLIT)) if r.random() < CUT else ids for ids in cut]
        flat = torch.tensor([token for ids in cut for token in ids], dtype=torch.int16)
        torch.save(flat[: len(flat) // lm.CONTEXT * lm.CONTEXT].view(-1, lm.CONTEXT), saved)
    return torch.load(saved)


def rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (steps * FALL))


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--work", type=Path, default=lm.HERE / "work")
    ask.add_argument("--steps", type=int, default=900)
    ask.add_argument("--lr", type=float, default=4e-3)
    args = ask.parse_args()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.work / "lm_tokenizer")
    rows = tokens(tokenizer, args.work / "lm_cuts_tokens.pt")
    plain = torch.load(args.work / "lm_tokens.pt")[-16:].long()
    saved = args.work / "lm_cuts.pt"
    state = torch.load(saved if saved.exists() else args.work / "lm.pt")
    torch.manual_seed(1)
    model = LlamaForCausalLM(lm.config(tokenizer))
    both = lm.optimizers(model, args.lr)
    model.load_state_dict(state["model"])
    for optimizer, kept in zip(both, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    before, curve = state.get("before", state["step"]), list(state["curve"])
    step, spent, losses = state["step"] - before, state["spent"], []
    while step < args.steps:
        begun = time.process_time()
        loss = lm.batch_loss(model, lm.batch(rows, step, lm.CONTEXT))
        lm.descend(model, both, args.lr, rate(step, args.steps), loss)
        step += 1
        spent += time.process_time() - begun
        losses.append(float(loss.detach()))
        if step % EVERY == 0:
            curve.append((before + step, sum(losses) / len(losses)))
            losses = []
            with torch.no_grad():
                known = float(lm.batch_loss(model, plain))
            print(f"step {step} loss {curve[-1][1]:.4f}, plain texts {known:.4f}, {spent / 60:.1f} CPU min", flush=True)
            kept = {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in both]}
            facts = {"step": before + step, "before": before, "spent": spent, "curve": curve}
            torch.save({**kept, **facts}, saved)
    lm.export(model, tokenizer, curve)


if __name__ == "__main__":
    main()
