"""Many folders, one base: a broken one stops no other, only what isn't finished is done again, the base stays whole."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import draw_picture
from diffusers import UNet2DConditionModel
from training import Child, config_for, told
from typer.testing import CliRunner

from studio.cli import app
from trainers import batch, run
from trainers.errors import ConfigError
from trainers.events import Event, Finished, Step
from trainers.families import stable_diffusion
from trainers.lora.adapter import digest

QUICK = ["train.steps=2", "train.batch=2", "train.save_every=1", "lora.rank=2"]


class Loads:
    """In the UNet class's place: counts and passes on."""

    count = 0

    def from_pretrained(self, *given: Any, **named: Any) -> Any:
        self.count += 1
        return UNet2DConditionModel.from_pretrained(*given, **named)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    counter = Loads()
    monkeypatch.setitem(stable_diffusion.LOADERS, "unet", counter)
    # the thumbnail's 25 steps are tested elsewhere
    monkeypatch.setattr(run.pictures, "thumbnail", lambda *_: b"jpeg")
    return counter


@pytest.fixture
def folders(picture_folder: Callable[..., Path]) -> list[Path]:
    """Three folders; the second one's last picture is cut short."""
    made = [picture_folder(n=2, name=name) for name in ("ink", "neon", "woodcut")]
    broken = made[1] / "01.png"
    broken.write_bytes(broken.read_bytes()[:60])
    return made


def follow(events: Iterable[Event], steps: int) -> dict[str, Any]:
    return next((dict(e.report) for e in events if isinstance(e, Finished)), {})


def run_all(
    folders: list[Path], base: Path, out: Path, *sets: str, follow: batch.Follow = follow
) -> list[batch.Result]:
    return batch.run_all(folders, {"base": str(base), "out": str(out)}, [*QUICK, *sets], follow)


def adapters(out: Path) -> dict[str, tuple[str, int]]:
    return {file.name: (digest(file), file.stat().st_mtime_ns) for file in out.glob("*/*.safetensors")}


def test_a_broken_folder_stops_no_other_and_is_done_once_mended(
    folders: list[Path], tiny_base: Path, tmp_path: Path, loads: Loads
) -> None:
    out = tmp_path / "runs"
    results = run_all(folders, tiny_base, out)
    assert [result.state for result in results] == ["trained", "failed", "trained"]
    assert loads.count == 1
    assert results[1].error is not None
    assert "01.png" in results[1].error.faults[0]
    assert not (out / "neon").exists()
    first = adapters(out)
    assert set(first) == {"ink.safetensors", "woodcut.safetensors"}

    again = run_all(folders, tiny_base, out)
    assert [result.state for result in again] == ["done before", "failed", "done before"]
    assert again[0].adapter == str(out / "ink" / "ink.safetensors")
    assert loads.count == 1  # no weights for a folder that can't be trained on
    assert adapters(out) == first

    draw_picture(7, (16, 16)).save(folders[1] / "01.png")
    mended = run_all(folders, tiny_base, out)
    assert [result.state for result in mended] == ["done before", "trained", "done before"]
    assert loads.count == 2
    assert adapters(out).items() > first.items()
    assert all(r.loss is None or r.loss > 0 for r in mended)


def test_an_adapter_of_a_batch_is_the_one_trained_alone(
    folders: list[Path], tiny_base: Path, tmp_path: Path, loads: Loads
) -> None:
    """What came before on the same base leaves no trace."""
    run_all(folders, tiny_base, tmp_path / "together")
    run_all(folders[2:], tiny_base, tmp_path / "alone")
    one, other = (tmp_path / place / "woodcut" / "woodcut.safetensors" for place in ("together", "alone"))
    assert digest(one) == digest(other)


def test_the_base_is_bit_identical_afterwards(
    folders: list[Path], tiny_base: Path, tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[run.Opened] = []
    open_base = run.open_base
    monkeypatch.setattr(run, "open_base", lambda config: opened.append(open_base(config)) or opened[-1])
    run_all(folders, tiny_base, tmp_path / "runs")
    ((_, family, _),) = opened
    fresh = stable_diffusion.StableDiffusion(tiny_base)
    for part in ("unet", "text_encoder", "vae"):
        used, wanted = family.part(part).state_dict(), fresh.part(part).state_dict()
        assert list(used) == list(wanted)  # no LoRA left in it
        assert all(torch.equal(used[name], wanted[name]) for name in wanted)


def test_a_begun_run_is_gone_on_with(folders: list[Path], tiny_base: Path, tmp_path: Path, loads: Loads) -> None:
    def until_the_first_step(events: Iterable[Event], steps: int) -> dict[str, Any]:
        stream = iter(events)
        kept = itertools.takewhile(lambda event: not (isinstance(event, Step) and event.step == 2), stream)
        assert any(isinstance(event, Step) for event in list(kept))
        stream.close()  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    out = tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt):
        run_all(folders[:1], tiny_base, out, follow=until_the_first_step)
    assert adapters(out) == {}
    first: list[int] = []

    def noting(events: Iterable[Event], steps: int) -> dict[str, Any]:
        def noted() -> Iterator[Event]:
            for event in events:
                if isinstance(event, Step):
                    first.append(event.step)
                yield event

        return follow(noted(), steps)

    (result,) = run_all(folders[:1], tiny_base, out, follow=noting)
    assert result.state == "resumed"
    assert first == [2]
    run_all(folders[:1], tiny_base, tmp_path / "whole")
    assert digest(out / "ink" / "ink.safetensors") == digest(tmp_path / "whole" / "ink" / "ink.safetensors")


