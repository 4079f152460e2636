"""Files that are written: numbered where they are several, never over others unasked, an error where it can't be."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.outputs import check_free, numbered, write_whole
from trainers.errors import RunError


def test_numbers() -> None:
    assert numbered(Path("a/b.txt"), 1) == [Path("a/b.txt")]
    assert numbered(Path("a/b.txt"), 2) == [Path("a/b-1.txt"), Path("a/b-2.txt")]


def test_all_that_stand_there_are_told(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    check_free(paths, False)
    for path in paths[:2]:
        write_whole(path, b"x")
    with pytest.raises(RunError) as caught:
        check_free(paths, False)
    assert len(caught.value.faults) == 2
    check_free(paths, True)
    with pytest.raises(RunError, match="a folder is in the way"):
        check_free([tmp_path], True)


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    write_whole(tmp_path / "deep" / "a", b"x")
    assert (tmp_path / "deep" / "a").read_bytes() == b"x"
    for act in (lambda path: check_free([path], False), lambda path: write_whole(path, b"x")):
        with pytest.raises(RunError, match="written"):
            act(tmp_path / "deep" / "a" / "b")
