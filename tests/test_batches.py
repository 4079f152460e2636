"""Batches: every picture as often as promised, whatever the batch, the micro-batch or the number of processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

import pytest
import torch

from trainers.batches import Exposure, MicroBatch, Plan, generator_for
from trainers.errors import ConfigError

PLANS = [
    Plan((1,) * 16, ("a",) * 16, batch=8, micro_batch=4),
    Plan((1,) * 7, ("a", "b", "b", "c", "a", "a", "b"), batch=4, micro_batch=2, seed=3),
    Plan((3, 1, 10, 2), ((64, 64), (64, 64), (80, 48), (48, 80)), batch=3, micro_batch=3),
    Plan((1, 2), ("a", "b"), batch=8, micro_batch=3),  # a batch reaches over several epochs
    Plan((5,), ("a",), batch=1, micro_batch=1),
    Plan((2, 1, 1, 3, 1), tuple("aabab"), batch=4, micro_batch=4, prior=(False, True, False, True, True)),
    Plan(tuple(range(1, 24)), tuple("abcde"[n % 5] for n in range(23)), batch=6, micro_batch=8, seed=11),
]
plans = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{len(plan.repeats)}x{plan.batch}")


def flat(micro_batches: Iterable[MicroBatch]) -> list[Exposure]:
    return sorted(chain.from_iterable(micro_batches), key=lambda exposure: exposure.slot)


def shown(plan: Plan, steps: int) -> list[Exposure]:
    return [exposure for k in range(steps) for exposure in flat(plan.step(k))]


@plans
@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_over_whole_epochs_every_sample_is_shown_exactly_as_often_as_promised(plan: Plan, epochs: int) -> None:
    count = epochs * plan.epoch_length
    steps = -(-count // plan.batch)
    instances = [exposure.sample for exposure in shown(plan, steps) if not exposure.prior][:count]
    wanted = {n: epochs * times for n, times in enumerate(plan.repeats) if not plan.prior[n]}
    assert Counter(instances) == wanted


@plans
def test_prior_samples_are_an_equally_long_sequence_with_exact_counts_too(plan: Plan) -> None:
    if not any(plan.prior):
        assert not any(exposure.prior for exposure in shown(plan, 5))
        return
    weighted = replace(plan, prior_weight=0.25)
    wanted = {n: times for n, times in enumerate(plan.repeats) if plan.prior[n]}
    length = sum(wanted.values())
    priors = [one for one in shown(weighted, 3 * length) if one.prior]
    assert len(priors) == 3 * length * plan.batch, "each step holds `batch` of them"
    assert {one.weight for one in priors} == {0.25}
    for start in range(0, len(priors), length):
        assert Counter(one.sample for one in priors[start : start + length]) == wanted


@plans
def test_any_step_can_be_asked_for_first(plan: Plan) -> None:
    one_by_one = [plan.step(k) for k in range(20)]
    assert [plan.step(k) for k in reversed(range(20))] == one_by_one[::-1]
    assert replace(plan).step(13) == one_by_one[13]


@plans
def test_a_micro_batch_holds_one_bucket_and_at_most_micro_batch_samples(plan: Plan) -> None:
    for micro_batch in chain.from_iterable(plan.step(k) for k in range(20)):
        assert len({plan.buckets[exposure.sample] for exposure in micro_batch}) == 1
        assert 1 <= len(micro_batch) <= plan.micro_batch


@plans
def test_the_size_of_micro_batches_changes_no_exposure(plan: Plan) -> None:
    one, eight = replace(plan, micro_batch=1), replace(plan, micro_batch=8)
    assert all(flat(one.step(k)) == flat(eight.step(k)) for k in range(20))


@plans
def test_slots_number_the_step_and_the_weight_counts_its_instances(plan: Plan) -> None:
    for k in range(10):
        exposures = flat(plan.step(k))
        assert [exposure.slot for exposure in exposures] == list(range(len(exposures)))
        assert [exposure.prior for exposure in exposures[: plan.batch]] == [False] * plan.batch
        assert plan.weight(k) == plan.batch


@plans
@pytest.mark.parametrize("world", [1, 2, 3, 20])
def test_shares_of_all_processes_are_the_step(plan: Plan, world: int) -> None:
    for k in range(10):
        whole = plan.step(k)
        shares = [plan.share(whole, rank, world) for rank in range(world)]
        assert flat(chain.from_iterable(shares)) == flat(whole)
        sizes = [len(flat(share)) for share in shares]
        assert max(sizes) - min(sizes) <= 1, "dealt evenly"
        for micro_batch in chain.from_iterable(shares):
            assert len({plan.buckets[exposure.sample] for exposure in micro_batch}) == 1
            assert len(micro_batch) <= plan.micro_batch


@plans
@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_exposures_are_what_the_steps_show(plan: Plan, steps: int) -> None:
    counts = Counter(exposure.sample for exposure in shown(plan, steps))
    assert plan.exposures(steps) == [counts[n] for n in range(len(plan.repeats))]


def test_batches_are_mostly_of_one_bucket() -> None:
    plan = Plan((1,) * 103, tuple("abc"[n % 3] for n in range(103)), batch=8, micro_batch=8)
    mixed = sum(len(plan.step(k)) > 1 for k in range(103))
    assert mixed <= 16, "only leftovers mix: two batches in an epoch of 13, and these are 8 epochs"
    one_bucket = Plan((1,) * 103, ("a",) * 103, batch=8, micro_batch=8)
    assert all(len(one_bucket.step(k)) == 1 for k in range(103))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    plan = PLANS[0]
    epochs = [[one.sample for k in (2 * epoch, 2 * epoch + 1) for one in flat(plan.step(k))] for epoch in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert shown(plan, 4) != shown(replace(plan, seed=1), 4)


def test_a_generator_depends_on_its_key_alone() -> None:
    def draw(seed: int, *key: int | str) -> tuple[float, ...]:
        return tuple(torch.randn(4, generator=generator_for(seed, *key)).tolist())

    keys: list[tuple[int | str, ...]] = [(1, 2), (12,), ("1", 2), (1, "2"), ("ab",), ("a", "b"), (), ("a,b",), (2, 1)]
    assert draw(0, 5, "noise") == draw(0, 5, "noise")
    assert len({draw(seed, *key) for key in keys for seed in (0, 1)}) == 2 * len(keys)
    # printf '[0, "noise"]' | sha256sum
    assert generator_for(0, "noise").initial_seed() == 0xA926F0AE1071F342, "a changed seed would change every run"


def test_all_faults_of_a_plan_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Plan((1, 0), ("a",), batch=0, micro_batch=0, prior=(True, True))
    assert len(caught.value.faults) == 5
    with pytest.raises(ConfigError, match="at least one"):
        Plan((), (), batch=1, micro_batch=1)


def test_wrong_steps_and_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0"):
        PLANS[0].step(-1)
    with pytest.raises(ValueError, match="rank 2"):
        PLANS[0].share([], 2, 2)
