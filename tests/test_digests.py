"""Digests of parts and of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from trainers.digests import digest_of, digest_of_file, digest_of_files


def test_digests_keep_the_borders_of_their_parts() -> None:
    keys = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), (b"ab", "d")]
    assert len({digest_of(*key) for key in keys}) == len(keys)
    assert digest_of("ab") == digest_of(b"ab")


def test_a_file_s_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"ink" * 1000)
    assert digest_of_file(tmp_path / "file") == hashlib.sha256(b"ink" * 1000).hexdigest()


def test_files_are_digested_by_name_and_content_wherever_they_lie(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(b"1")
        (tmp_path / folder / "b").write_bytes(b"2")
    one, two = (digest_of_files((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "b").rename(tmp_path / "two" / "c")
    assert digest_of_files((tmp_path / "two").iterdir()) != one
