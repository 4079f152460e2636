"""The tables hold the numbers they were given; lines of text are for them, pictures aren't."""

from __future__ import annotations

import pytest

from studio.commands.measured import show_lines, show_measured, show_strength, texts_of
from studio.look.measure import Disturbance, Strength


def test_strength_of_text_has_its_divergence(capsys: pytest.CaptureFixture[str]) -> None:
    show_strength({"pirate": Strength((0.0, 1.0), (0.0, 0.3), 0.2, 0.67, (0.0, 1.25))})
    output = capsys.readouterr().out
    assert all(part in output for part in ("0.300", "0.67", "nats per token", "1.25"))
    show_strength({"ink": Strength((0.0, 1.0), (0.0, 0.1), 0.2, None)})
    output = capsys.readouterr().out
    assert "nats" not in output
    assert "ink does not reach it" in output


def test_a_disturbance_has_its_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    show_measured({("a", "b"): Disturbance(0.4, (0.5, 0.3), 0.1, (0.2, 0.3, 0.4), {}, (1.5, 2.5, 3.5))})
    output = capsys.readouterr().out
    assert all(part in output for part in ("a + b: they bend each other", "0.50 and 0.30", "3.50"))


def test_only_lines_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    show_lines({"pirate": (["0", "1"], ["the sea", "th' sea"]), "ink": (["0"], [object()])})
    output = capsys.readouterr().out
    assert "th' sea" in output
    assert "ink" not in output
    assert texts_of([object()]) == texts_of([]) == {}
    assert texts_of(["a"]) == {"texts": ["a"]}
