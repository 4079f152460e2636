"""The sample data is found beside the package in a checkout, inside it in a wheel, and missed with a clear message."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers import samples
from trainers.errors import BaseError, DatasetError, StyloraError


def make_samples(folder: Path, styles: tuple[str, ...] = ("ink",)) -> Path:
    """Write a sample_data folder with a base that has only its index, and empty styles."""
    (folder / "bases" / "tiny-sd").mkdir(parents=True)
    (folder / "bases" / "tiny-sd" / "model_index.json").write_text("{}")
    for style in styles:
        (folder / "styles" / style).mkdir(parents=True)
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "somewhere" / "trainers"
    folder.mkdir(parents=True)
    monkeypatch.setattr(samples, "PACKAGE", folder)
    return folder


def test_the_checkout_comes_before_the_package(package: Path) -> None:
    inside = make_samples(package / "sample_data")
    assert samples.sample_data() == inside
    beside = make_samples(package.parent / "sample_data", styles=("neon", "ink"))
    assert samples.sample_data() == beside
    assert samples.base_folder("tiny-sd") == beside / "bases" / "tiny-sd"
    assert samples.style_folder("neon") == beside / "styles" / "neon"
    assert samples.style_names() == ("ink", "neon")


def test_a_foreign_folder_of_that_name_is_not_taken(package: Path) -> None:
    inside = make_samples(package / "sample_data")
    (package.parent / "sample_data" / "something").mkdir(parents=True)
    assert samples.sample_data() == inside


def test_nothing_found_names_both_places(package: Path) -> None:
    with pytest.raises(StyloraError) as caught:
        samples.sample_data()
    text = str(caught.value)
    assert str(package / "sample_data") in text
    assert str(package.parent / "sample_data") in text
    assert "Next: " in text


@pytest.mark.parametrize("name", ["tiny", "..", ".", "", "../styles/ink", "bases"])
def test_an_unknown_name_lists_what_is_there(package: Path, name: str) -> None:
    make_samples(package / "sample_data")
    with pytest.raises(BaseError, match="there: tiny-sd"):
        samples.base_folder(name)
    with pytest.raises(DatasetError, match="there: ink"):
        samples.style_folder(name)


def test_a_base_without_its_index_is_no_base(package: Path) -> None:
    folder = make_samples(package / "sample_data")
    (folder / "bases" / "half-copied").mkdir()
    assert samples.base_names() == ("tiny-sd",)
