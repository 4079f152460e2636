"""Many folders, one adapter each, on a base that is loaded once. A folder that fails is named and stops no other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers import report, run
from trainers.config import TrainConfig
from trainers.errors import ConfigError, RunError, StyloraError
from trainers.events import Event
from trainers.leaves import leaves

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
    """Train each folder into `<out>/<folder's name>`. Settings that are wrong for all are raised before any begins.

    Files are passed over: a shell's `styles/*` names them too.
    """
    folders = [folder for folder in folders if not folder.is_file()] or folders
    configs = [_config(folder, values, sets) for folder in folders]
    names = [config.out for config in configs]
    if twice := sorted({str(out) for out in names if names.count(out) > 1}):
        raise ConfigError(
            "two folders would train into one place",
            [f"{out}: named twice" for out in twice],
            "rename one of the folders",
        )
    waiting = [config for config in configs if not run.finished(config.out)]
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
    fixed = ("data", "out", "name")
    faults = [f"--{key} was given too" for key in ("data", "name") if key in values]
    if faults := faults + [f"--set {text}: not here" for text in sets if text.partition("=")[0].strip() in fixed]:
        raise ConfigError(
            "batch takes its folders as arguments, and each adapter has its folder's name", faults, "leave these out"
        )
    name = folder.resolve().name
    fixed_values = {**values, "data": str(folder), "out": str(Path(values["out"]) / name)}
    return run.for_base(TrainConfig.build(values=fixed_values, sets=sets))


def _one(folder: Path, config: TrainConfig, opened: run.Opened | None, follow: Follow) -> Result:
    begun = (config.out / run.CONFIG).is_file()
    if begun:
        _check_same(run.settled(config), run.read_config(config.out))
    if run.finished(config.out):
        return Result(folder, "done before", adapter=str(run.adapter_path(config)))
    events = run.resume(config.out, opened) if begun else run.start(config, opened)
    done = follow(events, config.train.steps)
    return Result(
        folder,
        "resumed" if begun else "trained",
        done.get("seconds", 0.0),
        done.get("loss_last_tenth"),
        str(run.adapter_path(config)),
    )


def _check_same(asked: TrainConfig, there: TrainConfig) -> None:
    """Raises RunError where a run folder holds something else than what is asked for now."""
    faults = [
        f"{leaf.key}: {there.get(leaf.key)} there, {asked.get(leaf.key)} now"
        for leaf in leaves()
        if leaf.key not in ("data", "out", "name", "dataset.cache")
        and leaf.name not in report.PACE
        and asked.get(leaf.key) != there.get(leaf.key)
    ]
    if there.data != asked.data:
        faults.insert(0, f"data: {there.data} there, {asked.data} now")
    if faults:
        raise RunError(f"{asked.out} holds a run with other settings", faults, "name another --out")


def print_table(results: Sequence[Result]) -> None:
    """One line a folder."""
    from trainers.console import table

    rows = [
        (
            str(r.folder),
            r.state,
            f"{r.seconds:.0f} s" if r.seconds else "",
            "" if r.loss is None else f"{r.loss:.4f}",
            r.error.what if r.error else r.adapter,  # the faults were told when it failed
        )
        for r in results
    ]
    table(f"{len(results)} folders", ("folder", "state", "time", "loss", "adapter or reason"), rows)
