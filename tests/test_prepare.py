"""Before the first step: faults are found before anything is loaded, and only what is needed is loaded and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from training import config_for

from trainers import pictures, prepare, run
from trainers.config import TrainConfig
from trainers.errors import ConfigError, DatasetError
from trainers.events import Busy, Cached, Event, Note
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora import inject
from trainers.pictures import PictureData as Data

PictureFolder = Callable[..., Path]
Configure = Callable[..., TrainConfig]


@pytest.fixture
def configure(tiny_base: Path, tmp_path: Path) -> Configure:
    def make(data: Path, **settings: Any) -> TrainConfig:
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        return config_for(tiny_base, data, tmp_path / "run", {"dataset.cache": tmp_path / "cache", **dotted})

    return make


def encode(config: TrainConfig, opened: run.Opened | None = None) -> tuple[Data, list[Event]]:
    """The data, and the events told on the way."""
    machine, family, _ = opened or run.open_base(config)
    told: list[Event] = []

    def drain(steps: Iterator[Event]) -> Iterator[Event]:
        data = yield from steps  # type: ignore[misc]
        made.append(data)

    made: list[Data] = []
    told += drain(pictures.encode(config, family, pictures.scan(config, family), machine))
    return made[0], told


def cached(told: list[Event]) -> tuple[int, int]:
    (event,) = [event for event in told if isinstance(event, Cached)]
    return event.encoded, event.reused


# --- scan -------------------------------------------------------------------------------------------------------------


def test_faults_are_found_before_anything_is_loaded(configure: Configure, picture_folder: PictureFolder) -> None:
    folder = picture_folder(3)
    (folder / "00.png").write_bytes(b"")
    (folder / "01.txt").write_text("")
    config = configure(folder)
    family = run.open_base(config).family
    with pytest.raises(DatasetError) as caught:
        pictures.scan(config, family)
    assert len(caught.value.faults) == 2
    assert family.loaded_parts() == {}


def test_the_resolution_is_the_bases_own_unless_asked_for(configure: Configure, picture_folder: PictureFolder) -> None:
    folder = picture_folder(1, sizes=[(40, 40)])
    for wish, side in ((None, 16), (64, 64)):
        config = configure(folder, dataset__resolution=wish)
        assert pictures.scan(config, run.open_base(config).family).resolution == side


def test_a_resolution_that_the_base_cannot_do_names_one_that_it_can(
    configure: Configure, picture_folder: PictureFolder
) -> None:
    config = configure(picture_folder(1, sizes=[(64, 64)]), dataset__resolution=40)
    family = run.open_base(config).family
    family.multiple = 32
    with pytest.raises(ConfigError, match="multiples of 32") as caught:
        pictures.scan(config, family)
    assert caught.value.next_step == "use 32"


def test_pictures_under_half_the_resolution_are_refused(configure: Configure, picture_folder: PictureFolder) -> None:
    folder = picture_folder(2, sizes=[(16, 16), (15, 40)])
    config = configure(folder, dataset__resolution=32)
    with pytest.raises(DatasetError) as caught:
        pictures.scan(config, run.open_base(config).family)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["01.png"]


def test_patterns_that_match_nothing_are_found_before_the_run_begins(
    configure: Configure, picture_folder: PictureFolder
) -> None:
    for setting in ("lora__targets", "lora__text_targets"):
        config = configure(picture_folder(1, name=setting), **{setting: ["nowhere"]})
        with pytest.raises(ConfigError, match="nowhere"):
            list(run.start(config))
        assert not config.out.exists()


# --- encode -----------------------------------------------------------------------------------------------------------


def test_encodings_are_those_of_the_base_and_their_order_is_that_of_the_files(
    configure: Configure, picture_folder: PictureFolder
) -> None:
    folder = picture_folder(3, sizes=[(16, 16), (48, 24)])
    config = configure(folder, lora__text_encoder=False)
    data, told = encode(config)
    family = run.open_base(config).family
    assert [sample.path.name for sample in data.samples] == ["00.png", "01.png", "02.png"]
    assert [tuple(size) for size in data.plan.buckets] == [(16, 16), (16, 8), (16, 16)]
    with Image.open(folder / "02.png") as picture:
        wanted = family.encode_picture(picture.convert("RGB"))["moments"]
    torch.testing.assert_close(data.encodings[2]["moments"], wanted)
    torch.testing.assert_close(data.encodings[1]["text"], family.encode_text(data.captions[1])["text"])
    assert [event.done for event in told if isinstance(event, Busy)] == [1, 2, 3]
    assert cached(told) == (3 + 3 + 1, 0)  # and the empty caption, for caption dropout


def test_the_second_time_neither_vae_nor_text_encoder_is_loaded(
    configure: Configure, picture_folder: PictureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(picture_folder(2), lora__text_encoder=False)
    first, _ = encode(config)
    loaded: list[str] = []
    load = StableDiffusion._load
    monkeypatch.setattr(StableDiffusion, "_load", lambda self, name: (loaded.append(name), load(self, name))[1])
    second, told = encode(config)
    assert loaded == ["tokenizer"]
    assert cached(told) == (0, 5)
    assert first.digest == second.digest
    for one, other in zip(first.encodings, second.encodings, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("trained", [True, False])
def test_what_is_done_with_is_let_go(configure: Configure, picture_folder: PictureFolder, trained: bool) -> None:
    config = configure(picture_folder(1), lora__text_encoder=trained)
    opened = run.open_base(config)
    for part in ("vae", "text_encoder"):
        opened.family.part(part)
    data, _ = encode(config, opened)
    assert "vae" not in opened.family._parts
    assert set(opened.family.loaded_parts()) == ({"text_encoder"} if trained else set())
    assert ("ids" in data.encodings[0], "text" in data.encodings[0]) == (trained, not trained)


def test_the_digest_is_that_of_pixels_captions_and_repeats(configure: Configure, picture_folder: PictureFolder) -> None:
    folder = picture_folder(3)
    digests = [encode(configure(folder))[0].digest]
    for path in sorted(folder.glob("*")):
        path.rename(folder / f"renamed-{path.name}")
    assert encode(configure(folder))[0].digest == digests[0]
    (folder / "renamed-01.txt").write_text("a green cat")
    digests.append(encode(configure(folder))[0].digest)
    digests.append(encode(configure(folder, dataset__repeats=2))[0].digest)
    digests.append(encode(configure(folder, dataset__trigger="sks"))[0].digest)
    with Image.open(folder / "renamed-00.png") as picture:
        edited = picture.convert("RGB")
    edited.putpixel((0, 0), (9, 9, 9))
    edited.save(folder / "renamed-00.png")
    digests.append(encode(configure(folder))[0].digest)
    assert len(set(digests)) == 5


def test_a_caption_that_is_too_long_is_told(configure: Configure, picture_folder: PictureFolder) -> None:
    folder = picture_folder(2)
    (folder / "01.txt").write_text("a red house by the sea " * 20)
    _, told = encode(configure(folder))
    notes = [event.text for event in told if isinstance(event, Note) and "tokens" in event.text]
    assert len(notes) == 1
    assert notes[0].startswith("01.png")
    assert "122 tokens" in notes[0]
    assert "77" in notes[0]


def test_class_pictures_depend_on_what_the_base_is_said_to_predict(
    configure: Configure, picture_folder: PictureFolder
) -> None:
    wish: Mapping[str, Any] = {"prior__class_prompt": "a house", "prior__pictures": 1, "prior__steps": 1}
    folder = picture_folder(1)
    pixels = []
    for prediction in ("epsilon", "v"):
        data, _ = encode(configure(folder, **wish, objective__prediction=prediction))
        assert [(sample.caption, sample.prior) for sample in data.samples][1:] == [("a house", True)]
        assert data.captions == ["a red house by the sea"]
        pixels.append(data.samples[1].path.read_bytes())
    assert pixels[0] != pixels[1]


# --- LoRA and optimizer -----------------------------------------------------------------------------------------------


def test_each_part_gets_its_own_rank_scale_and_learning_rate(
    configure: Configure, picture_folder: PictureFolder
) -> None:
    settings = {"lora__rank": 6, "lora__alpha": 12.0, "lora__text_rank": 2, "optim__text_lr": 3e-4}
    config = configure(picture_folder(1), **settings, optim__schedule="constant", optim__warmup=2)
    machine, family, _ = run.open_base(config)
    shapes = pictures.shapes(config)
    prepare.put_lora(config, family, shapes)
    update = prepare.update(config, family, prepare.peak_rates(family, shapes), machine)
    assert [group.name for group in update.groups] == ["unet", "text_encoder"]
    assert update.rates(0) == pytest.approx([0.5e-2, 1.5e-4])
    assert update.rates(2) == pytest.approx([1e-2, 3e-4])
    for part, rank in (("unet", 6), ("text_encoder", 2)):
        pairs = inject.extract(part, family.part(part))
        assert {(pair.rank, pair.scale) for pair in pairs.values()} == {(rank, 2.0)}


def test_learning_rates_that_are_not_set_follow_the_base(configure: Configure, picture_folder: PictureFolder) -> None:
    """1 / width on average: layers of 32 and 64 inputs."""
    folder = picture_folder(1)
    for lr, text_lr, wanted in ((None, None, None), (None, 1e-4, (None, 1e-4)), (1e-3, None, (1e-3, 2e-4))):
        config = configure(folder, optim__lr=lr, optim__text_lr=text_lr)
        family = run.open_base(config).family
        prepare.put_lora(config, family, pictures.shapes(config))
        widths = inject.widths("unet", family.part("unet"))
        assert set(widths) == {32, 64}
        own = 0.2 * len(widths) / sum(widths)
        unet, text = wanted or (None, own / 5)
        rates = prepare.peak_rates(family, pictures.shapes(config))
        assert (rates["unet"], rates["text_encoder"]) == pytest.approx((unet or own, text))


def test_a_frozen_text_encoder_is_not_even_loaded(configure: Configure, picture_folder: PictureFolder) -> None:
    config = configure(picture_folder(1), lora__text_encoder=False)
    machine, family, _ = run.open_base(config)
    shapes = pictures.shapes(config)
    prepare.put_lora(config, family, shapes)
    update = prepare.update(config, family, prepare.peak_rates(family, shapes), machine)
    assert [group.name for group in update.groups] == ["unet"]
    assert set(family.loaded_parts()) == {"unet"}
