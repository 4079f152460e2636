"""Two processes share one training: they end where one process ends, and only one of them writes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from training import arguments, config_for, deltas, distance, pictures, train

from trainers import events
from trainers.events import Cached, Finished, Preview, Saved, Started, Step

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 400  # seconds, on a busy machine
# An odd batch, so that the processes' shares differ, and all that makes them wait for each other.
SETTINGS = {
    "optim.name": "adamw",
    "train.steps": 5,
    "train.batch": 5,
    "train.micro_batch": 2,
    "train.save_every": 2,
    "train.preview_every": 5,
    "train.preview_prompts": ["a red house"],
    "prior.class_prompt": "a house",
    "prior.pictures": 2,
    "prior.steps": 1,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` as on several GPUs; `train.device=cpu` makes it gloo. (With `--cpu` it starts one only.)"""
    options = ["--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, f"--main_process_port={free_port()}", *command],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(place / "no-settings-of-the-users"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_two_processes_train_like_one(tiny_base: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "ink")
    one, two = (
        config_for(tiny_base, data, tmp_path / name, {**SETTINGS, "dataset.cache": tmp_path / f"{name}-cache"})
        for name in ("one", "two")
    )
    train(one)
    done = launch(tmp_path, *arguments(two))
    assert done.returncode == 0, done.stderr[-3000:]
    wanted = deltas(one)
    assert distance(wanted, deltas(two)) < 1e-3
    other = config_for(tiny_base, data, tmp_path / "other", {**SETTINGS, "seed": 8})
    train(other)
    assert distance(wanted, deltas(other)) > 0.3

    told = [events.from_json(line) for line in (two.out / "events.jsonl").read_text().splitlines()]
    for kind in (Started, Cached, Preview, Finished):
        assert len([event for event in told if isinstance(event, kind)]) == 1
    steps = [event for event in told if isinstance(event, Step)]
    assert [(step.step, step.samples) for step in steps] == [(k, 10) for k in range(1, 6)]
    assert [event.step for event in told if isinstance(event, Saved)] == [2, 4]
    assert json.loads((two.out / "report.json").read_text())["processes"] == 2
    assert done.stdout.count("done in") == 1
    names = sorted(path.name for path in two.out.rglob("*") if path.is_file())
    assert names == sorted(path.name for path in one.out.rglob("*") if path.is_file())
