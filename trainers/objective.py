"""What a model is trained on: a denoiser's noisy latents, targets and weights, a language model's token losses.

Tensors in, tensors out. Timesteps are (B,) indices into alphas_cumprod (T,), ᾱ for short: the share of the signal's
power that is left. A token's loss is -log p; logits are made a chunk at a time, for there are many of them.
Formulas and papers stand at the functions; docs/methods.md collects them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Prediction = Literal["epsilon", "v"]


def _mix(alphas_cumprod: Tensor, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """sqrt(ᾱ_t) and sqrt(1 - ᾱ_t), each (B, 1, …) so that it multiplies `like` (B, …)."""
    signal = alphas_cumprod.to(like.device, torch.float32)[timesteps.to(like.device)]  # (B,)
    shape = (-1,) + (1,) * (like.ndim - 1)
    return signal.sqrt().view(shape).to(like.dtype), (1 - signal).sqrt().view(shape).to(like.dtype)


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε (Ho et al. 2020, eq. 4); (B, C, H, W) like the latents."""
    signal, spread = _mix(alphas_cumprod, timesteps, latents)
    return signal * latents + spread * noise


def target(prediction: Prediction, latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """What the model should say: ε, or v = sqrt(ᾱ_t) ε - sqrt(1 - ᾱ_t) x_0 (Salimans & Ho 2022, appendix D)."""
    if prediction == "epsilon":
        return noise
    signal, spread = _mix(alphas_cumprod, timesteps, latents)
    return signal * noise - spread * latents


def snr(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Signal to noise ᾱ_t / (1 - ᾱ_t), (B,), in float32."""
    signal = alphas_cumprod.to(torch.float32)[timesteps.to(alphas_cumprod.device)]
    return signal / (1 - signal)


def min_snr_weight(snr: Tensor, gamma: float | None, prediction: Prediction) -> Tensor:
    """Weight of each sample's loss, (B,) (Hang et al. 2023, "Efficient diffusion training via min-SNR weighting").

    min(snr, γ) is meant for a loss on x_0; the same loss on ε is divided by snr, on v by snr + 1. None: all 1.
    Without signal (snr 0, a schedule rescaled to zero terminal SNR) the limits hold: 1 for ε, 0 for v.
    """
    if gamma is None:
        return torch.ones_like(snr)
    if prediction == "epsilon":
        return gamma / snr.clamp(min=gamma)
    return snr.clamp(max=gamma) / (snr + 1)


def offset_noise(noise: Tensor, offset: float, shifts: Tensor) -> Tensor:
    """Noise whose channels are shifted as a whole, so that mean lightness is learned too (Guttenberg 2023).

    `shifts` (B, C) are drawn from N(0, 1) by the caller; offset 0 gives back the noise itself.
    """
    return noise if offset == 0 else noise + offset * shifts[:, :, None, None].to(noise)


def loss_per_sample(model_out: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all but the batch, (B,), in float32 whatever the precision of the model."""
    return (model_out.float() - target.float()).square().flatten(1).mean(1)


CHUNK = {"cpu": 2**20, "cuda": 2**25}  # logits at a time: few enough for a core's cache, enough to fill a GPU
LEAST_ROWS = 256  # at a time, however large the vocabulary: fewer make poor products of matrices


class _HeadLoss(torch.autograd.Function):
    """Hidden states -> -log p of each target, a chunk of logits at a time, and the gradient on the way.

    The gradient of -log p by the logits is softmax - onehot: it is at hand when the loss is computed, so no logits are
    kept and none is computed twice (Hsu et al. 2024, "Liger kernel", fused linear cross-entropy).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, rows: int, wanted: bool) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
        weight, bias = head.weight.to(dtype), head.bias
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        slopes = torch.empty_like(hidden) if wanted else None
        with torch.autocast(device, enabled=False):
            for part in (slice(start, start + rows) for start in range(0, len(hidden), rows)):
                own = targets[part, None]
                logits = F.linear(hidden[part].to(dtype), weight, None if bias is None else bias.to(dtype)).float()
                capped = head.bend(logits)
                scores = torch.log_softmax(capped, -1, out=capped if head.cap is None else None)  # many: no copy
                losses[part] = -scores.gather(1, own)[:, 0]
                if slopes is not None:
                    slope = scores.exp_().scatter_add_(1, own, torch.full_like(own, -1, dtype=torch.float32))
                    slopes[part] = head.bend_slope(slope, capped).to(dtype) @ weight
        ctx.save_for_backward(*([] if slopes is None else [slopes]))
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * grads[0][:, None].to(slopes.dtype), None, None, None, None


@dataclass(frozen=True)
class Head:
    """A frozen output layer: logits z = factor (W h + b), capped to c tanh(z / c) where there is a cap (Gemma 2)."""

    weight: Tensor  # (V, d)
    bias: Tensor | None = None  # (V,)
    factor: float = 1.0
    cap: float | None = None

    def bend(self, logits: Tensor) -> Tensor:
        """W h + b -> z, float32."""
        scaled = logits if self.factor == 1 else logits * self.factor
        return scaled if self.cap is None else (scaled / self.cap).tanh() * self.cap

    def bend_slope(self, slope: Tensor, bent: Tensor) -> Tensor:
        """The gradient by W h + b, from that by z."""
        scaled = slope if self.factor == 1 else slope * self.factor
        return scaled if self.cap is None else scaled * (1 - (bent / self.cap).square())


def token_losses(hidden: Tensor, targets: Tensor, head: Head, rows: int | None = None) -> Tensor:
    """-log p of `targets` (N,) at `hidden` (N, d), in float32, (N,); logits are made `rows` rows at a time.

    The gradient goes to `hidden` alone: the head is frozen.
    """
    rows = rows or max(LEAST_ROWS, CHUNK.get(hidden.device.type, CHUNK["cpu"]) // len(head.weight))
    wanted = hidden.requires_grad and torch.is_grad_enabled()
    losses: Tensor = _HeadLoss.apply(hidden, targets, head, rows, wanted)  # type: ignore[no-untyped-call]
    return losses


def token_losses_of(
    logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, rows: int = LEAST_ROWS
) -> Tensor:
    """The same, (N,), for any `logits` of (rows, d), such as a head that is trained itself: computed twice, not kept.

    Chen et al. 2016, "Training deep nets with sublinear memory cost".
    """

    def losses(part: Tensor, own: Tensor) -> Tensor:
        return F.cross_entropy(logits(part).float(), own, reduction="none")

    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    made: list[Tensor] = [checkpoint(losses, part, own, use_reentrant=False) for part, own in parts]
    return torch.cat(made)
