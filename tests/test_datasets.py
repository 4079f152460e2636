"""Datasets that people make and edit: uploads, captions, what is taken out; and nothing outside the allowed folders."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from conftest import PictureFolder

from studio.desk import datasets as module
from studio.desk.datasets import Datasets
from trainers import checkpoint
from trainers.errors import DatasetError, StyloraError


@pytest.fixture
def own(tmp_path: Path) -> Datasets:
    return Datasets(tmp_path / "home")


@pytest.fixture
def ink(own: Datasets, picture_folder: PictureFolder) -> Path:
    """A dataset of two pictures with captions, uploaded."""
    source, folder = picture_folder(2), own.create("ink")
    added = own.add(folder, [(file.name, file.read_bytes()) for file in sorted(source.iterdir())])
    assert sorted(added.names) == ["00.png", "00.txt", "01.png", "01.txt"]
    assert added.refused == ()
    return folder


def test_names_and_folders(own: Datasets, tmp_path: Path) -> None:
    assert own.names() == []
    assert [own.create("ink").name for _ in range(3)] == ["ink", "ink 2", "ink 3"]
    assert own.create("../../etc/.ssh").parent == own.own
    assert own.create("../...").name == "dataset"
    assert own.open("ink 2") == own.own / "ink 2"
    assert own.open("ink") == own.own / "ink"  # not the sample of that name
    with pytest.raises(DatasetError, match="no such folder"):
        own.open(tmp_path / "home" / "gone")


@pytest.mark.parametrize("place", ["/etc", "..", "~", "/proc/self", ".studio", ".studio/pictures", "link", ""])
def test_other_folders_of_the_server_are_not_opened(own: Datasets, place: str) -> None:
    pictures = own.home / ".studio" / "pictures"
    pictures.mkdir()
    (own.home / "link").symlink_to(pictures)
    if not place:  # another desk's
        place = str(Datasets(own.home, desk="ann").create("ink"))
    with pytest.raises(DatasetError, match="isn't one the studio may read"):
        own.open(place)
    assert place == "~" or not own.editable(own.home / place)


def test_the_studios_own_things_are_no_files_of_a_dataset(own: Datasets) -> None:
    (own.home / ".studio" / "pictures").mkdir()
    drawn = own.home / ".studio" / "pictures" / "a.png"
    drawn.write_bytes(b"x")
    assert own.open(own.home) == own.home
    for name in (".studio/pictures/a.png", ".studio/studio.db"):
        with pytest.raises(DatasetError, match="no file of this dataset"):
            own.remove(own.home, name)
    assert drawn.is_file()


def test_each_desk_has_its_own(own: Datasets, tmp_path: Path) -> None:
    ann, bob = (Datasets(own.home, desk=desk) for desk in ("ann", "bob"))
    first, second = ann.create("ink"), bob.create("ink")
    assert (ann.names(), bob.names(), own.names()) == (["ink"], ["ink"], [])
    assert (ann.open("ink"), bob.open("ink")) == (first, second)
    assert ann.editable(first)
    assert not bob.editable(first)
    with pytest.raises(DatasetError):
        bob.open(first)
    with pytest.raises(DatasetError, match="can only be read"):
        bob.add(first, [("a.png", b"x")])
    assert "ann" not in str(first.relative_to(tmp_path))  # a desk's name lets one in


def test_roots_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "fog").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "data")
    own = Datasets(tmp_path / "home", [tmp_path / "data"])
    assert own.open("mine") == tmp_path / "home" / "mine"
    assert own.open(tmp_path / "data" / "fog") == tmp_path / "data" / "fog"
    assert own.editable(tmp_path / "data" / "fog")
    with pytest.raises(DatasetError, match="no such folder"):
        own.open("fog")  # it isn't the current folder's


@pytest.mark.parametrize("place", ["~nobody1/x", "x" * 300, "\0"])
def test_what_can_be_no_path_is_told(own: Datasets, place: str) -> None:
    with pytest.raises(StyloraError, match="can't be a path"):
        own.open(place)


def test_samples_are_read_and_copied_but_not_edited(own: Datasets) -> None:
    name = next(iter(own.samples()))
    folder = own.open(name)
    assert not own.editable(folder)
    picture = next(path.name for path in folder.iterdir())
    for change in (
        lambda: own.remove(folder, picture),
        lambda: own.edit_caption(folder, picture, "x"),
        lambda: own.add(folder, []),
    ):
        with pytest.raises(DatasetError, match="can only be read"):
            change()
    mine = own.copy(folder, "mine")
    assert own.editable(mine)
    assert sorted(p.name for p in mine.iterdir()) == sorted(p.name for p in folder.iterdir() if p.name[0] != ".")


def test_an_upload_never_writes_over_a_file_and_keeps_pairs(own: Datasets, ink: Path) -> None:
    before = {file.name: file.read_bytes() for file in ink.iterdir()}
    added = own.add(ink, [("00.txt", b"another caption"), ("00.png", b"another picture")])
    assert added.names == ("00-2.png", "00-2.txt")
    assert {name: (ink / name).read_bytes() for name in before} == before
    assert own.add(ink, [("00.png", before["00.png"])]).names == ("00.png",)  # the same once more: nothing to do
    assert own.add(ink, [("02.png", b"x")]).names == ("02.png",)
    assert own.add(ink, [("02.txt", b"its caption")]).names == ("02.txt",)
    assert len(list(ink.iterdir())) == len(before) + 4


def test_uploads_are_limited_by_kind_size_and_number(own: Datasets, ink: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", {"picture": 9, "text": 3})
    files = [
        ("a.exe", b""),
        ("b.png", bytes(10)),
        ("c.txt", b"long"),
        ("../../d.PNG", b"x"),
        (".png", b"x"),
        ("e", b""),
    ]
    added = own.add(ink, files)
    assert added.names == ("d.png",)
    assert (ink / "d.png").read_bytes() == b"x"
    refused = sorted(line.split(":")[0] for line in added.refused)
    assert refused == [".png", "a.exe", "b.png", "c.txt", "e"]
    monkeypatch.setattr(module, "MOST", len(list(ink.iterdir())) + 1)
    added = own.add(ink, [("f.png", b"1"), ("g.png", b"2")])
    assert (added.names, len(added.refused)) == (("f.png",), 1)


def test_captions_are_edited_in_their_files(own: Datasets, ink: Path) -> None:
    own.edit_caption(ink, "00.png", " a  new\ncaption ")
    assert (ink / "00.txt").read_text() == "a new caption\n"
    (ink / "01.txt").rename(ink / "01.caption")
    own.edit_caption(ink, "01.png", "stays there")
    assert (ink / "01.caption").read_text() == "stays there\n"
    assert not (ink / "01.txt").exists()
    own.edit_caption(ink, "00.png", " ")
    assert not (ink / "00.txt").exists()
    assert own.removed(ink) == ["00.txt"]
    own.edit_caption(ink, "00.png", "again")
    assert (ink / "00.txt").read_text() == "again\n"


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "", ".", "link.png", ".removed", "00.txt", "no.png"])
def test_only_pictures_of_the_dataset_are_edited(own: Datasets, ink: Path, name: str) -> None:
    (ink.parent / "secret.png").write_bytes(b"x")
    (ink / "link.png").symlink_to("/etc/passwd")
    with pytest.raises(DatasetError):
        own.edit_caption(ink, name, "x")
    assert not (ink.parent / "secret.txt").exists()


def test_what_is_taken_out_can_be_put_back(own: Datasets, ink: Path) -> None:
    before = {file.name: file.read_bytes() for file in ink.iterdir()}
    own.remove(ink, "00.png")
    assert sorted(path.name for path in ink.iterdir() if path.is_file()) == ["01.png", "01.txt"]
    assert own.removed(ink) == ["00.png", "00.txt"]
    for name in own.removed(ink):
        own.restore(ink, name)
    assert {file.name: file.read_bytes() for file in ink.iterdir() if file.is_file()} == before
    own.remove(ink, "01.png")
    own.add(ink, [("01.png", b"new")])
    with pytest.raises(DatasetError, match="there is another"):
        own.restore(ink, "01.png")


@pytest.mark.parametrize(
    ("text", "each", "name", "documents"),
    [
        ("One.\n\nTwo,\nand more.", "whole", "pasted.txt", None),
        ("One.\n\nTwo,\nand more.", "paragraph", "pasted.jsonl", [{"text": "One."}, {"text": "Two,\nand more."}]),
        ("One.\n\nTwo.\n", "line", "pasted.jsonl", [{"text": "One."}, {"text": "Two."}]),
        ('{"text": "é"}\n{"text": "b"}', "line", "pasted.jsonl", [{"text": "é"}, {"text": "b"}]),
    ],
)
def test_pasted_text(own: Datasets, text: str, each: str, name: str, documents: list[dict[str, str]] | None) -> None:
    folder = own.create("tone")
    assert own.paste(folder, text, each) == name
    saved = (folder / name).read_text()
    assert saved == f"{text}\n" if documents is None else [json.loads(line) for line in saved.splitlines()] == documents
    assert own.paste(folder, "another", each).startswith("pasted")
    assert len(list(folder.iterdir())) == 2
    with pytest.raises(DatasetError, match="no text"):
        own.paste(folder, " \n")


def test_long_names_in_any_script_keep_pairs_together(own: Datasets) -> None:
    folder = own.create("水彩" * 60)
    long = "水彩" * 50
    files = [(f"{long}{k}{kind}", f"{k}{kind}".encode()) for k in (1, 2) for kind in (".PNG", ".txt")]
    assert own.add(folder, files).refused == ()
    pairs = {file.read_text(): file.with_suffix(".txt").read_text() for file in folder.glob("*.png")}
    assert pairs == {"1.PNG": "1.txt", "2.PNG": "2.txt"}
    names = own.add(folder, [("a b.png", b"1"), ("../x.png", b"2"), ("C:\\y.png", b"3"), ("ü_1 (2).png", b"4")]).names
    assert sorted(names) == ["a b.png", "x.png", "y.png", "ü_1 (2).png"]


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told(own: Datasets, ink: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = next(iter(own.samples()))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", full)
        patch.setattr("shutil.copy2", full)
        for change in (
            lambda: own.add(ink, [("new.png", b"x")]),
            lambda: own.edit_caption(ink, "00.png", "other"),
            lambda: own.copy(own.open(sample), "mine"),
        ):
            with pytest.raises(DatasetError, match="can't be written") as refusal:
                change()
            assert refusal.value.faults == ("No space left on device",)
        patch.setattr(Path, "mkdir", full)
        for change in (lambda: own.create("x"), lambda: own.remove(ink, "00.png")):
            with pytest.raises(DatasetError, match="can't be written"):
                change()
    assert own.names() == ["ink"]  # nothing is left of the copy
