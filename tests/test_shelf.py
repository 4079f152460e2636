"""Names that can't do harm, places that are nobody's, stamps that tell a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.desk import shelf
from studio.desk.shelf import base_stamp, claim, found, move, parts, plain_name, size, stamp, stem_of
from trainers.lora.files import SUBFOLDERS, parts_on_disk
from trainers.lora.formats.names import CONFIG_FILE, TENSORS_FILE


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("ink.safetensors", "ink"), ("Ink Drawings.ZIP", "Ink Drawings"), ("../../etc/passwd", "passwd"),
        ("C:\\a\\b.safetensors", "b"), ("a/", "adapter"), ("..", "adapter"), ("", "adapter"), ("\x00\n", "adapter"),
        ("--overwrite", "overwrite"), (".studio", "studio"), ('a<b>:"c|?*d', "a-b-c-d"), ("v1.5", "v1.5"),
        ("ink\u202egnp.safetensors", "inkgnp"), ("u\u0308ber", "\xfcber"), ("\ud800x", "x"), ("x" * 500, "x" * 120),
        ("\u6c34\u5f69" * 50, "\u6c34\u5f69" * 20),
    ],
)  # fmt: skip
def test_a_plain_name(given: str, kept: str) -> None:
    assert plain_name(given) == kept
    assert plain_name(kept) == kept


def test_the_words_of_peft_are_the_cores() -> None:
    assert (shelf.CONFIG_FILE, shelf.TENSORS_FILE, shelf.PARTS) == (CONFIG_FILE, TENSORS_FILE, SUBFOLDERS)


def test_what_an_adapter_is_made_of(tmp_path: Path) -> None:
    for part in ("unet", "text_encoder"):
        (tmp_path / "both" / part).mkdir(parents=True)
        (tmp_path / "both" / part / CONFIG_FILE).write_text("{}")
        (tmp_path / "both" / part / TENSORS_FILE).write_text("four")
    (tmp_path / "a.b.safetensors").write_text("x")
    (tmp_path / "notes.txt").touch()
    assert found(tmp_path) == [tmp_path / "a.b.safetensors", tmp_path / "both"]
    assert [stem_of(path) for path in found(tmp_path)] == ["a.b", "both"]
    for path in found(tmp_path):
        assert sorted(parts(path)) == sorted(parts_on_disk(path))
    assert (size(tmp_path / "both"), size(tmp_path / "gone"), found(tmp_path / "gone")) == (12, 0, [])


def test_a_place_is_nobodys_before(tmp_path: Path) -> None:
    (tmp_path / "ink.safetensors").write_text("old")
    new, folder = tmp_path / "aside", tmp_path / "folder"
    new.write_text("new")
    folder.mkdir()
    assert claim(tmp_path, "ink", new).name == "ink-2.safetensors"
    assert move(new, tmp_path, "ink").name == "ink-3.safetensors"
    assert move(folder, tmp_path, "ink").name == "ink"
    assert ((tmp_path / "ink.safetensors").read_text(), (tmp_path / "ink-3.safetensors").read_text()) == ("old", "new")
    with pytest.raises(FileNotFoundError):
        move(new, tmp_path, "ink")
    assert not (tmp_path / "ink-4.safetensors").exists()


def test_a_stamp_changes_with_the_file_and_not_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("1")
    first = stamp(path)
    assert stamp(path.rename(tmp_path / "b.safetensors")) == first
    assert stamp(path) == ""
    path.write_text("22")
    (path.parent / "b.safetensors").write_text("22")
    assert len({first, stamp(path), stamp(tmp_path / "b.safetensors")}) == 3


def test_the_stamp_of_a_base(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").touch()
    assert base_stamp(str(tmp_path)) == base_stamp("owner/name") == ""  # no base, and never a look through a whole disk
    (tmp_path / "config.json").write_text("{}")
    before = base_stamp(str(tmp_path))
    (tmp_path / "x.safetensors").write_text("other")
    assert len({"", before, base_stamp(str(tmp_path)), base_stamp(str(tmp_path / "x.safetensors"))}) == 4
    assert base_stamp("tiny-sd") == base_stamp("tiny-sd") != base_stamp("tiny-lm")
