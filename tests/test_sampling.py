"""Sampling: each number has its limits, and knowing them loads no library."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from trainers.families.sampling import Sampling


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_tokens", 0), ("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.1),
     ("top_k", -1), ("repetition_penalty", 0.0), ("repetition_penalty", float("inf"))],
)  # fmt: skip
def test_each_number_has_its_limits(key: str, value: float) -> None:
    (fault,) = replace(Sampling(), **{key: value}).faults()  # type: ignore[arg-type]
    assert fault.startswith(f"{key}: got {value}, wanted ")


def test_what_is_allowed() -> None:
    assert Sampling().faults() == Sampling(1, 0, 1.0, 50, 1.3).faults() == []


def test_it_loads_no_library() -> None:
    code = "import sys, trainers.families.sampling; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
