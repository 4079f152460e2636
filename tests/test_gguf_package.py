"""Without the extra there is a next step; what is no GGUF that can be worked with is said to be none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from studio.gguf.package import opened, package, value
from trainers.errors import BaseError, StyloraError


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(StyloraError, match=r"isn't installed(.|\n)*pip install 'stylora\[gguf\]'"):
        package()


def test_a_header_is_read(tmp_path: Path) -> None:
    small = pytest.importorskip("tests.ggufs", exc_type=ImportError).small
    reader = opened(small(tmp_path / "a.gguf"))
    assert value(reader, "llama.block_count") == 1
    assert value(reader, "tokenizer.ggml.tokens") == ["<s>", "ä", "b" * 99]
    assert (value(reader, "no.such"), value(reader, "no.such", 7)) == (None, 7)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    small = pytest.importorskip("tests.ggufs", exc_type=ImportError).small
    data = small(tmp_path / "a.gguf").read_bytes()
    for cut in (0, 3, 20, 100, 400, len(data) - 300):
        (tmp_path / "b.gguf").write_bytes(data[:cut])
        with pytest.raises(BaseError, match="not a whole GGUF file"):
            opened(tmp_path / "b.gguf")
    with pytest.raises(BaseError, match="can't be read: No such file"):
        opened(tmp_path / "none.gguf")


def test_other_byte_orders_and_pieces_are_refused(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    for name, order in (("big", gguf.GGUFEndian.BIG), ("piece", gguf.GGUFEndian.LITTLE)):
        writer = gguf.GGUFWriter(tmp_path / name, "llama", endianess=order)
        writer.add_uint16("split.count", 3)
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
    with pytest.raises(BaseError, match="other byte order"):
        opened(tmp_path / "big")
    with pytest.raises(BaseError, match=r"one of 3 pieces(.|\n)*llama-gguf-split"):
        opened(tmp_path / "piece")
