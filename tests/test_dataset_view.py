"""A dataset as a page shows it: each picture with its bucket, caption and faults; each text with what is learned."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from conftest import PictureFolder
from PIL import Image

from studio.desk.dataset_view import View, Wishes, look, shape_of, thumbnail
from trainers import doctor, pictures, run
from trainers.config import TrainConfig
from trainers.errors import BaseError, DatasetError


@pytest.fixture
def folder(picture_folder: PictureFolder) -> Path:
    return picture_folder(4, [(16, 16), (32, 16)])


def seen(view: View) -> dict[str, tuple[str, ...]]:
    return {one.name: one.faults for one in view.pictures}


@pytest.mark.parametrize("base", ["tiny-sd", ""])
def test_the_shape_is_that_of_the_family(base: str, tiny_base: Path) -> None:
    name = base or str(tiny_base)
    config = TrainConfig.build(values={"base": name, "data": "d", "out": "o", "train.device": "cpu"})
    family = run.open_base(config).family
    assert isinstance(family, pictures.StableDiffusion)
    assert shape_of(name) == (family.resolution, family.multiple)


def test_pictures_in_their_buckets(folder: Path, tiny_base: Path) -> None:
    view = look(folder, str(tiny_base), Wishes(trigger="sks", repeats=3))
    assert (view.kind, view.sound, view.faults) == ("pictures", True, ())
    first, second = view.pictures[:2]
    assert (first.name, first.path, first.size, first.repeats) == ("00.png", folder / "00.png", (16, 16), 3)
    assert (first.caption, first.caption_from) == ("a red house by the sea", "00.txt")
    assert first.taught == "sks, a red house by the sea"
    assert second.size == (32, 16)
    assert sum(view.buckets.values()) == 4
    assert view.buckets[first.bucket or (0, 0)] >= 2
    assert any("trigger word" in note for note in view.notes)


def test_each_fault_stands_beside_its_picture(folder: Path, tiny_base: Path) -> None:
    (folder / "00.png").write_bytes(b"no picture")
    (folder / "01.txt").write_text("")
    (folder / "02.txt").rename(folder / "02.tags")
    Image.new("RGB", (4, 4)).save(folder / "04.png")
    (folder / "04.txt").write_text("small")
    (folder / "metadata.jsonl").write_text("{}\n")
    view = look(folder, str(tiny_base))
    assert not view.sound
    told = seen(view)
    assert [len(told[f"0{k}.png"]) for k in range(5)] == [1, 1, 1, 0, 1]
    assert told["00.png"][0].startswith("not a picture")
    assert told["01.png"][0].startswith("01.txt: empty caption file")
    assert told["02.png"][0].startswith("02.tags: not read")
    assert told["04.png"] == ("too small: 4 x 4, wanted 8 on the shorter side",)
    assert [line.split(":")[0] for line in view.faults] == ["metadata.jsonl"]
    assert view.pictures[0].caption == "a red house by the sea"  # to be kept when the picture is replaced
    everything = [*view.faults, *(fault for faults in told.values() for fault in faults)]
    assert len(everything) == len(doctor.examine(folder, min_side=8).faults)


def test_notes_beside_pictures_and_folders_with_repeats(folder: Path, tiny_base: Path) -> None:
    inner = folder / "10_ink drawing"
    inner.mkdir()
    shutil.copy(folder / "00.png", inner / "a.png")
    (folder / "01.caption").write_text("another")
    view = look(folder, str(tiny_base))
    by_name = {one.name: one for one in view.pictures}
    assert by_name["10_ink drawing/a.png"].repeats == 10
    assert by_name["10_ink drawing/a.png"].caption_from == "folder name"
    assert by_name["10_ink drawing/a.png"].caption == ""
    assert by_name["01.png"].notes == ("01.txt is read, 01.caption is not",)
    twins = by_name["00.png"].notes
    assert twins == by_name["10_ink drawing/a.png"].notes
    assert "show the same pixels" in twins[0]


def test_an_empty_folder_says_how_to_begin(tmp_path: Path) -> None:
    view = look(tmp_path, "no base is needed")
    assert (view.kind, view.sound) == ("empty", False)
    assert "put pictures in it" in view.faults[0]


def test_pictures_want_a_base_that_makes_pictures(folder: Path) -> None:
    with pytest.raises(BaseError, match="wanted a Stable Diffusion model"):
        look(folder, "tiny-lm")


def test_texts_with_what_is_learned(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ahoy!\n")
    chat = [{"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Arr"))]
    entries = [{"prompt": "Say", "completion": "Yo ho"}, {"messages": chat}, {"text": "x" * 3000}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, entries)))
    (tmp_path / "heldout.txt").write_text("Later")
    view = look(tmp_path, "")
    assert (view.kind, view.sound) == ("text", True)
    runs = {text.name: text.runs for text in view.texts}
    assert runs["a.txt"] == (("Ahoy!", True),)
    assert runs["b.jsonl:1"] == (("Say", False), ("Yo ho", True))
    assert runs["b.jsonl:2"] == (("user: Hi", False), ("assistant: Arr", True))
    assert runs["b.jsonl:3"][0][0] == "x" * 2000 + "…"
    assert [text.name for text in view.texts if text.heldout] == ["heldout.txt"]
    assert all(learned for text in look(tmp_path, "", supervise="all").texts for _, learned in text.runs)
    (tmp_path / "c.jsonl").write_text("{}")
    assert [fault.split(":")[0] for fault in look(tmp_path, "").faults] == ["c.jsonl"]


def test_a_thumbnail_is_small_and_follows_the_file(folder: Path) -> None:
    file = folder / "big.png"
    Image.new("RGB", (640, 320), "red").save(file)
    small = Image.open(io.BytesIO(thumbnail(file)))
    assert (small.format, small.size) == ("JPEG", (192, 96))
    assert thumbnail(file) is thumbnail(file)
    Image.new("RGB", (320, 640), "red").save(file)
    assert Image.open(io.BytesIO(thumbnail(file, 64))).size == (32, 64)
    file.unlink()
    with pytest.raises(DatasetError, match="is gone"):
        thumbnail(file)
