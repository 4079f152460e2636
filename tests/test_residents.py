"""What stays in memory between jobs: another weight costs no reading, other adapters lie in the recipe's order."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drawing import wild
from lms import lm
from texting import styled

from studio import resident
from studio.desk import residents
from studio.desk.residents import Residents
from studio.draw.recipe import Recipe
from studio.draw.use import Use
from studio.write.recipe import WritingRecipe
from trainers.errors import AdapterError, BaseError, StyloraError
from trainers.families import stable_diffusion
from trainers.lora.adapter import Adapter, AdapterInfo
from trainers.lora.gains import Gain
from trainers.lora.rack import Rack


@pytest.fixture(scope="module")
def files(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [wild(tiny_base, folder / f"{name}.safetensors", seed) for seed, name in enumerate("abc")]


@pytest.fixture
def held() -> Residents:
    return Residents("cpu")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read."""
    found: list[str] = []
    real = resident.read

    def read(rack: Rack, path: Path, partial: bool) -> Any:
        found.append(path.stem)
        return real(rack, path, partial)

    monkeypatch.setattr(resident, "read", read)
    return found


def recipe(base: Path, *files: Path, weight: float = 1.0) -> Recipe:
    return Recipe("a boat", base=str(base), adapters=tuple(Use(file, Gain(weight)) for file in files))


