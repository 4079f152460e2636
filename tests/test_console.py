"""Errors as text with the right exit code; plain lines for a file, a bar for a terminal, other ranks silent."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from trainers import console
from trainers.errors import ConfigError
from trainers.events import Busy, Cached, Event, Finished, Note, Preview, Saved, Started, Step, Supervised, Validation

ROOT = Path(__file__).parent.parent
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")  # all but the line feed


def step(number: int) -> Step:
    return Step(number, 0.125, 1e-3, 1.0, seconds=0.5, samples=4, weight=1000.0, memory=2_500_000)


def story(steps: int, unit: str = "pictures") -> Iterator[Event]:
    """All kinds of events in the order of a run, and a demo's Busy after its end."""
    yield Note("a [red] house, its name in brackets")
    yield Busy("pictures encoded", 1, 2)
    yield Cached(1, 1)
    yield Supervised(2, 3, 40, 30, [("chat.jsonl:1", [("Tell [it].", False), ("Arr!", True)])])
    yield Started("ink", "tiny-sd", "cpu", "fp32", "sdpa", 2, unit, steps, 3, {"unet": (10, 1000)}, "adamw8bit", (1, 4))
    for number in range(4, steps + 1):
        yield step(number)
    yield Validation(steps, 2.5, True)
    yield Saved(steps, "runs/ink/checkpoints/step-000001")
    yield Preview(steps, "runs/ink/previews/[1].png")
    yield Finished("runs/ink/ink.safetensors", "0123456789abcdef", steps, 12.4, {"seconds": 12.4})
    yield Busy("pictures by the base", 0, 5)
    yield Busy("pictures by the base", 5, 5)


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    report = console.follow(story(60), 60)
    text = capsys.readouterr().out
    assert report == {"seconds": 12.4}
    assert not CONTROL.search(text)
    assert "a [red] house, its name in brackets" in text
    assert "encodings: 1 made, 1 taken from the cache" in text
    assert "unet: 10 of 1,000 parameters are trained (1.0%)" in text
    assert "going on after step 3" in text
    assert "each of the pictures is seen 1 to 4 times" in text
    assert "runs/ink/previews/[1].png" in text
    assert "done in 12 s: runs/ink/ink.safetensors (sha256 0123456789ab)" in text
    told = re.findall(r"^step (\d+)/60 loss 0\.1250 · lr 1\.00e-03 · 8\.0 pictures/s · 2 MB$", text, re.MULTILINE)
    assert told == [str(number) for number in range(6, 61, 3)]


def test_texts_are_counted_in_tokens_and_what_is_learned_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    console.follow(story(60, "tokens"), 60)
    text = capsys.readouterr().out
    assert "2 texts in 3 pieces: 40 tokens, of which 30 are learned (75%)" in text
    assert "chat.jsonl:1 Tell [it].Arr!" in text
    assert "each of the texts is seen 1 to 4 times" in text
    assert "2,000 tokens/s" in text
    assert "step 60: loss 2.5000 on what is kept apart the best so far" in text


def test_long_names_stay_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.follow([Note("x" * 500)], 1)
    console.say("y" * 500)
    console.table("t", ("a", "b"), [("short", "z" * 500)])
    text = capsys.readouterr().out
    for letter in "xyz":
        assert letter * 500 in text


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = on_terminal(monkeypatch, lambda: console.follow(story(60), 60))
    assert "\x1b[" in text
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert re.search(r"training\s*━+\s*60/60", shown)
    assert re.search(r"pictures by the base\s*━+\s*5/5", shown)
    assert "done in 12 s" in shown
    assert "loss 0.1250" in shown


def on_terminal(monkeypatch: pytest.MonkeyPatch, action: object, columns: int = 160) -> str:
    """What `action` writes while stdout is a pseudo-terminal."""
    leader, follower = pty.openpty()
    for name, value in {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    pieces: list[bytes] = []

    def drain() -> None:
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # Linux says so when the last writer is gone
                return
            if not piece:
                return
            pieces.append(piece)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        with os.fdopen(follower, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            action()  # type: ignore[operator]
    finally:
        reader.join(timeout=10)
        os.close(leader)
    return b"".join(pieces).decode()


def test_an_error_leaves_the_terminal_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Event]:
        yield from list(story(60))[:6]
        raise ConfigError("no")

    def action() -> None:
        with pytest.raises(ConfigError):
            console.follow(broken(), 60)

    text = on_terminal(monkeypatch, action)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again


def test_the_other_processes_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    events = story(60)
    assert console.follow(events, 60) == {}
    console.table("t", ("a",), [("b",)])
    assert next(events, None) is None  # they run to the end all the same
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2_500_000, "2 MB"), (1_440_000_000, "1.4 GB")]
)
def test_size(count: int, text: str) -> None:
    assert console.size(count) == text


def test_a_table_shows_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("1 folder", ("folder", "state"), [("runs/[bold]ink", "failed")])
    assert "runs/[bold]ink" in capsys.readouterr().out


app = typer.Typer(cls=console.StyloraGroup, pretty_exceptions_enable=False)
RAISED = {
    "ours": ConfigError("2 settings", ["a: wrong", "b: wrong"], "look at [them]"),
    "stop": KeyboardInterrupt(),
    "bug": ZeroDivisionError("a bug"),
}


@app.command()
def fail(kind: str) -> None:
    raise RAISED[kind]


@app.command()
def other() -> None:
    """So that there is a group."""


def test_our_errors_are_text() -> None:
    result = CliRunner().invoke(app, ["fail", "ours"])
    assert result.exit_code == 1
    assert result.stderr == "Error: 2 settings\n  - a: wrong\n  - b: wrong\nNext: look at [them]\n"
    assert result.stdout == ""


def test_ctrl_c() -> None:
    result = CliRunner().invoke(app, ["fail", "stop"])
    assert result.exit_code == 130
    assert "Error: stopped\nNext: " in result.stderr


def test_a_bug_shows_itself() -> None:
    result = CliRunner().invoke(app, ["fail", "bug"])
    assert isinstance(result.exception, ZeroDivisionError)


def test_following_needs_no_torch() -> None:
    code = "import sys, trainers.console, trainers.events; assert 'torch' not in set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
