"""The jobs that make files and those that measure: what the commands make, where pages find it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from desks import run
from drawing import wild
from lms import lm
from texting import styled

from studio.blend import blending
from studio.desk import measuring
from studio.desk.jobs import Blend, Export, Job, Measure, Merge, Resize
from studio.desk.work import told
from studio.draw.use import Use
from studio.merge import merge as merging
from studio.merge.merge import Merged
from studio.merge.weights import open_base
from trainers.errors import AdapterError, ConfigError, StyloraError
from trainers.lora.adapter import Adapter, content_digest, save_dora
from trainers.lora.gains import Gain


@pytest.fixture
def uses(tiny_base: Path, tmp_path: Path) -> tuple[Use, Use]:
    one, other = (wild(tiny_base, tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate(("ink", "neon")))
    return Use(one, Gain(0.6, 0.2, blocks={"MID": 0.5})), Use(other, Gain(0.4))


def test_a_blend_is_the_commands_and_in_the_library(uses: tuple[Use, Use], tmp_path: Path) -> None:
    work, result = run(tmp_path, Blend(uses, "both of them"))
    texts = [f"{uses[0].path}:0.6:te=0.2:blocks=MID=0.5", f"{uses[1].path}:0.4"]
    wanted = blending.blend(texts, blending.Plan(), tmp_path / "x.safetensors").adapter
    entry = work.library.entry(result["id"])
    assert entry.path == tmp_path / "both of them.safetensors" == tmp_path / result["path"]
    assert content_digest(Adapter.load(entry.path)) == content_digest(wanted)
    assert result["total"]["modules"] == len(wanted.pairs)
    assert {"block", "share", "in_file", "ranks"} <= result["blocks"][0].keys()
    assert (work.folder / result["figure"]).read_bytes().startswith(b"\x89PNG")
    json.dumps(result)


def test_a_resize_cuts(uses: tuple[Use, Use], tmp_path: Path) -> None:
    work, result = run(tmp_path, Resize(uses[:1], "small", rank=2))
    assert {pair.rank for pair in Adapter.load(work.home / result["path"]).pairs.values()} == {2}
    assert 0 < result["total"]["share"] < 1


def test_names_lead_nowhere_else(uses: tuple[Use, Use], tmp_path: Path) -> None:
    for name in ("../../etc/my ink.safetensors", "日" * 200, "night: sky, x=1"):
        work, result = run(tmp_path, Resize(uses[:1], name, rank=2))
        assert (work.home / result["path"]).resolve().parent == tmp_path
    assert (tmp_path / "my ink.safetensors").is_file()


@pytest.mark.parametrize("name", ["a:b", "ink, neon", "x=1", "it's :te=0.5:"])
def test_any_file_name_goes_into_a_blend(name: str, uses: tuple[Use, Use], tmp_path: Path) -> None:
    odd = replace(uses[0], path=uses[0].path.rename(tmp_path / f"{name}.safetensors"), name=name)
    _, result = run(tmp_path, Blend((odd, uses[1]), "mix"))
    plain = replace(odd, path=odd.path.rename(tmp_path / "ink.safetensors"))
    _, wanted = run(tmp_path, Blend((plain, uses[1]), "other"))
    assert result["id"] == wanted["id"]
    assert result["certificate"]["adapters"][0]["name"] == name


def test_what_has_the_name_is_kept_in_the_bin(uses: tuple[Use, Use], tmp_path: Path) -> None:
    for job in (Blend(uses, "mix"), Resize(uses[:1], "mix", rank=2)):
        work, first = run(tmp_path, replace(job, overwrite=True))
        with pytest.raises(ConfigError, match="in the library already") as caught:
            run(tmp_path, job)
        assert caught.value.next_step == "give another name, or tick Replace"
    assert [entry.name for entry in work.library.removed()] == ["mix"]
    assert first["id"] == work.library.entry(first["id"]).id


def test_an_adapter_can_be_replaced_by_what_is_made_of_it(uses: tuple[Use, Use], tmp_path: Path) -> None:
    work, result = run(tmp_path, Blend(uses, "ink", overwrite=True))
    (old,) = work.library.removed()
    assert result["path"] == "ink.safetensors"
    assert old.id != result["id"]
    work.library.restore(old.id)
    assert len(work.library.cards()) == 3


def test_of_a_folder_a_folder_is_made(uses: tuple[Use, Use], tmp_path: Path) -> None:
    folder = Use(Adapter.load(uses[0].path).save(tmp_path / "folder", "peft"))
    work, result = run(tmp_path, Blend((folder, uses[1]), "mix"))
    assert (work.home / result["path"] / "unet").is_dir()


def test_a_cut_is_asked_for_in_the_pages_words(uses: tuple[Use, Use], tmp_path: Path) -> None:
    for job in (Resize(uses[:1], "small"), Blend(uses, "both", method="odd"), Resize(uses[:1], "small", rank=999)):
        with pytest.raises(StyloraError) as caught:
            run(tmp_path, job)
        assert "--" not in str(told(caught.value))


def test_adapters_with_dora_are_read_with_their_base(tmp_path: Path) -> None:
    base = lm("llama", tmp_path / "base")
    plain = Adapter.load(styled(base, tmp_path / "plain"))
    weights = open_base(base)
    magnitudes = {path: weights.weight(path).norm(dim=1) * 1.5 for path in plain.pairs}
    uses = (Use(save_dora(tmp_path / "pirate", plain, magnitudes)),)
    jobs: list[Job] = [
        Blend(uses, "mix"),
        Resize(uses, "small", rank=1),
        Export(uses, "peft"),
        Measure("anatomy", uses),
    ]
    for job in jobs:
        with pytest.raises(AdapterError, match="no base was given") as caught:
            run(tmp_path, job)
        assert len(caught.value.faults) == 1
        assert caught.value.next_step == "choose the base it was trained on"
        work, result = run(tmp_path, replace(job, base=str(base)))  # type: ignore[arg-type]
        assert result
    made = Adapter.load(work.home / "mix").pairs
    wanted = Adapter.load(uses[0].path, weight_of=weights.weight).pairs
    assert made.keys() == wanted.keys()


def test_exports_lie_apart(uses: tuple[Use, Use], tmp_path: Path) -> None:
    for to in ("diffusers", "peft", "diffusers"):
        work, result = run(tmp_path, Export(uses[:1], to, dtype="fp32"))
        made, own = Adapter.load(work.folder / result["path"]), Adapter.load(uses[0].path)
        assert all(torch.equal(made.pairs[path].delta(), pair.delta()) for path, pair in own.pairs.items())
    assert len(list((work.folder / "exports").iterdir())) == 3
    with pytest.raises(ConfigError, match="GGUF"):
        run(tmp_path, Export(uses[:1], "gguf"))


def test_a_merge_is_given_what_was_asked(
    uses: tuple[Use, Use], tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def merge(base: str, adapters: tuple[Use, ...], out: Path, **more: object) -> Merged:
        asked.extend((base, adapters, out, more))
        raise AdapterError("enough")

    monkeypatch.setattr(merging, "merge", merge)
    left = tmp_path / ".studio" / "merged" / "000001-dead" / ".inked.1.part"
    left.mkdir(parents=True)
    kept = left.parents[1] / "000002-done" / "inked"
    kept.mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(AdapterError, match="enough"):
            run(tmp_path, Merge(uses, "../inked", str(tiny_base), dtype="fp32"))
    base, adapters, out, more, *_, other, _ = asked
    assert (base, adapters) == (str(tiny_base), uses)
    assert isinstance(out, Path)
    assert isinstance(other, Path)
    assert (out.name, out.parents[1]) == ("inked", kept.parents[1])
    assert out.parent != other.parent, "no two desks' merges meet"
    assert more == {"dtype": "fp32", "partial": False}
    assert (left.parent.exists(), kept.exists()) == (False, True)


@pytest.mark.parametrize("base", ["~nobody1/x", "x" * 300, "/nowhere/at/all"])
def test_a_base_that_is_none_is_told(base: str, uses: tuple[Use, Use], tmp_path: Path) -> None:
    for job in (Merge(uses, "x", base), Export(uses[:1], "gguf", base=base), Measure("anatomy", uses[:1], base)):
        with pytest.raises(StyloraError) as caught:
            run(tmp_path, job)
        assert "x" * 100 not in str(caught.value)


# --- measuring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", measuring.MEASURES)
def test_measures_are_facts_and_a_figure(what: str, uses: tuple[Use, Use], tiny_base: Path, tmp_path: Path) -> None:
    asked = uses[:1] if what == "anatomy" else uses
    job = Measure(what, asked, str(tiny_base), weights=(0.5, 1.0), pictures=what == "strength")  # type: ignore[arg-type]
    work, result = run(tmp_path, job)
    assert (work.folder / result["figure"]).read_bytes().startswith(b"\x89PNG")
    facts = json.loads(json.dumps(result["facts"], allow_nan=False))
    if what == "strength":
        assert facts["adapters"]["ink"]["effects"][0] < facts["adapters"]["ink"]["effects"][1]
    elif what == "conflict":
        assert facts["pairs"][0]["share"] >= 0
        assert facts["pairs"][0]["verdict"]
    else:
        assert all(block["relative"] > 0 for block in facts["blocks"])
    held = work.residents.pictures(str(tiny_base))
    unet = held.family.part("unet")
    assert not any(module._forward_hooks for module in unet.modules()), "nothing of it stays in the base"


@pytest.mark.parametrize(("what", "count"), [("anatomy", 2), ("conflict", 1), ("strength", 0)])
def test_too_few_or_too_many_are_refused(what: str, count: int, uses: tuple[Use, Use], tmp_path: Path) -> None:
    with pytest.raises(StyloraError):
        run(tmp_path, Measure(what, uses[:count], "tiny-sd"))  # type: ignore[arg-type]
