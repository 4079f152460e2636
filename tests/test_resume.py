"""Stopped anywhere, by SIGINT and SIGKILL too, and resumed, a run ends with the same bytes as one never stopped."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from training import Child, arguments, config_for, pictures, told, train

from trainers import checkpoint, loop, run, stopping
from trainers.config import TrainConfig
from trainers.errors import DatasetError, RunError
from trainers.events import Event, Finished, Note, Saved, Started, Step, Stopped
from trainers.lora.adapter import digest

STEPS = 7
SHORT = {"train.steps": STEPS, "train.save_every": 3}
KILLED = {"train.steps": 40, "train.save_every": 4, "train.batch": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "ink")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.pictures, "thumbnail", lambda *_: b"\xff\xd8\xff\xd9")


@pytest.fixture
def stopped(quick: None, tiny_base: Path, data: Path, tmp_path: Path) -> TrainConfig:
    """A run that was stopped after step 5: there is a checkpoint of step 3."""
    return stop(config_for(tiny_base, data, tmp_path / "stopped", SHORT), after=5)


@pytest.fixture(scope="module")
def whole(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The same run, never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.pictures, "thumbnail", lambda *_: b"\xff\xd8\xff\xd9")
        config = config_for(tiny_base, data, tmp_path_factory.mktemp("whole") / "run", SHORT)
        train(config)
    return config


def stop(config: TrainConfig, after: int) -> TrainConfig:
    """Train until a step is told, then no further: the checkpoint of that step is not written."""
    going: Iterator[Event] = run.start(config)
    for event in going:
        if isinstance(event, Step) and event.step == after:
            break
    going.close()  # type: ignore[attr-defined]
    assert not run.finished(config.out)
    return config


def resume(config: TrainConfig) -> list[Event]:
    return list(run.resume(config.out))


def sha(config: TrainConfig) -> str:
    return digest(run.adapter_path(config))


# --- in one process ---------------------------------------------------------------------------------------------------

RUNS: dict[str, Mapping[str, Any]] = {
    "adamw": {"optim.name": "adamw"},
    "paged-adamw8bit": {"optim.name": "paged-adamw8bit", "lora.text_encoder": False},
    "lion8bit": {"optim.name": "lion8bit", "optim.lr": 1e-3},
    "fp16, dropout": {"train.precision": "fp16", "lora.dropout": 0.3},
    "class pictures, mirrored, micro-batches": {
        "prior.class_prompt": "a house",
        "prior.pictures": 2,
        "prior.steps": 1,
        "dataset.flip": True,
        "train.micro_batch": 3,
        "dataset.caption_dropout": 0.4,
    },
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_stopped_run_ends_with_the_same_bytes(
    quick: None, tiny_base: Path, data: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_grows", lambda k: True)  # fp16's loss scale must come back, too
    configs = [config_for(tiny_base, data, tmp_path / name, {**SHORT, **RUNS[kind]}) for name in ("whole", "stopped")]
    train(configs[0])
    stop(configs[1], after=5)
    again = resume(configs[1])
    assert [event.first_step for event in again if isinstance(event, Started)] == [3]
    assert [event.step for event in again if isinstance(event, Step)] == [4, 5, 6, 7]
    assert sha(configs[0]) == sha(configs[1])
    assert (configs[0].out / "loss.png").read_bytes() == (configs[1].out / "loss.png").read_bytes()
    one, other = (checkpoint.newest(config.out / "checkpoints") for config in configs)
    assert one is not None
    assert other is not None
    assert one.step == other.step == 6
    assert {**one.facts, "seconds": 0} == {**other.facts, "seconds": 0}
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


@pytest.mark.parametrize("after", [1, 3])
def test_without_a_checkpoint_it_begins_anew(
    quick: None, whole: TrainConfig, tiny_base: Path, data: Path, tmp_path: Path, after: int
) -> None:
    config = stop(config_for(tiny_base, data, tmp_path / "run", SHORT), after)
    again = resume(config)
    assert [event.first_step for event in again if isinstance(event, Started)] == [0]
    assert sha(config) == sha(whole)


def test_a_broken_checkpoint_is_passed_over(
    quick: None, whole: TrainConfig, tiny_base: Path, data: Path, tmp_path: Path
) -> None:
    config = stop(config_for(tiny_base, data, tmp_path / "run", SHORT), after=7)
    with (config.out / "checkpoints" / "step-000006" / "tensors.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"x")
    again = resume(config)
    assert [event.first_step for event in again if isinstance(event, Started)] == [3]
    assert sha(config) == sha(whole)


def test_stopped_again_and_again(stopped: TrainConfig, whole: TrainConfig) -> None:
    for after in (4, 4, 6):
        going = run.resume(stopped.out)
        for event in going:
            if isinstance(event, Step) and event.step == after:
                break
        going.close()  # type: ignore[attr-defined]
    resume(stopped)
    assert sha(stopped) == sha(whole)


def test_stopped_between_the_adapter_and_the_report(stopped: TrainConfig, whole: TrainConfig) -> None:
    resume(stopped)
    (stopped.out / "report.json").unlink()
    assert not run.finished(stopped.out)
    assert isinstance(resume(stopped)[-1], Finished)
    assert sha(stopped) == sha(whole)
    assert [type(event) for event in resume(stopped)] == [Note]


def test_the_report_is_that_of_the_whole_run(stopped: TrainConfig, whole: TrainConfig) -> None:
    resume(stopped)
    got, wanted = (json.loads((config.out / "report.json").read_text()) for config in (stopped, whole))
    same = ("sha256", "steps", "loss_first_tenth", "loss_last_tenth", "exposures_per_picture", "data_digest")
    assert {key: got[key] for key in same} == {key: wanted[key] for key in same}
    assert got["optimizer_state_bytes"] == wanted["optimizer_state_bytes"]
    last_steps = sum(event.seconds for event in told(stopped)[-6:] if isinstance(event, Step))
    assert got["seconds"] > last_steps  # those before the stop count, too


def test_a_line_cut_short_in_the_events_file_is_taken_away(stopped: TrainConfig) -> None:
    file = stopped.out / "events.jsonl"
    before = told(stopped)
    with file.open("a") as stream:
        stream.write('{"event": "Step", "step": 6, "lo')
    again = resume(stopped)
    assert told(stopped) == before + again


def test_a_run_folder_may_be_moved(stopped: TrainConfig, whole: TrainConfig) -> None:
    elsewhere = stopped.out.rename(stopped.out.parent / "elsewhere")
    made = list(run.resume(elsewhere))[-1]
    assert isinstance(made, Finished)
    assert Path(made.path) == elsewhere / "tiny.safetensors"
    assert made.sha256 == sha(whole)
    assert not stopped.out.exists()


def test_a_lost_cache_is_filled_again(
    stopped: TrainConfig, whole: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STYLORA_CACHE", str(tmp_path / "new"))
    resume(stopped)
    assert sha(stopped) == sha(whole)


@pytest.mark.parametrize("change", ["picture", "caption", "one more", "one less"])
def test_changed_data_is_refused_until_it_is_put_back(
    quick: None, whole: TrainConfig, tiny_base: Path, data: Path, tmp_path: Path, change: str
) -> None:
    own = tmp_path / "ink"
    shutil.copytree(data, own)
    config = stop(config_for(tiny_base, own, tmp_path / "run", SHORT), after=4)
    checkpoints = sorted((config.out / "checkpoints").rglob("*"))
    if change == "picture":
        shutil.copy(own / "01.png", own / "02.png")
    elif change == "caption":
        (own / "02.txt").write_text("a gold cat")
    elif change == "one more":
        shutil.copy(own / "01.png", own / "09.png")
        shutil.copy(own / "01.txt", own / "09.txt")
    else:
        (own / "02.png").unlink()
    with pytest.raises(RunError, match="changed since this run began") as caught:
        resume(config)
    assert "put it back" in caught.value.next_step
    assert sorted((config.out / "checkpoints").rglob("*")) == checkpoints
    shutil.rmtree(own)
    with pytest.raises(DatasetError):
        resume(config)
    shutil.copytree(data, own)
    resume(config)
    assert sha(config) == sha(whole)


# --- asked to stop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 3, STEPS])
def test_asked_to_stop_it_saves_the_step_it_is_in(
    quick: None,
    whole: TrainConfig,
    tiny_base: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    """In the first step, in one that is saved anyway, and in the last."""
    config = config_for(tiny_base, data, tmp_path / "run", SHORT)
    with monkeypatch.context() as patch:
        made: list[Event] = []
        for event in run.start(config):
            made.append(event)
            if isinstance(event, Step) and event.step == after:
                patch.setattr(stopping, "asked", lambda: True)
    assert made[-1] == Stopped(after)
    assert [event.step for event in made if isinstance(event, Saved)] == sorted({*range(3, after, 3), after})
    assert not run.finished(config.out)
    again = resume(config)
    assert [event.step for event in again if isinstance(event, Step)] == [*range(after + 1, STEPS + 1)]
    assert sha(config) == sha(whole)


@pytest.mark.parametrize(("sign", "optimizer"), [(signal.SIGINT, "adamw"), (signal.SIGTERM, "adamw8bit")])
def test_a_process_that_is_asked_to_stop_does_no_step_twice(
    tiny_base: Path, data: Path, tmp_path: Path, sign: signal.Signals, optimizer: str
) -> None:
    settings = {**KILLED, "optim.name": optimizer, "train.save_every": 0}
    config = config_for(tiny_base, data, tmp_path / "stopped", settings)
    steps = []
    for command in (arguments(config), ["-m", "trainers", "resume", str(config.out)]):
        child = Child(tmp_path, *command)
        steps.append(child.stop_after_a_step(config, sign, more_than=max(steps, default=0)))
        assert f"Error: stopped after step {steps[-1]}, which is saved\nNext: " in child.words.read_text()
        assert sorted(path.name for path in (config.out / "checkpoints").iterdir()) == [f"step-{n:06}" for n in steps]
    resume(config)
    assert [event.first_step for event in told(config) if isinstance(event, Started)] == [0, *steps]
    assert [event.step for event in told(config) if isinstance(event, Step)] == [*range(1, 41)]
    never = config_for(tiny_base, data, tmp_path / "never", settings)
    train(never)
    assert sha(config) == sha(never)


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "kills"), [("adamw", 1), ("adamw8bit", 2)])
def test_a_killed_process_resumes_to_the_same_bytes(
    tiny_base: Path, data: Path, tmp_path: Path, optimizer: str, kills: int
) -> None:
    settings = {**KILLED, "optim.name": optimizer}
    config = config_for(tiny_base, data, tmp_path / "killed", settings)
    child = Child(tmp_path, *arguments(config))
    saved = child.kill_after_a_checkpoint(config)
    for _ in range(kills - 1):
        child = Child(tmp_path, "-m", "trainers", "resume", str(config.out))
        saved = child.kill_after_a_checkpoint(config, more_than=saved)
    assert not run.finished(config.out)
    Child(tmp_path, "-m", "trainers", "resume", str(config.out)).end()
    began = [event.first_step for event in told(config) if isinstance(event, Started)]
    assert len(began) == kills + 1
    assert began[0] == 0 < began[1]
    assert began == sorted(began)
    assert all(step % 4 == 0 and step < 40 for step in began)
    assert [event.step for event in told(config) if isinstance(event, Saved)]
    never = config_for(tiny_base, data, tmp_path / "never", settings)
    train(never)
    assert sha(config) == sha(never)
