"""One file at a time: what a picture, a caption file and a metadata file are read as, and why they aren't."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from trainers import dataset
from trainers.buckets import place
from trainers.dataset import (
    PICTURES,
    apply,
    groups,
    open_picture,
    read_caption,
    read_metadata,
    with_trigger,
)
from trainers.errors import DatasetError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def near(picture: Image.Image, at: tuple[int, int], colour: tuple[int, int, int], within: int = 3) -> bool:
    found = picture.getpixel(at)
    assert isinstance(found, tuple)
    return all(abs(one - other) <= within for one, other in zip(found, colour, strict=True))


def noise(size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(7).randbytes(3 * size[0] * size[1]))


@pytest.mark.parametrize("suffix", PICTURES)
def test_every_kind_that_is_promised_opens_as_rgb(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (20, 10), RED).save(tmp_path / f"a{suffix}", quality=95)
    picture = open_picture(tmp_path / f"a{suffix}")
    assert (picture.mode, picture.size) == ("RGB", (20, 10))
    assert near(picture, (5, 5), RED, within=8)


def test_a_picture_is_turned_upright_by_its_exif_tag(tmp_path: Path) -> None:
    sideways = Image.new("RGB", (20, 10), RED)
    sideways.paste(BLUE, (10, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    sideways.save(tmp_path / "a.png", exif=exif)
    upright = open_picture(tmp_path / "a.png")
    assert upright.size == (10, 20)
    assert near(upright, (5, 2), RED)
    assert near(upright, (5, 17), BLUE)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_lies_hidden_under_transparent_pixels_never_shows(tmp_path: Path, mode: str) -> None:
    if mode == "RGBA":
        Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    elif mode == "LA":
        Image.new("LA", (4, 4), (90, 0)).save(tmp_path / "a.png")
    else:  # a palette entry, or one colour of an RGB picture, that counts as transparent
        picture = Image.new("RGB", (4, 4), RED)
        whole = picture.quantize(2) if mode == "P" else picture
        whole.save(tmp_path / "a.png", transparency=whole.getpixel((0, 0)))
    assert near(open_picture(tmp_path / "a.png"), (1, 1), (255, 255, 255))
    assert near(open_picture(tmp_path / "a.png", background=(0, 128, 0)), (1, 1), (0, 128, 0))


def test_half_transparent_is_mixed_with_the_background(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert near(open_picture(tmp_path / "a.png", background=(0, 0, 0)), (1, 1), (128, 0, 0))


def test_sixteen_bit_grey_is_scaled_and_not_clipped_to_white(tmp_path: Path) -> None:
    Image.new("I;16", (4, 4), 0x8000).save(tmp_path / "a.png")
    assert near(open_picture(tmp_path / "a.png"), (1, 1), (128, 128, 128))


@pytest.mark.parametrize("suffix", PICTURES)
def test_a_truncated_picture_is_noticed(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    noise().save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DatasetError) as caught:
        open_picture(file)
    assert str(file) in str(caught.value)
    assert caught.value.faults


def test_reasons_tell_the_kinds_of_damage_apart(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "PNG")
    damages = {
        b"": "empty file",
        buffer.getvalue()[:-200]: "truncated",
        b"<!DOCTYPE html>" * 9: "not a picture of a kind that is read",
    }
    for data, reason in damages.items():
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(DatasetError, match=reason):
            open_picture(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="No such file"):
        open_picture(tmp_path / "b.png")


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_damaged_bytes_give_a_picture_or_a_dataset_error_and_nothing_else(tmp_path: Path) -> None:
    for suffix in PICTURES:
        buffer = io.BytesIO()
        noise((16, 16)).save(buffer, Image.registered_extensions()[suffix])
        for position in range(0, min(120, buffer.getbuffer().nbytes), 3):
            data = bytearray(buffer.getvalue())
            data[position] ^= 0xA5
            (tmp_path / f"a{suffix}").write_bytes(data)
            with contextlib.suppress(DatasetError):
                assert open_picture(tmp_path / f"a{suffix}").mode == "RGB"


@pytest.mark.parametrize("size", [(40, 40), (90, 31), (31, 90), (500, 20), (7, 5)])
def test_applying_a_placement_gives_its_bucket(size: tuple[int, int]) -> None:
    placement = place(size, resolution=64, multiple=8)
    assert apply(noise(size), placement).size == placement.bucket


def test_applying_keeps_the_middle_and_leaves_a_fitting_picture_alone() -> None:
    wide = Image.new("RGB", (192, 64), RED)
    wide.paste(BLUE, (64, 0, 128, 64))
    cut = apply(wide, place(wide.size, 64, 8))
    assert near(cut, (cut.width // 2, cut.height // 2), BLUE)
    assert near(cut, (1, 1), RED)
    assert near(cut, (cut.width - 2, 1), RED)
    square = noise((64, 64))
    assert apply(square, place((64, 64), 64, 8)).tobytes() == square.tobytes()


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        (b"a red house", "a red house"),
        (b"\n  \n a red house \r\na second line", "a red house"),
        (b"\xef\xbb\xbfa red house", "a red house"),
        ("ein Haus, grün".encode(), "ein Haus, grün"),
    ],
)
def test_a_caption_is_the_first_line_that_is_not_empty(tmp_path: Path, data: bytes, caption: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert read_caption(tmp_path / "a.txt") == caption


@pytest.mark.parametrize(("data", "fault"), [(b" \n\t\n", "empty caption"), (b"gr\xfcn", "not UTF-8 .byte 0xfc at 2")])
def test_a_caption_file_that_says_nothing_is_a_fault(tmp_path: Path, data: bytes, fault: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DatasetError, match=fault):
        read_caption(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("caption", "trigger", "whole"),
    [
        ("a red house", "sks", "sks, a red house"),
        ("a red house", "", "a red house"),
        ("", "sks", "sks"),
        ("a house, Sks style", "sks", "a house, Sks style"),
        ("inkwell on a desk", "ink", "ink, inkwell on a desk"),
        ("drawn <ink>", "<ink>", "drawn <ink>"),
        ("in ink style", "ink style", "in ink style"),
    ],
)
def test_the_trigger_word_is_put_in_front_unless_it_is_there(caption: str, trigger: str, whole: str) -> None:
    assert with_trigger(caption, trigger) == whole
    assert with_trigger(whole, trigger) == whole, "twice is once"


def test_metadata_names_every_bad_line(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        noise().save(tmp_path / name)
    entries = [
        json.dumps({"file_name": "a.png", "text": "a red\n house"}),
        "",
        "{not json",
        "[1]",
        json.dumps({"file_name": "b.png", "prompt": "a tree"}),
        json.dumps({"file_name": "gone.png", "text": "a tree"}),
        json.dumps({"file_name": "../b.png", "text": "a tree"}),
        json.dumps({"file_name": "a.gif", "text": "a tree"}),
        json.dumps({"file_name": "a.png", "text": "another"}),
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(entries))
    metadata = read_metadata(tmp_path)
    assert metadata.captions == {tmp_path / "a.png": "a red house"}
    wanted = ["line 3: not JSON", "line 4: wanted", "line 5: no \"text\" (it has 'file_name', 'prompt')", "line 6"]
    wanted += ["line 7: ../b.png lies outside", "line 8: a.gif is not a kind", "line 9: a.png is named again"]
    assert [fault[: len(start)] for fault, start in zip(metadata.faults, wanted, strict=True)] == wanted
    assert "gone.png is not there" in metadata.faults[3]


def test_groups_are_the_flat_folder_and_kohyas_folders_in_order(tmp_path: Path) -> None:
    for name in ("10_ink style", "2_a_b", "plain", ".hidden", "7_", "_x"):
        (tmp_path / name).mkdir()
    for name in ("b.PNG", "a.jpg", "a-masklabel.png", ".c.png", "notes.pdf"):
        (tmp_path / name).touch()
    flat, *kohya = groups(tmp_path)
    assert [picture.name for picture in flat.pictures] == ["a.jpg", "b.PNG"]
    assert [folder.name for folder in flat.others] == ["7_", "_x", "plain"]
    assert [(group.repeats, group.name) for group in kohya] == [(10, "ink style"), (2, "a_b")]


def test_the_caption_file_is_the_first_that_is_read(tmp_path: Path) -> None:
    assert dataset.caption_file(tmp_path / "a.png") is None
    (tmp_path / "a.caption").write_text("b")
    assert dataset.caption_file(tmp_path / "a.png") == tmp_path / "a.caption"
    (tmp_path / "a.txt").write_text("c")
    assert dataset.caption_file(tmp_path / "a.png") == tmp_path / "a.txt"
