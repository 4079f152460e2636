"""Downloads: files as they are, folders as .zip files that leave nothing behind."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from shelves import voice
from streamlit.runtime.download_data_util import convert_data_to_bytes_and_infer_mime

from studio.desk.downloads import name_of, opened
from trainers.errors import RunError


def test_a_file_is_given_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "ink.safetensors").write_bytes(b"numbers")
    with opened(tmp_path / "ink.safetensors", tmp_path) as stream:
        assert (name_of(tmp_path / "ink.safetensors"), stream.read()) == ("ink.safetensors", b"numbers")


def test_a_folder_is_zipped_whole_and_nothing_stays(tmp_path: Path) -> None:
    base, aside = tmp_path / "base", tmp_path / "aside"
    (base / "unet").mkdir(parents=True)
    (base / "unet" / "config.json").write_text("{}")
    (base / "model_index.json").write_text("{}")
    aside.mkdir()
    with opened(base, aside) as stream:
        data, _ = convert_data_to_bytes_and_infer_mime(stream, TypeError())  # as the page gives it out
        assert len(data) > 100
        with zipfile.ZipFile(stream) as archive:
            assert archive.namelist() == ["base/model_index.json", "base/unet/config.json"]
        assert list(aside.iterdir()) == []
    assert name_of(base) == "base.zip"


def test_of_an_adapters_folder_the_adapter_is_given(tmp_path: Path) -> None:
    voice().save(tmp_path / "bard", "peft")
    (tmp_path / "bard" / "optimizer.pt").write_bytes(b"not its")
    with opened(tmp_path / "bard", tmp_path) as stream, zipfile.ZipFile(stream) as archive:
        assert sorted(archive.namelist()) == ["bard/adapter_config.json", "bard/adapter_model.safetensors"]


def test_what_cannot_be_packed_is_told(tmp_path: Path) -> None:
    old = tmp_path / "base" / "old.txt"
    old.parent.mkdir()
    old.write_text("x")
    os.utime(old, (0, 0))  # 1970: no zip goes back so far
    for path, aside in ((old.parent, tmp_path), (old.parent, tmp_path / "none"), (tmp_path / "gone", tmp_path)):
        with pytest.raises(RunError, match="can't be downloaded"):
            opened(path, aside)
