"""A base is found by alias, folder or hub id; what can't be had is said in one line, with the next step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from trainers import bases, samples
from trainers.errors import BaseError, RunError

HUB_ID = "nobody-at-all/no-such-model"


def fault(base: str | Path) -> BaseError:
    with pytest.raises(BaseError) as caught:
        bases.find(str(base))
    error = caught.value
    assert "\n" not in error.what
    assert error.next_step
    return error


@pytest.fixture
def linked(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of tiny_base whose files are links, its model_index.json a file of its own."""
    folder = tmp_path / "linked"
    shutil.copytree(tiny_base, folder, copy_function=os.symlink)
    (folder / "model_index.json").unlink()
    shutil.copy(tiny_base / "model_index.json", folder)
    return folder


def rename(kind: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": kind}))

    return change


def test_a_folder_is_found(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bases.find(str(tiny_base)) == tiny_base
    monkeypatch.setenv("HOME", str(tiny_base.parent))
    assert bases.find("~/tiny-base") == tiny_base


def test_the_embedded_base_is_found_whatever_lies_in_the_current_folder(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "base_folder", lambda name: tiny_base)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-sd").mkdir()
    assert bases.find("tiny-sd") == tiny_base


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    error = fault(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in error.what
    assert "tiny-sd" in error.next_step


@pytest.mark.parametrize("base", ["sd16", "~nobody-here/base", "a/b/c", "./a", "../a"])
def test_neither_folder_nor_alias_nor_hub_id(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no alias or hub id" in fault(base).what


@pytest.mark.parametrize(("base", "looked_for"), [(HUB_ID, HUB_ID), ("sd15", bases.HUB_ALIASES["sd15"])])
def test_offline_says_what_was_looked_for_and_where(
    base: str, looked_for: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    error = fault(base)
    assert f"looked for {looked_for} on the hub" in error.what
    assert str(tmp_path) in error.what
    assert "go online" in error.next_step


def test_what_the_hub_cache_holds_is_found_offline(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    stored = tmp_path / f"models--{HUB_ID.replace('/', '--')}"
    commit = "0123456789" * 4
    shutil.copytree(tiny_base, stored / "snapshots" / commit, copy_function=os.symlink)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    assert bases.find(HUB_ID).resolve() == (stored / "snapshots" / commit).resolve()


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    for name, said in (
        ("model.safetensors", "not a whole safetensors file"),
        ("model.ckpt", "is a file, not a folder"),
    ):
        (tmp_path / name).write_bytes(b"x")
        assert said in fault(tmp_path / name).what


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    assert "holds no model_index.json and no config.json" in fault(tmp_path).what


def test_a_language_model_is_a_base_of_its_own_kind(tmp_path: Path, tiny_base: Path) -> None:
    folder = bases.find("tiny-lm")
    assert (bases.kind_of(folder), bases.kind_of(tiny_base)) == ("text", "pictures")
    assert bases.find(str(folder), kind="text") == folder
    assert bases.width(folder) == 256
    for base, kind, said in (("tiny-lm", "pictures", "is a language model"), ("tiny-sd", "text", "is a Stable Diff")):
        with pytest.raises(BaseError, match=said):
            bases.find(base, kind=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"architectures": ["BertModel"]}', "of another kind: BertModel, wanted a causal language model"),
        ("[]", "of another kind: None"),
        ("{", "config.json can't be read"),
        ('{"architectures": ["LlamaForCausalLM"]}', "is not whole"),
    ],
)
def test_a_transformers_folder_that_is_no_base(config: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    assert said in fault(tmp_path).what


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename("StableDiffusionXLPipeline"), "of another kind: StableDiffusionXLPipeline, wanted"),
        (rename("FluxPipeline"), "of another kind: FluxPipeline"),
        (lambda folder: (folder / "model_index.json").write_text("[]"), "of another kind: None"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json can't be read"),
        (lambda folder: (folder / "model_index.json").write_bytes(b"\xff\xfe\x00"), "model_index.json can't be read"),
    ],
)
def test_a_base_of_another_kind(linked: Path, change: Callable[[Path], None], said: str) -> None:
    change(linked)
    assert said in fault(linked).what


def test_every_missing_part_is_named(linked: Path) -> None:
    for part in ("vae", "tokenizer"):
        shutil.rmtree(linked / part)
    assert fault(linked).faults == ("tokenizer/ is missing", "vae/ is missing")


def test_reading_makes_one_fault_of_what_libraries_raise(tmp_path: Path) -> None:
    class Odd(Exception):
        """As tokenizers and safetensors have them."""

    with pytest.raises(BaseError) as caught, bases.reading(tmp_path, "vae"):
        raise Odd("first line\nsecond line")
    assert caught.value.what == f"base {tmp_path}: its vae can't be read: first line"
    assert isinstance(caught.value.__cause__, Odd)


@pytest.mark.parametrize(
    "error", [RunError("ours"), MemoryError(), torch.OutOfMemoryError("full"), KeyboardInterrupt()]
)
def test_reading_lets_other_things_pass(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, bases.reading(tmp_path, "vae"):
        raise error
    assert caught.value is error


def test_the_width_of_a_base(tiny_base: Path, tmp_path: Path) -> None:
    assert bases.width(tiny_base) == 64
    assert bases.width(tmp_path) == 0
