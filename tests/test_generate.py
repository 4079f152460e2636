"""Recipes to pictures: weights, what fits, digests that are promises, sizes, seeds, and what is drawn together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import Pixels, pixels, wild

from studio.draw import generate
from studio.draw.recipe import Recipe
from studio.draw.use import Use
from trainers.errors import AdapterError, BaseError, ConfigError
from trainers.families.stable_diffusion import SAMPLERS, StableDiffusion
from trainers.lora.adapter import Adapter, content_digest, digest
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair


@pytest.fixture(scope="module")
def ink(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wild(tiny_base, tmp_path_factory.mktemp("adapters") / "ink.safetensors")


@pytest.fixture(scope="module")
def quick(tiny_base: Path, ink: Path) -> Recipe:
    return Recipe("a red house", base=str(tiny_base), adapters=(Use(ink),), seed=3, steps=3, guidance=4.0)


@pytest.fixture(scope="module")
def easel(quick: Recipe) -> generate.Easel:
    return generate.load(quick, "cpu")


def drawn(easel: generate.Easel, *cells: Recipe, **more: Any) -> list[Pixels]:
    made = dict(generate.draw(easel, cells, **more))
    return [pixels(made[k].image) for k in range(len(cells))]


def apart(one: Pixels, other: Pixels) -> int:
    return int(np.abs(one - other).max())


def with_gain(recipe: Recipe, *gains: Gain) -> Recipe:
    uses = (replace(use, gain=gain) for use, gain in zip(recipe.adapters, gains, strict=True))
    return replace(recipe, adapters=tuple(uses))


# --- gains -----------------------------------------------------------------------------------------------------------


def test_every_part_of_a_gain_is_seen(easel: generate.Easel, quick: Recipe) -> None:
    gains = [
        Gain(),
        Gain(0.8),
        Gain(-1.0),
        Gain(1.0, 0.0),
        Gain(1.0, blocks={"MID": 0.0}),
        Gain(schedule=((0, 0), (1, 1))),
    ]
    cells = [with_gain(quick, gain) for gain in (Gain(0.0), *gains)]
    (bare,) = drawn(generate.load(replace(quick, adapters=()), "cpu"), replace(quick, adapters=()))
    made = drawn(easel, *cells)
    assert apart(made[0], bare) <= 1
    for k, one in enumerate(made):
        for other in made[:k]:
            assert apart(one, other) > 2, cells[k]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_schedule_follows_the_steps(easel: generate.Easel, quick: Recipe, sampler: str) -> None:
    """Each call of the UNet sees the gains of its timestep's place, also where one timestep is called twice."""
    seen: list[tuple[float, float]] = []  # (timestep, the schedule's place as the rack's own numbers tell it)
    rack = easel.rack

    def note(_: Any, given: tuple[Any, ...]) -> None:
        seen.append((float(given[1]), rack._table()[0, -1].item()))

    hook = rack.parts["unet"].register_forward_pre_hook(note)
    try:
        drawn(easel, with_gain(replace(quick, steps=8, sampler=sampler), Gain(schedule=((0, 0), (1, 1)))))
    finally:
        hook.remove()
    timesteps = list(dict.fromkeys(timestep for timestep, _ in seen))
    assert len(timesteps) == 8
    assert len(seen) == (9 if sampler == "pndm" else 8)
    assert seen == [(timestep, timesteps.index(timestep) / 8) for timestep, _ in seen]


def test_a_schedule_leaves_the_text_encoder_its_weight(easel: generate.Easel, quick: Recipe) -> None:
    late = ((0.0, 0.0), (1.0, 0.0))
    never, bare = Gain(schedule=late), Gain(schedule=late, text_encoder=0.0)
    text_only, nothing = Gain(0.0, 1.0), Gain(0.0)
    made = drawn(easel, *(with_gain(quick, gain) for gain in (never, bare, text_only, nothing)))
    assert apart(made[0], made[2]) <= 1
    assert apart(made[1], made[3]) <= 1
    assert apart(made[0], made[1]) > 2


def test_two_halves_are_one_whole(tiny_base: Path, easel: generate.Easel, quick: Recipe, tmp_path: Path) -> None:
    whole = Adapter.load(quick.adapters[0].path)
    half = {path: LoraPair(pair.down, pair.up, pair.alpha / 2) for path, pair in whole.pairs.items()}
    other = Adapter(half).save(tmp_path / "half.safetensors", dtype=torch.float32)
    both = replace(quick, adapters=(Use(quick.adapters[0].path, Gain(0.5)), Use(other)))
    (one,), (two,) = drawn(generate.load(both, "cpu"), both), drawn(easel, quick)
    assert apart(one, two) <= 1


