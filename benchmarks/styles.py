"""Eight requests in eight styles as one batch of the rack, against eight runs one after the other.

`python benchmarks/styles.py` takes about a minute on two idle cores; `--append` adds its figures to RESULTS.md.
Each request has its own prompt, seed and adapter (rank 16 on all linear layers) and gets as many new tokens as every
other; no text ends sooner. Together: eight adapters resident, each row's gains its own. In turn: a rack with one
adapter for each request. The texts must be the same both ways. Peft beside it: transformers' own sampling with one of
peft's eight adapters active at a time. In one process, in turn; a ratio is the median over the rounds of that round's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import peft
import results
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from trainers import samples
from trainers.families.writing import Sampling, write
from trainers.lora import fit
from trainers.lora.adapter import Adapter
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair
from trainers.lora.rack import Rack

REQUESTS, RANK, GOAL = 8, 16, 3.0
ENDLESS = SimpleNamespace(eos_token_id=None, pad_token_id=0)  # all that writing asks of a tokenizer


def tiny() -> Any:
    return endless(AutoModelForCausalLM.from_pretrained(samples.base_folder("tiny-lm"), dtype=torch.float32))


def llama_100m() -> Any:
    """A Llama of 101 million random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 11, "num_attention_heads": 12}
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=1024, tie_word_embeddings=True, **sizes)
    return endless(AutoModelForCausalLM.from_config(config))


def endless(model: Any) -> Any:
    """The model without tokens that end a text."""
    model.generation_config = GenerationConfig()
    return model.eval().requires_grad_(False)


def style(model: Any, seed: int) -> Adapter:
    """A random adapter, strong enough to change the text."""
    g = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, (out, into) in fit.shapes({"model": model}).items():
        if ".layers." in name:
            down, up = torch.randn(RANK, into, generator=g) / into**0.5, torch.randn(out, RANK, generator=g)
            pairs[name] = LoraPair(down, up * 0.2 / out**0.5, float(RANK))
    return Adapter(pairs)


def prompts(vocabulary: int) -> list[list[int]]:
    """Of 6 to 20 tokens."""
    g = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocabulary, (6 + 2 * k,), generator=g).tolist() for k in range(REQUESTS)]


def together(model: Any, adapters: list[Adapter], asked: list[list[int]], sampling: Sampling) -> Iterator[Any]:
    """A function that writes all in one batch; the rack is filled once, as a server's is."""
    with Rack({"model": model}) as rack:
        keys = [rack.add(adapter) for adapter in adapters]
        rack.set([{key: Gain()} for key in keys])
        yield lambda: write(model, ENDLESS, asked, range(REQUESTS), sampling)


def in_turn(model: Any, adapter: Adapter, seed: int, asked: list[int], sampling: Sampling) -> tuple[float, list[int]]:
    """Seconds of one run, and its text; the rack is filled outside of them."""
    with Rack({"model": model}) as rack:
        rack.set([{rack.add(adapter): Gain()}])
        begun = time.perf_counter()
        (row,) = write(model, ENDLESS, [asked], [seed], sampling)
        return time.perf_counter() - begun, row


def with_peft(make: Callable[[], Any], asked: list[list[int]], tokens: int) -> Callable[[], float]:
    """A function that writes one after the other with peft and transformers' own sampling, and gives the seconds."""
    config = peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(make(), config, adapter_name="0")
    for k in range(1, REQUESTS):
        model.add_adapter(str(k), config)
    settings = GenerationConfig(
        max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, temperature=0.8, top_p=0.95, pad_token_id=0
    )

    def turn() -> float:
        seconds = 0.0
        for k, prompt in enumerate(asked):
            model.set_adapter(str(k))
            ids = torch.tensor([prompt])
            begun = time.perf_counter()
            with torch.inference_mode():
                model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            seconds += time.perf_counter() - begun
        return seconds

    return turn


def figures(name: str, make: Callable[[], Any], tokens: int, rounds: int) -> Iterator[results.Figure]:
    """Both ways, and peft's, on one model."""
    model, sampling = make(), Sampling(tokens)
    asked = prompts(model.config.vocab_size)
    adapters = [style(model, seed) for seed in range(REQUESTS)]
    theirs = with_peft(make, asked, tokens)
    taken: dict[str, list[float]] = {"together": [], "in turn": [], "peft": []}
    for _ in range(1 + rounds):  # the first is thrown away
        for batch in together(model, adapters, asked, sampling):
            begun = time.perf_counter()
            rows = batch()
            taken["together"].append(time.perf_counter() - begun)
        alone = [in_turn(model, adapters[k], k, asked[k], sampling) for k in range(REQUESTS)]
        same = sum(row == rows[k] for k, (_, row) in enumerate(alone))
        taken["in turn"].append(sum(seconds for seconds, _ in alone))
        taken["peft"].append(theirs())
    speeds = {way: REQUESTS * tokens / statistics.median(seconds[1:]) for way, seconds in taken.items()}
    yield ratio(f"{name}: 8 styles in one batch, times the speed of 8 runs", "in turn", taken, speeds)
    yield ratio(f"{name}: the same, times the speed of peft's 8 runs", "peft", taken, speeds)
    yield results.Figure(
        f"{name}: texts that are the same both ways", f"{same} of {REQUESTS}", str(REQUESTS), same == 8
    )


def ratio(words: str, way: str, taken: Mapping[str, list[float]], speeds: Mapping[str, float]) -> results.Figure:
    found = statistics.median(b / a for a, b in zip(taken["together"][1:], taken[way][1:], strict=True))
    number = f"{found:.2f} ({speeds['together']:.0f} / {speeds[way]:.0f} tokens/s)"
    return results.Figure(words, number, f"≥ {GOAL:g}", found >= GOAL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--append", action="store_true", help="add the figures to RESULTS.md")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    found = [*figures("tiny-lm", tiny, given.tokens, given.rounds)]
    found += figures("Llama of 101 M", llama_100m, given.tokens // 2, given.rounds)
    results.report("styles", found, given.append)


if __name__ == "__main__":
    main()
