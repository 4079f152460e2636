"""Writing a base again: untouched bytes are the same bytes, the result appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.merge.rewrite import beside, copy_rest, rewrite, sweep
from studio.merge.weights import open_base
from trainers import tensorfile
from trainers.errors import BaseError, RunError

TENSORS = {"a": torch.randn(4, 4).half(), "b": torch.randn(3), "c": torch.arange(4)}


@pytest.fixture
def file(tmp_path: Path) -> tensorfile.TensorFile:
    hashes = {"modelspec.hash_sha256": "0x12", "modelspec.title": "Ink"}
    save_file(TENSORS, tmp_path / "in.safetensors", hashes)
    return tensorfile.read(tmp_path / "in.safetensors")


def test_nothing_to_change_is_a_copy(file: tensorfile.TensorFile, tmp_path: Path) -> None:
    rewrite(file, tmp_path / "out", {}, "")
    assert (tmp_path / "out").read_bytes() == file.path.read_bytes()


def test_a_changed_tensor_keeps_its_dtype_and_the_others_their_bytes(
    file: tensorfile.TensorFile, tmp_path: Path
) -> None:
    rewrite(file, tmp_path / "out", {"a": lambda whole: whole + 1}, "", room=4096)
    made = load_file(tmp_path / "out")
    assert torch.equal(made["a"], (TENSORS["a"].float() + 1).half())
    assert torch.equal(made["b"], TENSORS["b"])
    assert torch.equal(made["c"], TENSORS["c"])
    assert tensorfile.read(tmp_path / "out").metadata == {"modelspec.title": "Ink"}
    assert tensorfile.read(tmp_path / "out").data == 4096


def test_casting_casts_floats_only(file: tensorfile.TensorFile, tmp_path: Path) -> None:
    rewrite(file, tmp_path / "out", {}, "BF16")
    assert {key: tensor.dtype for key, tensor in load_file(tmp_path / "out").items()} == {
        "a": torch.bfloat16,
        "b": torch.bfloat16,
        "c": torch.int64,
    }


def test_what_cannot_be_stored(file: tensorfile.TensorFile, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a: too large a number for F16"):
        rewrite(file, tmp_path / "one", {"a": lambda whole: whole + 1e6}, "")
    with pytest.raises(BaseError, match="nothing can be added"):
        rewrite(file, tmp_path / "two", {"c": lambda whole: whole}, "")


def test_copies_of_the_old_weights_are_left_out(tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    for name in (
        "whole.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/model.bin",
        "safe/model.bin",
    ):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(b"old")
    (base / ".cache").mkdir()
    (base / ".cache" / "x.json").write_text("{}")
    for name in ("README.md", "samples.png", "LICENSE.txt"):
        (base / name).write_text("of the base")
    left = copy_rest(open_base(base), tmp_path / "out", "stylora_receipt.json")
    assert left == ["unet/diffusion_pytorch_model.fp16.safetensors", "vae/model.bin", "whole.safetensors"]
    assert (tmp_path / "out" / "safe" / "model.bin").read_bytes() == b"old"
    assert not (tmp_path / "out" / ".cache").exists()
    assert {file.name for file in (tmp_path / "out").iterdir() if file.is_file()} == {"model_index.json", "LICENSE.txt"}
    assert (tmp_path / "out" / "unet" / "config.json").is_file()


def half(out: Path, error: BaseException) -> None:
    with beside(out) as temp:
        temp.mkdir()
        (temp / "file").write_text("half")
        raise error


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "new" / "model"
    stopped: tuple[tuple[type[BaseException], BaseException, str], ...] = (
        (KeyboardInterrupt, KeyboardInterrupt("ctrl-C"), "ctrl-C"),
        (RunError, OSError(28, "No space left on device"), "No space left"),
    )
    for shown, raised, said in stopped:
        with pytest.raises(shown, match=said):
            half(out, raised)
        assert list(out.parent.iterdir()) == []
    for content in ("one", "two"):
        with beside(out) as temp:
            temp.mkdir()
            (temp / "file").write_text(content)
        assert [path.name for path in out.parent.iterdir()] == ["model"]
        assert (out / "file").read_text() == content


def fill(out: Path, text: str) -> None:
    with beside(out) as temp:
        temp.mkdir()
        (temp / "file").write_text(text)


def test_a_rename_that_fails_gives_the_old_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "model"
    fill(out, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(RunError, match="No space left"):
            fill(out, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (out / "file").read_text() == "old"


def test_what_was_put_aside_comes_back_or_goes(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    out = tmp_path / "model [v1]"
    aside, others = tmp_path / f".{out.name}.{child.pid}.old", tmp_path / f".{out.name}.{child.pid}.old.safetensors"
    others.write_bytes(b"")  # of a single file of that name
    for text in ("mine", "older"):
        aside.mkdir()
        (aside / "file").write_text(text)
        sweep(out)
        assert (out / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {out.name, others.name}


STOPPED = """
import sys, time
from pathlib import Path
from studio.merge.rewrite import beside
with beside(Path(sys.argv[1])) as temp:
    temp.write_bytes(b"half")
    print("begun", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_result_and_the_next_one_clears_up(tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    child = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(out)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"begun\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not out.exists()
    (left,) = tmp_path.iterdir()
    assert str(child.pid) in left.name
    running = tmp_path / f".model.{os.getppid()}.part.safetensors"  # another process's, at work
    running.write_bytes(b"")
    with beside(out) as temp:
        temp.write_bytes(b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {out.name, running.name}
    assert out.read_bytes() == b"whole"
