"""TOML, flags and --set become one config; everything wrong with them is said at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainers.config import TrainConfig, leaves
from trainers.errors import ConfigError

HOME = {"data": "pictures", "out": "runs/ink"}


def built(*sets: str, file: Path | None = None, **values: Any) -> TrainConfig:
    return TrainConfig.build(file=file, values=HOME | values, sets=sets)


def faults(*sets: str, file: Path | None = None, **values: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        built(*sets, file=file, **values)
    return caught.value.faults


def written(folder: Path, text: str) -> Path:
    file = folder / "ink.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_later_sources_win(tmp_path: Path) -> None:
    file = written(tmp_path, 'data = "a"\nout = "b"\nseed = 1\n[lora]\nrank = 2\nalpha = 2\n[optim]\nlr = 0.2\n')
    flags = {"lora.rank": "3", "optim.lr": "0.3"}
    config = TrainConfig.build(file=file, values=flags, sets=["optim.lr=0.4"])
    assert (config.data, config.seed, config.lora.alpha, config.lora.rank, config.optim.lr) == (Path("a"), 1, 2, 3, 0.4)
    assert config.train.steps == 300


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.steps=1e3", 1000),
        ("optim.lr=1e-4", 1e-4),
        ("optim.lr=1", 1.0),
        ("lora.text_encoder=no", False),
        ("lora.rslora=True", True),
        ("objective.min_snr_gamma=none", None),
        ("dataset.trigger=none", "none"),
        ("dataset.trigger=a=b", "a=b"),
        ("lora.targets=to_q, to_k", ["to_q", "to_k"]),
        ("lora.targets=block.{1,2}to_q", ["block.{1,2}to_q"]),
        ("lora.targets=[ab]_q", ["[ab]_q"]),
        ("train.preview_prompts=a boat,a house", ["a boat", "a house"]),
        ('train.preview_prompts=["a boat, at night"]', ["a boat, at night"]),
        ("train.preview_prompts=", []),
        ("dataset.cache=/tmp/c", Path("/tmp/c")),
    ],
)
def test_texts_are_read_as_what_they_are_meant_to_be(text: str, value: Any) -> None:
    assert built(text).get(text.partition("=")[0]) == value
    key, _, given = text.partition("=")
    assert TrainConfig.build(values=HOME | {key: given}).get(key) == value


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, "seed = true\n[optim]\nlr = -1\nlearning_rate = 3\n[lora]\ntargets = 3\n")
    with pytest.raises(ConfigError) as caught:
        TrainConfig.build(
            file=file,
            values={"lora.rank": "many", "train.batch": "4"},
            sets=["lr", "train.micro_batch=8", "adapter.format=onnx", "dataset.background=red"],
        )
    text = "\n".join(caught.value.faults)
    for part in [
        f"seed: got true (from {file}), wanted int >= 0",
        f"optim.lr: got -1 (from {file}), wanted number > 0",
        "optim.learning_rate",
        "lora.targets: got 3",
        "lora.rank: got 'many' (from a flag), wanted int >= 1",
        "--set lr: got no key and value",
        "train.micro_batch: got 8, wanted at most train.batch, 4",
        "adapter.format: got 'onnx' (from --set), wanted kohya|diffusers",
        "dataset.background: got 'red' (from --set), wanted a colour such as #ffffff",
        "data: missing",
        "out: missing",
    ]:
        assert part in text
    assert len(caught.value.faults) == 11
    assert "--help" in caught.value.next_step


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("optim.learning_rate", "optim.lr"),
        ("train.lr", "optim.lr"),
        ("lr", "optim.lr"),
        ("lora.rnak", "lora.rank"),
        ("optimizer.lr", "optim.lr"),
        ("dataset.data", "data"),
        ("optim.text-lr", "optim.text_lr"),
        ("steps", "prior.steps or train.steps"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, near: str) -> None:
    assert faults(f"{key}=1") == (f"{key} (from --set): no such setting; the nearest is {near}",)


def test_a_key_like_no_other_and_a_section_as_a_value() -> None:
    assert faults("xyzzy=1") == ("xyzzy (from --set): no such setting; none is near it",)
    (fault,) = faults("adapter=kohya")
    assert fault == "adapter (from --set): is a section, wanted one of adapter.format, adapter.dtype"


def test_a_file_with_a_syntax_error_is_the_only_fault_it_makes(tmp_path: Path) -> None:
    file = written(tmp_path, 'data = "a"\nout = \n')
    with pytest.raises(ConfigError) as caught:
        TrainConfig.build(file=file, sets=["lora.rank=0"])
    first, second = caught.value.faults  # not also: data is missing
    assert first.startswith(f"{file}: not TOML:")
    assert "line 2" in first
    assert second == "lora.rank: got 0 (from --set), wanted int >= 1"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in faults(file=tmp_path / "no.toml")[0]
    assert "can't be read" in faults(file=tmp_path)[0]
    (tmp_path / "bytes.toml").write_bytes(b'data = "\xff"')
    assert "not UTF-8" in faults(file=tmp_path / "bytes.toml")[0]


@pytest.mark.parametrize("value", ["", "3", "[]"])
def test_toml_values_of_another_type(tmp_path: Path, value: str) -> None:
    file = written(
        tmp_path, f"[train]\nsteps = {value or '2.0'}\ndevice = {value or 'true'}\nprecision = {value or '1'}\n"
    )
    wanted = 2 if value == "3" else 3  # 3 steps are fine
    assert len(faults(file=file)) == wanted


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1e-3", "true", ""])
def test_learning_rates_that_are_none(value: str) -> None:
    assert faults(f"optim.lr={value}")[0].startswith("optim.lr: got ")


def test_an_empty_path_is_no_path() -> None:
    assert faults(data="") == ("data: got '' (from a flag), wanted a path, not an empty text",)


@pytest.mark.parametrize(
    ("sets", "blamed"),
    [
        (["train.micro_batch=9"], "train.micro_batch"),
        (["optim.warmup=11", "train.steps=10"], "optim.warmup"),
        (["optim.text_lr=1e-4", "lora.text_encoder=false"], "optim.text_lr"),
        (["lora.text_rank=4", "lora.text_encoder=false"], "lora.text_rank"),
    ],
)
def test_settings_that_contradict_each_other(sets: list[str], blamed: str) -> None:
    (fault,) = faults(*sets)
    assert fault.startswith(f"{blamed}: got ")


def test_a_short_trial_run_needs_no_other_warmup() -> None:
    assert built("train.steps=5").train.steps == 5


@pytest.mark.parametrize(
    "sets",
    [
        [],
        ["train.steps=5"],
        ["objective.min_snr_gamma=none", "lora.alpha=0.5", "optim.lr=1e-5", "seed=9223372036854775807"],
        [r"lora.targets=attn\.to_q$,ff", "dataset.cache=/tmp/a b", "dataset.resolution=128"],
        ['name=a "b" \\ \t \x7f ü 🙂', 'train.preview_prompts=["x, \\"y\\"", ""]', "prior.class_prompt=a 'house'"],
    ],
)
def test_toml_round_trip(tmp_path: Path, sets: list[str]) -> None:
    config = built(*[text.replace(" \\ ", " ") for text in sets])
    file = written(tmp_path, config.to_toml())
    assert TrainConfig.build(file=file) == config


def test_a_round_trip_keeps_every_key_that_is_set() -> None:
    text = built("objective.min_snr_gamma=none").to_toml()
    for leaf in leaves():
        assert (f"\n{leaf.name} = " in "\n" + text) or leaf.default is None, leaf.key


def test_the_adapter_is_named_after_its_folder() -> None:
    assert built().adapter_name == "ink"
    assert built(name="pen").adapter_name == "pen"


def test_reading_settings_needs_no_torch() -> None:
    code = "import sys, trainers.config; assert not {'torch', 'numpy', 'PIL', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


# --- kinds of bases ---------------------------------------------------------------------------------------------------


def test_text_has_defaults_of_its_own_unless_they_are_given() -> None:
    config = built("train.batch=8")
    assert config.for_kind("pictures") is config
    text = config.for_kind("text")
    assert (text.lora.targets, text.adapter.format, text.train.batch) == ("all-linear", "peft", 8)
    assert text.for_kind("text") == text
    assert built("lora.targets=attention").for_kind("text").lora.targets == "attention"


@pytest.mark.parametrize(
    ("kind", "sets", "blamed"),
    [
        ("text", ("objective.min_snr_gamma=none", "dataset.flip=true"), ("objective.min_snr_gamma", "dataset.flip")),
        ("text", ("adapter.format=kohya",), ("adapter.format",)),
        ("pictures", ("objective.neftune=5", "train.quantization=nf4"), ("objective.neftune", "train.quantization")),
    ],
)
def test_settings_of_the_other_kind_are_all_named(kind: str, sets: tuple[str, ...], blamed: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        built(*sets).for_kind(kind)
    assert sorted(fault.partition(":")[0] for fault in caught.value.faults) == sorted(blamed)


def test_the_file_of_a_run_has_the_settings_of_its_kind_alone(tmp_path: Path) -> None:
    text = built().for_kind("text")
    (tmp_path / "config.toml").write_text(text.to_toml("text"))
    again = TrainConfig.build(file=tmp_path / "config.toml")
    assert again.for_kind("text") == text
    assert "neftune" in text.to_toml("text")
    assert "noise_offset" not in text.to_toml("text")
    assert "neftune" not in built().to_toml("pictures")