def test_another_weight_reads_and_packs_nothing(
    held: Residents, tiny_base: Path, files: list[Path], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = held.easel(recipe(tiny_base, *files[:2]))
    assert reads == ["a", "b"]
    first.rack.set([{}])
    monkeypatch.setattr(Rack, "add", lambda *_: pytest.fail("added"))
    monkeypatch.setattr(Rack, "_pack", lambda *_: pytest.fail("packed"))
    again = held.easel(recipe(tiny_base, *files[:2], weight=0.3))
    again.rack.set([dict.fromkeys(again.keys, Gain(0.3))])
    assert again.rack is first.rack
    assert again.keys == first.keys
    assert reads == ["a", "b"]


def test_the_rack_holds_what_the_recipe_names_in_its_order(
    held: Residents, tiny_base: Path, files: list[Path], reads: list[str]
) -> None:
    a, b, c = files
    for wanted in ([a, b], [b, a], [b], [b, c], [], [c, b, a]):
        easel = held.easel(recipe(tiny_base, *wanted))
        assert easel.rack.resident == easel.keys
        assert [use.path for use in easel.recipe.adapters] == wanted
    assert sorted(reads) == ["a", "b", "c"]


def test_a_file_that_changed_is_read_again(
    held: Residents, tiny_base: Path, files: list[Path], tmp_path: Path, reads: list[str]
) -> None:
    path = Path(shutil.copy(files[0], tmp_path / "x.safetensors"))
    before = held.easel(recipe(tiny_base, path))
    shutil.copy(files[1], path)
    os.utime(path, ns=(1, 1))
    after = held.easel(recipe(tiny_base, path))
    assert before.keys != after.keys == after.rack.resident
    assert reads == ["x", "x"]


def test_the_oldest_adapter_is_forgotten(
    held: Residents, tiny_base: Path, files: list[Path], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residents, "MOST", 2)
    for k in (0, 1, 0, 2, 0, 1):
        held.easel(recipe(tiny_base, files[k]))
    assert reads == ["a", "b", "c", "b"]


def test_after_a_fault_the_next_recipe_is_right(held: Residents, tiny_base: Path, files: list[Path]) -> None:
    broken = files[0].with_name("broken.safetensors")
    broken.write_bytes(b"nothing")
    with pytest.raises(AdapterError, match="broken"):
        held.easel(recipe(tiny_base, files[0], broken, files[1]))
    easel = held.easel(recipe(tiny_base, files[1], files[0]))
    assert easel.rack.resident == easel.keys


def test_one_base_of_each_kind(held: Residents, tiny_base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    words = lm("llama", tmp_path / "lm")
    text = held.desk(WritingRecipe("a", base=str(words), adapters=(Use(styled(words, tmp_path / "pirate")),)))
    one = held.easel(recipe(tiny_base))
    assert held.easel(recipe(tiny_base)).family is one.family
    other = held.easel(recipe(copy))
    assert other.family is not one.family
    os.utime(next((copy / "unet").glob("*.safetensors")), ns=(9**20, 9**20))
    assert held.easel(recipe(copy)).family is not other.family, "it was changed on the disk"
    assert held.desk(WritingRecipe("a", base=str(words))).family is text.family
    held.close()
    assert not text.family.loaded_parts()
    with pytest.raises(BaseError, match="wanted a Stable Diffusion model"):
        held.easel(recipe(words))


def test_a_folder_that_is_no_base_is_refused_before_it_is_looked_through(
    held: Residents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("rglob", "glob"):
        monkeypatch.setattr(Path, name, lambda *_: pytest.fail("looked through"))
    with pytest.raises(BaseError, match="holds no model_index"):
        held.easel(recipe(tmp_path))
    for odd in ("~nobody1/x", "x" * 300, "a\0b"):
        with pytest.raises(StyloraError, match="can't be a path"):
            held.easel(Recipe("a", base=odd))


def test_what_a_base_is_not_made_of_may_change(held: Residents, tiny_base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    one = held.easel(recipe(copy))
    (copy / "notes.txt").write_text("drawn with it")
    assert held.easel(recipe(copy)).family is one.family


def test_a_base_that_was_replaced_by_a_broken_one_is_told(held: Residents, tiny_base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    held.easel(recipe(copy))
    (copy / "model_index.json").write_text("{}")
    with pytest.raises(BaseError, match="of another kind"):
        held.easel(recipe(copy))


def test_between_jobs_nothing_acts(held: Residents, tiny_base: Path, files: list[Path]) -> None:
    easel = held.easel(recipe(tiny_base, files[0]))
    easel.rack.set([{easel.keys[0]: Gain(1.0)}])
    held.rest()
    assert all(layer.idle for layer in easel.rack._layers.values())


def headed(file: Path, path: Path, base: Path, digest: str) -> Use:
    """The adapter with a header that says which base it was trained on."""
    info = AdapterInfo({"stylora.base": base.name, "stylora.base_digest": digest})
    return Use(Adapter(Adapter.load(file).pairs, info).save(path, "peft"))


def test_a_picture_adapter_of_another_base_of_this_name(
    held: Residents, tiny_base: Path, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told without reading the base's files again."""
    unet = held.pictures(str(tiny_base)).family.digest("unet")
    held.easel(recipe(tiny_base))
    monkeypatch.setattr(stable_diffusion, "digest_of_files", lambda _: pytest.fail("the base was read again"))
    notes = {
        digest: held.easel(
            replace(recipe(tiny_base), adapters=(headed(files[0], tmp_path / digest, tiny_base, digest),))
        )
        for digest in (unet, "f" * 64)
    }
    assert notes[unet].notes == ()
    (note,) = notes["f" * 64].notes
    assert f"was trained on another {tiny_base.name} (its digest is ffffffff, this base's is {unet[:8]})" in note


def test_a_text_adapter_of_another_base_of_this_name(held: Residents, tmp_path: Path) -> None:
    words = lm("llama", tmp_path / "lm")
    file, model = styled(words, tmp_path / "pirate"), held.texts(str(words)).family.digest("model")
    for digest, notes in ((model, 0), ("f" * 64, 1)):
        use = headed(file, tmp_path / digest, words, digest)
        found = held.desk(WritingRecipe("a", base=str(words), adapters=(use,))).notes
        assert [f"this base's is {model[:8]}" in note for note in found] == [True] * notes


def test_equal_adapters_are_refused(held: Residents, tiny_base: Path, files: list[Path], tmp_path: Path) -> None:
    twin = Adapter.load(files[0]).save(tmp_path / "twin.safetensors")
    with pytest.raises(AdapterError, match="the same adapter"):
        held.easel(replace(recipe(tiny_base, files[0], files[0]), partial=True))
    assert twin.exists()