def test_ctrl_c_stops_all_of_it_and_no_step_is_done_twice(
    folders: list[Path], tiny_base: Path, tmp_path: Path, loads: Loads
) -> None:
    ink, woodcut = folders[0], folders[2]
    sets = ["--set", "train.steps=40", "--set", "train.batch=2", "--set", "lora.rank=2"]
    given = [str(ink), str(woodcut), "--base", str(tiny_base), "--out", str(tmp_path / "runs"), *sets]
    config = config_for(tiny_base, ink, tmp_path / "runs" / "ink")
    step = Child(tmp_path, "-m", "trainers", "batch", *given).stop_after_a_step(config)
    assert not (tmp_path / "runs" / "woodcut").exists()
    result = CliRunner().invoke(app, ["batch", *given])
    assert result.exit_code == 0, result.output
    assert f"going on after step {step}" in result.stdout
    assert [event.step for event in told(config) if isinstance(event, Step)] == [*range(1, 41)]
    assert adapters(tmp_path / "runs").keys() == {"ink.safetensors", "woodcut.safetensors"}
    run_all([ink], tiny_base, tmp_path / "whole", "train.steps=40")
    one, other = (tmp_path / place / "ink" / "ink.safetensors" for place in ("runs", "whole"))
    assert digest(one) == digest(other)


def test_a_run_with_other_settings_is_named_not_taken(
    folders: list[Path], tiny_base: Path, tmp_path: Path, loads: Loads
) -> None:
    out = tmp_path / "runs"
    run_all(folders[:1], tiny_base, out)
    first = adapters(out)
    (pace,) = run_all(folders[:1], tiny_base, out, "train.save_every=0")
    assert pace.state == "done before"
    (other,) = run_all(folders[:1], tiny_base, out, "lora.rank=3", "optim.lr=2e-4")
    assert other.error is not None
    assert other.error.faults == ("lora.rank: 2 there, 3 now", "optim.lr: None there, 0.0002 now")
    elsewhere = tmp_path / "more" / "ink"
    elsewhere.parent.mkdir()
    folders[2].rename(elsewhere)
    (foreign,) = run_all([elsewhere], tiny_base, out)
    assert foreign.error is not None
    assert foreign.error.faults[0].startswith("data: ")
    assert adapters(out) == first


def test_settings_wrong_for_all_are_told_before_any_begins(
    folders: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    twin = tmp_path / "twin" / "ink"
    for given, values, sets in (
        (folders, {"lora.rank": "-1"}, []),
        (folders, {}, ["optim.lrr=1"]),
        ([*folders, twin], {}, []),
        (folders, {"data": "x"}, []),
        (folders, {"name": "x"}, []),
        (folders, {}, ["data=x"]),
        (folders, {}, ["out = x"]),
    ):
        with pytest.raises(ConfigError) as caught:
            batch.run_all(given, {"base": str(tiny_base), "out": str(tmp_path / "runs"), **values}, sets, follow)
        assert caught.value.faults
        assert caught.value.next_step
    with pytest.raises(ConfigError, match="--out is missing"):
        batch.run_all(folders, {"base": str(tiny_base)}, [], follow)
    assert not (tmp_path / "runs").exists()


def test_the_command(folders: list[Path], tiny_base: Path, tmp_path: Path, loads: Loads) -> None:
    """`stylora batch styles/*`: a file among the folders is passed over, a table at the end, 1 if any failed."""
    (tmp_path / "overview.png").write_bytes(b"a file that the shell's star names too")
    command = ["batch", *map(str, [*folders, tmp_path / "overview.png"]), "--base", str(tiny_base)]
    command += ["--out", str(tmp_path / "runs"), *(part for text in QUICK for part in ("--set", text))]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert f"Error: {folders[1]} can't be trained on\n  - 01.png: " in result.stderr
    table = result.stdout[result.stdout.index("3 folders") :]
    for folder, state in zip(folders, ("trained", "failed", "trained"), strict=True):
        (row,) = [line for line in table.splitlines() if f" {folder} " in line]
        assert f" {state} " in row
    assert f"{folders[1]} can't be trained on" in table
    assert str(tmp_path / "runs" / "ink" / "ink.safetensors") in table

    draw_picture(7, (16, 16)).save(folders[1] / "01.png")
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert again.stdout.count("done before") == 2
    assert again.stderr == ""


def test_a_base_named_by_a_relative_path_is_the_same_base(
    folders: list[Path], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_base.parent)
    run_all(folders[:1], Path(tiny_base.name), tmp_path / "runs")
    (again,) = run_all(folders[:1], Path(tiny_base.name), tmp_path / "runs")
    assert again.error is None
    assert again.state == "done before"
