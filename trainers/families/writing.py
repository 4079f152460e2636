"""Prompts as tokens -> the tokens that a language model writes after them, each row with its own seed and sampling.

transformers' own `generate` runs the model, with its cache and its processors; the draw is ours: the token of the
largest logit + Gumbel noise is a draw from the softmax (Gumbel-max; Maddison et al. 2014, "A* sampling"), and a row's
noise comes from its own seed, so that its text doesn't depend on what else is in the batch.

Try it: python -c "from trainers.families.writing import *; print(gumbel(seed=1, position=0, count=4))"
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import StoppingCriteria

from trainers.batches import generator_for
from trainers.errors import ConfigError
from trainers.families.base import evaluating
from trainers.families.sampling import Sampling as Sampling

OnToken = Callable[[int, int], bool | None]  # (row, token): False stops the whole batch


def write(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling | Sequence[Sampling],
    on_token: OnToken | None = None,
    context: int | None = None,
) -> list[list[int]]:
    """The new tokens of each row, the closing end-of-sequence left out; a row has `room` for them in the context
    (the model's own, unless the caller knows better).

    `model` is any AutoModelForCausalLM; row b of its batch is prompt b, from start to end. A row's tokens depend on its
    prompt, seed and sampling alone (sums of other batches are rounded otherwise: about 1e-6 of a logit).
    Raises ConfigError: settings out of range; prompts without tokens, or that fill the model's context.
    """
    each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    context = context or context_of(model)
    _check(prompts, each, context)
    if not prompts:
        return []
    most = [room(prompt, one, context) for prompt, one in zip(prompts, each, strict=True)]
    ends = end_tokens(model, tokenizer)
    pad = next((token for token in (tokenizer.pad_token_id, *ends) if token is not None), 0)
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    ids = torch.tensor([[pad] * left + list(prompt) for left, prompt in zip(padding, prompts, strict=True)])
    mask = torch.arange(width) >= torch.tensor(padding)[:, None]  # (B, T)
    written = Written(ends, most, on_token)
    config = GenerationConfig(max_new_tokens=max(most), do_sample=False, use_cache=True, pad_token_id=pad)
    with evaluating(model), _without_defaults(model), torch.inference_mode():
        model.generate(
            ids.to(model.device),
            attention_mask=mask.long().to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([Choice(each, seeds, padding, width)]),
            stopping_criteria=[written],
        )
    return written.rows


def room(prompt: Sequence[int], sampling: Sampling, context: int) -> int:
    """How many new tokens a row may have: as many as asked for, and as the context leaves."""
    return min(sampling.max_tokens, context - len(prompt))


def context_of(model: Any) -> int:
    """The tokens that a model reads at once, prompt and answer together; a great number where its config is silent."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2**31)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """All tokens that end a text: those of the model's generation config, and the tokenizer's own."""
    said = model.generation_config.eos_token_id
    several = said if isinstance(said, list) else [said]
    return [int(token) for token in dict.fromkeys([*several, tokenizer.eos_token_id]) if token is not None]


def _check(prompts: Sequence[Sequence[int]], each: Sequence[Sampling], context: int) -> None:
    faults = list(dict.fromkeys(fault for one in each for fault in one.faults()))
    for k, prompt in enumerate(prompts):
        if not prompt:
            faults.append(f"prompt {k + 1}: has no tokens")
        elif len(prompt) >= context:
            faults.append(f"prompt {k + 1}: {len(prompt)} tokens, but the base reads {context} at once, answer and all")
    if faults:
        raise ConfigError("nothing can be written", faults, "shorten the prompt, or name other numbers")


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """Without the sampling that the model's files propose, which `generate` would add to what is asked for."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class Choice(LogitsProcessor):
    """Logits -> scores whose largest is the token to take; rows of the same sampling are processed together."""

    def __init__(self, each: Sequence[Sampling], seeds: Sequence[int], padding: Sequence[int], width: int) -> None:
        self.each, self.seeds, self.padding, self.width = each, seeds, padding, width
        alike: dict[tuple[float, int, float], list[int]] = defaultdict(list)
        for row, one in enumerate(each):
            if one.temperature:
                alike[one.temperature, one.top_k, one.top_p].append(row)
        self.groups: list[tuple[list[int], Any]] = [
            (rows, LogitsProcessorList(_warpers(*key))) for key, rows in alike.items()
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, T) tokens so far and (B, V) logits -> (B, V); the padding on the left is in nobody's text."""
        for row, one in enumerate(self.each):
            if one.repetition_penalty != 1:
                penalty, own = RepetitionPenaltyLogitsProcessor(one.repetition_penalty), slice(row, row + 1)
                scores[own] = penalty(input_ids[own, self.padding[row] :], scores[own])
        position = input_ids.shape[1] - self.width
        for rows, warpers in self.groups:
            noise = torch.stack([gumbel(self.seeds[row], position, scores.shape[1]) for row in rows])
            scores[rows] = warpers(input_ids[rows], scores[rows]) + noise.to(scores.device)
        return scores


def _warpers(temperature: float, top_k: int, top_p: float) -> Iterator[Any]:
    yield TemperatureLogitsWarper(float(temperature))
    if top_k:
        yield TopKLogitsWarper(top_k)
    if top_p < 1:
        yield TopPLogitsWarper(top_p)


def gumbel(seed: int, position: int, count: int) -> Tensor:
    """(count,) draws from the standard Gumbel distribution for the new token at `position`: -log of Exp(1)."""
    waits = torch.empty(count).exponential_(generator=generator_for(seed, position, "token"))
    return -waits.clamp_min(torch.finfo(torch.float32).tiny).log()


class Written(StoppingCriteria):
    """Keeps what is written, row by row, tells of each token, and says which rows are done."""

    def __init__(self, ends: Sequence[int], most: Sequence[int], on_token: OnToken | None) -> None:
        self.eos_token_id = list(ends)  # its being there makes `generate` pad rows that are done
        self.most, self.on_token = most, on_token
        self.rows: list[list[int]] = [[] for _ in most]
        self.done = [False] * len(most)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self.done[row]:
                self._take(row, token)
        return torch.tensor(self.done, device=input_ids.device)

    def _take(self, row: int, token: int) -> None:
        if token in self.eos_token_id:
            self.done[row] = True
            return
        self.rows[row].append(token)
        self.done[row] = len(self.rows[row]) >= self.most[row]
        if self.on_token and self.on_token(row, token) is False:
            self.done = [True] * len(self.done)
