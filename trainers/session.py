"""One training between its first event and its last: prepared, stepped, measured, saved, and its adapter written.

`run` begins and resumes it: `for event in run.start(config): print(event)`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trainers import checkpoint, devices, events, loop, optim, plot, prepare, report, stopping
from trainers.config import TrainConfig
from trainers.errors import RunError
from trainers.events import Event
from trainers.families.base import Family
from trainers.lora import inject
from trainers.lora.adapter import Adapter, AdapterInfo, digest, save_dora

CHECKPOINTS, REPORT = "checkpoints", "report.json"


class Opened(NamedTuple):
    """Where to compute, the frozen base, and what a run on it is about."""

    machine: devices.Machine
    family: Family
    subject: prepare.Subject


def adapter_path(config: TrainConfig) -> Path:
    """The file, or PEFT's folder, of the adapter."""
    return config.out / (config.adapter_name + ("" if config.adapter.format == "peft" else ".safetensors"))


@dataclass
class Best:
    """The lowest loss measured on what is kept apart, the step it was measured after, and the adapter of then."""

    step: int = 0
    loss: float = math.inf
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass
class Session:
    """One process's way through a run: what was prepared, and what has been measured so far."""

    config: TrainConfig
    opened: Opened
    data: Any  # prepare.Data of the subject
    update: loop.Update
    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)  # (step, loss)
    best: Best = field(default_factory=Best)
    seconds: float = 0.0

    @property
    def ended(self) -> bool:
        """Was the loss on what is kept apart no better for as long as patience lasts?"""
        patience = self.config.train.patience
        return bool(patience) and sum(step > self.best.step for step, _ in self.validations) >= patience


def events_of(
    config: TrainConfig, opened: Opened, samples: Any, found: checkpoint.Checkpoint | None
) -> Iterator[Event]:
    """Everything from the data to the finished adapter, from a checkpoint on where one is given.

    Asked to stop, by whichever process, it ends with a checkpoint of the step that is done, and `Stopped`.
    """
    machine, family, subject = opened
    data = yield from subject.encode(config, family, samples, machine)
    shapes = subject.shapes(config)
    prepare.put_lora(config, family, shapes)
    peaks = prepare.peak_rates(family, shapes)
    session = Session(config, opened, data, prepare.update(config, family, peaks, machine))
    first = _restore(session, found) if found else 0
    yield _started(session, first)
    begun, before = time.monotonic(), session.seconds
    steps = loop.train(
        family, data.plan, data.encodings, data.names, session.update, machine, first=first, steps=config.train.steps
    )
    for event in () if session.ended else steps:
        session.losses.append(event.loss)
        yield event
        yield from _measure(session, event.step)
        session.seconds = before + time.monotonic() - begun
        yield from _between(session, event.step)
        if machine.number(float(stopping.asked())):
            yield from _stop(session, event.step)
            return
        if session.ended:
            break
    if session.ended:
        yield events.Note(f"stopped after step {len(session.losses)}: no better than after step {session.best.step}")
    yield from _finish(session, peaks)


def _measure(session: Session, step: int) -> Iterator[Event]:
    """Now and then the loss on what is kept apart; the best adapter so far is remembered."""
    train, (_, family, subject) = session.config.train, session.opened
    if not train.validate_every or (step % train.validate_every and step != train.steps):
        return
    loss = subject.validate(family, session.data)
    if loss is None:
        return
    session.validations.append((step, loss))
    better = loss < session.best.loss
    if better:
        tensors = (item for group in session.update.groups for item in group.tensors().items())
        session.best = Best(step, loss, {name: tensor.clone() for name, tensor in tensors})
    yield events.Validation(step, loss, better)


def _between(session: Session, step: int) -> Iterator[Event]:
    """What happens after some steps: a checkpoint, a preview."""
    config, last = session.config, step == session.config.train.steps
    machine, family, subject = session.opened
    if _saves(config, step):
        yield from _save_step(session, step)
    if config.train.preview_every and (step % config.train.preview_every == 0 or last) and machine.leads:
        yield events.Preview(step, str(subject.preview(config, family, session.data, step)))


def _saves(config: TrainConfig, step: int) -> bool:
    """Is this a step after which a checkpoint is written anyway?"""
    train = config.train
    return bool(train.save_every) and step % train.save_every == 0 and step != train.steps


def _save_step(session: Session, step: int) -> Iterator[Event]:
    """Write the checkpoint of the step that is done; the other processes wait."""
    config, machine = session.config, session.opened.machine
    if machine.leads:
        path = checkpoint.save(config.out / CHECKPOINTS, step, *_state(session), keep=config.train.keep)
        yield events.Saved(step, str(path))
    machine.wait()


