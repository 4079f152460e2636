"""Own reading and writing of safetensors files against the safetensors library; broken files are named as such."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers import tensorfile
from trainers.errors import BaseError

TENSORS = {
    "half": torch.randn(3, 4).half(),
    "whole": torch.arange(5),
    "one": torch.tensor(2.5),
    "none": torch.empty(0, 3),
    "small": torch.randn(2, 2).bfloat16(),
    "tiny": torch.randn(4).to(torch.float8_e4m3fn),
    "yes": torch.tensor([True, False]),
}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and bytes(tensorfile.raw(one)) == bytes(tensorfile.raw(other))
    )


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", {"title": "Ink é"})
    file = tensorfile.read(tmp_path / "a.safetensors")
    assert file.metadata == {"title": "Ink é"}
    assert file.entries.keys() == TENSORS.keys()
    assert all(same(file.tensor(key), tensor) for key, tensor in TENSORS.items())
    starts = [entry.start for entry in file.entries.values()]
    assert starts == sorted(starts)


def test_safetensors_reads_what_was_written_with_room_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    names = {key: (tensorfile.NAMES[tensor.dtype], tuple(tensor.shape)) for key, tensor in TENSORS.items()}
    tensorfile.write(path, names, TENSORS.values(), {"title": "Ink"})
    assert all(same(tensor, TENSORS[key]) for key, tensor in load_file(path).items())
    data = path.read_bytes()[tensorfile.read(path).data :]
    roomy = tensorfile.header(names, {"title": "Ink"}, 10_000)
    assert len(roomy) == 10_000
    path.write_bytes(roomy + data)
    assert all(same(tensor, TENSORS[key]) for key, tensor in load_file(path).items())
    assert tensorfile.read(path).metadata == {"title": "Ink"}


def header(rows: object) -> bytes:
    text = json.dumps(rows).encode()
    return len(text).to_bytes(8, "little") + text


def row(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"12345678",
        (1 << 40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{]",
        header([]),
        header({"a": {}}),
        header({"a": row(0, 8, [2])}) + bytes(7),
        header({"a": row(0, 8, [2])}) + bytes(9),
        header({"a": row(0, 8, [3])}) + bytes(8),
        header({"a": row(4, 8, [1])}) + bytes(8),
        header({"a": row(0, 4, [1]), "b": row(0, 4, [1])}) + bytes(4),
        header({"a": row(0, -4, [-1])}),
    ],
)
def test_what_is_no_whole_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(BaseError, match="not a whole safetensors file"):
        tensorfile.read(tmp_path / "a.safetensors")


def test_a_dtype_that_torch_lacks_can_be_copied_but_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(header({"a": row(0, 4, [9], "F4_NEW")}) + b"abcd")
    file = tensorfile.read(tmp_path / "a.safetensors")
    assert b"".join(file.pieces("a")) == b"abcd"
    with pytest.raises(BaseError, match="F4_NEW"):
        file.tensor("a")
    with pytest.raises(BaseError, match="No such file"):
        tensorfile.read(tmp_path / "b.safetensors")
