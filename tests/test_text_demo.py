"""The text demo: one batch before and after, a page that people read, figures out of the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lms import lm
from typer.testing import CliRunner

from studio import text_demo
from studio.cli import app
from trainers import run
from trainers.appraisal import figures
from trainers.config import TrainConfig
from trainers.events import Finished
from trainers.lora.adapter import Adapter
from trainers.lora.pair import LoraPair


def test_the_defaults_are_those_of_a_training_on_text(tmp_path: Path) -> None:
    config = text_demo.config_for("herald", tmp_path / "run", ["train.steps=3"])
    assert (config.base, config.name, config.train.steps) == ("tiny-lm", "herald", 3)
    assert (config.lora.targets, config.adapter.format) == ("all-linear", "peft")
    assert config.data.name == "herald"


def test_before_is_the_bare_base_and_after_has_the_adapter(tmp_path: Path) -> None:
    base = lm("llama", tmp_path / "micro")
    config = TrainConfig.build(values={"base": str(base), "data": "x", "out": str(tmp_path / "run")})
    opened = run.open_base(config)
    loud = LoraPair(torch.ones(1, 32), 9 * torch.randn(32, 1, generator=torch.Generator().manual_seed(0)), 1.0)
    pairs = text_demo.before_and_after(opened, Adapter({"model.model.layers.1.self_attn.q_proj": loud}), ["the", "an"])
    quiet = LoraPair(loud.down, torch.zeros(32, 1), 1.0)
    same = text_demo.before_and_after(opened, Adapter({"model.model.layers.1.self_attn.q_proj": quiet}), ["the", "an"])
    assert [pair[0] for pair in pairs] == ["the", "an"]
    assert [pair[1] for pair in pairs] == [pair[1] for pair in same]
    assert all(before == after for _, before, after in same)
    assert any(before != after for _, before, after in pairs)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of two steps on the embedded base, its few texts short."""
    out = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainers.appraisal.TEXTS", 4)
        patch.setattr("trainers.appraisal.LENGTHS", (4, 8))
        told = list(text_demo.events("telegram", out, ["train.steps=2", "train.validate_every=0", "train.device=cpu"]))
    assert any(isinstance(event, Finished) for event in told)
    return out


def test_the_report_and_the_page(shown: Path) -> None:
    report = json.loads((shown / "report.json").read_text())
    shown_figures = dict(figures(report))
    assert report["style"] == "telegram"
    assert len(report["before_after"]) == len(text_demo.PROMPTS) == 5
    before, after = map(float, shown_figures["perplexity in the style, before and after"].split(","))
    assert before == pytest.approx(951.95, abs=0.5)
    assert after < 950
    page = (shown / text_demo.SHEET).read_text()
    assert page.count("\n## ") == 5
    assert f"## {text_demo.PROMPTS[0]} …" in page
    assert all(before.splitlines()[0] in page for _, before, _ in report["before_after"] if before)


def test_the_command_shows_both_and_what_comes_next(shown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_demo, "events", lambda *_: iter(()))
    result = CliRunner().invoke(app, ["demo", "--text", "--style", "telegram", "--out", str(shown)])
    assert result.exit_code == 0, result.output
    for prompt, before, after in json.loads((shown / "report.json").read_text())["before_after"]:
        assert prompt in result.output
        assert (before + after).split()[0] in result.output
    assert "generate --base tiny-lm --adapter" in result.output
