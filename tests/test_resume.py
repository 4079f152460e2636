"""Stopped anywhere and resumed, by SIGKILL too, a run ends with the same bytes as one that was never stopped."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from training import arguments, config_for, pictures, train

from trainers import checkpoint, events, loop, run
from trainers.config import TrainConfig
from trainers.errors import DatasetError, RunError
from trainers.events import Event, Finished, Note, Saved, Started, Step
from trainers.lora.adapter import digest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300  # seconds that a child may take on a busy machine
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


def told(config: TrainConfig) -> list[Event]:
    return [events.from_json(line) for line in (config.out / "events.jsonl").read_text().splitlines()]


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


# --- killed -----------------------------------------------------------------------------------------------------------


class Child:
    """A training in a process of its own; its words go to a file."""

    def __init__(self, place: Path, *command: str) -> None:
        self.words = place / "words.txt"
        with self.words.open("a") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT
            )

    def kill_after_a_checkpoint(self, config: TrainConfig, more_than: int = 0) -> int:
        """SIGKILL as soon as the events file tells of one more checkpoint; returns how many it tells of then."""
        file, deadline = config.out / "events.jsonl", time.monotonic() + PATIENCE
        while not file.is_file() or file.read_text().count('"event": "Saved"') <= more_than:
            assert self.process.poll() is None, self.words.read_text()
            assert time.monotonic() < deadline, self.words.read_text()
            time.sleep(0.005)
        self.process.kill()
        assert self.process.wait(PATIENCE) == -signal.SIGKILL, "it ended before it could be killed"
        return file.read_text().count('"event": "Saved"')

    def end(self) -> None:
        assert self.process.wait(PATIENCE) == 0, self.words.read_text()


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
