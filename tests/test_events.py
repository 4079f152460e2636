"""Events: one line of JSON each, and back again without loss."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from trainers import events
from trainers.events import Event

EXAMPLES: list[Event] = [
    events.Started(
        "ink", "tiny-sd", "cpu", "fp32", "sdpa", 16, "pictures", 300, 0, {"unet": (10, 200)}, "adamw8bit", (149, 151)
    ),
    events.Cached(3, 13),
    events.Supervised(2, 3, 40, 25, [("a:1", [("Tell it.", False), ("Arr!", True)]), ("b.md", [("☾", True)])]),
    events.Busy("pictures encoded", 3, 16),
    events.Note("blå båt\nat night ☾.png: 90 tokens"),
    events.Step(1, 1 / 3, 1e-3, 0.1, 0.25, 8, 612.0, 2**33),
    events.Validation(25, 2.5, True),
    events.Preview(100, "runs/ink/previews/step-000100.png"),
    events.Saved(100, "runs/ink/checkpoints/step-000100"),
    events.Stopped(100),
    events.Finished("ink.safetensors", "ab" * 32, 300, 75.5, {"parameters": {"unet": [10, 200]}, "loss": 0.1}),
]


def test_there_is_an_example_of_every_kind() -> None:
    assert [type(event) for event in EXAMPLES] == list(events.KINDS.values())


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_an_event_is_one_line_and_comes_back_equal(event: Event) -> None:
    line = events.to_json(event)
    assert "\n" not in line
    assert line.isascii()
    assert next(iter(json.loads(line))) == "event"
    assert json.loads(line)["event"] == type(event).__name__
    assert events.from_json(line) == event


@pytest.mark.parametrize(
    "line", ["", "{", '{"event": "Step", "st', "{}", "[]", '{"event": "Gone"}', '{"event": "Cached", "encoded": 1}']
)
def test_a_line_that_is_none_of_ours_is_an_error(line: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        events.from_json(line)


def test_events_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        EXAMPLES[1].encoded = 4  # type: ignore[misc, union-attr]
