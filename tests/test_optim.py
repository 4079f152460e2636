"""Flat buffers learn like separate tensors, 8 bit is 8 bit, and a restored optimizer goes on bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from trainers import optim
from trainers.errors import ConfigError, RunError, TrainingError
from trainers.optim import OPTIMIZERS, SCHEDULES, FlatGroup, lr_at
from trainers.settings import OptimConfig

BETAS = (0.9, 0.99)


def parameters(seed: int = 0) -> list[tuple[str, nn.Parameter]]:
    made = torch.Generator().manual_seed(seed)
    shapes = {"b.up": (70, 4), "b.down": (4, 33), "a.up": (5, 4), "a.down": (4, 130)}
    return [(name, nn.Parameter(torch.randn(shape, generator=made))) for name, shape in shapes.items()]


def fill_gradients(groups: list[FlatGroup], step: int) -> None:
    """As a backward pass does: adds to each parameter's gradient."""
    made = torch.Generator().manual_seed(step)
    for group in groups:
        for name, p in group.named:
            quiet = step < 2 and name.endswith("down")  # LoRA's down learns nothing while up is 0
            loss = (p * torch.randn(p.shape, generator=made)).sum() * (0 if quiet else 1)
            loss.backward()


def run(name: str, groups: list[FlatGroup], optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        fill_gradients(groups, step)
        optim.step(groups, optimizer, [0.01, 0.005][: len(groups)], clip=1.0, total_weight=2.0)


def made(name: str, seed: int = 0) -> tuple[list[FlatGroup], torch.optim.Optimizer]:
    groups = [FlatGroup(parameters(seed), "unet"), FlatGroup(parameters(seed + 1)[:2], "text")]
    return groups, optim.build(name, groups, weight_decay=0.01, betas=BETAS)


def test_the_tables_and_the_settings_name_the_same() -> None:
    fields = OptimConfig.model_fields
    assert set(get_args(fields["name"].annotation)) == set(OPTIMIZERS)
    assert set(get_args(fields["schedule"].annotation)) == set(SCHEDULES)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), [(100, 20), (100, 0), (5, 20), (1, 0), (1, 1)])
def test_learning_rate_rises_to_its_peak_and_never_again(schedule: str, total: int, warmup: int) -> None:
    rates = [lr_at(k, peak=2.0, total=total, warmup=warmup, schedule=schedule) for k in range(total)]
    top = max(0, min(warmup, total) - 1)
    assert rates[top] == max(rates) == 2.0
    assert min(rates) > 0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_shapes_of_the_schedules() -> None:
    half = {name: lr_at(60, peak=1.0, total=100, warmup=20, schedule=name) for name in SCHEDULES}
    assert half == pytest.approx({"constant": 1.0, "linear": 0.5, "cosine": 0.5})
    assert lr_at(40, peak=1.0, total=100, warmup=20, schedule="cosine") == pytest.approx((1 + 2**-0.5) / 2)


def test_parameters_are_views_of_one_buffer_sorted_by_name() -> None:
    named = parameters()
    before = {name: p.detach().clone() for name, p in named}
    group = FlatGroup(named)
    assert list(group.tensors()) == sorted(before)
    assert all(torch.equal(p, before[name]) for name, p in named)
    group.flat.data.mul_(2)
    assert all(torch.equal(p, 2 * before[name]) for name, p in named)
    assert all(torch.equal(group.tensors()[name], 2 * before[name]) for name in before)
    assert group.numel == sum(tensor.numel() for tensor in before.values())
    assert group.flat.numel() % 256 == 0


def test_autograd_adds_up_in_the_flat_gradient() -> None:
    named = parameters()
    group = FlatGroup(named)
    for _ in range(2):
        sum((p * 3).sum() for _, p in named).backward()  # type: ignore[union-attr]
    group.check_views()
    assert group.grad.sum() == 6 * group.numel
    assert group.flat.grad is group.grad
    group.zero_grad()
    assert all((p.grad == 0).all() for _, p in named if p.grad is not None)
    group.check_views()


def test_half_precision_parameters_become_float32() -> None:
    p = nn.Parameter(torch.ones(3, 3, dtype=torch.float16))
    group = FlatGroup([("p", p)])
    (p.sum() * 2).backward()
    group.check_views()
    assert p.dtype == torch.float32
    assert group.grad.sum() == 18


def test_a_parameter_that_was_cut_off_is_named() -> None:
    named = parameters()
    group = FlatGroup(named)
    cut = dict(named)
    cut["a.up"].grad = None
    cut["b.up"].data = cut["b.up"].data.clone()
    with pytest.raises(TrainingError) as caught:
        group.check_views()
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["a.up", "b.up"]


