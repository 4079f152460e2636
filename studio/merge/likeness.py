"""How near two language models' next-token distributions are: KL divergence and greedy agreement.

KL(p || q) = sum p (log p - log q) in nats, p the distribution that is to be reproduced. If no logit is off by more than
e, it is at most e^2 / 2 (Hoeffding's lemma: log E_p exp(d) - E_p d <= (max d - min d)^2 / 8); docs/methods.md.

Try it: python -c "import torch; from studio.merge.likeness import *; print(likeness(torch.eye(3), torch.ones(3, 3)))"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

LIKELIEST = 16  # tokens of each place that a receipt keeps
PLACES = 16  # looked at together
FLOOR = 1e-7  # nats: float32 logits say no more


@dataclass(frozen=True)
class Likeness:
    """Over `places` places: KL divergence, mean and largest, in nats; the share at which the likeliest token is one."""

    kl_mean: float
    kl_max: float
    agreement: float
    places: int

    def facts(self) -> dict[str, Any]:
        """For the receipt."""
        return asdict(self)


def likeness(wanted: Tensor, found: Tensor) -> Likeness:
    """Of two models' logits (places, vocabulary); in float64, a few places at a time."""
    kl = [_kl(one, other) for one, other in zip(wanted.split(PLACES), found.split(PLACES), strict=True)]
    return _likeness(torch.cat(kl), wanted.argmax(-1) == found.argmax(-1))


def kl_bound(error: float) -> float:
    """The largest KL divergence that logits off by at most `error` allow."""
    return error**2 / 2 + FLOOR


def likeliest(logits: Tensor) -> dict[str, Tensor]:
    """What a receipt keeps of logits (places, vocabulary): the likeliest tokens of each place, their log p."""
    top = logits.topk(min(LIKELIEST, logits.shape[-1] - 1))
    log_p = top.values.double() - logits.double().logsumexp(-1, keepdim=True)
    return {"tokens": top.indices, "log_p": log_p.float()}


def likeness_to(kept: Mapping[str, Tensor], logits: Tensor) -> Likeness:
    """The likeness of logits to what `likeliest` has kept, all other tokens counted as one: never above the true KL.

    Raises ValueError: it is of another form.
    """
    tokens, log_p = (kept[name].reshape(len(logits), -1) for name in ("tokens", "log_p"))
    tokens = tokens.long()
    if tokens.shape != log_p.shape or not bool(((tokens >= 0) & (tokens < logits.shape[-1])).all()):
        raise ValueError("the kept distributions are of another vocabulary")
    found = (logits.double().log_softmax(-1)).gather(-1, tokens)
    wanted = log_p.double()
    kl = (wanted.exp() * (wanted - found)).sum(-1)
    rest, other = (1 - side.exp().sum(-1) for side in (wanted, found))
    kl += torch.where(rest > FLOOR, rest * (rest / other.clamp(min=FLOOR)).clamp(min=FLOOR).log(), 0.0)
    return _likeness(kl, tokens[:, 0] == logits.argmax(-1))


def _kl(wanted: Tensor, found: Tensor) -> Tensor:
    p, q = (side.double().log_softmax(-1) for side in (wanted, found))
    return (p.exp() * (p - q)).sum(-1)


def _likeness(kl: Tensor, same: Tensor) -> Likeness:
    return Likeness(float(kl.mean().clamp(min=0)), float(kl.max().clamp(min=0)), float(same.double().mean()), len(kl))
