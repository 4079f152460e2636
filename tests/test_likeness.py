"""KL divergence and agreement are those of the definition; what a receipt keeps never says more than the whole."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import kl_div

from studio.merge.likeness import kl_bound, likeliest, likeness, likeness_to

G = torch.Generator().manual_seed(0)
ONE = 3 * torch.randn(37, 500, generator=G)
OTHER = ONE + 0.3 * torch.randn(37, 500, generator=G)


def test_it_is_the_definition() -> None:
    found = likeness(ONE, OTHER)
    each = kl_div(OTHER.double().log_softmax(-1), ONE.double().log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )
    assert math.isclose(found.kl_mean, float(each.mean()), rel_tol=1e-9)
    assert math.isclose(found.kl_max, float(each.max()), rel_tol=1e-9)
    assert found.agreement == float((ONE.argmax(-1) == OTHER.argmax(-1)).double().mean())
    assert found.places == 37
    assert found.facts()["places"] == 37


def test_a_shift_of_all_logits_is_nothing() -> None:
    same = likeness(ONE, ONE + 5)
    assert same.kl_max < 1e-9
    assert same.agreement == 1


@pytest.mark.parametrize("error", [0.01, 0.3, 3.0])
def test_the_bound_holds_and_is_nearly_reached(error: float) -> None:
    worst = error * torch.randn(37, 500, generator=G).sign()
    assert likeness(ONE, ONE + worst).kl_max <= kl_bound(error)
    two = torch.tensor([[0.0, 0.0]])
    assert likeness(two, two + torch.tensor([[error, -error]])).kl_max > 0.25 * min(error, 1.0) * error


def test_what_is_kept_says_nearly_the_same_and_never_more() -> None:
    kept = {name: table.float().flatten() for name, table in likeliest(ONE).items()}
    found, whole = likeness_to(kept, OTHER), likeness(ONE, OTHER)
    assert 0.5 * whole.kl_mean < found.kl_mean <= whole.kl_mean
    assert found.agreement == whole.agreement
    assert likeness_to(kept, ONE).kl_max < 1e-5
    assert likeness_to(kept, ONE.roll(1, -1)).kl_mean > 1


def test_another_vocabulary_is_said() -> None:
    with pytest.raises(ValueError, match="another vocabulary"):
        likeness_to(likeliest(ONE), ONE[:, :5])
