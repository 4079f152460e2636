"""The judge: the shipped file is as good as it says, a saved one comes back the same, a wrong one is refused.

The scenes are drawn afresh by sample_data/make, from seeds that no training has seen.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from studio.judge import SIDE, SceneJudge
from trainers.errors import StyloraError

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "sample_data" / "judge.safetensors"
FIRST_UNSEEN = 10_500_000  # past those the file's own accuracies were measured on
COUNT = 60


@pytest.fixture(scope="module")
def judge() -> SceneJudge:
    return SceneJudge.load(FILE)


@pytest.fixture(scope="module")
def drawing() -> Iterator[Any]:
    """sample_data/make/styles.py, and its folder on the path for as long as these tests run."""
    sys.path.insert(0, str(ROOT / "sample_data" / "make"))
    import styles

    yield styles
    sys.path.remove(str(ROOT / "sample_data" / "make"))


def small_judge() -> SceneJudge:
    torch.manual_seed(1)
    return SceneJudge(["house", "boat"], ["red", "blue", "green"], {"object: plain": 0.5})


def test_it_sees_what_plain_scenes_show(judge: SceneJudge, drawing: Any) -> None:
    seeds = range(FIRST_UNSEEN, FIRST_UNSEEN + COUNT)
    scenes = [drawing.random_scene(seed) for seed in seeds]
    verdicts = judge.judge([drawing.draw(seed)[0] for seed in seeds])
    assert sum(v.thing == s.thing for v, s in zip(verdicts, scenes, strict=True)) >= 0.95 * COUNT
    assert sum(v.colour == s.colour for v, s in zip(verdicts, scenes, strict=True)) >= 0.95 * COUNT
    assert all(0 < v.p_thing <= 1 and 0 < v.p_colour <= 1 for v in verdicts)


def test_it_sees_objects_in_every_sample_style(judge: SceneJudge, drawing: Any) -> None:
    right = 0
    for number, style in enumerate(drawing.SAMPLES.values()):
        seeds = range(FIRST_UNSEEN + 1000 * number, FIRST_UNSEEN + 1000 * number + 10)
        verdicts = judge.judge([drawing.draw(seed, style)[0] for seed in seeds])
        things = [drawing.random_scene(seed).thing for seed in seeds]
        right += sum(v.thing == thing for v, thing in zip(verdicts, things, strict=True))
    assert right >= 0.9 * 60


def test_its_file_says_what_it_is_worth(judge: SceneJudge, drawing: Any) -> None:
    looks = {"plain", *drawing.KNOWN, *drawing.SAMPLES}
    assert judge.accuracies.keys() == {f"object: {look}" for look in looks} | {"colour: plain", "colour: pixel art"}
    assert judge.accuracies["object: plain"] >= 0.98
    assert judge.accuracies["colour: plain"] >= 0.98
    assert all(judge.accuracies[f"object: {look}"] >= 0.9 for look in drawing.SAMPLES)
    assert len(judge.things) == 12
    assert len(judge.colours) == 8
    assert FILE.stat().st_size < 500_000


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_saved_and_loaded_is_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    judge = small_judge()
    judge.save(tmp_path / "judge.safetensors", dtype)
    again = SceneJudge.load(tmp_path / "judge.safetensors")
    assert (again.things, again.colours, again.accuracies) == (judge.things, judge.colours, judge.accuracies)
    weights = judge.state_dict()
    assert all(torch.equal(weights[name].to(dtype).to(value), value) for name, value in again.state_dict().items())
    assert {value.dtype for value in again.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_a_picture_is_judged_alike_alone_and_in_a_crowd() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (5, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    judge = small_judge()
    judge.train()  # judging must not depend on, or change, the mode it was left in
    together = judge.judge(pictures)
    alone = [judge.judge([Image.fromarray(picture.permute(1, 2, 0).numpy())])[0] for picture in pictures]
    assert [(v.thing, v.colour) for v in together] == [(v.thing, v.colour) for v in alone]
    assert [v.p_thing for v in together] == pytest.approx([v.p_thing for v in alone], abs=1e-5)
    assert judge.judge([]) == []


def test_larger_pictures_are_brought_to_size(judge: SceneJudge, drawing: Any) -> None:
    scenes = [drawing.random_scene(FIRST_UNSEEN + k) for k in range(12)]
    large = [drawing.draw_scene(scene) for scene in scenes]  # 256 pixels
    assert sum(v.thing == s.thing for v, s in zip(judge.judge(large), scenes, strict=True)) >= 11


def test_files_that_are_no_judge_are_refused_with_every_fault(tmp_path: Path) -> None:
    with pytest.raises(StyloraError, match=r"absent\.safetensors can't be read"):
        SceneJudge.load(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("not a judge at all")
    with pytest.raises(StyloraError, match="can't be read"):
        SceneJudge.load(tmp_path / "text.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(StyloraError) as caught:
        SceneJudge.load(tmp_path / "other.safetensors")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["things", "colours", "accuracies"]


def test_tensors_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    small_judge().save(path)
    weights = load_file(path)
    del weights["trunk.0.weight"]
    weights["thing.answer.bias"] = torch.zeros(5)
    header = {"things": '["house", "boat"]', "colours": '["red", "blue", "green"]', "accuracies": "{}"}
    save_file({**weights, "extra": torch.zeros(2)}, path, header)
    with pytest.raises(StyloraError) as caught:
        SceneJudge.load(path)
    assert caught.value.faults == (
        "extra: got [2], wanted nothing",
        "thing.answer.bias: got [5], wanted [2]",
        "trunk.0.weight: got nothing, wanted [24, 3, 3, 3]",
    )
