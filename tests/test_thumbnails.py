"""A thumbnail is a small JPEG, whatever was given; a person's goes before the header's."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from shelves import picture

from studio.desk import thumbnails
from studio.desk.thumbnails import Thumbnails, as_jpeg
from trainers.errors import AdapterError


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_any_picture_becomes_a_small_jpeg(kind: str) -> None:
    with Image.open(io.BytesIO(as_jpeg(picture("red", kind, (2000, 500))))) as drawn:
        assert (drawn.format, drawn.size, drawn.mode) == ("JPEG", (512, 128), "RGB")


def test_it_stands_upright_and_says_nothing_of_the_camera() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"  # orientation: a quarter turn; maker
    drawn = io.BytesIO()
    Image.new("RGB", (8, 4)).save(drawn, "JPEG", exif=exif)
    with Image.open(io.BytesIO(as_jpeg(drawn.getvalue()))) as upright:
        assert (upright.size, dict(upright.getexif())) == ((4, 8), {})


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (b"", b"<svg/>", picture(kind="BMP"), picture(kind="GIF"), picture(size=(90, 90))[:300]):
        with pytest.raises(AdapterError, match="the picture can't be read"):
            as_jpeg(wrong)
    monkeypatch.setattr(thumbnails, "PIXELS", 47)
    with pytest.raises(AdapterError, match="8 x 6 pixels"):
        as_jpeg(picture())
    monkeypatch.setattr(thumbnails, "LARGEST", 10)
    with pytest.raises(AdapterError, match="at the most"):
        as_jpeg(picture())


def test_a_persons_goes_before_the_headers(tmp_path: Path) -> None:
    shown = Thumbnails(tmp_path)
    shown.set_header("a", b"broken")
    assert shown.get("a") is None
    shown.set_header("a", picture("red"))
    shown.set("a", picture("blue"))
    assert shown.get("a") == as_jpeg(picture("blue"))
    shown.set_header("a", picture("green"))
    with pytest.raises(AdapterError):
        shown.set("a", b"broken")
    assert shown.get("a") == as_jpeg(picture("blue"))
    shown.set("a", None)
    assert (shown.get("a"), shown.get("b")) == (as_jpeg(picture("green")), None)
    assert {path.name for path in tmp_path.iterdir()} == {"a.header.jpg"}
    with pytest.raises(AdapterError, match="can't be written"):
        Thumbnails(tmp_path / "gone").set("a", picture())