def test_groups_that_cannot_be_trained() -> None:
    p = nn.Parameter(torch.ones(2))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    for named, fault in [([], "no parameter"), ([("a", p), ("b", p)], "two names"), ([("a", frozen)], "frozen")]:
        with pytest.raises(TrainingError, match=fault):
            FlatGroup(named)
    with pytest.raises(TrainingError, match="named twice"):
        FlatGroup([("a", p), ("a", nn.Parameter(torch.ones(2)))])


def test_values_are_loaded_by_name_or_not_at_all() -> None:
    group, other = FlatGroup(parameters(0)), FlatGroup(parameters(5))
    stored = {name: tensor.clone() for name, tensor in other.tensors().items()}
    group.load(stored | {"of another group": torch.ones(1)})
    assert torch.equal(group.flat, other.flat)
    before = group.flat.detach().clone()
    broken = {name: tensor + 1 for name, tensor in stored.items() if name != "a.up"} | {"b.up": torch.ones(2)}
    with pytest.raises(RunError) as caught:
        group.load(broken)
    assert len(caught.value.faults) == 2
    assert torch.equal(group.flat, before)


def test_flat_adamw_is_adamw_on_separate_tensors() -> None:
    named = parameters()
    alone = [nn.Parameter(p.detach().clone()) for _, p in sorted(named, key=lambda item: item[0])]
    reference = torch.optim.AdamW(alone, lr=0.01, betas=BETAS, weight_decay=0.01)
    group = FlatGroup(named)
    optimizer = optim.build("adamw", [group], weight_decay=0.01, betas=BETAS)
    for step in range(8):
        fill_gradients([group], step)
        for p, (_, ours) in zip(alone, group.named, strict=True):
            assert ours.grad is not None
            p.grad = ours.grad / 2.0
        norm = nn.utils.clip_grad_norm_(alone, 1.0)
        reference.step()
        assert optim.step([group], optimizer, [0.01], 1.0, 2.0) == pytest.approx(float(norm), rel=1e-5)
    for p, (_, ours) in zip(alone, group.named, strict=True):
        torch.testing.assert_close(ours, p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gaps_get_no_gradient_and_views_outlive_steps(name: str) -> None:
    groups, optimizer = made(name)
    run(name, groups, optimizer, range(6))
    fill_gradients(groups, 6)
    for group in groups:
        group.check_views()
        inside = torch.zeros_like(group.flat, dtype=torch.bool)
        for start, (_, p) in zip(group.starts, group.named, strict=True):
            inside[start : start + p.numel()] = True
        assert (group.grad[~inside] == 0).all()
        assert (group.grad[inside] != 0).all()
        assert group.flat.isfinite().all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_tensor_learns_alike_alone_and_beside_others(name: str) -> None:
    """No 8-bit block is shared, however much larger the neighbour's gradients are."""
    results = []
    for beside in ([], [("a", nn.Parameter(torch.ones(100))), ("c", nn.Parameter(torch.ones(300)))]):
        p = nn.Parameter(torch.ones(7, 10))
        groups = [FlatGroup([("b", p), *beside])]
        optimizer = optim.build(name, groups, weight_decay=0.01, betas=BETAS)
        for step in range(5):
            (p * torch.randn(p.shape, generator=torch.Generator().manual_seed(step))).sum().backward()
            for _, other in beside:
                (other * 1e6).sum().backward()
            optim.step(groups, optimizer, [0.01], 0.0, 1.0)
        results.append(p.detach().clone())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name: str) -> None:
    p = nn.Parameter(torch.zeros(40, 20))
    wanted = torch.randn(40, 20, generator=torch.Generator().manual_seed(3))
    groups = [FlatGroup([("p", p)])]
    optimizer = optim.build(name, groups, weight_decay=0.0, betas=BETAS)
    for step in range(100):
        (p - wanted).square().sum().backward()
        lr = lr_at(step, peak=0.1, total=100, warmup=10, schedule="linear")
        optim.step(groups, optimizer, [lr], clip=0.0, total_weight=1.0)
    assert (p - wanted).square().mean() < 0.01 * wanted.square().mean()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_restored_optimizer_goes_on_bit_for_bit(name: str, stop: int) -> None:
    straight, optimizer = made(name)
    run(name, straight, optimizer, range(7))

    first, optimizer = made(name)
    run(name, first, optimizer, range(stop))
    state = {key: tensor.clone() for key, tensor in optim.state_tensors(optimizer).items()}
    values = [{key: tensor.clone() for key, tensor in group.tensors().items()} for group in first]

    second, optimizer = made(name, seed=9)
    for group, stored in zip(second, values, strict=True):
        group.load(stored)
    optim.load_state_tensors(optimizer, state)
    run(name, second, optimizer, range(stop, 7))
    for a, b in zip(straight, second, strict=True):
        assert all(torch.equal(tensor, b.tensors()[key]) for key, tensor in a.tensors().items())


