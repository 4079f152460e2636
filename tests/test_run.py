"""A whole run on the miniature base: every setting has its effect, equal runs give equal bytes, faults stop cleanly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from training import adapter, config_for, deltas, distance, numbers, pictures, train

from trainers import prepare, run
from trainers.config import TrainConfig, leaves
from trainers.errors import ConfigError, DatasetError, RunError, TrainingError
from trainers.events import Cached, Finished, Note, Preview, Saved, Step
from trainers.families.base import Encoding, Loss
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora import inject
from trainers.lora.adapter import components, digest

PRIOR = {"prior.class_prompt": "a house", "prior.pictures": 2, "prior.steps": 1}
ADAMW = {"optim.name": "adamw"}

# setting -> [(value, what else is set in both runs, what is set in the other run)]: the adapter's numbers must differ
CHANGES: dict[str, list[tuple[Any, Mapping[str, Any]]]] = {
    "seed": [(4, {})],
    "lora.rank": [(3, {})],
    "lora.alpha": [(8.0, {})],
    "lora.dropout": [(0.5, {})],
    "lora.rslora": [(True, {})],
    "lora.targets": [("attention+ff", {}), (["attn2.to_k"], {})],
    "lora.text_encoder": [(False, {})],
    "lora.text_rank": [(2, {})],
    "lora.text_targets": [("attention+ff", {})],
    "dataset.resolution": [(32, {})],
    "dataset.instance_prompt": [("a gold cat", {"dataset.trigger": "sks"})],
    "dataset.trigger": [("sks", {})],
    "dataset.caption_dropout": [(1.0, {})],
    "dataset.repeats": [(3, {"train.batch": 3})],
    "dataset.background": [("#0000ff", {})],
    "dataset.flip": [(True, {})],
    "prior.class_prompt": [("a house", {"prior.pictures": 2, "prior.steps": 1}), ("a boat", PRIOR)],
    "prior.pictures": [(1, PRIOR)],
    "prior.weight": [(0.1, PRIOR)],
    "prior.guidance": [(1.0, PRIOR)],
    "prior.steps": [(2, PRIOR)],
    "objective.min_snr_gamma": [(None, {"train.batch": 8}), (1.0, {})],
    "objective.noise_offset": [(0.5, {})],
    "objective.prediction": [("v", {})],
    "optim.name": [("adamw", {}), ("lion8bit", {})],
    "optim.lr": [(2e-2, {})],
    "optim.text_lr": [(1e-4, {})],
    "optim.weight_decay": [(5.0, {})],
    "optim.beta1": [(0.1, ADAMW)],
    "optim.beta2": [(0.5, ADAMW)],
    "optim.schedule": [("constant", {}), ("linear", {})],
    "optim.warmup": [(3, {})],
    "optim.clip": [(1e-3, ADAMW)],
    "train.steps": [(2, {})],
    "train.batch": [(2, {})],
    "train.precision": [("bf16", {}), ("fp16", {})],
    "adapter.dtype": [("fp16", {}), ("bf16", {})],
}
# settings that change no numbers; each has a test of its own below or in test_loop, test_prepare, test_devices
OTHERS = {
    "base", "data", "out", "name", "adapter.format", "dataset.cache", "dataset.require_captions", "train.device",
    "train.gradient_checkpointing", "train.keep", "train.micro_batch", "train.preview_every", "train.preview_prompts",
    "train.save_every",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures; one has no caption and is partly transparent."""
    folder = pictures(tmp_path_factory.mktemp("data") / "ink")
    with Image.open(folder / "03.png") as picture:
        seen = picture.convert("RGBA")
    seen.paste((0, 0, 0, 0), (0, 0, 8, 16))
    seen.save(folder / "03.png")
    return folder


