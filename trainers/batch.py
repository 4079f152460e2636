"""Many folders, one adapter each, on a base that is loaded once. A folder that fails is named and stops no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers import run
from trainers.config import TrainConfig
from trainers.errors import ConfigError, RunError, StyloraError
from trainers.events import Event

Follow = Callable[[Iterable[Event], int], dict[str, Any]]


@dataclass(frozen=True)
class Result:
    """What became of one folder: trained, resumed or done before; or why not."""

    folder: Path
    state: str
    seconds: float = 0.0
    loss: float | None = None
    adapter: str = ""
    error: StyloraError | None = None


def run_all(folders: Sequence[Path], values: Mapping[str, Any], sets: Sequence[str], follow: Follow) -> list[Result]:
    """Train each folder into `<out>/<folder's name>`. Settings that are wrong for all are raised before any begins."""
    configs = [_config(folder, values, sets) for folder in folders]
    names = [config.out for config in configs]
    if twice := sorted({str(out) for out in names if names.count(out) > 1}):
        raise ConfigError(
            "two folders would train into one place",
            [f"{out}: named twice" for out in twice],
            "rename one of the folders",
        )
    waiting = [config for config in configs if not run.is_finished(config)]
    opened = run.open_base(waiting[0]) if waiting else None
    results = []
    for folder, config in zip(folders, configs, strict=True):
        try:
            results.append(_one(folder, config, opened, follow))
        except StyloraError as error:
            from trainers.console import complain

            complain(error)
            results.append(Result(folder, "failed", error=error))
    return results


def _config(folder: Path, values: Mapping[str, Any], sets: Sequence[str]) -> TrainConfig:
    if "out" not in values:
        raise ConfigError("batch needs a place for the runs", ["--out is missing"], "add --out runs/")
    if "data" in values:
        raise ConfigError("batch takes its folders as arguments", ["--data was given too"], "leave --data out")
    name = folder.resolve().name
    return TrainConfig.build(values={**values, "data": str(folder), "out": str(Path(values["out"]) / name)}, sets=sets)


def _one(folder: Path, config: TrainConfig, opened: run.Opened | None, follow: Follow) -> Result:
    if run.is_finished(config):
        return Result(folder, "done before", adapter=str(run.adapter_path(config)))
    begun = (config.out / run.CONFIG).is_file()
    if begun and run.read_config(config.out).data != config.data.resolve():
        raise RunError(f"{config.out} holds a run of another folder", next_step="name another --out")
    events = run.resume(config.out, opened) if begun else run.start(config, opened)
    report = follow(events, config.train.steps)
    return Result(
        folder,
        "resumed" if begun else "trained",
        report["seconds"],
        report["loss_last_tenth"],
        str(run.adapter_path(config)),
    )


def print_table(results: Sequence[Result]) -> None:
    """One line a folder."""
    from trainers.console import table

    rows = [
        (
            str(r.folder),
            r.state,
            f"{r.seconds:.0f} s" if r.seconds else "",
            "" if r.loss is None else f"{r.loss:.4f}",
            r.error.what if r.error else r.adapter,
        )
        for r in results
    ]
    table(f"{len(results)} folders", ("folder", "state", "time", "loss", "adapter or reason"), rows)
