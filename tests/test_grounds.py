"""Which bases a page may name, and what of them lies on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.desk import grounds
from trainers.errors import BaseError, ConfigError


def test_what_a_name_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-sd").mkdir()
    (tmp_path / "mine").mkdir()
    assert grounds.file_of("tiny-sd") is None, "what comes with stylora goes before"
    assert grounds.file_of("mine") == Path("mine")
    assert grounds.file_of("owner/name") is None
    for odd in ("~nobody1/x", "x" * 300, "a\0b"):
        with pytest.raises(ConfigError, match="can't be a path"):
            grounds.file_of(odd)


def test_where_a_base_may_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home := tmp_path / "home").mkdir()
    (tmp_path / "other" / "name").mkdir(parents=True)
    (home / "link").symlink_to(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    for base in ("tiny-sd", "tiny-lm", "sd15", "owner/name", str(home / "model"), f"{home}/.studio/merged/1-ab/inked"):
        grounds.check(base, [home])
    said = set()
    for base in ("/etc", "/etc/nothing", "other", "other/name", "~/x", "..", f"{home}/../other", f"{home}/link"):
        with pytest.raises(BaseError, match="outside the folders") as caught:
            grounds.check(base, [home])
        said.add(str(caught.value).replace(repr(base), ""))
        grounds.check(base, None)
    assert len(said) == 1, "it isn't told what is there"


def test_weights_are_opened_when_they_are_asked_for(tiny_base: Path) -> None:
    assert grounds.weight_of(None) is None
    assert grounds.weight_of("/nowhere")
    weight = grounds.weight_of(str(tiny_base))
    assert weight
    assert weight("unet.conv_in").ndim == 4
