"""One training from its settings to its adapter: the place where config meets code. Yields events, prints nothing.

The run folder: `config.toml events.jsonl checkpoints/ previews/ <name>.safetensors report.json loss.png`.
`start` begins a run in a fresh folder, `resume` goes on from the newest whole checkpoint; both end with the same bytes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from trainers import bases, checkpoint, devices, events, loop, optim, plot, prepare, report
from trainers.config import TrainConfig
from trainers.errors import RunError, TrainingError
from trainers.events import Event
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora import inject
from trainers.lora.adapter import Adapter, AdapterInfo, digest

CONFIG, EVENTS, CHECKPOINTS, REPORT = "config.toml", "events.jsonl", "checkpoints", "report.json"
Opened = tuple[devices.Machine, StableDiffusion]


def adapter_path(config: TrainConfig) -> Path:
    return config.out / f"{config.adapter_name}.safetensors"


def is_finished(config: TrainConfig) -> bool:
    """The adapter and the report that is written after it are there."""
    return adapter_path(config).is_file() and (config.out / REPORT).is_file()


def open_base(config: TrainConfig) -> Opened:
    """The device and the frozen base, its weights not yet read. Raises BaseError or ConfigError."""
    folder = bases.find(config.base)
    machine = devices.machine(config.train.device, config.train.precision, bases.width(folder))
    objective = config.objective
    family = StableDiffusion(
        folder,
        device=machine.device,
        dtype=machine.frozen_dtype,
        prediction=None if objective.prediction == "auto" else objective.prediction,
        min_snr_gamma=objective.min_snr_gamma,
        noise_offset=objective.noise_offset,
        caption_dropout=config.dataset.caption_dropout,
        autocast=machine.autocast,
    )
    return machine, family


def start(config: TrainConfig, opened: Opened | None = None) -> Iterator[Event]:
    """Train into `config.out`, which must be new or empty; pass `opened` to use a base that is already loaded."""
    check_folder(config.out)
    opened = opened or open_base(config)
    samples = prepare.scan(config, opened[1])  # every fault of the data, before anything is made or loaded
    opened[0].wait()  # every process has seen the folder empty before one of them fills it
    if opened[0].leads:
        _make_folder(config)
    opened[0].wait()
    yield from _train(config, opened, samples, None)


def resume(folder: Path, opened: Opened | None = None) -> Iterator[Event]:
    """Go on with the run in `folder`. Raises RunError if there is none; a finished one only says so."""
    config = read_config(folder)
    if is_finished(config):
        yield events.Note(f"{folder} is finished: {adapter_path(config)}")
        return
    opened = opened or open_base(config)
    samples = prepare.scan(config, opened[1])
    yield from _train(config, opened, samples, checkpoint.newest(folder / CHECKPOINTS))


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
    done = is_finished(read_config(out))
    raise RunError(
        f"{out} holds a {'finished' if done else 'begun'} run",
        next_step="name a new folder with --out" + ("" if done else f", or go on with `stylora resume {out}`"),
    )


def _make_folder(config: TrainConfig) -> None:
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(config.out / CONFIG, settled(config).to_toml().encode())
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
    if config.dataset.cache:
        places["dataset"] = config.dataset.model_copy(update={"cache": config.dataset.cache.resolve()})
    return config.model_copy(update=places)


@dataclass
class Session:
    """One process's way through a run: what was prepared, and what has been measured so far."""

    config: TrainConfig
    machine: devices.Machine
    family: StableDiffusion
    data: prepare.Data
    update: loop.Update
    losses: list[float]
    seconds: float = 0.0


def _train(
    config: TrainConfig, opened: Opened, samples: prepare.Samples, found: checkpoint.Checkpoint | None
) -> Iterator[Event]:
    machine, family = opened
    try:
        with checkpoint.alone(config.out / CONFIG) if machine.leads else nullcontext():
            log = _log(config.out / EVENTS, machine.leads)
            for event in _events(config, machine, family, samples, found):
                log(event)
                yield event
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the {machine.device.type} ran out of memory: {str(error).splitlines()[0]}",
            next_step="try train.micro_batch=1, train.gradient_checkpointing=true or a smaller dataset.resolution",
        ) from error
    finally:
        for model in family.loaded_parts().values():
            inject.remove(model)


def _events(
    config: TrainConfig,
    machine: devices.Machine,
    family: StableDiffusion,
    samples: prepare.Samples,
    found: checkpoint.Checkpoint | None,
) -> Iterator[Event]:
    data = yield from prepare.encode(config, family, samples, machine)
    prepare.put_lora(config, family)
    session = Session(config, machine, family, data, prepare.update(config, family, machine), [])
    first = _restore(session, found) if found else 0
    yield _started(session, first)
    begun, before = time.monotonic(), session.seconds
    steps = loop.train(
        family, data.plan, data.encodings, data.names, session.update, machine, first=first, steps=config.train.steps
    )
    for event in steps:
        session.losses.append(event.loss)
        yield event
        session.seconds = before + time.monotonic() - begun
        yield from _between(session, event.step)
    yield from _finish(session)


