"""A training's process: locked words, its group, and the error read out of what it wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from studio.desk import child
from trainers.errors import RunError


def until_it_ends(words: Path) -> None:
    deadline = time.monotonic() + 120
    while child.lives(words):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_its_words_are_locked_as_long_as_it_lives(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    assert not child.lives(words)
    pid = child.launch(["train", "--help"], words)
    assert child.lives(words)
    assert os.getpgid(pid) == pid != os.getpgid(0)  # ctrl-C on the server's terminal doesn't reach it
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + child.NICENESS
    with pytest.raises(RunError, match="still being trained"):
        child.launch(["train", "--help"], words)
    until_it_ends(words)
    assert "Usage" in words.read_text()


def test_a_process_that_another_one_began_is_seen_and_stopped(tmp_path: Path) -> None:
    """The one that began it ends at once; the child is told by the lock alone."""
    words = tmp_path / "words.txt"
    sleep = "import time; print('up', flush=True); time.sleep(600)"
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "__init__.py").touch()
    (tmp_path / "trainers" / "__main__.py").write_text(sleep)
    code = (
        "import sys; from pathlib import Path; from studio.desk import child; child.ROOT = Path(sys.argv[1]);"
        "print(child.launch([], Path(sys.argv[2])))"
    )
    root = Path(child.__file__).parents[2]
    begun = subprocess.run(
        [sys.executable, "-c", code, tmp_path, words], cwd=root, capture_output=True, text=True, check=True
    )
    pid = int(begun.stdout)
    assert child.lives(words)
    deadline = time.monotonic() + 60
    while "up" not in words.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.interrupt(pid)
    until_it_ends(words)
    assert "KeyboardInterrupt" in words.read_text()
    child.interrupt(pid, signal.SIGTERM)  # gone: nothing happens
    child.interrupt(0, signal.SIGTERM)  # would be this very process


def test_the_error_is_read_as_it_was_raised(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    before = "Error: something old\n  - an old fault\n"
    words.write_text(
        f"{before}step 1\nError: ink can't be trained on\nreally\n  - a.png: broken\n  - b\nNext: mend it\n"
    )
    error = child.complaint(words, len(before))
    assert (error.what, error.faults, error.next_step) == (
        "ink can't be trained on\nreally",
        ("a.png: broken", "b"),
        "mend it",
    )


@pytest.mark.parametrize(
    ("words", "what", "faults"),
    [
        ("Error: an earlier one\n", "without a word", ()),
        (None, "without a word", ()),
        ("Traceback (most recent call last):\n  x\nKeyError: 'y'\n", "a fault of stylora", ("KeyError: 'y'",)),
    ],
)
def test_one_without_an_error_is_told_too(
    tmp_path: Path, words: str | None, what: str, faults: tuple[str, ...]
) -> None:
    file = tmp_path / "words.txt"
    if words:
        file.write_text(words)
    error = child.complaint(file, len(words) if words and words.startswith("Error") else 0)
    assert what in error.what
    assert error.faults == faults
    assert "resume it" in error.next_step
