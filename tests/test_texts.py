"""Text as a run's subject: every setting does something, runs resume to the same bytes, the best step is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from lms import lm
from safetensors import safe_open
from training import SHORT, Child, arguments

from trainers import run, texts
from trainers.config import TrainConfig
from trainers.errors import ConfigError, DatasetError
from trainers.events import Event, Note, Preview, Started, Step, Supervised, Validation
from trainers.leaves import leaves
from trainers.lora import inject
from trainers.lora.adapter import Adapter, content_digest, digest

TINY_LM = Path(__file__).parents[1] / "sample_data" / "bases" / "tiny-lm" / "config.json"
TELEGRAM = TINY_LM.parents[2] / "text" / "telegram"
STEPS = {"train.validate_every": 0, "train.steps": 3, "lora.rank": 2, "dataset.overlap": 8}
VALIDATED = {"train.validate_every": 1, "optim.schedule": "constant"}
LINES: list[dict[str, Any]] = [
    {"text": "the hen sat on the hat and then the rat ran at the hen on the hat"},
    {"text": "there in the tent the ten men ate the ham"},
    {"prompt": "Where is the rat?", "completion": " in the hat"},
    {"messages": [{"role": "user", "content": "the hen?"}, {"role": "assistant", "content": "on the nest"}]},
    {"text": "an ant and a hen and a rat " * 6},
]

# setting -> [(value, what else is set in both runs)]: the adapter's numbers must differ
CHANGES: dict[str, list[tuple[Any, Mapping[str, Any]]]] = {
    "seed": [(4, {})],
    "lora.rslora": [(True, {})],
    "lora.dropout": [(0.5, {})],
    "lora.targets": [("attention", {}), (["q_proj"], {})],
    "dataset.context": [(24, {})],
    "dataset.overlap": [(2, {"dataset.context": 24})],
    "dataset.supervise": [("all", {})],
    "dataset.repeats": [(3, {"train.batch": 3})],
    "objective.neftune": [(5.0, {})],
    "train.quantization": [("nf4", {}), ("int8", {})],
    "train.precision": [("bf16", {})],
    "train.batch": [(2, {})],
    "train.steps": [(2, {})],
}
# text's settings that change no numbers of the last step; each has a test of its own here or in test_causal_lm
OTHERS = {"dataset.layout", "dataset.heldout", "dataset.plain", "lora.dora", "train.patience", "train.validate_every"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm("llama", tmp_path_factory.mktemp("lms") / "micro", hidden_size=64, intermediate_size=64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "hens"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (folder / "heldout.jsonl").write_text(json.dumps({"text": "the rat in the hat sat on the hen"}) + "\n")
    return folder


@pytest.fixture(autouse=True)
def _no_appraisal(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """It takes longer than all the steps; one test below does it."""
    if "whole_report" not in request.fixturenames:

        def nothing(*_: object) -> Iterator[Event]:
            yield from ()
            return {}  # type: ignore[return-value]

        monkeypatch.setattr(texts, "appraise", nothing)


@pytest.fixture
def whole_report() -> None:
    """The appraisal is done, too."""


class Runs:
    """Trains in fresh folders; runs of the same settings are trained once."""

    def __init__(self, base: Path, data: Path, place: Path) -> None:
        self.base, self.data, self.place, self.count = base, data, place, 0
        self._known: dict[str, TrainConfig] = {}

    def config(self, settings: Mapping[str, Any] | None = None) -> TrainConfig:
        self.count += 1
        values = {"base": str(self.base), "data": str(self.data), "out": str(self.place / f"run{self.count}")}
        return run.for_base(TrainConfig.build(values={**SHORT, **STEPS, **values, **(settings or {})}))

    def known(self, settings: Mapping[str, Any] | None = None) -> TrainConfig:
        key = repr(sorted((settings or {}).items(), key=str))
        if key not in self._known:
            self._known[key] = self.config(settings)
            train(self._known[key])
        return self._known[key]


@pytest.fixture(scope="module")
def runs(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(base, data, tmp_path_factory.mktemp("runs"))


def train(config: TrainConfig, opened: run.Opened | None = None) -> list[Event]:
    return list(run.start(config, opened))


def numbers(config: TrainConfig) -> str:
    return content_digest(Adapter.load(run.adapter_path(config)))


def test_no_setting_of_text_is_forgotten_here() -> None:
    assert {leaf.key for leaf in leaves() if leaf.only == "text"} <= CHANGES.keys() | OTHERS
    assert not CHANGES.keys() & OTHERS


@pytest.mark.parametrize(("key", "number"), [(key, n) for key, some in CHANGES.items() for n in range(len(some))])
def test_a_setting_changes_the_adapter(runs: Runs, key: str, number: int) -> None:
    value, common = CHANGES[key][number]
    assert numbers(runs.known(common)) != numbers(runs.known({**common, key: value}))


def test_equal_settings_give_equal_bytes_and_the_base_is_left_as_it_was(runs: Runs) -> None:
    opened = run.open_base(runs.config())
    configs = [runs.config() for _ in range(2)]
    for config in configs:
        train(config, opened)
        assert not any(list(inject.layers(model)) for model in opened.family.loaded_parts().values())
    assert len({digest(run.adapter_path(config)) for config in [*configs, runs.known()]}) == 1


def test_micro_batches_and_layouts_train_alike(runs: Runs) -> None:
    losses = [
        [event.loss for event in train(runs.config(settings)) if isinstance(event, Step)]
        for settings in ({}, {"train.micro_batch": 1}, {"dataset.layout": "padded"})
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_a_step_is_divided_by_what_is_learned(runs: Runs) -> None:
    told = train(runs.config({"train.batch": 6}))
    (learned,) = [event for event in told if isinstance(event, Supervised)]
    assert (learned.documents, learned.pieces) == (5, 6)
    assert 0 < learned.supervised < learned.tokens
    assert any("hen?" in text and not learns for _, shown in learned.samples for text, learns in shown)
    steps = [event for event in told if isinstance(event, Step)]
    assert all(step.samples == 6 and step.weight > 20 for step in steps)


NOISY = {"optim.name": "adamw", "objective.neftune": 5.0, "lora.dropout": 0.2}


def test_a_process_asked_to_stop_ends_with_the_same_bytes(runs: Runs, tmp_path: Path) -> None:
    """It is asked by a real SIGINT; the best step lies before it, or comes after it."""
    wish = {**NOISY, "train.steps": 60, "train.validate_every": 4, "optim.lr": 0.05}
    whole, stopped = runs.known(wish), runs.config(wish)
    after = Child(tmp_path, *arguments(stopped)).stop_after_a_step(stopped, more_than=8)
    again = list(run.resume(stopped.out))
    assert [event.step for event in again if isinstance(event, Step)] == [*range(after + 1, 61)]
    assert digest(run.adapter_path(stopped)) == digest(run.adapter_path(whole))


@pytest.mark.parametrize("settings", [{}, NOISY, {"lora.dora": True}])
def test_a_stopped_run_ends_with_the_same_bytes(runs: Runs, settings: Mapping[str, Any]) -> None:
    """With the best step before the checkpoint, so that it has to come out of it."""
    wish = {**settings, "train.steps": 6, "train.save_every": 2, "train.validate_every": 2, "optim.lr": 0.3}
    whole, stopped = runs.known(wish), runs.config(wish)
    going = run.start(stopped)
    next(event for event in going if isinstance(event, Step) and event.step == 5)
    going.close()  # type: ignore[attr-defined]
    again = list(run.resume(stopped.out))
    assert [event.first_step for event in again if isinstance(event, Started)] == [4]
    reports = [json.loads((config.out / "report.json").read_text()) for config in (whole, stopped)]
    assert reports[0]["validations"] == reports[1]["validations"]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        one, other = ((run.adapter_path(config) / name).read_bytes() for config in (whole, stopped))
        assert one == other


def test_the_best_step_is_kept_and_patience_ends_the_run(runs: Runs) -> None:
    wish = {**VALIDATED, "optim.lr": 0.5, "train.steps": 12}
    config = runs.config(wish | {"train.patience": 2})
    told = train(config)
    found = [event for event in told if isinstance(event, Validation)]
    best = [event.step for event in found if event.best][-1]
    assert found[-1].step == best + 2 < 12
    assert any("no better than after step" in event.text for event in told if isinstance(event, Note))
    report = json.loads((config.out / "report.json").read_text())
    assert (report["best_step"], report["steps"]) == (best, best + 2)
    assert numbers(config) == numbers(runs.known({**VALIDATED, "optim.lr": 0.5, "train.steps": best}))


def test_without_texts_kept_apart_nothing_is_measured(runs: Runs) -> None:
    config = runs.config(VALIDATED | {"dataset.heldout": 0.0}).model_copy(update={"data": runs.data / "train.jsonl"})
    assert not any(isinstance(event, Validation) for event in train(config))


def test_a_preview_is_a_file_of_texts_and_changes_nothing(runs: Runs) -> None:
    config = runs.config({"train.preview_every": 2, "train.preview_prompts": ["the hen", "a rat"]})
    told = train(config)
    assert [event.step for event in told if isinstance(event, Preview)] == [2, 3]
    text = (config.out / "previews" / "step-000003.txt").read_text()
    assert text.startswith("after step 3\n\nthe hen")
    assert "\n\na rat" in text
    assert numbers(config) == numbers(runs.known())


def test_the_header_and_the_report(runs: Runs, whole_report: None) -> None:
    config = runs.config({"lora.rslora": True})
    train(config)
    folder = run.adapter_path(config)
    header = Adapter.load(folder).info.metadata
    assert {
        "stylora.kind": "text",
        "stylora.base": "micro",
        "modelspec.architecture": "llama/lora",
    }.items() <= header.items()
    settings = json.loads(header["stylora.config"])
    assert settings["train"]["quantization"] == "none"
    assert "prior" not in settings
    assert str(runs.place) not in json.dumps(header)
    report = json.loads((config.out / "report.json").read_text())
    assert (report["texts"], report["adapter"]) == (5, folder.name)
    assert report["perplexity"]["after"] > 0
    assert report["copied"].keys() == {"base", "adapter", "style"}
    assert run.finished(config.out) == folder


def test_dora_is_written_as_peft_reads_it(runs: Runs, whole_report: None) -> None:
    config = runs.config({"lora.dora": True})
    train(config)
    folder = run.adapter_path(config)
    assert json.loads((folder / "adapter_config.json").read_text())["use_dora"] is True
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        lengths = [key for key in file.keys() if key.endswith("lora_magnitude_vector")]  # noqa: SIM118 (not a dict)
    assert len(lengths) == 14
    assert json.loads((config.out / "report.json").read_text())["perplexity"]["after"] > 0


def test_what_is_kept_apart_and_what_lies_outside_the_style(runs: Runs, tmp_path: Path, whole_report: None) -> None:
    """Where the data has no file for it, a share; the texts outside are those of dataset.plain, or the base's own."""
    (tmp_path / "hens.jsonl").write_text("".join(json.dumps({"text": f"{n} hens sat"}) + "\n" for n in range(20)))
    (tmp_path / "plain.txt").write_text("a rat and an ant")
    reports = []
    for more in ({"dataset.heldout": 0.4}, {"dataset.plain": str(tmp_path / "plain.txt")}):
        config = runs.config({**VALIDATED, "train.steps": 1, "data": str(tmp_path / "hens.jsonl"), **more})
        train(config)
        reports.append(json.loads((config.out / "report.json").read_text()))
    assert reports[0]["texts"] < reports[1]["texts"] < 20
    assert any("bare base" in note for note in reports[0]["notes"])
    assert not any("bare base" in note for note in reports[1]["notes"])
    assert reports[0]["validations"]


