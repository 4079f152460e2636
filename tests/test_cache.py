"""The cache encodes what changed and nothing else, and survives broken files and full disks."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open

from trainers import buckets, cache, doctor
from trainers.cache import Cache
from trainers.errors import RunError
from trainers.families.base import Encoding

PictureFolder = Callable[..., Path]


class Counting:
    """An encoder whose encodings are the pixels themselves, and that counts what it is asked."""

    def __init__(self, **digests: str) -> None:
        self.digests = {"vae": "v1", "text_encoder": "t1", "tokenizer": "k1"} | digests
        self.pictures = 0
        self.texts: list[str] = []

    def digest(self, part: str) -> str:
        return self.digests[part]

    def encode_picture(self, picture: Image.Image) -> Encoding:
        self.pictures += 1
        return {"moments": torch.tensor(np.asarray(picture)).float()}

    def encode_text(self, caption: str) -> Encoding:
        self.texts.append(caption)
        return {"text": torch.tensor([float(ord(letter)) for letter in caption])}

    def encode_ids(self, caption: str) -> Encoding:
        return {"ids": torch.tensor([ord(letter) for letter in caption])}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fill(
    folder: Path,
    store: Path,
    family: Counting,
    *,
    trained: bool = True,
    resolution: int = 16,
    background: tuple[int, int, int] = (255, 255, 255),
    mirror: bool = False,
) -> tuple[list[tuple[Encoding, str]], Cache]:
    samples = doctor.scan(folder)
    places = buckets.plan([sample.size for sample in samples], resolution, 8)
    made = Cache(store)
    filled = cache.fill(made, family, samples, places, text_trained=trained, background=background, mirror=mirror)
    return list(filled), made


def encoded(folder: Path, store: Path, **settings: object) -> int:
    """How many pictures a run encodes now."""
    family = Counting()
    fill(folder, store, family, **settings)  # type: ignore[arg-type]
    return family.pictures


def files(store: Path) -> Sequence[Path]:
    return sorted(store.rglob("*.safetensors"))


def test_the_second_run_encodes_nothing_and_has_the_same(picture_folder: PictureFolder, store: Path) -> None:
    folder = picture_folder(5, sizes=[(16, 16), (24, 16)])
    first, made = fill(folder, store, Counting(), trained=False)
    assert (made.encoded, made.reused) == (5 + 5, 0)
    family = Counting()
    second, made = fill(folder, store, family, trained=False)
    assert (family.pictures, family.texts, made.encoded, made.reused) == (0, [], 0, 10)
    for (one, digest), (other, again) in zip(first, second, strict=True):
        assert digest == again
        assert one.keys() == other.keys() == {"moments", "text"}
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_editing_one_picture_encodes_exactly_that_one(picture_folder: PictureFolder, store: Path) -> None:
    folder = picture_folder(4)
    before, _ = fill(folder, store, Counting())
    with Image.open(folder / "02.png") as picture:
        edited = picture.convert("RGB")
    edited.putpixel((3, 3), (1, 2, 3))
    edited.save(folder / "02.png")
    family = Counting()
    after, _ = fill(folder, store, family)
    assert family.pictures == 1
    assert [one[1] == other[1] for one, other in zip(before, after, strict=True)] == [True, True, False, True]
    assert after[2][0]["moments"][3, 3].tolist() == [1, 2, 3]


def test_new_names_and_files_saved_again_encode_nothing(picture_folder: PictureFolder, store: Path) -> None:
    folder = picture_folder(4)
    assert encoded(folder, store) == 4
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        with Image.open(path) as picture:
            picture.convert("RGB").save(folder / f"x{9 - number}.bmp")
        path.with_suffix(".txt").rename(folder / f"x{9 - number}.txt")
        path.unlink()
    assert encoded(folder, store) == 0
    assert encoded(folder.rename(folder.parent / "elsewhere"), store) == 0


def test_another_vae_encodes_all_again(picture_folder: PictureFolder, store: Path) -> None:
    folder = picture_folder(3)
    fill(folder, store, Counting())
    other = Counting(vae="v2", text_encoder="t2")
    fill(folder, store, other)
    assert other.pictures == 3
    assert encoded(folder, store) == 0  # and the first one's are still there


def test_another_resolution_encodes_all_again(picture_folder: PictureFolder, store: Path) -> None:
    folder = picture_folder(3)
    assert [encoded(folder, store, resolution=side) for side in (16, 32, 16)] == [3, 3, 0]


def test_the_background_matters_where_something_is_transparent(picture_folder: PictureFolder, store: Path) -> None:
    folder = picture_folder(2)
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(folder / "01.png")
    assert encoded(folder, store) == 2
    assert encoded(folder, store, background=(255, 0, 0)) == 1


def test_pictures_with_the_same_pixels_are_encoded_once(picture_folder: PictureFolder, store: Path) -> None:
    folder = picture_folder(2)
    (folder / "01.png").write_bytes((folder / "00.png").read_bytes())
    assert encoded(folder, store) == 1


def test_captions_are_encoded_once_each_and_again_when_they_or_their_encoder_change(
    picture_folder: PictureFolder, store: Path
) -> None:
    folder = picture_folder(3)
    (folder / "01.txt").write_text("a gold cat")
    (folder / "02.txt").write_text("a gold cat")
    family = Counting()
    filled, _ = fill(folder, store, family, trained=False)
    assert family.texts == ["a red house by the sea", "a gold cat"]
    assert filled[2][0]["text"].tolist() == [float(ord(letter)) for letter in "a gold cat"]
    (folder / "00.txt").write_text("a red house at night")
    family = Counting()
    fill(folder, store, family, trained=False)
    assert (family.pictures, family.texts) == (0, ["a red house at night"])
    for change in ({"text_encoder": "t2"}, {"tokenizer": "k2"}):
        family = Counting(**change)
        fill(folder, store, family, trained=False)
        assert (family.pictures, len(family.texts)) == (0, 2)


def test_a_trained_text_encoder_gets_token_ids_and_no_files(picture_folder: PictureFolder, store: Path) -> None:
    family = Counting()
    filled, _ = fill(picture_folder(2), store, family, trained=True)
    assert family.texts == []
    assert filled[0][0].keys() == {"moments", "ids"}
    assert len(files(store)) == 2


def test_with_mirror_both_ways_are_stored_and_only_the_twins_are_new(
    picture_folder: PictureFolder, store: Path
) -> None:
    folder = picture_folder(3)
    assert encoded(folder, store) == 3
    family = Counting()
    filled, _ = fill(folder, store, family, mirror=True)
    assert family.pictures == 3
    for n, (encoding, _) in enumerate(filled):
        with Image.open(folder / f"{n:02}.png") as picture:
            pixels = picture.convert("RGB")
        assert np.array_equal(encoding["moments"].numpy(), np.asarray(pixels))
        assert np.array_equal(encoding["mirrored_moments"].numpy(), np.asarray(ImageOps.mirror(pixels)))
    assert encoded(folder, store, mirror=True) == 0
    plain, _ = fill(folder, store, Counting())
    assert plain[0][0].keys() == {"moments", "ids"}


@pytest.mark.parametrize("damage", ["half", "empty", "noise", "header"])
def test_a_broken_file_is_made_anew(picture_folder: PictureFolder, store: Path, damage: str) -> None:
    folder = picture_folder(3)
    whole, _ = fill(folder, store, Counting())
    broken = files(store)[1]
    data = broken.read_bytes()
    left = {"half": data[: len(data) // 2], "empty": b"", "noise": bytes(range(256)), "header": b"\xff" * 8 + data[8:]}
    broken.write_bytes(left[damage])
    family = Counting()
    again, _ = fill(folder, store, family)
    assert family.pictures == 1
    assert all(torch.equal(a["moments"], b["moments"]) for (a, _), (b, _) in zip(whole, again, strict=True))
    assert broken.read_bytes() == data
    assert encoded(folder, store) == 0


def test_an_encoder_that_fails_leaves_nothing_behind(store: Path) -> None:
    def fail() -> Encoding:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cache(store).get("ab" * 32, fail)
    assert not files(store)


def test_a_full_disk_is_an_error_that_says_what_to_do(store: Path) -> None:
    """The limit on a file's size stands for the end of the disk: it makes the same kinds of error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(RunError, match="can't be written") as caught:
            Cache(store).get("ab" * 32, lambda: {"moments": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "--dataset.cache" in caught.value.next_step
    assert not files(store)
    assert Cache(store).get("ab" * 32, lambda: {"moments": torch.ones(2)})["moments"].tolist() == [1, 1]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="can't be written"):
        Cache(tmp_path / "file" / "cache").get("ab" * 32, lambda: {"moments": torch.ones(2)})
    assert (tmp_path / "file").read_text() == "no folder"


def test_files_are_named_after_their_key_and_hold_the_encoding_alone(store: Path) -> None:
    Cache(store).get("ab" * 32, lambda: {"moments": torch.ones(2)})
    (path,) = files(store)
    assert path == store / "ab" / f"{'ab' * 32}.safetensors"
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == ["moments"]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_pictures_of_other_shapes_are_other_pictures() -> None:
    red, wide = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 4), "red")
    assert cache.pixels_digest(red) != cache.pixels_digest(wide)


def test_the_default_folder_is_the_users_wish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STYLORA_CACHE", str(tmp_path))
    assert cache.default_folder() == tmp_path
    monkeypatch.delenv("STYLORA_CACHE")
    assert cache.default_folder() == Path.home() / ".cache" / "stylora"
