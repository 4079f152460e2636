"""Norms, spectra, angles and overlap from the factors alone: equal to the dense truth, whatever the gauge."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from studio.look.anatomy import TOTAL, anatomy, check_kinds, check_sizes, diff, effective_rank, kind_of, overlap, sizes
from trainers.errors import AdapterError
from trainers.lora.adapter import Adapter, AdapterInfo
from trainers.lora.pair import LoraPair

LINEAR = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "unet.mid_block.resnets.0.conv1"
WORDS = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(seed: int, rank: int, out: int = 12, into: int = 10, kernel: int = 0, alpha: float = 3.0) -> LoraPair:
    sides = (kernel, kernel) if kernel else ()
    ones = (1, 1) if kernel else ()
    return LoraPair(noise(seed, rank, into, *sides), noise(seed + 1, out, rank, *ones), alpha)


def style(seed: int, rank: int = 4) -> Adapter:
    return Adapter(
        {LINEAR: pair(seed, rank), CONVOLUTION: pair(seed + 10, rank, 8, 6, 3), WORDS: pair(seed + 20, rank, 9, 9)}
    )


def turned(adapter: Adapter) -> Adapter:
    """The same deltas from other factors: (up M, M^-1 down), and another alpha."""
    found = {}
    for path, old in adapter.pairs.items():
        m = noise(7, old.rank, old.rank).double() + 3 * torch.eye(old.rank).double()
        down = (torch.linalg.inv(m) @ old.down.double().flatten(1)).reshape(old.down.shape)
        up = (old.up.double().flatten(1) @ m / 2).reshape(old.up.shape)
        found[path] = LoraPair(down, up, old.alpha * 2)
    return Adapter(found)


def dense(adapter: Adapter, path: str) -> Tensor:
    return adapter.pairs[path].delta().double().flatten(1)


# --- anatomy ---------------------------------------------------------------------------------------------------------


def test_norms_and_kept_energy_are_the_dense_ones() -> None:
    found = anatomy(style(0), lambda path: 2.0)
    assert [part.block for part in found] == ["BASE", "IN01", "MID", TOTAL]
    for part, path in zip(found, (WORDS, LINEAR, CONVOLUTION), strict=False):
        values = torch.linalg.svdvals(dense(style(0), path))[:4]
        assert part.norm == pytest.approx(float(values.norm()), rel=1e-6)
        assert part.relative == pytest.approx(part.norm / 2)
        assert part.kept == pytest.approx((values.square().cumsum(0) / values.square().sum()).tolist(), rel=1e-5)
    assert found[-1].norm == pytest.approx(math.sqrt(sum(part.norm**2 for part in found[:-1])))
    assert found[-1].relative == pytest.approx(found[-1].norm / math.sqrt(12))
    assert anatomy(style(0))[0].relative is None


def test_a_planted_rank_is_found() -> None:
    up, down = noise(1, 30, 3), noise(2, 3, 20)
    wide = LoraPair(torch.cat([down, 1e-4 * noise(3, 13, 20)]), torch.cat([up, 1e-4 * noise(4, 30, 13)], 1), 16.0)
    part = anatomy(Adapter({LINEAR: wide}))[0]
    assert part.rank == 16
    assert part.needed[0.99] == part.needed_by_all[0.99] == 3
    assert 2 < part.effective_rank <= 3.01


def test_the_weakest_module_needs_its_own_rank() -> None:
    strong, flat = LoraPair(noise(1, 1, 10), noise(2, 12, 1), 100.0), pair(3, 6, alpha=0.001)
    other = LINEAR.replace("to_q", "to_k")
    part = anatomy(Adapter({LINEAR: strong, other: flat}))[0]
    assert part.needed[0.99] == 1
    assert part.needed_by_all[0.99] > 3


def test_effective_rank() -> None:
    assert effective_rank(torch.ones(5).double()) == pytest.approx(5)
    assert effective_rank(torch.tensor([3.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0


def test_an_adapter_that_changes_nothing() -> None:
    still = Adapter({LINEAR: LoraPair(noise(1, 4, 10), torch.zeros(12, 4), 4.0)})
    part = anatomy(still)[-1]
    assert (part.norm, part.effective_rank, part.needed[0.99]) == (0, 0, 1)
    assert math.isnan(diff(still, still)[0].cosine)
    assert overlap(still, still)[0].writes == 0


# --- diff ------------------------------------------------------------------------------------------------------------


def test_cosine_and_distance_are_the_dense_ones() -> None:
    one, other = style(0), style(50, rank=7)
    for found, path in zip(diff(one, other), (WORDS, LINEAR, CONVOLUTION), strict=False):
        a, b = dense(one, path), dense(other, path)
        assert found.norms == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-6)
        assert found.cosine == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), abs=1e-6)
        assert found.distance == pytest.approx(float((a - b).norm()), rel=1e-6)
        assert found.modules == (1, 0, 0)


def test_an_adapter_and_itself_and_its_opposite() -> None:
    one = style(0)
    against = Adapter({path: LoraPair(p.down, -p.up, p.alpha) for path, p in one.pairs.items()})
    assert diff(one, one)[-1].cosine == pytest.approx(1)
    assert diff(one, one)[-1].distance == pytest.approx(0, abs=1e-4)
    assert diff(one, against)[-1].cosine == pytest.approx(-1)


def test_modules_in_one_only_count_as_no_change() -> None:
    one = style(0)
    less = Adapter({path: p for path, p in one.pairs.items() if path != LINEAR})
    total, block = diff(one, less)[-1], diff(one, less)[1]
    assert total.modules == (2, 1, 0)
    assert block.modules == (0, 1, 0)
    assert math.isnan(block.cosine)
    assert block.distance == block.norms[0] == pytest.approx(total.distance)
    assert diff(less, one)[-1].modules == (2, 0, 1)


@pytest.mark.parametrize("look", [diff, overlap])
def test_other_sizes_are_other_families(look: Callable[[Adapter, Adapter], object]) -> None:
    wide = Adapter({path: pair(0, 2, 99, 77) for path in (LINEAR, WORDS)})
    with pytest.raises(AdapterError, match="different families") as caught:
        look(style(0), wide)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [WORDS, LINEAR]
    assert "12 x 10 (the first), 99 x 77 (the second)" in caught.value.faults[1]


def test_base_versions_are_compared() -> None:
    named = [Adapter(style(0).pairs, AdapterInfo({"ss_base_model_version": v})) for v in ("sd_v1", "sd_v2")]
    with pytest.raises(AdapterError) as caught:
        check_sizes([("a", named[0]), ("b", named[1]), ("c", style(0))])
    assert caught.value.faults == ("base version: sd_v1 (a), sd_v2 (b)",)


# --- overlap ---------------------------------------------------------------------------------------------------------


def test_overlap_of_the_same_and_of_apart_spaces() -> None:
    q, _ = torch.linalg.qr(noise(1, 12, 12))
    p, _ = torch.linalg.qr(noise(2, 10, 10))
    one = Adapter({LINEAR: LoraPair(p[:4], q[:, :4], 4.0)})
    apart = Adapter({LINEAR: LoraPair(p[4:8], q[:, 4:8], 4.0)})
    half = Adapter({LINEAR: LoraPair(p[:4], q[:, 2:6], 4.0)})
    assert overlap(one, one)[0].writes == pytest.approx(1)
    assert overlap(one, one)[0].reads == pytest.approx(1)
    assert overlap(one, apart)[0].writes == pytest.approx(0, abs=1e-12)
    found = overlap(one, half)[0]
    assert (found.writes, found.reads) == pytest.approx((0.5, 1.0))  # ||U^T U'||^2 / r
    assert (found.writes_by_chance, found.reads_by_chance) == pytest.approx((4 / 12, 4 / 10))


def test_overlap_is_that_of_the_dense_gram_matrices() -> None:
    one, other = style(0), style(50, rank=7)
    for found, path in zip(overlap(one, other), (WORDS, LINEAR, CONVOLUTION), strict=False):
        a, b = dense(one, path), dense(other, path)
        for got, g, h in ((found.writes, a @ a.T, b @ b.T), (found.reads, a.T @ a, b.T @ b)):
            assert got == pytest.approx(float((g * h).sum() / g.norm() / h.norm()), rel=1e-6)


def test_chance_is_what_random_spaces_have() -> None:
    found = [overlap(style(k), style(k + 1000, rank=3))[-1] for k in range(0, 4000, 100)]
    for got, said in (("writes", "writes_by_chance"), ("reads", "reads_by_chance")):
        mean = sum(getattr(one, got) for one in found) / len(found)
        assert mean == pytest.approx(sum(getattr(one, said) for one in found) / len(found), rel=0.15)


def test_apart_modules_do_not_overlap() -> None:
    one, other = (Adapter({path: p for path, p in style(0).pairs.items() if path in kept}) for kept in (
        (LINEAR, WORDS), (CONVOLUTION,)))  # fmt: skip
    assert overlap(one, other)[-1].writes == overlap(one, other)[-1].reads == 0


def test_the_gauge_changes_nothing() -> None:
    one, other = style(0), style(50)
    for plain, again in zip(anatomy(one), anatomy(turned(one)), strict=True):
        assert again.norm == pytest.approx(plain.norm, rel=1e-6)
        assert again.kept == pytest.approx(plain.kept, rel=1e-5)
        assert again.effective_rank == pytest.approx(plain.effective_rank, rel=1e-5)
    for first, second in zip(diff(one, other), diff(turned(one), other), strict=True):
        assert second.cosine == pytest.approx(first.cosine, abs=1e-6)
    for left, right in zip(overlap(one, other), overlap(turned(one), turned(other)), strict=True):
        assert (right.writes, right.reads) == pytest.approx((left.writes, left.reads), rel=1e-5)


# --- language models -------------------------------------------------------------------------------------------------


def test_sizes_by_kind_of_module_add_up() -> None:
    layers = [f"model.model.layers.{k}" for k in (0, 10)]
    adapter = Adapter({f"{layer}.{name}": pair(n, 2) for n, layer in enumerate(layers)
                       for name in ("mlp.up_proj", "self_attn.q_proj", "odd")})  # fmt: skip
    found = sizes(adapter)
    assert list(found) == ["q", "up", "odd", TOTAL]
    assert list(found[TOTAL]) == ["L00", "L10", TOTAL]
    whole = anatomy(adapter)
    assert [found[TOTAL][part.block] for part in whole] == pytest.approx([part.norm for part in whole])
    assert sum(found[kind][TOTAL] ** 2 for kind in list(found)[:-1]) == pytest.approx(whole[-1].norm ** 2)
    relative = sizes(adapter, lambda path: 2.0)
    assert relative["up"]["L00"] == pytest.approx(found["up"]["L00"] / 2)
    assert relative[TOTAL][TOTAL] == pytest.approx(anatomy(adapter, lambda path: 2.0)[-1].relative)


def test_kinds_of_modules_have_words() -> None:
    assert kind_of("model.transformer.h.0.attn.c_proj") == "out"
    assert kind_of("model.transformer.h.0.mlp.c_proj") == "down"
    assert kind_of("model.backbone.layers.3.mixer.in_proj") == "in_proj"


@pytest.mark.parametrize("look", [diff, overlap])
def test_text_and_pictures_do_not_go_together(look: Callable[[Adapter, Adapter], object]) -> None:
    text = Adapter({"model.model.layers.0.mlp.up_proj": pair(0, 2)})
    with pytest.raises(AdapterError, match="don't go together"):
        look(style(0), text)
    assert (check_kinds([("a", text)]), check_kinds([("b", style(0))])) == (True, False)
