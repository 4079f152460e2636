"""Texts laid end to end in one row, and attention that keeps them apart: no token sees another text, none is padding.

Linear layers, norms and embeddings read one row (1, T). Attention alone needs each text by itself: texts of one length
are a batch, seen through the row without copying it, and torch's kernel takes its causal flag, so no mask is built.
On two cores and 48 texts that takes 60% of the time of a padded batch, and 4% of one row under a dense mask.
`python -m pytest tests/test_packing.py` states what must hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "stylora"  # under which transformers knows this attention
SHORT = 512  # tokens; up to there the CPU's kernel takes up to five times as long in bfloat16 as the plain formula


@dataclass(frozen=True)
class Group:
    """Texts of one length that stand next to each other in the row."""

    count: int
    length: int


@dataclass(frozen=True)
class Row:
    """A micro-batch as a model reads it: (B, T) tokens, and where each token of its texts stands among the B T."""

    order: list[int]  # which text stands at place i
    places: Tensor | None  # (tokens,), text by text in that order; None: as they stand
    shape: tuple[int, int]
    extras: dict[str, Any]  # what the model is told besides

    def lay(self, texts: Sequence[Tensor], device: torch.device) -> Tensor:
        """One tensor (tokens, …) per text -> (B, T, …), zero at padding."""
        flat = torch.cat([texts[i] for i in self.order])
        if self.places is not None:
            flat = flat.new_zeros(self.shape[0] * self.shape[1], *flat.shape[1:]).index_copy_(0, self.places, flat)
        return flat.view(*self.shape, *flat.shape[1:]).to(device)


def packed(lengths: Sequence[int], device: torch.device) -> Row:
    """All texts in one row, from the longest to the shortest; each begins at position 0 and sees itself alone."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    counts = Counter(lengths[i] for i in order)
    positions = torch.cat([torch.arange(lengths[i]) for i in order])[None].to(device)
    # a mask of four dimensions is what transformers leaves as it is, so that it builds none of T x T
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    groups = [Group(count, length) for length, count in counts.items()]
    extras = {"position_ids": positions, "attention_mask": mask, "pieces": groups}
    return Row(order, None, (1, sum(lengths)), extras)


def padded(lengths: Sequence[int], device: torch.device) -> Row:
    """A text a row, with padding on the right, which the model's own mask hides."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # (B, T)
    places = mask.flatten().nonzero()[:, 0]
    return Row(list(range(len(lengths))), places, tuple(mask.shape), {"attention_mask": mask.long().to(device)})  # type: ignore[arg-type]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    pieces: Sequence[Group] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' seam: query (B, H, T, D), key and value (B, G, T, D) -> (B, T, H, D).

    With `pieces` B is 1 and the row holds several texts; without, it is transformers' own attention under `sdpa`,
    or plainly written out where scores are capped (Gemma 2), which torch's kernel can't do.
    """
    if pieces is None and softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    if pieces is None:
        mask = band(query.shape[2], None, query.device) if attention_mask is None else attention_mask
        return _plain(query, key, value, mask, softcap, scaling, dropout).transpose(1, 2).contiguous(), None
    sizes = [group.count * group.length for group in pieces]
    rows = [x[0].transpose(0, 1).split(sizes) for x in (query, key, value)]  # each (tokens, H, D)
    made = []
    for group, *parts in zip(pieces, *rows, strict=True):
        q, k, v = (x.unflatten(0, (group.count, group.length)).transpose(1, 2) for x in parts)  # (count, H, length, D)
        out = _within(q, k, v, softcap, sliding_window, scaling, dropout)
        made.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(made)[None], None


def _within(
    q: Tensor, k: Tensor, v: Tensor, softcap: float | None, window: int | None, scaling: float | None, dropout: float
) -> Tensor:
    """Causal attention inside each text of a batch of one length."""
    tokens = q.shape[2]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    short = q.device.type == "cpu" and dtype == torch.bfloat16 and tokens <= SHORT
    if softcap is None and not short:
        mask = band(tokens, window, q.device) if window is not None and tokens > window else None
        shared = q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(q, k, v, mask, dropout, mask is None, scale=scaling, enable_gqa=shared)
    mask = band(tokens, window, q.device)
    if softcap is None and not dropout:
        return _short(q, k, v, mask, scaling)
    return _plain(q, k, v, mask, softcap, scaling, dropout)


def _plain(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, softcap: float | None, scaling: float | None, dropout: float
) -> Tensor:
    """Attention written out, scores s capped to c tanh(s / c) if asked (Gemma 2); `mask` is True where one may look."""
    batch, heads, tokens, width = q.shape
    shared = k.shape[1], heads // k.shape[1]  # heads that read the same keys are rows of one product
    rows = (q * (width**-0.5 if scaling is None else scaling)).unflatten(1, shared).flatten(2, 3)
    scores = (rows @ k.mT).view(batch, heads, tokens, -1)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    shares = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return (drop(shares, dropout).view(batch, k.shape[1], -1, k.shape[2]) @ v).view(batch, heads, tokens, -1)


def _short(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """The same without cap and dropout, in bfloat16."""
    batch, heads, tokens, width = q.shape
    bias = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, -torch.inf)
    bias = bias.repeat(heads // k.shape[1], 1)[None]
    parts = [x.to(torch.bfloat16).reshape(batch * k.shape[1], -1, width) for x in (q, k, v)]
    made: Tensor = _Short.apply(*parts, bias, width**-0.5 if scaling is None else scaling)  # type: ignore[no-untyped-call]
    return made.view(batch, heads, tokens, width)


class _Short(torch.autograd.Function):
    """Attention written out with its own gradient: fewer passes than autograd's.

    Heads that share keys are rows of one product: q (N, rows, D), k and v (N, T, D), bias (1, rows, T) is 0 where one
    may look, else -inf.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            shares = torch.baddbmm(bias, q, k.mT, alpha=scale).softmax(-1)
            ctx.save_for_backward(q, k, v, shares)
            ctx.scale = scale
            return shares @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """From the gradient of the output (N, rows, D)."""
        q, k, v, shares = ctx.saved_tensors
        of_scores = torch._softmax_backward_data(out @ v.mT, shares, -1, shares.dtype)
        of_q, of_k = (of_scores @ k).mul_(ctx.scale), (of_scores.mT @ q).mul_(ctx.scale)
        return of_q, of_k, shares.mT @ out, None, None


def band(tokens: int, window: int | None, device: torch.device) -> Tensor:
    """(T, T), True where a token may look: at itself and before, no further back than the window."""
    ones = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    return ones if window is None else ones.triu(1 - window)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