def test_the_same_adapter_twice_is_refused(quick: Recipe, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(quick.adapters[0].path.read_bytes())
    with pytest.raises(AdapterError, match="the same adapter as"):
        generate.load(replace(quick, adapters=(*quick.adapters, Use(copy))), "cpu")


# --- what fits, and what was promised --------------------------------------------------------------------------------


def odd(ink: Path, path: Path) -> Path:
    """An adapter with two modules no base has, the third of it."""
    pairs = dict(list(Adapter.load(ink).pairs.items())[:4])
    strange = {f"unet.no_such_block.{k}": pair for k, pair in enumerate(list(pairs.values())[:2])}
    return Adapter(pairs | strange).save(path, "diffusers", torch.float32)


def test_a_part_only_is_refused_unless_asked_for(quick: Recipe, ink: Path, tmp_path: Path) -> None:
    recipe = replace(quick, adapters=(Use(odd(ink, tmp_path / "odd.safetensors")),))
    with pytest.raises(AdapterError, match="only part of this adapter") as caught:
        generate.load(recipe, "cpu")
    assert "no_such_block" in str(caught.value)
    loaded = generate.load(replace(recipe, partial=True), "cpu")
    (note,) = loaded.notes
    assert note.startswith("odd.safetensors: ")
    assert "of its energy acts in this base" in note


def test_all_adapters_are_looked_at(quick: Recipe, ink: Path, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no weights at all, but text")
    uses = (Use(odd(ink, tmp_path / "odd.safetensors")), Use(ink), Use(tmp_path / "text.safetensors"))
    with pytest.raises(AdapterError, match="2 adapters can't be used") as caught:
        generate.load(replace(quick, adapters=uses), "cpu")
    faults = "\n".join(caught.value.faults)
    assert "odd.safetensors: only part" in faults
    assert "text.safetensors: not a whole safetensors file" in faults


def test_digests_are_promises(easel: generate.Easel, quick: Recipe, ink: Path, tiny_base: Path) -> None:
    known = easel.recipe
    assert known.adapters[0].digest == content_digest(Adapter.load(ink)) == easel.keys[0]
    assert known.adapters[0].sha256 == digest(ink)
    assert known.digests["unet"] == StableDiffusion(tiny_base).digest("unet")
    assert generate.load(known, "cpu").recipe == known
    with pytest.raises(BaseError) as caught:
        generate.load(replace(known, digests=known.digests | {"vae": "0", "unet": "1"}), "cpu")
    assert len(caught.value.faults) == 2


@pytest.mark.parametrize(
    ("digest", "sha256", "other"),
    [
        (True, True, ""),
        (False, True, ""),  # DoRA's conversion rounds otherwise elsewhere
        (True, False, ""),  # another header
        (None, True, ""),
        (True, None, ""),
        (False, False, "digest"),
        (False, None, "digest"),
        (None, False, "sha256"),
    ],
)
def test_the_same_file_or_the_same_numbers_keep_a_promise(
    easel: generate.Easel, digest: bool | None, sha256: bool | None, other: str
) -> None:
    use = easel.recipe.adapters[0]
    pinned = {None: "", False: "0" * 64}
    wanted = replace(use, digest=pinned.get(digest, use.digest), sha256=pinned.get(sha256, use.sha256))
    recipe = replace(easel.recipe, adapters=(wanted,))
    if not other:
        assert generate.load(recipe, "cpu").recipe == easel.recipe
        return
    with pytest.raises(AdapterError, match=f"not the adapter of the recipe: its {other} is .*, wanted 000000000000"):
        generate.load(recipe, "cpu")


def test_a_size_the_base_cannot_do_is_refused_before_it_is_loaded(
    quick: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StableDiffusion, "part", lambda *_: pytest.fail("a part was loaded"))
    with pytest.raises(ConfigError) as caught:
        generate.load(replace(quick, size=(18, 16)), "cpu")
    assert caught.value.faults == ("18 is none",)
    assert caught.value.next_step == "use 16x16"


def test_steps_that_no_sampler_can_take_are_refused_before_anything_is_drawn(
    quick: Recipe, easel: generate.Easel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StableDiffusion, "sample", lambda *_, **__: pytest.fail("a picture was drawn"))
    with pytest.raises(ConfigError, match=r"steps: got 1000, wanted at most 99\d, as many as unipc"):
        drawn(easel, quick, replace(quick, steps=1000, sampler="unipc"))


# --- batches ---------------------------------------------------------------------------------------------------------


def test_what_shares_its_numbers_is_one_batch(quick: Recipe) -> None:
    cells = [replace(quick, seed=k, guidance=g) for k in range(3) for g in (2.0, 7.0)]
    assert generate.batches(cells) == [[0, 2, 4], [1, 3, 5]]
    assert generate.batches(cells, 2) == [[0, 2], [4], [1, 3], [5]]
    for change in ({"steps": 9}, {"size": (8, 8)}, {"sampler": "ddim"}):
        assert len(generate.batches([quick, replace(quick, **change)])) == 2  # type: ignore[arg-type]


def test_a_cell_of_a_batch_is_the_single_picture(easel: generate.Easel, quick: Recipe) -> None:
    cells = [
        with_gain(quick, Gain(0.7)),
        with_gain(replace(quick, prompt="a boat", seed=9), Gain(1.0, 0.2, {"MID": 0.0}, ((0, 0), (0.5, 1)))),
        with_gain(replace(quick, negative="night"), Gain(-0.5)),
        replace(quick, sampler="euler-a"),
    ]
    told: list[tuple[int, int]] = []
    together = drawn(easel, *cells, on_step=lambda *step: told.append(step))
    for one, cell in zip(together, cells, strict=True):
        assert apart(one, drawn(easel, cell)[0]) <= 2
        others = [other for other in together if other is not one]
        assert all(apart(one, other) > 2 for other in others)
    assert told == [(k, 6) for k in range(1, 7)]


def test_picture_k_is_the_same_whatever_the_count(easel: generate.Easel, quick: Recipe) -> None:
    three = replace(quick, count=3).pictures()
    many, in_parts = drawn(easel, *three), drawn(easel, *three, most=2)
    for one, other, recipe in zip(many, in_parts, three, strict=True):
        assert apart(one, other) <= 1
        assert apart(one, drawn(easel, recipe)[0]) <= 1


def test_what_a_picture_knows_of_itself(easel: generate.Easel) -> None:
    made = dict(generate.draw(easel, replace(easel.recipe, count=3).pictures(), most=2))
    told = [picture.recipe.made for picture in made.values()]
    assert [(made.batch, made.place) for made in told if made] == [(2, 0), (2, 1), (1, 0)]
    assert made[2].recipe.size == made[2].image.size == (16, 16)
    assert made[2].recipe.seed == easel.recipe.seed + 2