def _stop(session: Session, step: int) -> Iterator[Event]:
    """End after this step, so that the run can go on with the next one."""
    if not _saves(session.config, step):
        yield from _save_step(session, step)
    yield events.Stopped(step)


def _state(session: Session) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    update = session.update
    tensors = {f"lora/{name}": tensor for group in update.groups for name, tensor in group.tensors().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in session.best.tensors.items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in optim.state_tensors(update.optimizer).items()}
    facts = {
        "data": session.data.digest,
        "losses": session.losses,
        "validations": session.validations,
        "best": session.best.step,
        "seconds": session.seconds,
        "scale": update.scaler.get_scale(),
    }
    return tensors, facts


def _restore(session: Session, found: checkpoint.Checkpoint) -> int:
    """Put a checkpoint's numbers in place; returns the number of steps that are done."""
    facts = found.facts
    if facts["data"] != session.data.digest:
        raise RunError(
            f"the data in {session.config.data} has changed since this run began",
            next_step="put it back to resume exactly, or start a new run",
        )
    own = {
        kind: {n[len(kind) :]: t for n, t in found.tensors.items() if n.startswith(kind)}
        for kind in ("lora/", "best/", "optimizer/")
    }
    for group in session.update.groups:
        group.load(own["lora/"])
    optim.load_state_tensors(session.update.optimizer, own["optimizer/"])
    if session.update.scaler.is_enabled():
        session.update.scaler.update(facts["scale"])
    session.losses, session.seconds = list(facts["losses"]), facts["seconds"]
    session.validations = [(step, loss) for step, loss in facts.get("validations", [])]
    if own["best/"]:
        session.best = Best(facts["best"], dict(session.validations)[facts["best"]], own["best/"])
    return found.step


def _started(session: Session, first: int) -> events.Started:
    config, data = session.config, session.data
    machine, family, subject = session.opened
    return events.Started(
        name=config.adapter_name,
        base=config.base,
        device=str(machine.device),
        precision=machine.precision,
        attention=family.attention.name,
        samples=len(data.plan.prior) - sum(data.plan.prior),
        unit=subject.UNIT,
        steps=config.train.steps,
        first_step=first,
        parameters=report.parameters(family, session.update.groups),
        optimizer=config.optim.name,
        exposures=report.exposures(data, config.train.steps),
    )


def _finish(session: Session, peaks: Mapping[str, float]) -> Iterator[Event]:
    """Write the adapter, the report and the plot; the report comes last and marks the run as finished."""
    config, data = session.config, session.data
    machine, family, subject = session.opened
    if not machine.leads:
        machine.wait()
        return
    for group in session.update.groups if session.best.tensors else ():
        group.load(session.best.tensors)
    pairs = {name: pair for part, model in family.parts().items() for name, pair in inject.extract(part, model).items()}
    adapter = Adapter(pairs, AdapterInfo(subject.header(config, family, data, peaks, machine)))
    path = adapter_path(config)
    _save(config, family, adapter, path)
    facts = {
        **report.facts(config, machine, data, session.losses, session.seconds),
        **subject.facts(config, data, session.seconds),
        "parameters": {part: list(n) for part, n in report.parameters(family, session.update.groups).items()},
        "optimizer_state_bytes": optim.state_bytes(session.update.optimizer),
        "adapter": path.name,
        "sha256": digest(path),
    }
    if session.validations:
        facts |= {"best_step": session.best.step, "validations": session.validations}
    facts |= yield from subject.appraise(config, family, data, path)
    _plot(config, session.losses)
    checkpoint.write_atomically(config.out / REPORT, json.dumps(facts, indent=2).encode())
    yield events.Finished(str(path), str(facts["sha256"]), len(session.losses), session.seconds, facts)
    machine.wait()


def _save(config: TrainConfig, family: Family, adapter: Adapter, path: Path) -> None:
    dtype = devices.DTYPES[config.adapter.dtype]
    magnitudes = {n: m for part, model in family.parts().items() for n, m in inject.magnitudes(part, model).items()}
    if magnitudes:
        save_dora(path, adapter, magnitudes, dtype)
    else:
        adapter.save(path, config.adapter.format, dtype)


def _plot(config: TrainConfig, losses: Sequence[float]) -> None:
    title = f"{config.adapter_name}: loss over {len(losses)} steps"
    plot.loss_plot(losses, title).save(config.out / "loss.png")