def _between(session: Session, step: int) -> Iterator[Event]:
    """What happens after some steps: a checkpoint, a preview."""
    config, last = session.config, step == session.config.train.steps
    if config.train.save_every and step % config.train.save_every == 0 and not last:
        if session.machine.leads:
            path = checkpoint.save(config.out / CHECKPOINTS, step, *_state(session, step), keep=config.train.keep)
            yield events.Saved(step, str(path))
        session.machine.wait()
    if config.train.preview_every and (step % config.train.preview_every == 0 or last) and session.machine.leads:
        yield events.Preview(step, str(_preview(session, step)))


def _state(session: Session, step: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    update = session.update
    tensors = {f"lora/{name}": tensor for group in update.groups for name, tensor in group.tensors().items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in optim.state_tensors(update.optimizer).items()}
    facts = {
        "data": session.data.digest,
        "losses": session.losses,
        "seconds": session.seconds,
        "scale": update.scaler.get_scale(),
    }
    return tensors, facts


def _restore(session: Session, found: checkpoint.Checkpoint) -> int:
    """Put a checkpoint's numbers in place; returns the number of steps that are done."""
    if found.facts["data"] != session.data.digest:
        raise RunError(
            f"the pictures or captions in {session.config.data} have changed since this run began",
            next_step="put them back to resume exactly, or start a new run",
        )
    own = {
        kind: {n[len(kind) :]: t for n, t in found.tensors.items() if n.startswith(kind)}
        for kind in ("lora/", "optimizer/")
    }
    for group in session.update.groups:
        group.load(own["lora/"])
    optim.load_state_tensors(session.update.optimizer, own["optimizer/"])
    if session.update.scaler.is_enabled():
        session.update.scaler.update(found.facts["scale"])
    session.losses, session.seconds = list(found.facts["losses"]), found.facts["seconds"]
    return found.step


def _started(session: Session, first: int) -> events.Started:
    config, machine, family, plan = session.config, session.machine, session.family, session.data.plan
    shown = [n for n, prior in zip(plan.exposures(config.train.steps), plan.prior, strict=True) if not prior]
    return events.Started(
        name=config.adapter_name,
        base=config.base,
        device=str(machine.device),
        precision=machine.precision,
        attention=family.attention.name,
        samples=len(shown),
        steps=config.train.steps,
        first_step=first,
        parameters=report.parameters(family, session.update.groups),
        optimizer=config.optim.name,
        exposures=(min(shown), max(shown)),
    )


def _preview(session: Session, step: int) -> Path:
    """A sheet of the preview prompts, each with its fixed seed."""
    config, family = session.config, session.family
    prompts = config.train.preview_prompts or list(dict.fromkeys(session.data.captions))[:4]
    made = family.sample(prompts, [config.seed + k for k in range(len(prompts))])
    for part in ("vae", *(() if config.lora.text_encoder else ("text_encoder",))):
        family.unload(part)
    path = config.out / "previews" / f"step-{step:06d}.png"
    path.parent.mkdir(exist_ok=True)
    plot.grid([made], [f"step {step}"], prompts).save(path)
    return path


def _finish(session: Session) -> Iterator[Event]:
    """Write the adapter, the report and the plot; the report comes last and marks the run as finished."""
    config, family = session.config, session.family
    if not session.machine.leads:
        session.machine.wait()
        return
    pairs = {name: pair for part, model in family.parts().items() for name, pair in inject.extract(part, model).items()}
    picture = report.thumbnail(config, family, session.data)
    header = report.header(config, family, session.data, session.machine.precision, picture)
    path = adapter_path(config)
    Adapter(pairs, AdapterInfo(header)).save(path, config.adapter.format, devices.DTYPES[config.adapter.dtype])
    facts = {
        **report.facts(config, session.machine, session.data, session.losses, session.seconds),
        "parameters": {part: list(n) for part, n in report.parameters(family, session.update.groups).items()},
        "optimizer_state_bytes": optim.state_bytes(session.update.optimizer),
        "adapter": path.name,
        "sha256": digest(path),
    }
    plot.loss_plot(session.losses, f"{config.adapter_name}: loss over {len(session.losses)} steps").save(
        config.out / "loss.png"
    )
    checkpoint.write_atomically(config.out / REPORT, json.dumps(facts, indent=2).encode())
    yield events.Finished(str(path), str(facts["sha256"]), config.train.steps, session.seconds, facts)
    session.machine.wait()


def _log(path: Path, leads: bool) -> Callable[[Event], None]:
    """Appends events to the run's events file; one process writes it. A line cut short by a kill is taken away."""
    if leads and path.is_file():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)

    def write(event: Event) -> None:
        if leads:
            with path.open("a") as stream:
                stream.write(events.to_json(event) + "\n")

    return write
