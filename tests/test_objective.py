"""Identities of the objectives, and agreement with diffusers' scheduler and torch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers import objective


@pytest.fixture
def alphas_cumprod() -> Tensor:
    """Stable Diffusion's schedule."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(4, 4, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(4, 4, 6, 5, generator=torch.Generator().manual_seed(1))


TIMESTEPS = torch.tensor([0, 250, 700, 999])


def test_latents_come_back_from_epsilon(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> None:
    noisy = objective.add_noise(latents, noise, alphas_cumprod, TIMESTEPS)
    epsilon = objective.target("epsilon", latents, noise, alphas_cumprod, TIMESTEPS)
    signal = alphas_cumprod[TIMESTEPS].view(-1, 1, 1, 1)
    torch.testing.assert_close((noisy - (1 - signal).sqrt() * epsilon) / signal.sqrt(), latents, rtol=1e-4, atol=1e-5)


def test_latents_and_noise_come_back_from_v(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> None:
    noisy = objective.add_noise(latents, noise, alphas_cumprod, TIMESTEPS)
    v = objective.target("v", latents, noise, alphas_cumprod, TIMESTEPS)
    signal = alphas_cumprod[TIMESTEPS].view(-1, 1, 1, 1)
    torch.testing.assert_close(signal.sqrt() * noisy - (1 - signal).sqrt() * v, latents)
    torch.testing.assert_close((1 - signal).sqrt() * noisy + signal.sqrt() * v, noise)


def test_as_diffusers_does_it(latents: Tensor, noise: Tensor) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ours = objective.add_noise(latents, noise, scheduler.alphas_cumprod, TIMESTEPS)
    torch.testing.assert_close(ours, scheduler.add_noise(latents, noise, TIMESTEPS))
    v = objective.target("v", latents, noise, scheduler.alphas_cumprod, TIMESTEPS)
    torch.testing.assert_close(v, scheduler.get_velocity(latents, noise, TIMESTEPS))


def test_snr_falls_with_time(alphas_cumprod: Tensor) -> None:
    ratios = objective.snr(alphas_cumprod, torch.arange(1000))
    assert (ratios.diff() < 0).all()
    signal = alphas_cumprod[500]
    torch.testing.assert_close(ratios[500], signal / (1 - signal))


def test_min_snr_weights() -> None:
    snr = torch.tensor([0.0, 0.5, 5.0, 50.0])
    epsilon = objective.min_snr_weight(snr, 5.0, "epsilon")
    torch.testing.assert_close(epsilon, torch.tensor([1.0, 1.0, 1.0, 0.1]))
    v = objective.min_snr_weight(snr, 5.0, "v")
    torch.testing.assert_close(v, torch.tensor([0.0, 0.5 / 1.5, 5 / 6, 5 / 51]))
    assert (objective.min_snr_weight(snr, None, "v") == 1).all()


def test_both_predictions_weigh_the_error_of_the_latents_alike(
    latents: Tensor, noise: Tensor, alphas_cumprod: Tensor
) -> None:
    """With the error δ in x_0, the one in ε is sqrt(snr) δ and in v sqrt(snr + 1) δ: the weighted losses agree."""
    snr = objective.snr(alphas_cumprod, TIMESTEPS)
    error = latents.square().flatten(1).mean(1)
    losses = [
        objective.min_snr_weight(snr, 5.0, "epsilon") * snr * error,
        objective.min_snr_weight(snr, 5.0, "v") * (snr + 1) * error,
    ]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(losses[0], snr.clamp(max=5.0) * error)


def test_offset_noise_moves_whole_channels(noise: Tensor) -> None:
    shifts = torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
    moved = objective.offset_noise(noise, 0.1, shifts) - noise
    torch.testing.assert_close(moved, (0.1 * shifts)[:, :, None, None].expand_as(noise), rtol=1e-4, atol=1e-6)
    assert objective.offset_noise(noise, 0.0, shifts) is noise


def test_loss_is_one_number_a_sample_in_full_precision() -> None:
    said, wanted = torch.full((2, 3, 4), 300.0, dtype=torch.float16), torch.zeros(2, 3, 4, dtype=torch.float16)
    loss = objective.loss_per_sample(said, wanted)  # 300² is out of float16's range
    assert loss.dtype == torch.float32
    assert loss.tolist() == [90000.0, 90000.0]


def test_half_precision_stays_half(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> None:
    noisy = objective.add_noise(latents.bfloat16(), noise.bfloat16(), alphas_cumprod, TIMESTEPS)
    assert noisy.dtype == torch.bfloat16


def states(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (11, 8), targets (11,) and a head (30, 8)."""
    g = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(11, 8, generator=g, dtype=dtype), torch.randn(30, 8, generator=g, dtype=dtype)
    return hidden.requires_grad_(), torch.randint(30, (11,), generator=g), weight


@pytest.mark.parametrize(("factor", "cap"), [(1.0, None), (0.5, None), (1.0, 3.0), (0.5, 3.0)])
@pytest.mark.parametrize("rows", [1, 4, 11, 50, None])
def test_chunks_change_no_loss_and_no_gradient(rows: int | None, factor: float, cap: float | None) -> None:
    hidden, targets, weight = states()
    bias, slope = torch.randn(30), torch.randn(11)
    logits = factor * F.linear(hidden, weight, bias)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    wanted = F.cross_entropy(logits, targets, reduction="none")
    got = objective.token_losses(hidden, targets, objective.Head(weight, bias, factor, cap), rows)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(each, hidden, slope)[0] for each in (got, wanted)))


def test_no_logits_are_kept() -> None:
    hidden, targets, weight = states()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        losses = objective.token_losses(hidden, targets, objective.Head(weight), 4)
    assert [tuple(x.shape) for x in kept] == [(11, 8)]
    assert losses.requires_grad
    with torch.no_grad():
        assert torch.equal(objective.token_losses(hidden, targets, objective.Head(weight), 4), losses)


def test_token_losses_are_float32_under_autocast() -> None:
    hidden, targets, weight = states()
    exact = objective.token_losses(hidden, targets, objective.Head(weight))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = objective.token_losses(hidden.bfloat16(), targets, objective.Head(weight))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.03, atol=0.05)
    assert torch.autograd.grad(rounded.sum(), hidden)[0].isfinite().all()


def test_a_head_that_is_trained_gets_its_gradient() -> None:
    hidden, targets, weight = states()
    weight.requires_grad_()
    got = objective.token_losses_of(lambda part: part @ weight.T, hidden, targets, 4)
    wanted = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(got, wanted)
    for a, b in zip(*(torch.autograd.grad(x.sum(), (hidden, weight)) for x in (got, wanted)), strict=True):
        torch.testing.assert_close(a, b)
