"""The jobs that make files and those that measure: what the commands make, where pages find it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from desks import run
from drawing import wild

from studio.blend import blending
from studio.desk import measuring
from studio.desk.jobs import Blend, Export, Measure, Merge, Resize
from studio.desk.making import file_name, typed
from studio.draw.use import Use, parse_use
from studio.merge import merge as merging
from studio.merge.merge import Merged
from trainers.errors import AdapterError, ConfigError, StyloraError
from trainers.lora.adapter import Adapter, content_digest
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
    with pytest.raises(AdapterError, match="nothing was written"):
        run(tmp_path, Blend(uses, "both of them"))


def test_a_resize_cuts(uses: tuple[Use, Use], tmp_path: Path) -> None:
    work, result = run(tmp_path, Resize(uses[:1], "small", rank=2))
    assert {pair.rank for pair in Adapter.load(work.home / result["path"]).pairs.values()} == {2}
    assert 0 < result["total"]["share"] < 1


def test_a_use_as_text_is_read_as_the_same(uses: tuple[Use, Use]) -> None:
    for use in (*uses, replace(uses[0], gain=Gain(-0.125, schedule=((0, 0), (1, 0.4))), name="Tusche")):
        assert parse_use(typed(use)) == use


def test_names_lead_nowhere_else() -> None:
    assert file_name("../../etc/my ink.safetensors") == "etc-my ink"
    for empty in ("", "..", "///"):
        with pytest.raises(ConfigError):
            file_name(empty)


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
    with pytest.raises(AdapterError, match="enough"):
        run(tmp_path, Merge(uses, "../inked", str(tiny_base), dtype="fp32"))
    base, adapters, out, more = asked
    assert (base, adapters, out) == (str(tiny_base), uses, tmp_path / ".studio" / "merged" / "inked")
    assert more == {"dtype": "fp32", "partial": False, "overwrite": False}


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
