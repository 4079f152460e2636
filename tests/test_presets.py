"""Presets and the form behind them: every setting has a field, and what a form gives is a config or a fault by key."""

from __future__ import annotations

from typing import Any

import pytest

from studio.desk import presets
from studio.desk.presets import ELSEWHERE, PRESETS, SECTIONS, Kind, config, defaults, faults, fields, minutes
from trainers.config import TrainConfig
from trainers.leaves import leaves

KINDS: tuple[Kind, ...] = ("pictures", "text")


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_of_the_kind_is_asked_for_and_no_other(kind: Kind) -> None:
    wanted = {leaf.key for leaf in leaves() if leaf.only in ("", kind)} - {*ELSEWHERE}
    found = fields(kind)
    assert {field.key for field in found} == wanted
    assert {field.section for field in found} <= SECTIONS.keys()
    assert list(dict.fromkeys(field.section for field in found)) == [
        s for s in SECTIONS if s in {f.section for f in found}
    ]
    assert all(field.help for field in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["", "quick", "balanced", "thorough"])
def test_a_preset_is_a_config(kind: Kind, preset: str) -> None:
    values = defaults(kind, preset)
    assert faults(kind, values) == {}
    given = config(kind, values)
    row = next((one.values for one in PRESETS[kind] if one.name == preset), {})
    assert given.items() <= dict(row).items()  # a default that a preset names again is left out
    built = TrainConfig.build(values=given | {"data": "d", "out": "o"}).for_kind(kind)
    assert {key: built.get(key) for key in values} == values


def test_presets_grow() -> None:
    for kind in KINDS:
        times = [minutes(defaults(kind, one.name), 0.05) for one in PRESETS[kind]]
        assert times == sorted(times, key=lambda time: time or 0)
        assert len(set(times)) == 3
    assert minutes({"train.steps": 300, "train.batch": 8}, 0.05) == 2
    assert minutes({"train.steps": 300, "train.batch": 8}, None) is None


def test_fields_have_the_limits_of_the_settings() -> None:
    by_key = {field.key: field for kind in KINDS for field in fields(kind)}
    rank, lr, flip, targets = (by_key[key] for key in ("lora.rank", "optim.lr", "dataset.flip", "lora.targets"))
    assert (rank.form, rank.low, rank.high, rank.optional) == ("int", 1, None, False)
    assert (lr.form, lr.low, lr.optional, lr.default) == ("number", 0, True, None)
    assert (flip.form, targets.form) == ("bool", "text")
    assert (by_key["dataset.resolution"].multiple, by_key["dataset.heldout"].high) == (8, 0.5)
    assert by_key["optim.schedule"].choices == ("constant", "linear", "cosine")
    assert by_key["train.preview_prompts"].form == "list"
    assert by_key["adapter.format"].choices == ("peft",)  # of text, the last of KINDS
    assert "peak learning rate" in lr.help


@pytest.mark.parametrize(
    ("key", "shown", "value"),
    [
        ("optim.lr", "1e-3", 1e-3),
        ("optim.lr", 2e-4, 2e-4),
        ("train.steps", 40.0, 40),
        ("dataset.instance_prompt", " a house ", "a house"),
        ("lora.targets", "attention+ff", "attention+ff"),
        ("lora.targets", "to_q$, to_v$", ["to_q$", "to_v$"]),
        ("train.preview_prompts", "a cat, a boat", ["a cat", "a boat"]),
        ("objective.min_snr_gamma", None, None),
        ("objective.min_snr_gamma", "", None),
    ],
)
def test_what_a_form_gives_is_read(key: str, shown: Any, value: Any) -> None:
    assert config("pictures", defaults("pictures") | {key: shown}) == {key: value}
    assert faults("pictures", {key: shown}) == {}


def test_what_is_default_or_of_the_other_kind_is_left_out() -> None:
    assert config("pictures", {"lora.rank": 16, "optim.lr": " ", "lora.dora": True, "out": "/etc", "x": 1}) == {}
    assert config("text", {"lora.targets": "all-linear", "lora.dora": True}) == {"lora.dora": True}
    assert config("text", {"lora.targets": "attention"}) == {"lora.targets": "attention"}


def test_faults_by_setting() -> None:
    odd = {"lora.rank": 0, "optim.lr": "fast", "train.micro_batch": 99, "dataset.background": "red"}
    assert faults("pictures", odd) == {
        "lora.rank": "got 0, wanted int >= 1",
        "optim.lr": "got 'fast', wanted number > 0 or none",
        "train.micro_batch": "got 99, wanted at most train.batch, 8",
        "dataset.background": "got 'red', wanted a colour such as #ffffff",
    }


def test_as_toml() -> None:
    settings = {
        "seed": 3,
        "optim.lr": None,
        "objective.min_snr_gamma": None,
        "lora.rank": 4,
        "lora.targets": ["a", "b"],
    }
    assert presets.as_toml(settings) == (
        'seed = 3\n\n[objective]\nmin_snr_gamma = "none"\n\n[lora]\nrank = 4\ntargets = ["a", "b"]\n'
    )
