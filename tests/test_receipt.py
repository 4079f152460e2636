"""A receipt breaks when anything it speaks of changes: a bit of the weights, a file, an answer, the receipt itself."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import here, random_adapter, single_file

from studio.draw.use import Use
from studio.merge import receipt
from studio.merge.contents import FILE
from studio.merge.merge import merge
from studio.merge.probe import Answers, Probe
from studio.merge.receipt import ENTRY, Compared, bound_of, compare, kept, unkept, verify
from trainers import tensorfile
from trainers.errors import RunError
from trainers.lora.gains import Gain


@pytest.fixture(scope="module")
def made(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a merged folder `out` and a merged single file `out.safetensors`."""
    folder = tmp_path_factory.mktemp("merged")
    uses = [Use(random_adapter(tiny_base, 0).save(folder / "a.safetensors", dtype=torch.float32), Gain(0.7))]
    one = single_file(tiny_base, folder / "one.safetensors")
    merge(str(tiny_base), uses, folder / "out", ask=here)
    merge(str(one), uses, folder / "out.safetensors", config=str(tiny_base), ask=here)
    return folder


@pytest.fixture
def merged(made: Path, tmp_path: Path) -> Path:
    """The same, for the test to spoil."""
    shutil.copytree(made / "out", tmp_path / "out")
    shutil.copy(made / "out.safetensors", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_an_untouched_model_is_proved(made: Path, name: str) -> None:
    told, compared, like = verify(made / name, here)
    assert like is None  # of language models alone
    assert told["adapters"][0]["weight"] == 0.7
    assert [one.what for one in compared] == ["text", "unet"]
    assert all(one.relative < 1e-5 for one in compared)


@pytest.mark.parametrize("name", ["out", "out.safetensors"])
def test_it_is_the_model_alone_that_is_verified(merged: Path, made: Path, name: str) -> None:
    assert verify(merged / name, here)[0] == verify(made / name, here)[0]


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "part", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model", ""]
)
def test_one_flipped_bit_is_found_and_named(merged: Path, part: str, place: float) -> None:
    path = merged / "out" / f"{part}.safetensors" if part else merged / "out.safetensors"
    file = tensorfile.read(path)
    at = file.data + int(place * (path.stat().st_size - file.data - 1))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match="isn't what was merged") as caught:
        verify(merged / "out" if part else path, lambda *_: pytest.fail("there is nothing to ask"))
    (fault,) = caught.value.faults
    (name,) = [key for key, entry in file.entries.items() if entry.start <= at - file.data < entry.end]
    assert fault.endswith(f"has changed in {name}")


def test_a_renamed_tensor_is_found(merged: Path) -> None:
    path = merged / "out.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"input_blocks.1.0.in_layers.0.bias", b"input_blocks.1.0.in_layers.9.bias"))
    with pytest.raises(RunError, match="isn't what was merged"):
        verify(path, here)


def test_files_that_changed_are_named(merged: Path) -> None:
    out = merged / "out"
    (out / "tokenizer" / "merges.txt").write_text("")
    (out / "vae" / "config.json").unlink()
    (out / "unet" / "extra.safetensors").write_bytes(b"")
    (out / "notes.md").write_text("mine")
    with pytest.raises(RunError) as caught:
        verify(out, here)
    assert caught.value.faults == (
        "tokenizer/merges.txt has changed",
        "unet/extra.safetensors is new",
        "vae/config.json is gone",
    )


def spoil(out: Path, seal: bool, **changes: Any) -> None:
    told = json.loads((out / FILE).read_text()) | changes
    (out / FILE).write_text(json.dumps(receipt.sealed(told) if seal else told))


def test_a_changed_receipt_is_no_receipt(merged: Path, tiny_base: Path) -> None:
    spoil(merged / "out", False, dtype="fp16")
    with pytest.raises(RunError, match="its receipt was changed"):
        verify(merged / "out", here)
    for text in ("{", "[]", "{}"):
        (merged / "out" / FILE).write_text(text)
        with pytest.raises(RunError, match="can't be read"):
            verify(merged / "out", here)
    for path in (tiny_base, made_without(merged / "out")):
        with pytest.raises(RunError, match="carries no receipt"):
            verify(path, here)
    with pytest.raises(RunError, match="can't be verified"):
        verify(merged / "nowhere", here)


def made_without(out: Path) -> Path:
    (out / FILE).unlink()
    return out


@pytest.mark.parametrize(
    "changes",
    [
        {"probe": {}},
        {"compared": [{}]},
        {"answers": {"text": "?"}},
        {"answers": {"text": "AAAA", "unet": "AAAA"}},
        {"contents": 3},
        {"settings": []},
        {"adapters": [{}]},
        {"proof": 3},
    ],
)
def test_a_forged_receipt_that_makes_no_sense(merged: Path, changes: dict[str, Any]) -> None:
    spoil(merged / "out", True, **changes)
    with pytest.raises(RunError, match=r"isn't whole|another form"):
        verify(merged / "out", here)


def test_other_answers_than_then(merged: Path) -> None:
    def other(model: Path, probe: Probe, settings: Mapping[str, bytes]) -> Answers:
        said = here(model, probe, settings)
        return said | {"unet": said["unet"] * 1.01}

    with pytest.raises(RunError, match="its answers aren't") as caught:
        verify(merged / "out", other)
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith("unet: off by")


def test_a_single_file_carries_its_settings(made: Path) -> None:
    told = json.loads(tensorfile.read(made / "out.safetensors").metadata[ENTRY])
    assert "unet/config.json" in told["settings"]
    assert not any(name.startswith("tokenizer/") for name in told["settings"])


def test_comparing() -> None:
    bare, live = {"unet": torch.tensor([1.0, 0.0])}, {"unet": torch.tensor([1.0, -4.0])}
    (one,) = compare(live, bare, {"unet": torch.tensor([1.002, -4.0])}, "F16")
    assert (one.scale, one.effect, one.bound) == (4.0, 4.0, bound_of("F16"))
    assert math.isclose(one.relative, 0.0005, rel_tol=1e-3)
    assert math.isclose(one.of_effect, 0.0005, rel_tol=1e-3)
    assert one.faults() == []
    assert Compared("unet", 0.1, 4.0, 4.0, 0.01).faults()
    assert Compared("unet", 0.001, 4.0, 0.0015, 0.01).faults()  # within the bound, and most of the effect
    assert not Compared("unet", 0.0001, 4.0, 0.0, 0.01).faults()  # no effect: nothing to be lost
    assert Compared("unet", math.nan, 4.0, 4.0, 0.01).faults()
    assert bound_of("F32") < bound_of("F16") < bound_of("BF16")


def test_answers_are_kept_as_they_were() -> None:
    said = {"few": torch.randn(3, 5), "many": torch.randn(10, 1000)}
    back = unkept(kept(said))
    assert torch.equal(back["few"], said["few"].flatten())
    assert torch.equal(back["many"], said["many"].flatten()[::4])
