"""A whole folder: which samples it holds, and every fault of it at once."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainers.doctor import examine, scan
from trainers.errors import DatasetError


def draw(path: Path, size: tuple[int, int] = (32, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("RGB", size, random.Random(path.name).randbytes(3 * size[0] * size[1])).save(path)
    return path


def write(path: Path, text: str = "a red house") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def only_fault(folder: Path, **wishes: Any) -> str:
    faults = examine(folder, **wishes).faults
    assert len(faults) == 1, faults
    return faults[0]


def test_a_sound_folder_gives_its_samples_in_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        draw(tmp_path / f"{name}.png")
        write(tmp_path / f"{name}.txt", f"picture {name}")
    samples = scan(tmp_path)
    assert [(one.path.name, one.caption, one.caption_from) for one in samples] == [
        (f"{name}.png", f"picture {name}", f"{name}.txt") for name in "abc"
    ]
    assert {(one.repeats, one.size, one.prior) for one in samples} == {(1, (32, 24), False)}
    assert samples == scan(tmp_path)
    (note,) = examine(tmp_path).notes
    assert note == "3 pictures: 3 captions from .txt, 0 from .caption (the first line of each file)"


def test_where_captions_come_from_and_which_goes_first(tmp_path: Path) -> None:
    for name in "abcd":
        draw(tmp_path / f"{name}.png")
    write(tmp_path / "a.txt", "from txt")
    write(tmp_path / "a.caption", "unseen")
    write(tmp_path / "b.CAPTION", "from caption")
    rows = [{"file_name": f"{name}.png", "text": "from metadata"} for name in "ac"]
    write(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    report = examine(tmp_path, instance_prompt="from prompt")
    assert report.faults == ()
    assert [(one.caption, one.caption_from) for one in report.samples] == [
        ("from txt", "a.txt"),
        ("from caption", "b.CAPTION"),
        ("from metadata", "metadata.jsonl"),
        ("from prompt", "instance prompt"),
    ]
    assert "1 captions from .txt, 1 from .caption, 1 from instance prompt, 1 from metadata.jsonl" in report.notes[0]
    assert "a.png: a.txt is read, a.caption is not" in report.notes
    assert "a.png: a.txt is read, metadata.jsonl is not" in report.notes


def test_kohya_folders_give_repeats_and_captions(tmp_path: Path) -> None:
    draw(tmp_path / "10_ink drawing" / "a.png")
    draw(tmp_path / "2_tree" / "a.png")
    write(tmp_path / "2_tree" / "a.txt", "an oak")
    found = {one.path.parent.name: (one.repeats, one.caption, one.caption_from) for one in scan(tmp_path, repeats=3)}
    assert found == {"10_ink drawing": (30, "ink drawing", "folder name"), "2_tree": (6, "an oak", "a.txt")}
    assert [one.caption for one in scan(tmp_path, instance_prompt="sks art")] == ["sks art", "an oak"]
    assert "10_ink drawing: 1 pictures, 10 repeats" in examine(tmp_path).notes


def test_the_trigger_word_goes_in_front_or_stands_alone(tmp_path: Path) -> None:
    for name in "abc":
        draw(tmp_path / f"{name}.png")
    write(tmp_path / "a.txt", "a tree")
    write(tmp_path / "b.txt", "a tree in sks style")
    report = examine(tmp_path, trigger="sks")
    assert [one.caption for one in report.samples] == ["sks, a tree", "a tree in sks style", "sks"]
    assert report.samples[2].caption_from == "trigger word"
    assert "trigger word put in front of 1 of 3 captions" in report.notes


def test_metadata_may_name_pictures_in_subfolders(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "a.png")
    write(tmp_path / "metadata.jsonl", json.dumps({"file_name": "images/a.png", "text": "a tree"}))
    assert [(one.caption, one.path) for one in scan(tmp_path)] == [("a tree", tmp_path / "images" / "a.png")]


def test_every_fault_of_the_folder_is_listed_at_once_by_file_name(tmp_path: Path) -> None:
    for name in ("fine", "bare", "blank", "latin", "tagged", "doubled"):
        draw(tmp_path / f"{name}.png")
    draw(tmp_path / "small.png", (32, 15))
    whole = draw(tmp_path / "cut.png", (64, 64)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "void.webp").touch()
    for name in ("fine", "small", "cut", "page", "void"):
        write(tmp_path / f"{name}.txt")
    write(tmp_path / "blank.txt", " \n")
    (tmp_path / "latin.txt").write_bytes(b"gr\xfcn")
    write(tmp_path / "tagged.tags")
    write(tmp_path / "doubled.png.txt")
    write(tmp_path / "metadata.jsonl", json.dumps({"file_name": "gone.png", "text": "a tree"}))
    with pytest.raises(DatasetError) as caught:
        scan(tmp_path, min_side=16)
    wanted = {
        "metadata.jsonl: line 1": "gone.png is not there",
        "bare.png: no caption": "bare.txt, bare.caption, metadata.jsonl",
        "blank.txt: empty caption": "",
        "cut.png: truncated": "",
        "doubled.png.txt: not read": "rename it to doubled.txt",
        "latin.txt: not UTF-8": "0xfc",
        "page.jpg: not a picture": "",
        "small.png: too small": "32 x 15, wanted 16",
        "tagged.tags: not read": "rename it to tagged.txt",
        "void.webp: empty file": "",
    }
    faults = caught.value.faults
    assert len(faults) == len(wanted), faults
    for start, part in wanted.items():
        assert any(fault.startswith(start) and part in fault for fault in faults), (start, faults)
    assert caught.value.next_step
    assert str(tmp_path) in caught.value.what
    assert [one.path.name for one in examine(tmp_path, min_side=16).samples] == ["fine.png"]


def test_a_pictures_own_fault_hides_not_its_captions(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    write(tmp_path / "a.txt", "")
    assert len(examine(tmp_path).faults) == 2


@pytest.mark.parametrize("spare", [{"instance_prompt": "sks"}, {"trigger": "sks"}])
def test_without_caption_a_prompt_or_trigger_will_do_unless_captions_are_asked_for(
    tmp_path: Path, spare: dict[str, str]
) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "1_tree" / "b.png")
    assert "a.png: no caption" in only_fault(tmp_path)
    assert len(scan(tmp_path, instance_prompt=spare.get("instance_prompt"), trigger=spare.get("trigger", ""))) == 2
    faults = examine(tmp_path, **spare, require_captions=True).faults  # type: ignore[arg-type]
    assert [fault.split(":")[0] for fault in faults] == ["a.png", "1_tree/b.png"]


def test_captions_nobody_reads_are_a_fault_even_with_a_prompt_but_a_note_beside_a_caption(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    write(tmp_path / "a.cap")
    assert "rename it to a.txt" in only_fault(tmp_path, instance_prompt="sks")
    write(tmp_path / "a.txt")
    report = examine(tmp_path)
    assert report.faults == ()
    assert "a.png: a.txt is read, a.cap is not" in report.notes


def test_folders_that_are_none(tmp_path: Path) -> None:
    assert "no such folder" in only_fault(tmp_path / "gone")
    assert "a file, not a folder" in only_fault(draw(tmp_path / "a.png"))
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in only_fault(tmp_path / "empty")


def test_a_folder_without_pictures_tells_what_is_read_and_what_was_found(tmp_path: Path) -> None:
    write(tmp_path / "a.gif")
    write(tmp_path / "b.gif")
    draw(tmp_path / "train" / "a.png")
    fault = only_fault(tmp_path)
    assert "png jpg jpeg webp bmp" in fault
    assert "found 2 .gif, train/" in fault
    assert "10_name" in fault


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert only_fault(tmp_path) == f"{tmp_path}: Permission denied"


def test_zero_repeats_are_a_fault(tmp_path: Path) -> None:
    draw(tmp_path / "0_ink" / "a.png")
    assert only_fault(tmp_path).startswith("0_ink: 0 repeats")


def test_notes_name_what_was_passed_over(tmp_path: Path) -> None:
    first = draw(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(first.read_bytes())
    draw(tmp_path / "a-masklabel.png")
    write(tmp_path / "orphan.txt")
    write(tmp_path / "photo.heic")
    draw(tmp_path / "more" / "c.png")
    report = examine(tmp_path, instance_prompt="sks")
    assert [one.path.name for one in report.samples] == ["a.png", "b.png"]
    assert report.faults == ()
    for note in (
        "a.png and b.png show the same pixels",
        "1 mask files (-masklabel) are not used",
        "orphan.txt: no picture has this name",
        "not read: photo.heic, more/",
    ):
        assert note in report.notes


def test_a_folder_given_that_is_called_like_kohyas_is_flat_and_says_so(tmp_path: Path) -> None:
    draw(tmp_path / "10_ink" / "a.png")
    report = examine(tmp_path / "10_ink", instance_prompt="sks")
    assert report.samples[0].repeats == 1
    assert any("repeats are read from subfolders" in note for note in report.notes)