def test_faults_are_told_before_anything_is_made(runs: Runs, tmp_path: Path) -> None:
    config = runs.config({"dataset.context": 512})
    with pytest.raises(ConfigError, match="reads 64 tokens at once"):
        train(config)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jsonl").write_text('{"text": ""}\n{"txt": "a"}\n')
    with pytest.raises(DatasetError) as caught:
        train(runs.config().model_copy(update={"data": tmp_path / "bad"}))
    assert len(caught.value.faults) == 2
    assert not config.out.exists()


# --- quantised bases --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not TINY_LM.exists(), reason=f"the embedded language model isn't made yet: no {TINY_LM}")
def test_on_an_nf4_base_the_loss_falls_as_far_as_on_the_full_one(tmp_path: Path) -> None:
    """QLoRA on the CPU: within 10% of the full run's fall, on a base of 0.6 bytes a parameter at the most."""
    falls = {}
    for kind in ("none", "nf4"):
        wish = {"base": "tiny-lm", "data": str(TELEGRAM), "out": str(tmp_path / kind), "train.quantization": kind}
        steps = {"train.steps": 10, "train.validate_every": 10, "optim.warmup": 0, "train.device": "cpu"}
        config = run.for_base(TrainConfig.build(values={**wish, **steps}))
        opened = run.open_base(config)
        bare = opened.subject.validate(opened.family, heldout_of(config, opened))
        (measured,) = [event for event in train(config, opened) if isinstance(event, Validation)]
        assert bare is not None
        falls[kind] = bare - measured.loss
        if kind == "nf4":
            stored = opened.family.base_bytes()  # type: ignore[attr-defined]
            assert stored["quantized_bytes"] <= 0.6 * stored["quantized_parameters"]
    assert falls["none"] > 0.5
    assert falls["nf4"] == pytest.approx(falls["none"], rel=0.1)


def heldout_of(config: TrainConfig, opened: run.Opened) -> texts.TextData:
    """The data as a run would read it."""
    steps = texts.encode(config, opened.family, texts.scan(config, opened.family), opened.machine)  # type: ignore[arg-type]
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