def test_stored_state_survives_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    groups, optimizer = made("adamw8bit")
    run("adamw8bit", groups, optimizer, range(3))
    state = optim.state_tensors(optimizer)
    save_file(state, tmp_path / "state.safetensors")
    _, fresh = made("adamw8bit")
    optim.load_state_tensors(fresh, load_file(tmp_path / "state.safetensors"))
    again = optim.state_tensors(fresh)
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert {key.partition(".")[0] for key in state} == {"0", "1"}


def test_state_of_another_optimizer_is_refused() -> None:
    groups, optimizer = made("adamw8bit")
    run("adamw8bit", groups, optimizer, range(1))
    _, other = made("lion8bit")
    with pytest.raises(RunError) as caught:
        optim.load_state_tensors(other, optim.state_tensors(optimizer))
    assert any("0.state2" in fault for fault in caught.value.faults)


@pytest.mark.parametrize(("name", "each"), [("adamw8bit", 2), ("paged-adamw8bit", 2), ("lion8bit", 1), ("adamw", 8)])
def test_true_bytes_of_state(name: str, each: int) -> None:
    named = [
        (f"{i}", nn.Parameter(torch.zeros(1024))) for i in range(2048)
    ]  # 2M, in tensors bitsandbytes keeps in 32 bit
    groups = [FlatGroup(named)]
    optimizer = optim.build(name, groups, weight_decay=0.0, betas=BETAS)
    assert optim.state_bytes(optimizer) == 0
    groups[0].grad.fill_(1.0)
    optim.step(groups, optimizer, [1e-3], 1.0, 1.0)
    assert each <= optim.state_bytes(optimizer) / groups[0].numel < each * 1.02


def test_clipping_by_the_norm_over_all_groups_and_the_summed_weight() -> None:
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    groups = [FlatGroup([("p", p)]), FlatGroup([("q", q)])]

    class Plain(torch.optim.SGD):
        """Moves by lr * gradient, so that the gradient can be read off."""

    optimizer = Plain([{"params": [group.flat]} for group in groups], lr=0.0)
    groups[0].grad[0], groups[1].grad[0] = 6.0, 8.0
    assert optim.step(groups, optimizer, [1.0, 0.5], clip=1.0, total_weight=2.0) == pytest.approx(5.0)
    assert [p[0].item(), q[0].item()] == pytest.approx([-0.6, -0.4])
    groups[0].grad[0] = 6.0
    optim.step(groups, optimizer, [1.0, 0.5], clip=0.0, total_weight=2.0)
    assert p[0].item() == pytest.approx(-3.6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    groups, optimizer = made("adamw8bit")
    run("adamw8bit", groups, optimizer, range(2))
    before = [group.flat.detach().clone() for group in groups]
    state = optim.state_tensors(optimizer)
    groups[1].grad[0] = bad
    norm = optim.step(groups, optimizer, [1.0, 1.0], clip=1.0, total_weight=1.0)
    assert not torch.isfinite(torch.tensor(norm))
    assert all(torch.equal(group.flat, old) for group, old in zip(groups, before, strict=True))
    after: dict[str, Tensor] = optim.state_tensors(optimizer)
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert all((group.grad == 0).all() for group in groups)


def test_a_step_without_weight_and_an_unknown_optimizer_are_refused() -> None:
    groups, optimizer = made("adamw")
    with pytest.raises(TrainingError, match="summed weight"):
        optim.step(groups, optimizer, [1.0, 1.0], 1.0, 0.0)
    with pytest.raises(ConfigError, match="adamw8bit"):
        optim.build("sgd", groups, weight_decay=0.0, betas=BETAS)


def test_bitsandbytes_is_loaded_on_first_use() -> None:
    code = "import sys, trainers.optim; assert 'bitsandbytes' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_the_default_rate_falls_with_the_width() -> None:
    assert optim.default_lr([100] * 3) == pytest.approx(2e-3)
    assert optim.default_lr([320, 1280]) == pytest.approx(2.5e-4)
