"""A run's folder from its settings on: begin one, find it again, resume it. The place where config meets code.

The run folder: `config.toml events.jsonl checkpoints/ previews/ <name>.safetensors report.json loss.png`.
`start` begins a run in a fresh folder, `resume` goes on from the newest whole checkpoint; both end with the same bytes.
Yields events, prints nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from trainers import bases, checkpoint, devices, events, pictures, prepare, session, texts
from trainers.config import TrainConfig
from trainers.errors import RunError, TrainingError
from trainers.events import Event
from trainers.lora import inject
from trainers.session import Opened as Opened
from trainers.session import adapter_path as adapter_path

CONFIG, EVENTS = "config.toml", "events.jsonl"
SUBJECTS: dict[bases.Kind, prepare.Subject] = {"pictures": pictures, "text": texts}


def finished(folder: Path) -> Path | None:
    """The adapter of a run whose report, which is written last, stands; None where there is none yet."""
    try:
        path = folder / json.loads((folder / session.REPORT).read_text())["adapter"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return path if path.exists() else None


def for_base(config: TrainConfig) -> TrainConfig:
    """The settings with the defaults of the base's kind. Raises BaseError; ConfigError: some are of the other kind."""
    return config.for_kind(bases.kind_of(bases.find(config.base, weights=False)))


def open_base(config: TrainConfig) -> Opened:
    """The device and the frozen base, its weights not yet read. Raises BaseError or ConfigError."""
    folder = bases.find(config.base)
    subject = SUBJECTS[bases.kind_of(folder)]
    machine = devices.machine(config.train.device, config.train.precision, bases.width(folder))
    return Opened(machine, subject.open_base(config.for_kind(subject.KIND), folder, machine), subject)


def start(config: TrainConfig, opened: Opened | None = None) -> Iterator[Event]:
    """Train into `config.out`, which must be new or empty; pass `opened` to use a base that is already loaded."""
    check_folder(config.out)
    opened = opened or open_base(config)
    config = config.for_kind(opened.subject.KIND)
    samples = _scan(config, opened)  # every fault of the data, before anything is made or loaded
    opened.machine.wait()  # every process has seen the folder empty before one of them fills it
    if opened.machine.leads:
        _make_folder(config, opened.subject.KIND)
    opened.machine.wait()
    yield from _train(config, opened, samples, None)


def resume(folder: Path, opened: Opened | None = None) -> Iterator[Event]:
    """Go on with the run in `folder`. Raises RunError if there is none; a finished one only says so."""
    config = read_config(folder)
    if path := finished(folder):
        yield events.Note(f"{folder} is finished: {path}")
        return
    opened = opened or open_base(config)
    config = config.for_kind(opened.subject.KIND)
    yield from _train(config, opened, _scan(config, opened), checkpoint.newest(folder / session.CHECKPOINTS))


def _scan(config: TrainConfig, opened: Opened) -> Any:
    found = opened.subject.scan(config, opened.family)
    prepare.check_targets(opened.family, opened.subject.shapes(config))
    return found


def read_config(folder: Path) -> TrainConfig:
    """The settings a run folder was begun with; its place is where it is now."""
    file = folder / CONFIG
    if not file.is_file():
        raise RunError(
            f"{folder} is no run folder: it holds no {CONFIG}",
            next_step="name the folder given to `stylora train --out`",
        )
    return TrainConfig.build(file=file, values={"out": str(folder)})


def check_folder(out: Path) -> None:
    """Raises RunError unless `out` is absent or an empty folder: nothing that is there is ever touched."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file, not a folder", next_step="name another folder with --out")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / CONFIG).is_file():
        raise RunError(f"{out} holds other files", next_step="name a new or empty folder with --out")
    done = finished(out)
    raise RunError(
        f"{out} holds a {'finished' if done else 'begun'} run",
        next_step="name a new folder with --out" + ("" if done else f", or go on with `stylora resume {out}`"),
    )


def _make_folder(config: TrainConfig, kind: str) -> None:
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(config.out / CONFIG, settled(config).to_toml(kind).encode())
    except OSError as error:
        raise RunError(
            f"{config.out} can't be written: {error.strerror or error}", next_step="name another folder with --out"
        ) from error


def settled(config: TrainConfig) -> TrainConfig:
    """The settings as they stay true in another current folder: every path is whole."""
    places: dict[str, object] = {"data": config.data.resolve(), "out": config.out.resolve()}
    places["name"] = config.adapter_name
    if config.base not in bases.EMBEDDED and Path(config.base).is_dir():
        places["base"] = str(Path(config.base).absolute())
    folders = {name: path.resolve() for name in ("cache", "plain") if (path := getattr(config.dataset, name))}
    if folders:
        places["dataset"] = config.dataset.model_copy(update=folders)
    return config.model_copy(update=places)


def _train(config: TrainConfig, opened: Opened, samples: Any, found: checkpoint.Checkpoint | None) -> Iterator[Event]:
    machine = opened.machine
    try:
        with checkpoint.alone(config.out / CONFIG) if machine.leads else nullcontext():
            log = _log(config.out / EVENTS, machine.leads)
            for event in session.events_of(config, opened, samples, found):
                log(event)
                yield event
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the {machine.device.type} ran out of memory: {str(error).splitlines()[0]}",
            next_step="try train.micro_batch=1, train.gradient_checkpointing=true or smaller samples "
            "(dataset.resolution, dataset.context)",
        ) from error
    finally:
        for model in opened.family.loaded_parts().values():
            inject.remove(model)


def _log(path: Path, leads: bool) -> Callable[[Event], None]:
    """Appends events to the run's events file; one process writes it. A line cut short by a kill is taken away."""
    if leads and path.is_file():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

    def write(event: Event) -> None:
        if leads:
            with path.open("a") as stream:
                stream.write(events.to_json(event) + "\n")

    return write
