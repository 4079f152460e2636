"""A single file is unpacked into the cache once, with settings of the same build, and draws like the folder it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import single_file
from safetensors.torch import save_file

from studio.merge.weights import open_base
from trainers import bases, tensorfile, unpack
from trainers.errors import BaseError
from trainers.families.stable_diffusion import StableDiffusion


@pytest.fixture
def guessed(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiny_base as the base whose settings are tried."""
    monkeypatch.setattr(unpack, "GUESSES", (str(tiny_base),))


@pytest.mark.usefixtures("guessed")
def test_a_single_file_draws_like_its_folder(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = single_file(tiny_base, tmp_path / "one.safetensors")
    made, folder = (
        StableDiffusion(bases.find(str(base))).sample(["a red house"], [1], steps=2)[0] for base in (path, tiny_base)
    )
    assert made.tobytes() == folder.tobytes()
    monkeypatch.setattr(unpack, "unpack", lambda *_: pytest.fail("it lies in the cache"))
    assert bases.find(str(path)) == unpack.cached(path)


@pytest.mark.parametrize("open_clip", [False, True])
def test_unpacking_gives_the_same_tensors(tiny_base: Path, tmp_path: Path, open_clip: bool) -> None:
    path = single_file(tiny_base, tmp_path / "one.safetensors", open_clip)
    unpack.unpack(path, unpack.read_settings(tiny_base), tmp_path / "folder")
    ours, theirs = open_base(tmp_path / "folder"), open_base(tiny_base)
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(bool((ours.tensors[name].tensor() == theirs.tensors[name].tensor()).all()) for name in ours.tensors)


def test_settings_of_another_build(tiny_base: Path, tmp_path: Path) -> None:
    file = tensorfile.read(single_file(tiny_base, tmp_path / "one.safetensors"))
    with pytest.raises(BaseError) as caught:
        unpack.settings_for(file, "tiny-sd")
    assert "tiny-sd: " in caught.value.faults[0]
    assert " in the checkpoint" in caught.value.faults[0]
    assert "--config" in caught.value.next_step
    settings = unpack.read_settings(tiny_base)
    assert unpack.misfit(settings, file) == ""
    config = json.loads(settings["unet/config.json"]) | {"in_channels": 9}
    assert "conv_in" in unpack.misfit(settings | {"unet/config.json": json.dumps(config).encode()}, file)
    assert "can't be read" in unpack.misfit({}, file)


def test_sdxl_is_refused(tmp_path: Path) -> None:
    names = {"model.diffusion_model.out.2.weight": ("F32", (1,)), "conditioner.embedders.0.x": ("F32", (1,))}
    (tmp_path / "xl.safetensors").write_bytes(tensorfile.header(names, {}) + bytes(8))
    with pytest.raises(BaseError, match="SDXL"):
        bases.find(str(tmp_path / "xl.safetensors"))


@pytest.mark.usefixtures("guessed")
def test_a_full_disk_leaves_nothing_in_the_cache(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("STYLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tensorfile, "write", full)
    with pytest.raises(BaseError, match="No space left"):
        bases.find(str(single_file(tiny_base, tmp_path / "one.safetensors")))
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_an_adapter_in_a_bases_place_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "ink.safetensors"
    save_file({"lora_unet_conv_in.lora_down.weight": torch.ones(1, 4, 3, 3)}, path)
    with pytest.raises(BaseError, match="no checkpoint but an adapter; give it with --adapter"):
        bases.find(str(path))
