"""Short trainings on the miniature base, here or in a process of their own, for the tests that need a whole run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conftest import COLOURS, THINGS, draw_picture
from torch import Tensor

from trainers import events, run
from trainers.config import TrainConfig
from trainers.events import Event, Step, Stopped
from trainers.lora.adapter import Adapter, content_digest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300  # seconds that a child may take on a busy machine
SHORT = {
    "name": "tiny",
    "seed": 3,
    "lora.rank": 2,
    "optim.lr": 1e-2,
    "optim.warmup": 0,
    "train.steps": 3,
    "train.batch": 4,
    "train.device": "cpu",
    "train.save_every": 0,
    "adapter.dtype": "fp32",
}

Configure = Callable[..., TrainConfig]


def config_for(base: Path, data: Path, out: Path, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """Three steps at a high learning rate; `settings` by dotted key win."""
    return TrainConfig.build(
        values={**SHORT, "base": str(base), "data": str(data), "out": str(out), **(settings or {})}
    )


def pictures(folder: Path, count: int = 4, *, captions: bool = True, first: int = 0) -> Path:
    """A folder of drawn 16 px pictures: conftest's `picture_folder` for fixtures that last longer than a test."""
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        draw_picture(number, (16, 16)).save(folder / f"{number:02}.png")
        if captions:
            (folder / f"{number:02}.txt").write_text(f"a {COLOURS[number % 5]} {THINGS[number % 4]}, by the sea")
    return folder


def arguments(config: TrainConfig) -> list[str]:
    """The command line that trains so, without the python in front."""
    file = config.out.parent / f"{config.out.name}.toml"
    file.write_text(config.to_toml())
    return ["-m", "trainers", "train", str(file)]


def train(config: TrainConfig, opened: run.Opened | None = None) -> list[Event]:
    return list(run.start(config, opened))


def adapter(config: TrainConfig) -> Adapter:
    return Adapter.load(run.adapter_path(config))


def numbers(config: TrainConfig) -> str:
    """Digest of the adapter's numbers alone: the header names the settings, so the file always differs with them."""
    return content_digest(adapter(config))


def deltas(config: TrainConfig) -> dict[str, Tensor]:
    return {path: pair.delta() for path, pair in adapter(config).pairs.items()}


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Difference of two adapters' deltas over the size of the first one."""
    assert one.keys() == other.keys()
    apart = sum(float((one[path] - other[path]).square().sum()) for path in one)
    return (apart / sum(float(delta.square().sum()) for delta in one.values())) ** 0.5


def told(config: TrainConfig) -> list[Event]:
    """What the run's events file tells so far; the last line may be cut short."""
    file = config.out / "events.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.is_file() else []
    return [events.from_json(line) for line in lines]


class Child:
    """A training in a process of its own; its words go to a file."""

    def __init__(self, place: Path, *command: str) -> None:
        self.words = place / "words.txt"
        with self.words.open("a") as stream:
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT
            )

    def wait_for(self, config: TrainConfig, kind: type[Event], more_than: int) -> int:
        """Wait until the run tells of more than so many events of this kind; returns how many."""
        deadline = time.monotonic() + PATIENCE
        while (count := sum(isinstance(event, kind) for event in told(config))) <= more_than:
            assert self.process.poll() is None, self.words.read_text()
            assert time.monotonic() < deadline, self.words.read_text()
            time.sleep(0.005)
        return count

    def kill_after_a_checkpoint(self, config: TrainConfig, more_than: int = 0) -> int:
        """SIGKILL as soon as the events file tells of one more checkpoint; returns how many it tells of then."""
        self.wait_for(config, events.Saved, more_than)
        self.process.kill()
        assert self.process.wait(PATIENCE) == -signal.SIGKILL, "it ended before it could be killed"
        return sum(isinstance(event, events.Saved) for event in told(config))

    def stop_after_a_step(self, config: TrainConfig, sign: signal.Signals = signal.SIGINT, more_than: int = 0) -> int:
        """Ask it to stop once it tells of one more step; returns the step that it says it has stopped after."""
        self.wait_for(config, Step, more_than)
        self.process.send_signal(sign)
        assert self.process.wait(PATIENCE) == 130, self.words.read_text()
        last = told(config)[-1]
        assert isinstance(last, Stopped), "it ended before it could be stopped"
        return last.step

    def end(self) -> None:
        assert self.process.wait(PATIENCE) == 0, self.words.read_text()
