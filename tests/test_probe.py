"""A model's answers: the same for the same model, here and in a fresh process; settings stay in their folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import random_adapter, single_file
from safetensors.torch import load_file

from studio.merge.probe import answers, fresh, main, probe_for
from studio.merge.probe_pictures import PictureProbe
from trainers.errors import RunError
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora.gains import Gain
from trainers.lora.rack import Rack

IDS = torch.zeros(1, 77, dtype=torch.long)


def test_answers_depend_on_the_model_and_the_question_alone(tiny_base: Path) -> None:
    family = StableDiffusion(tiny_base)
    probe = probe_for(family, "ink style")
    said, again = answers(family, probe), answers(StableDiffusion(tiny_base), probe)
    assert said["text"].shape == (2, 77, 32)
    assert said["unet"].shape == (6, 4, 16, 16)
    assert all(torch.equal(said[what], again[what]) for what in said)
    other = answers(family, PictureProbe(probe.ids, probe.timesteps, seed=1))
    assert not torch.equal(said["unet"], other["unet"])
    with Rack(family.parts()) as rack:
        rack.set([{rack.add(random_adapter(tiny_base, 0)): Gain(1.0)}])
        changed = answers(family, probe)
    assert all(float((said[what] - changed[what]).abs().max()) > 0.01 for what in said)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_model_on_disk_says_the_same(tiny_base: Path, tmp_path: Path, kind: str) -> None:
    """What the fresh process does, in this one; tests/test_merging.py starts real ones."""
    model = tiny_base if kind == "folder" else single_file(tiny_base, tmp_path / "one.safetensors")
    family = StableDiffusion(tiny_base)
    probe = probe_for(family)
    (tmp_path / "probe").write_text(json.dumps(probe.data()))
    main(*map(str, (model, tmp_path / "probe", tmp_path / "answers", tiny_base)))
    here, there = answers(family, probe), load_file(tmp_path / "answers")
    assert all(float((here[what] - there[what]).abs().max()) < 1e-5 for what in here)


def test_what_a_fresh_process_cannot_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    (tmp_path / "probe").write_text(json.dumps(PictureProbe(IDS, (1,)).data()))
    with pytest.raises(SystemExit, match="its scheduler can't be read"):
        main(*(str(tmp_path / name) for name in ("model", "probe", "answers", "settings")))
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RunError, match="a fresh process can't load it"):
        fresh(tmp_path / "model", PictureProbe(IDS, (1,)))


@pytest.mark.parametrize("name", ["../x.json", "/tmp/x.json", "unet/../../x.json", "unet/x.py", "a/b/c.json", ""])
def test_settings_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="aren't settings"):
        fresh(tmp_path, PictureProbe(IDS, (1,)), {name: b"{}"})
