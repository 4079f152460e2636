"""Checkpoints are whole or absent, the newest whole one is found, and all numbers come back as they were."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainers import checkpoint
from trainers.errors import RunError

FACTS = {"losses": [0.1, 1 / 3, 1e-17], "data": "abc", "scale": 1024.0}


def tensors(number: int = 1) -> dict[str, Tensor]:
    """Everything that optimizers keep, views into one buffer among them."""
    flat = torch.arange(40, dtype=torch.float32) * number
    return {
        "lora/a.up": flat[:12].view(3, 4),
        "lora/b.up": flat[20:32],
        "lora/turned": flat[:12].view(3, 4).T,
        "optimizer/0.state1": torch.arange(7, dtype=torch.uint8),
        "optimizer/0.step": torch.tensor(number),
        "optimizer/0.half": torch.ones(3, dtype=torch.bfloat16) / 3,
    }


def save(folder: Path, *steps: int, keep: int = 9) -> Path:
    for step in steps:
        path = checkpoint.save(folder, step, tensors(step), FACTS, keep=keep)
    return path


def step_of_newest(folder: Path) -> int | None:
    found = checkpoint.newest(folder)
    return found.step if found else None


@contextmanager
def full_disk() -> Iterator[None]:
    """Files can't grow beyond 300 bytes: the errors are those of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    save(tmp_path / "deep" / "checkpoints", 7)
    found = checkpoint.newest(tmp_path / "deep" / "checkpoints")
    assert found is not None
    assert (found.step, found.facts) == (7, FACTS)
    wanted = tensors(7)
    assert found.tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_the_manifest_has_the_digest_of_every_other_file(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    assert path == tmp_path / "step-000012"
    manifest = json.loads((path / "manifest.json").read_text())
    others = [file for file in path.iterdir() if file.name != "manifest.json"]
    assert manifest == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in others}
    assert len(manifest) == 2


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 9, 10, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000009", "step-000010"]
    save(tmp_path, 1_000_000, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1000000"]
    assert step_of_newest(tmp_path) == 1_000_000


@pytest.mark.parametrize(("keep", "left"), [(1, [5, 9]), (2, [4, 5, 9])])
def test_one_of_an_earlier_step_is_not_pushed_out_by_a_later_broken_one(
    tmp_path: Path, keep: int, left: list[int]
) -> None:
    """The run went on from step 4, for that of step 9 is broken, and was stopped at step 5."""
    save(tmp_path, 3, 4, 9, keep=3)
    flip(tmp_path / "step-000009" / "facts.json")
    save(tmp_path, 5, keep=keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:06}" for step in left]
    assert step_of_newest(tmp_path) == 5


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "absent") is None
    (tmp_path / "step-000009").write_text("a file")
    (tmp_path / "step-x").mkdir()
    assert checkpoint.newest(tmp_path) is None


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "tensors cut": lambda path: os.truncate(path / "tensors.safetensors", 100),
    "tensors gone": lambda path: (path / "tensors.safetensors").unlink(),
    "one bit of the tensors": lambda path: flip(path / "tensors.safetensors"),
    "facts empty": lambda path: os.truncate(path / "facts.json", 0),
    "one bit of the facts": lambda path: flip(path / "facts.json"),
    "manifest gone": lambda path: (path / "manifest.json").unlink(),
    "manifest cut": lambda path: os.truncate(path / "manifest.json", 20),
    "manifest empty": lambda path: (path / "manifest.json").write_text("{}"),
    "manifest a list": lambda path: (path / "manifest.json").write_text("[]"),
    "manifest short": lambda path: (path / "manifest.json").write_text(
        json.dumps({"facts.json": hashlib.sha256((path / "facts.json").read_bytes()).hexdigest()})
    ),
    "folder empty": lambda path: (shutil.rmtree(path), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 4, 8)
    path = save(tmp_path, 12)
    if damage == "manifest short":
        (path / "tensors.safetensors").unlink()
    DAMAGE[damage](path)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 8
    assert torch.equal(found.tensors["optimizer/0.step"], torch.tensor(8))
    save(tmp_path, 12)
    assert step_of_newest(tmp_path) == 12


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 4, keep=1)
    with full_disk(), pytest.raises(RunError, match="can't be written") as caught:
        save(tmp_path, 8, keep=1)
    assert "stylora resume" in caught.value.next_step
    assert step_of_newest(tmp_path) == 4
    save(tmp_path, 8, keep=1)
    assert step_of_newest(tmp_path) == 8


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_write_that_stops_anywhere_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    save(tmp_path, 4, 8, keep=2)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if call == "fsync" else (Path, "rename")), fail)
        with pytest.raises(RunError, match="step-000012"):
            save(tmp_path, 12, keep=2)
    assert step_of_newest(tmp_path) == 8
    assert [path.name for path in checkpoint._folders(tmp_path)] == ["step-000008", "step-000004"]
    save(tmp_path, 12, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000008", "step-000012"]


def test_every_file_is_flushed_before_the_folder_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def flushing(handle: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def renaming(self: Path, target: Path) -> Path:
        events.append(f"-> {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(Path, "rename", renaming)
    save(tmp_path, 3)
    named = events.index("-> step-000003")
    assert {"tensors.safetensors", "facts.json", "manifest.json", ".step-000003.tmp"} == set(events[:named])
    assert events[named + 1 :] == [tmp_path.name]


def test_what_a_kill_left_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 4)
    shutil.copytree(tmp_path / "step-000004", tmp_path / ".step-000008.tmp")
    assert step_of_newest(tmp_path) == 4
    save(tmp_path, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004", "step-000008"]


def test_a_file_has_its_old_content_or_all_of_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.toml"
    checkpoint.write_atomically(path, b"old")
    with full_disk(), pytest.raises(OSError, match="large"):
        checkpoint.write_atomically(path, b"new" * 500_000)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("stopped")))
        with pytest.raises(OSError, match="stopped"):
            checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    checkpoint.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    with (
        checkpoint.alone(file),
        pytest.raises(RunError, match="trained by another process"),
        checkpoint.alone(file),
    ):
        pass
    with checkpoint.alone(file):
        pass
