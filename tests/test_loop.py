"""The loop on a family of two small matrices: what a step is can be checked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from trainers import devices, loop, optim
from trainers.batches import Plan
from trainers.errors import TrainingError
from trainers.events import Step
from trainers.families.base import Encoding, Example, Loss

LR = 0.05
PLAN = Plan((1, 2, 1, 1, 3), tuple("aabab"), batch=8, micro_batch=8, seed=4)


class Matrices:
    """y = up down (x + noise), squared error; `text_encoder` adds a second such pair, `sick` tells how it fails."""

    resolution, multiple = 8, 8

    def __init__(self, *, text_encoder: bool = False, dropout: float = 0.0, zero: bool = True, sick: str = "") -> None:
        made = torch.Generator().manual_seed(0)
        self.pairs = {
            part: (nn.Parameter(torch.randn(2, 4, generator=made)), nn.Parameter(torch.randn(3, 2, generator=made)))
            for part in ("unet", *(("text_encoder",) if text_encoder else ()))
        }
        if zero:
            for _, up in self.pairs.values():
                up.data.zero_()
        self.dropout, self.sick = dropout, sick

    def parts(self) -> dict[str, nn.Module]:
        return {}

    def groups(self) -> list[optim.FlatGroup]:
        return [
            optim.FlatGroup([(f"{part}.m.down", down), (f"{part}.m.up", up)], part)
            for part, (down, up) in self.pairs.items()
        ]

    def loss(self, examples: Sequence[Example]) -> Loss:
        noise = torch.stack([torch.randn(4, generator=e.generator("noise")) for e in examples])
        x = torch.stack([e.encoding["x"] for e in examples]) + 0.1 * noise
        out = torch.zeros(len(examples), 3)
        for part, (down, up) in self.pairs.items():
            y = nn.functional.dropout(x, self.dropout) @ down.T @ up.T
            out = out + (y.detach() if self.sick == part else y)
        if self.sick == f"gradient {examples[0].step}":
            out.register_hook(lambda grad: grad * math.inf)
        each = (out - torch.stack([e.encoding["y"] for e in examples])).square().mean(1)
        return Loss(
            (each * torch.tensor([e.weight for e in examples])).sum(),
            each.detach(),
            float(sum(e.slot < e.of for e in examples)),
        )


def encodings(plan: Plan = PLAN) -> list[Encoding]:
    made = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(4, generator=made), "y": torch.randn(3, generator=made)} for _ in plan.repeats]


def names(plan: Plan = PLAN) -> list[str]:
    return [f"{n:02}.png" for n in range(len(plan.repeats))]


def update_for(family: Matrices, *, clip: float = 0.0, precision: str = "fp32") -> loop.Update:
    groups = family.groups()
    sgd = torch.optim.SGD([{"params": [group.flat]} for group in groups], lr=0.0)
    rates = [[LR * (k + 1) for _ in groups] for k in range(1000)]
    return loop.Update(groups, sgd, rates.__getitem__, clip, devices.machine("cpu", precision).scaler())


def train(
    family: Matrices,
    plan: Plan = PLAN,
    *,
    steps: int = 6,
    first: int = 0,
    clip: float = 0.0,
    precision: str = "fp32",
    data: Sequence[Encoding] | None = None,
    update: loop.Update | None = None,
) -> tuple[list[Step], dict[str, Tensor]]:
    """The steps, and the parameters afterwards."""
    update = update or update_for(family, clip=clip, precision=precision)
    machine = devices.machine("cpu", precision)
    made = list(
        loop.train(family, plan, data or encodings(plan), names(plan), update, machine, first=first, steps=steps)
    )
    return made, {name: tensor.clone() for group in update.groups for name, tensor in group.tensors().items()}


def test_a_step_is_the_mean_loss_and_its_gradient() -> None:
    family = Matrices(zero=False)
    data, shown = encodings(), list(chain.from_iterable(PLAN.step(0)))
    examples = [Example(data[e.sample], 1.0, PLAN.seed, 0, e.slot, PLAN.batch) for e in shown]
    down, up = (half.detach().clone().requires_grad_() for half in family.pairs["unet"])
    twin = Matrices()
    twin.pairs = {"unet": (down, up)}  # type: ignore[dict-item]
    mean = twin.loss(examples).each.mean()
    (twin.loss(examples).total / 8).backward()
    assert down.grad is not None
    assert up.grad is not None
    (step,), after = train(family, steps=1)
    assert (step.step, step.samples, step.weight, step.lr) == (1, 8, 8.0, LR)
    assert step.loss == pytest.approx(float(mean))
    assert step.grad_norm == pytest.approx(float(torch.cat([down.grad.flatten(), up.grad.flatten()]).norm()))
    torch.testing.assert_close(after["unet.m.down"], down.detach() - LR * down.grad)
    torch.testing.assert_close(after["unet.m.up"], up.detach() - LR * up.grad)


@pytest.mark.parametrize("prior", [False, True])
def test_any_size_of_micro_batches_trains_alike(prior: bool) -> None:
    plan = PLAN
    if prior:
        plan = Plan((1, 1, 1, 1, 1), tuple("ababa"), 4, 4, prior=(False, False, True, True, True), prior_weight=0.3)
    whole, wanted = train(Matrices(), plan)
    for size in (4, 3, 1):
        parts, got = train(Matrices(), replace(plan, micro_batch=size))
        assert [step.loss for step in parts] == pytest.approx([step.loss for step in whole], rel=1e-5)
        assert [step.grad_norm for step in parts] == pytest.approx([step.grad_norm for step in whole], rel=1e-4)
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-6)
    _, other = train(Matrices(), replace(plan, seed=plan.seed + 1))
    assert not torch.allclose(other["unet.m.up"], wanted["unet.m.up"], rtol=1e-2)


def test_prior_samples_count_with_their_weight_and_are_not_in_the_divisor() -> None:
    plan = Plan((1, 1), ("a", "a"), 2, 2, prior=(False, True), prior_weight=0.0)
    without, wanted = train(Matrices(), plan, steps=3)
    none, got = train(Matrices(), replace(plan, prior_weight=1e-9), steps=3)
    assert [step.samples for step in without] == [4, 4, 4]
    torch.testing.assert_close(got["unet.m.up"], wanted["unet.m.up"])
    assert [step.loss for step in none] == pytest.approx([step.loss for step in without])
    alone, got = train(Matrices(), Plan((1,), ("a",), 2, 2), steps=3, data=encodings(plan))
    assert [step.loss for step in alone] == pytest.approx([step.loss for step in without])
    torch.testing.assert_close(got["unet.m.up"], wanted["unet.m.up"])
    heavy, _ = train(Matrices(), replace(plan, prior_weight=3.0), steps=3)
    assert heavy[0].loss > 1.5 * without[0].loss


def test_clipping_bounds_the_change_and_the_norm_is_told_unclipped() -> None:
    plain, _ = train(Matrices(zero=False), steps=1)
    family = Matrices(zero=False)
    before = torch.cat([half.detach().flatten().clone() for half in family.pairs["unet"]])
    clipped, _ = train(family, steps=1, clip=0.01)
    after = torch.cat([half.detach().flatten() for half in family.pairs["unet"]])
    assert clipped[0].grad_norm == plain[0].grad_norm > 0.1
    assert float((after - before).norm()) == pytest.approx(LR * 0.01, rel=1e-3)


def test_going_on_is_the_same_as_never_stopping() -> None:
    whole, wanted = train(Matrices(dropout=0.3), steps=6)
    family = Matrices(dropout=0.3)
    update = update_for(family)
    first, _ = train(family, steps=3, update=update)
    torch.rand(11)  # whatever else draws random numbers in between
    rest, got = train(family, first=3, steps=6, update=update)
    assert [step.step for step in first + rest] == [1, 2, 3, 4, 5, 6]
    assert [step.loss for step in first + rest] == [step.loss for step in whole]
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run() -> None:
    again = [train(Matrices(dropout=0.5), steps=3)[1]["unet.m.up"] for _ in range(2)]
    assert torch.equal(*again)
    assert not torch.equal(again[0], train(Matrices(), steps=3)[1]["unet.m.up"])


def test_a_sick_sample_stops_the_training_and_is_named() -> None:
    data = [dict(encoding) for encoding in encodings()]
    data[2]["y"] = torch.tensor([1.0, math.nan, 1.0])
    family = Matrices()
    update = update_for(family)
    machine = devices.machine("cpu", "fp32")
    seen = [2 in {e.sample for e in chain.from_iterable(PLAN.step(k))} for k in range(9)]
    shown = seen.index(True)
    steps = loop.train(family, PLAN, data, names(), update, machine, first=0, steps=9)
    for _ in range(shown):
        next(steps)
    before = [group.flat.detach().clone() for group in update.groups]
    with pytest.raises(TrainingError, match=f"step {shown + 1}") as caught:
        next(steps)
    assert caught.value.faults == ("02.png: loss is NaN or infinite",)
    assert "optim.lr" in caught.value.next_step
    assert all(torch.equal(was, group.flat) for was, group in zip(before, update.groups, strict=True))


def test_a_gradient_that_is_not_finite_stops_the_training() -> None:
    with pytest.raises(TrainingError, match="step 3: the gradient is not finite"):
        train(Matrices(sick="gradient 2"))


def test_in_fp16_such_a_step_is_left_out_and_the_loss_scale_halved() -> None:
    family = Matrices(sick="gradient 2")
    update = update_for(family, precision="fp16")
    assert update.scaler.get_scale() == 1024
    train(family, steps=2, precision="fp16", update=update)
    before = update.groups[0].flat.detach().clone()
    (sick,), _ = train(family, first=2, steps=3, precision="fp16", update=update)
    assert not math.isfinite(sick.grad_norm)
    assert torch.equal(update.groups[0].flat, before)
    assert update.scaler.get_scale() == 512
    (well,), _ = train(family, first=3, steps=4, precision="fp16", update=update)
    assert math.isfinite(well.grad_norm)
    assert not torch.equal(update.groups[0].flat, before)


def test_the_loss_scale_changes_neither_losses_nor_steps_and_grows_with_the_steps() -> None:
    plain, wanted = train(Matrices())
    scaled, got = train(Matrices(), precision="fp16")
    assert [step.loss for step in scaled] == pytest.approx([step.loss for step in plain])
    assert [step.grad_norm for step in scaled] == pytest.approx([step.grad_norm for step in plain])
    torch.testing.assert_close(got["unet.m.up"], wanted["unet.m.up"])
    family = Matrices()
    update = update_for(family, precision="fp16", clip=0.1)
    train(family, first=498, steps=501, precision="fp16", update=update)
    assert update.scaler.get_scale() == 2048


@pytest.mark.parametrize("steps", [3, 20])
def test_a_part_that_does_not_learn_stops_the_training_early(steps: int) -> None:
    family = Matrices(text_encoder=True, sick="text_encoder")
    update = update_for(family)
    machine = devices.machine("cpu", "fp32")
    going = loop.train(family, PLAN, encodings(), names(), update, machine, first=0, steps=steps)
    for _ in range(min(steps, 5) - 1):
        next(going)
    with pytest.raises(TrainingError, match="doesn't learn") as caught:
        next(going)
    assert caught.value.faults == ("text_encoder: every `up` matrix is still zero",)
    assert len(train(Matrices(text_encoder=True), steps=steps)[0]) == steps


def test_each_step_tells_its_time_and_memory() -> None:
    steps, _ = train(Matrices(), steps=3)
    assert all(step.seconds > 0 and step.memory > 1_000_000 for step in steps)
    assert [step.lr for step in steps] == pytest.approx([LR, 2 * LR, 3 * LR])
