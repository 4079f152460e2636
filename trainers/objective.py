"""What the denoiser is trained on: noisy latents, targets and the weight of each timestep. Tensors in, tensors out.

Timesteps are (B,) indices into alphas_cumprod (T,), ᾱ for short: the share of the signal's power that is left.
Formulas and papers stand at the functions; docs/methods.md collects them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

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
