"""Which paths are allowed: links and dots are followed first; what can be a path, and a file's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.desk.places import LONGEST, inside, path_of, safe_name, typed_name, within, written
from trainers.errors import ConfigError, DatasetError, RunError


def test_places(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "out").symlink_to("/etc")
    assert inside(tmp_path / "in", [tmp_path])
    assert inside(tmp_path / "in" / "new" / "file", [tmp_path])
    assert not inside(tmp_path / "in" / "out" / "passwd", [tmp_path])
    assert not inside(tmp_path / "in" / ".." / ".." / "x", [tmp_path])
    assert within(tmp_path, "in/a.png") == tmp_path / "in" / "a.png"
    for name in ("in/out/passwd", ".studio/a.png", "in/.hidden", "in/../in", ""):
        with pytest.raises(DatasetError):
            within(tmp_path, name)


def test_what_somebody_means_by_a_path(tmp_path: Path) -> None:
    assert path_of("runs/ink", tmp_path) == tmp_path / "runs" / "ink"
    assert path_of(" a", tmp_path) == tmp_path / " a"
    assert path_of("~/x", tmp_path) == Path.home() / "x"
    assert path_of(tmp_path, Path("/elsewhere")) == tmp_path
    assert path_of("owner/name") == Path("owner/name")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    (tmp_path / "file").touch()
    assert path_of("file/under", tmp_path) == tmp_path / "file" / "under"
    for odd in ("~nobody1", "x" * 300, "a\0b", "round"):
        with pytest.raises(ConfigError, match="can't be a path") as refusal:
            path_of(odd, tmp_path)
        assert refusal.value.faults
        assert len(refusal.value.what) < 100


def test_a_typed_name_is_no_folder() -> None:
    assert typed_name(" B/W ink ") == "B-W ink"
    assert typed_name(" a\\b//c") == "a-b-c"


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a b.png", "a b.png"), ("../x.png", "x.png"), ("C:\\y.png", "y.png"), (".hidden", "hidden"), ("a/b/", ""),
     ("\xfc_1 (2).png", "\xfc_1 (2).png"), ("...", ""), ("a\nb\0", "ab"), ("[v2] & x", "[v2] & x"),
     ("x" * 300, "x" * 120), ("\u65e5" * 100, "\u65e5" * 40), ("\U0001f338" * 100, "\U0001f338" * 30)],
)  # fmt: skip
def test_a_safe_name(given: str, kept: str, tmp_path: Path) -> None:
    assert safe_name(given) == kept
    assert safe_name(kept) == kept
    assert len(kept.encode()) <= LONGEST
    if kept:
        (tmp_path / f".{kept}-2.safetensors.12345678.tmp").touch()


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="it can't be written") as refusal, written("it", RunError):
        (tmp_path / "gone" / "x").mkdir()
    assert refusal.value.faults == ("No such file or directory",)
    assert refusal.value.next_step
