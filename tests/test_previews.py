"""Previews: they change no bit of a picture, the map is the best linear one, the VAE isn't asked too often."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from drawing import pixels
from PIL import Image
from torch import Tensor

from studio.desk import previews
from studio.desk.previews import Painter, jpeg
from trainers.families.stable_diffusion import SAMPLERS, StableDiffusion


@pytest.fixture(scope="module")
def family(tiny_base: Path) -> StableDiffusion:
    return StableDiffusion(tiny_base)


@pytest.fixture(scope="module")
def painter(family: StableDiffusion) -> Painter:
    return Painter(family)


@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
def test_looking_changes_no_bit_and_ends_at_the_picture(
    family: StableDiffusion, painter: Painter, sampler: str | None
) -> None:
    seen: list[tuple[int, Tensor]] = []
    args = (["a red house"] * 2, [1, 2])
    plain = family.sample(*args, steps=4, sampler=sampler)
    looked = family.sample(*args, steps=4, sampler=sampler, on_latents=lambda done, x: seen.append((done, x.clone())))
    for one, other, last in zip(plain, looked, painter.fine(seen[-1][1]), strict=True):
        assert (pixels(one) == pixels(other)).all()
        if sampler != "pndm":  # whose latents are never quite done
            assert abs(pixels(one) - (last * 255).permute(1, 2, 0).clamp(0, 255).numpy()).max() < 12
    assert [done for done, _ in seen][-1] == 4


class Linear:
    """A family whose VAE paints each latent as two by two pixels of a colour that is linear in it."""

    latent_scale, device, dtype = 2.0, torch.device("cpu"), torch.float32
    config = SimpleNamespace(latent_channels=4)
    weight = torch.randn(3, 4, 1, 1, generator=torch.Generator().manual_seed(1))

    def part(self, name: str) -> Linear:
        return self

    def decode(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=F.interpolate(F.conv2d(latents, self.weight) + 0.25, scale_factor=2))


def test_the_map_is_the_best_linear_one() -> None:
    painter, latents = Painter(Linear()), torch.randn(3, 4, 8, 6, generator=torch.Generator().manual_seed(5))
    assert painter.seconds > 0
    wanted = F.avg_pool2d(painter.fine(latents), 2)
    torch.testing.assert_close(painter.plain(latents), wanted, rtol=1e-4, atol=1e-4)


def test_the_vae_takes_its_share_of_the_steps(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    latents = torch.zeros(1, 4, 8, 8)
    shown: list[str] = []
    monkeypatch.setattr(previews.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(painter, "fine", lambda x: shown.append("fine") or torch.zeros(len(x), 3, 16, 16))
    monkeypatch.setattr(painter, "plain", lambda x: shown.append("plain") or torch.zeros(len(x), 3, 8, 8))
    for cost, wanted in ((0.001, ["fine"] * 12), (0.03, ["fine"] * 4), (0.2, ["plain"] * 12)):
        monkeypatch.setattr(painter, "seconds", cost / 64)
        shown.clear()
        turn = painter.start()
        for done in range(1, 13):
            now[0] += 0.1
            turn.look(done, latents)
        assert shown == wanted
    assert len(painter.start().look(1, torch.zeros(9, 4, 8, 8))) == previews.MOST


def test_a_preview_is_a_small_jpeg() -> None:
    red = torch.tensor([2.0, 0.0, -1.0]).view(3, 1, 1).expand(3, 300, 600)
    with Image.open(io.BytesIO(jpeg(red))) as picture:
        assert picture.format == "JPEG"
        assert picture.size == (256, 128)
        assert (abs(pixels(picture) - [255, 0, 0]) < 5).all()
