"""Train tiny-lm, a small Llama, on composed plain English, and write it as a folder that transformers loads.

`python sample_data/make/lm.py` (goes on from work/lm.pt where there is one). In order:
1. texts and conversations are composed and cut into tokens, once (work/lm_tokens.pt);
2. documents stand one after the other; blocks of 256 tokens while the rate is constant, of 512 while it falls to zero
   over the last 40% of the steps; Muon (Jordan et al. 2024) on the layers' matrices, AdamW on the rest, bfloat16;
3. sample_data/bases/tiny-lm/ is written: weights in fp16, tokenizer, configs, loss.csv.
"""

from __future__ import annotations

import argparse
import csv
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import text_chat
import text_plain
import torch
import torch.nn.functional as F
from text_tokenizer import CONTEXT, train
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
BASE = HERE.parent / "bases" / "tiny-lm"
TEXTS, CHATS = 60_000, 35_000
BATCH = 2048  # tokens in a step
WARMUP, FALL = 50, 0.4  # steps of warmup; share of the steps over which the rate falls
EVERY = 25  # steps in one point of the loss curve


def config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def text_at(k: int) -> str:
    return text_plain.compose(f"train {k}")


def chat_at(k: int) -> list[dict[str, str]]:
    return text_chat.compose(f"train {k}")


def encoded(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids; nothing is added, so that `<s>` and `</s>` are written out."""
    return tokenizer(texts, add_special_tokens=False).input_ids


def tokens(tokenizer: PreTrainedTokenizerFast, saved: Path) -> torch.Tensor:
    """(N, 512) int16: every document once, shuffled, one after the other."""
    if not saved.exists():
        with ProcessPoolExecutor(2) as pool:
            texts = [f"<s>{text}</s>" for text in pool.map(text_at, range(TEXTS), chunksize=1000)]
            chats = list(pool.map(chat_at, range(CHATS), chunksize=1000))
        texts += [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
        flat = torch.tensor(
            [i for ids in encoded(tokenizer, [texts[k] for k in order]) for i in ids], dtype=torch.int16
        )
        torch.save(flat[: len(flat) // CONTEXT * CONTEXT].view(-1, CONTEXT), saved.with_suffix(".tmp"))
        saved.with_suffix(".tmp").rename(saved)
    return torch.load(saved)


def rate(step: int, steps: int) -> float:
    """Share of the full learning rate: up over WARMUP steps, down to zero over the last FALL of them."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (steps * FALL))


def batch(rows: torch.Tensor, step: int, length: int) -> torch.Tensor:
    """(BATCH / length, length) of the rows, each pass over them in another order."""
    size = BATCH // CONTEXT
    per_pass = len(rows) // size
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(step // per_pass))
    first = step % per_pass * size
    return rows[order[first : first + size]].long().view(-1, length)


def batch_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token, in nats."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def optimizers(model: LlamaForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr * 0.4, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]


def descend(
    model: LlamaForCausalLM, both: list[torch.optim.Optimizer], lr: float, share: float, loss: torch.Tensor
) -> None:
    """One step of the `optimizers`, at this share of their learning rates."""
    for optimizer, own in zip(both, (lr, lr * 0.4), strict=True):
        optimizer.param_groups[0]["lr"] = own * share
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in both:
        optimizer.step()
        optimizer.zero_grad()


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, curve: list[tuple[int, float]]) -> None:
    """Write the folder: fp16 weights, tokenizer, generation settings, loss curve."""
    half = LlamaForCausalLM(model.config).half()
    half.load_state_dict(model.state_dict())
    half.config.dtype = torch.float16
    half.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        max_new_tokens=120,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    half.save_pretrained(BASE)
    (BASE / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    tokenizer.save_pretrained(BASE)
    with (BASE / "loss.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("step", "loss"), *((step, f"{loss:.4f}") for step, loss in curve)])


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--work", type=Path, default=HERE / "work")
    ask.add_argument("--steps", type=int, default=2400)
    ask.add_argument("--lr", type=float, default=8e-3)
    args = ask.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    folder = args.work / "lm_tokenizer"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder) if folder.exists() else train(folder)
    rows = tokens(tokenizer, args.work / "lm_tokens.pt")
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(tokenizer))
    both = optimizers(model, args.lr)
    print(
        f"{rows.numel() / 1e6:.1f} M tokens, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters",
        flush=True,
    )
    step, spent, curve = 0, 0.0, []
    saved = args.work / "lm.pt"
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(both, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        step, spent, curve = state["step"], state["spent"], state["curve"]

    def save() -> None:
        state = {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in both]}
        torch.save({**state, "step": step, "spent": spent, "curve": curve}, saved.with_suffix(".tmp"))
        saved.with_suffix(".tmp").rename(saved)

    losses: list[float] = []
    while step < args.steps:
        begun = time.process_time()
        falling = step >= args.steps * (1 - FALL)
        loss = batch_loss(model, batch(rows, step, CONTEXT if falling else CONTEXT // 2))
        descend(model, both, args.lr, rate(step, args.steps), loss)
        step += 1
        spent += time.process_time() - begun
        losses.append(float(loss.detach()))
        if step % EVERY == 0:
            curve.append((step, sum(losses) / len(losses)))
            losses = []
        if step % 50 == 0:
            print(f"step {step} loss {curve[-1][1]:.4f} {spent / 60:.1f} CPU min", flush=True)
            save()
    save()
    export(model, tokenizer, curve)


if __name__ == "__main__":
    main()
