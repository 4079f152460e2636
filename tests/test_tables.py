"""TOML that a person wrote: right keys and kinds, all faults, and back again."""

from __future__ import annotations

import pytest

from studio.draw.tables import known, nearest, noting, parse, toml
from trainers.errors import ConfigError


def test_what_is_written_is_read_back() -> None:
    table = {
        "prompt": 'a "boat" \\ by\nthe sea, 海 \x7f\t',
        "seed": 3,
        "weight": 0.1,
        "partial": True,
        "tiny": 1e-7,
        "adapter": [{"file": "a.safetensors", "weight": -1.5}, {"file": "b"}],
        "grid": {"x": "seed=1,2", "batch": 4},
    }
    assert parse(toml(table), "x") == table


def test_kinds_and_names() -> None:
    faults: list[str] = []
    table = {"seed": 1, "steps": 2.5, "weight": 1, "promt": "a", "partial": 1, "size": True, "nan": float("nan")}
    kinds = {"seed": int, "steps": int, "weight": float, "prompt": str, "partial": bool, "size": int, "nan": float}
    values = known(table, kinds, "here.", faults)
    assert values == {"seed": 1, "weight": 1.0}
    assert isinstance(values["weight"], float)
    assert faults == [
        "here.steps: got 2.5, wanted a whole number",
        "here.promt: no such key; the nearest is prompt",
        "here.partial: got 1, wanted true or false",
        "here.size: got True, wanted a whole number",
        "here.nan: got nan, wanted a number",
    ]


def test_nearest() -> None:
    assert nearest("blok", ["blocks", "te"]) == "the nearest is blocks"
    assert nearest("x", ["blocks", "te"]) == "there are blocks, te"


def test_errors_become_faults() -> None:
    faults: list[str] = []
    with noting(faults):
        raise ConfigError("this", ["a", "b"], "do")
    with noting(faults):
        raise ConfigError("this", next_step="do that")
    with noting(faults):
        parse("[", "blend.toml")
    assert faults[:3] == ["a", "b", "this; do that"]
    assert faults[3].startswith("blend.toml: not TOML: ")
    with pytest.raises(KeyError), noting(faults):
        raise KeyError
