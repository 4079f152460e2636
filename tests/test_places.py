"""Which paths are allowed: links and dots are followed first."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.desk.places import inside, within
from trainers.errors import DatasetError


def test_places(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").symlink_to("/etc")
    assert inside(tmp_path / "in", [tmp_path])
    assert inside(tmp_path / "in" / "new" / "file", [tmp_path])
    assert not inside(tmp_path / "in" / "out" / "passwd", [tmp_path])
    assert not inside(tmp_path / "in" / ".." / ".." / "x", [tmp_path])
    assert within(tmp_path, "in/a.png") == tmp_path / "in" / "a.png"
    with pytest.raises(DatasetError):
        within(tmp_path, "in/out/passwd")