@pytest.fixture(autouse=True)
def _no_thumbnail(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than all the steps; test_report looks at a real one."""
    monkeypatch.setattr(run.pictures, "thumbnail", lambda *_: b"\xff\xd8\xff\xd9")


class Runs:
    """Trains in fresh folders; runs of the same settings are trained once."""

    def __init__(self, base: Path, data: Path, place: Path) -> None:
        self.base, self.data, self.place, self.count = base, data, place, 0
        self._known: dict[str, TrainConfig] = {}

    def config(self, settings: Mapping[str, Any] | None = None, data: Path | None = None) -> TrainConfig:
        self.count += 1
        return config_for(self.base, data or self.data, self.place / f"run{self.count}", settings)

    def known(self, settings: Mapping[str, Any] | None = None) -> TrainConfig:
        key = repr(sorted((settings or {}).items()))
        if key not in self._known:
            self._known[key] = self.config(settings)
            train(self._known[key])
        return self._known[key]


@pytest.fixture(scope="module")
def runs(tiny_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tiny_base, data, tmp_path_factory.mktemp("runs"))


# --- every setting ----------------------------------------------------------------------------------------------------


def test_no_setting_is_forgotten_here() -> None:
    assert CHANGES.keys() | OTHERS == {
        leaf.key for leaf in leaves() if leaf.only != "text"
    }  # test_texts has the others
    assert not CHANGES.keys() & OTHERS


@pytest.mark.parametrize(("key", "number"), [(key, n) for key, some in CHANGES.items() for n in range(len(some))])
def test_a_setting_changes_the_adapter(runs: Runs, data: Path, tmp_path: Path, key: str, number: int) -> None:
    value, common = CHANGES[key][number]
    if key == "dataset.instance_prompt":  # it is for pictures without captions
        bare = pictures(tmp_path / "bare", captions=False)
        configs = [runs.config({**common, **extra}, bare) for extra in ({}, {key: value})]
        for config in configs:
            train(config)
    else:
        configs = [runs.known(common), runs.known({**common, key: value})]
    assert numbers(configs[0]) != numbers(configs[1])


def test_equal_settings_give_equal_bytes_and_the_base_is_left_as_it_was(runs: Runs) -> None:
    """Three runs on one loaded base and one on a fresh one."""
    opened = run.open_base(runs.config())
    configs = [runs.config() for _ in range(3)]
    for config in configs:
        train(config, opened)
        assert not any(list(inject.layers(model)) for model in opened.family.loaded_parts().values())
    assert {digest(run.adapter_path(config)) for config in [*configs, runs.known()]} == {
        digest(run.adapter_path(configs[0]))
    }


@pytest.mark.parametrize("settings", [{}, {"lora.text_encoder": False}, {"train.precision": "fp16"}], ids=str)
def test_only_what_is_asked_for_is_trained_and_all_of_it_learns(runs: Runs, settings: dict[str, Any]) -> None:
    made = adapter(runs.known(settings))
    wanted = ("unet",) if "lora.text_encoder" in settings else ("text_encoder", "unet")
    assert components(made) == wanted
    assert all(pair.up.abs().max() > 1e-4 for pair in made.pairs.values())


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_train_alike(runs: Runs, size: int) -> None:
    settings = {**ADAMW, **PRIOR, "dataset.caption_dropout": 0.3}
    whole = deltas(runs.known(settings))
    assert distance(whole, deltas(runs.known({**settings, "train.micro_batch": size}))) < 1e-3
    assert distance(whole, deltas(runs.known({**settings, "seed": 9}))) > 0.3


def test_gradient_checkpointing_computes_twice_and_gives_the_same(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, int] = {}
    put = inject.inject

    def counting(component: str, model: torch.nn.Module, *rest: Any) -> None:
        put(component, model, *rest)
        for path, layer in inject.layers(model):
            layer.register_forward_hook(lambda *_, at=f"{component}.{path}": calls.update({at: calls.get(at, 0) + 1}))

    monkeypatch.setattr(inject, "inject", counting)
    settings = {**ADAMW, "lora.dropout": 0.2}
    made = []
    for on in (False, True):
        calls.clear()
        config = runs.config({**settings, "train.gradient_checkpointing": on})
        train(config)
        made.append(deltas(config))
        per_step = {part: {n / 3 for at, n in calls.items() if at.startswith(part)} for part in ("unet", "text")}
        assert per_step == ({"unet": {2}, "text": {2}} if on else {"unet": {1}, "text": {1}})
    assert distance(*made) < 1e-4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_single_precision(runs: Runs, precision: str) -> None:
    whole = deltas(runs.known({**ADAMW, "train.precision": "fp32"}))
    assert 0 < distance(whole, deltas(runs.known({**ADAMW, "train.precision": precision}))) < 0.3


def test_the_format_renames_and_changes_no_numbers(runs: Runs) -> None:
    kohya, diffusers = (runs.known({"adapter.format": name}) for name in ("kohya", "diffusers"))
    assert (adapter(kohya).info.format, adapter(diffusers).info.format) == ("kohya", "diffusers")
    assert numbers(kohya) == numbers(diffusers)


def test_the_name_is_the_files(runs: Runs) -> None:
    config = runs.config({"name": ""})
    train(config)
    assert run.adapter_path(config).name == f"{config.out.name}.safetensors"
    assert adapter(config).info.name == config.out.name


def test_the_cache_is_where_it_is_wanted(runs: Runs, tmp_path: Path) -> None:
    config = runs.config({"dataset.cache": tmp_path / "cache", **PRIOR})
    told = train(config)
    assert Cached(6, 0) in told
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 6
    assert len(list((tmp_path / "cache" / "class_pictures").rglob("*.png"))) == 2
    assert Cached(0, 6) in train(runs.config({"dataset.cache": tmp_path / "cache", **PRIOR}))


def test_captions_can_be_required(runs: Runs, tmp_path: Path) -> None:
    bare = pictures(tmp_path / "bare", 2, captions=False)
    config = runs.config({"dataset.trigger": "sks", "dataset.require_captions": True}, bare)
    with pytest.raises(DatasetError) as caught:
        train(config)
    assert len(caught.value.faults) == 2
    assert not config.out.exists()


def test_checkpoints_are_saved_and_the_newest_kept(runs: Runs) -> None:
    config = runs.config({"train.steps": 9, "train.save_every": 2, "train.keep": 3})
    told = train(config)
    assert [event.step for event in told if isinstance(event, Saved)] == [2, 4, 6, 8]
    kept = sorted(path.name for path in (config.out / "checkpoints").iterdir())
    assert kept == ["step-000004", "step-000006", "step-000008"]
    assert numbers(config) == numbers(runs.known({"train.steps": 9}))


def test_previews_are_drawn_and_change_nothing(runs: Runs) -> None:
    """Dropout and gradient checkpointing go on after a preview, which needs neither."""
    settings = {"lora.dropout": 0.3, "train.gradient_checkpointing": True}
    shown = {"train.preview_every": 2, "train.preview_prompts": ["a red house"]}
    config = runs.config({**settings, **shown})
    told = train(config)
    sheets = [Path(event.path) for event in told if isinstance(event, Preview)]
    assert [sheet.name for sheet in sheets] == ["step-000002.png", "step-000003.png"]
    opened = [Image.open(sheet).convert("RGB") for sheet in sheets]
    assert opened[0].size == opened[1].size
    assert opened[0].tobytes() != opened[1].tobytes()
    assert numbers(config) == numbers(runs.known(settings))


def test_previews_use_the_captions_where_no_prompts_are_given(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], list[int]]] = []

    def sample(self: StableDiffusion, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        asked.append((list(prompts), list(seeds)))
        return [Image.new("RGB", (16, 16)) for _ in prompts]

    monkeypatch.setattr(StableDiffusion, "sample", sample)
    config = runs.config({"train.preview_every": 3, "train.steps": 4, "lora.text_encoder": False})
    opened = run.open_base(config)
    told = train(config, opened)
    captions = [
        "a red house, by the sea",
        "a blue boat, by the sea",
        "a green tree, by the sea",
        "a gold cat, by the sea",
    ]
    assert asked == [(captions, [3, 4, 5, 6])] * 2
    assert [event.step for event in told if isinstance(event, Preview)] == [3, 4]


# --- the folder -------------------------------------------------------------------------------------------------------


def test_what_a_finished_run_leaves(runs: Runs) -> None:
    config = runs.known()
    found = {path.name for path in config.out.iterdir()}
    assert found == {"config.toml", "events.jsonl", "tiny.safetensors", "report.json", "loss.png"}
    assert run.finished(config.out)
    told = list(run.resume(config.out))
    assert [type(event) for event in told] == [Note]
    assert "finished" in told[0].text  # type: ignore[union-attr]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def occupied(place: Path, runs: Runs, kind: str) -> Path:
    """A place where no run may begin."""
    out = place / "out"
    if kind == "a file":
        out.write_text("precious")
    elif kind == "other files":
        out.mkdir()
        (out / "precious.txt").write_text("precious")
    elif kind == "a finished run":
        return runs.known().out
    elif kind == "a begun run":
        config = config_for(runs.base, runs.data, out, {"train.steps": 40})
        going = run.start(config)
        while not isinstance(next(going), Step):
            pass
        going.close()  # type: ignore[attr-defined]
    return out


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("a file", "is a file"),
        ("other files", "holds other files"),
        ("a finished run", "holds a finished run"),
        ("a begun run", "holds a begun run"),
    ],
)
def test_a_place_that_is_taken_is_refused_and_left_alone(runs: Runs, tmp_path: Path, kind: str, says: str) -> None:
    out = occupied(tmp_path, runs, kind)
    before = everything(out.parent)
    with pytest.raises(RunError, match=says) as caught:
        train(config_for(runs.base, runs.data, out))
    assert ("resume" in caught.value.next_step) == (kind == "a begun run")
    assert everything(out.parent) == before


def test_an_empty_folder_is_welcome(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = config_for(runs.base, runs.data, tmp_path / "empty")
    assert isinstance(train(config)[-1], Finished)


def test_a_place_that_cannot_be_written_is_refused_before_any_work(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    config = config_for(runs.base, runs.data, tmp_path / "file" / "out")
    opened = run.open_base(config)
    with pytest.raises(RunError, match="can't be written") as caught:
        train(config, opened)
    assert "--out" in caught.value.next_step
    assert opened.family.loaded_parts() == {}
    assert (tmp_path / "file").read_text() == "no folder"


def test_faults_of_the_data_leave_no_folder_behind(runs: Runs, tmp_path: Path) -> None:
    config = runs.config(data=tmp_path)
    with pytest.raises(DatasetError, match="can't be trained on"):
        train(config)
    assert not config.out.exists()


def test_there_is_nothing_to_resume_without_a_run(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        list(run.resume(tmp_path))
    (tmp_path / "config.toml").write_text("optim = [")
    with pytest.raises(ConfigError):
        list(run.resume(tmp_path))


# --- when it goes wrong -----------------------------------------------------------------------------------------------


def begun(runs: Runs, settings: Mapping[str, Any], data: Path | None = None) -> tuple[TrainConfig, Iterator[Any]]:
    config = runs.config(settings, data)
    return config, run.start(config)


def test_a_sample_that_gives_nan_is_named(runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "ink")
    Image.new("RGB", (16, 16), (1, 2, 3)).save(folder / "02.png")
    encode = StableDiffusion.encode_picture

    def sick(self: StableDiffusion, picture: Image.Image) -> Encoding:
        encoding = encode(self, picture)
        return {"moments": encoding["moments"] * (torch.nan if picture.getpixel((0, 0)) == (1, 2, 3) else 1)}

    monkeypatch.setattr(StableDiffusion, "encode_picture", sick)
    config, going = begun(runs, {"dataset.cache": tmp_path / "cache"}, folder)
    with pytest.raises(TrainingError, match="step 1: the loss is not finite") as caught:
        list(going)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [str(folder / "02.png")]
    assert not run.finished(config.out)


@pytest.mark.parametrize(
    ("settings", "part"), [({"optim.text_lr": 1e-60, **ADAMW}, "text_encoder"), ({"optim.lr": 1e-60, **ADAMW}, "unet")]
)
def test_a_part_that_does_not_learn_stops_the_run(runs: Runs, settings: dict[str, Any], part: str) -> None:
    settings = {"optim.text_lr": 1e-3, **settings}
    config, going = begun(runs, settings)
    with pytest.raises(TrainingError, match="doesn't learn") as caught:
        list(going)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [part]
    assert not run.finished(config.out)


def test_words_that_never_reach_the_unet_are_noticed(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    context = StableDiffusion._context
    monkeypatch.setattr(StableDiffusion, "_context", lambda self, words: context(self, words).detach())
    with pytest.raises(TrainingError) as caught:
        list(begun(runs, {})[1])
    assert caught.value.faults == ("text_encoder: every `up` matrix is still zero",)


def test_running_out_of_memory_says_what_helps(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Loss:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(StableDiffusion, "loss", full)
    with pytest.raises(TrainingError, match="Tried to allocate 2 GiB") as caught:
        list(begun(runs, {})[1])
    assert "micro_batch" in caught.value.next_step


def test_the_base_is_bare_again_whatever_went_wrong(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    config = runs.config()
    opened = run.open_base(config)
    going = run.start(config, opened)
    while not isinstance(next(going), Step):
        pass
    assert any(list(inject.layers(model)) for model in opened.family.loaded_parts().values())
    going.close()  # type: ignore[attr-defined]
    assert not any(list(inject.layers(model)) for model in opened.family.loaded_parts().values())


def test_the_loss_falls_when_there_is_only_one_picture_to_learn(runs: Runs, tmp_path: Path) -> None:
    """The whole road learns: a constant picture, many steps, and the last losses are clearly lower than the first."""
    folder = pictures(tmp_path / "one", 1)
    settings = {"train.steps": 30, "lora.rank": 8, "lora.targets": "all-linear", "objective.min_snr_gamma": None}
    told = train(runs.config(settings, folder))
    losses = [event.loss for event in told if isinstance(event, Step)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_every_module_differs_from_its_start(runs: Runs) -> None:
    """`down` moves too, from the second step on."""
    config = runs.known()
    machine, family, subject = run.open_base(config)
    prepare.put_lora(config, family, subject.shapes(config))
    start: dict[str, Tensor] = {}
    for part, model in family.parts().items():
        start |= {name: pair.down for name, pair in inject.extract(part, model).items()}
    assert machine.device.type == "cpu"
    assert all(not torch.equal(pair.down, start[name]) for name, pair in adapter(config).pairs.items())
