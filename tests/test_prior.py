"""Class pictures are made once each, always from the same seeds, and again when anything they came from changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainers import prior
from trainers.errors import RunError
from trainers.prior import AT_ONCE, Wish

WISH = Wish("a house", 3, guidance=7.5, steps=4, size=16)


class Sampler:
    """Stands for the base: a picture's colour is its seed."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[int], dict[str, Any]]] = []

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], **settings: Any) -> list[Image.Image]:
        self.calls.append((list(prompts), list(seeds), settings))
        return [Image.new("RGB", settings["size"], (seed, 0, 0)) for seed in seeds]

    @property
    def seeds(self) -> list[int]:
        return [seed for _, seeds, _ in self.calls for seed in seeds]


def make(folder: Path, wish: Wish = WISH) -> Sampler:
    sampler = Sampler()
    list(prior.pictures(folder, wish, sampler))
    return sampler


def test_pictures_are_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "class"
    sampler = make(folder)
    settings = {"steps": 4, "guidance": 7.5, "size": (16, 16)}
    assert sampler.calls == [(["a house"] * 3, [0, 1, 2], settings)]
    assert make(folder).calls == []
    for k in range(3):
        with Image.open(prior.path_of(folder, k)) as picture:
            assert picture.getpixel((0, 0)) == (k, 0, 0)


def test_only_missing_ones_are_made_from_their_own_seeds(tmp_path: Path) -> None:
    make(tmp_path)
    prior.path_of(tmp_path, 1).unlink()
    assert make(tmp_path).seeds == [1]
    assert make(tmp_path, replace(WISH, count=5)).seeds == [3, 4]
    assert make(tmp_path, replace(WISH, count=2)).seeds == []


def test_a_few_at_once_and_progress_is_told(tmp_path: Path) -> None:
    sampler = Sampler()
    told = list(prior.pictures(tmp_path, replace(WISH, count=AT_ONCE + 3), sampler))
    assert [len(seeds) for _, seeds, _ in sampler.calls] == [AT_ONCE, 3]
    assert [(busy.done, busy.total) for busy in told] == [(AT_ONCE, AT_ONCE + 3), (AT_ONCE + 3, AT_ONCE + 3)]


def test_stopping_between_leaves_whole_pictures_and_nothing_else(tmp_path: Path) -> None:
    going: Iterator[object] = prior.pictures(tmp_path, replace(WISH, count=AT_ONCE + 3), Sampler())
    next(going)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{k:05}.png" for k in range(AT_ONCE)]
    assert make(tmp_path, replace(WISH, count=AT_ONCE + 3)).seeds == [AT_ONCE, AT_ONCE + 1, AT_ONCE + 2]


def test_another_wish_or_base_has_another_folder_and_another_count_has_not(tmp_path: Path) -> None:
    changes = [{}, {"prompt": "a boat"}, {"guidance": 7.0}, {"steps": 5}, {"size": 32}]
    folders = {prior.folder_for(tmp_path, replace(WISH, **change), "base") for change in changes}  # type: ignore[arg-type]
    folders.add(prior.folder_for(tmp_path, WISH, "other base"))
    assert len(folders) == len(changes) + 1
    assert prior.folder_for(tmp_path, replace(WISH, count=99), "base") in folders
    assert all(folder.is_relative_to(tmp_path) for folder in folders)


def test_as_samples_they_have_the_class_prompt_and_are_marked(tmp_path: Path) -> None:
    made = prior.samples(tmp_path, WISH)
    assert [sample.path for sample in made] == [prior.path_of(tmp_path, k) for k in range(3)]
    assert {(s.caption, s.repeats, s.size, s.prior) for s in made} == {("a house", 1, (16, 16), True)}


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="class pictures can't be written") as caught:
        make(tmp_path / "file" / "class")
    assert "--dataset.cache" in caught.value.next_step
