"""A training as a process of its own: begun so that it outlives who began it, found again, stopped, its words read.

Its words go to a file that is locked for as long as it lives, whoever holds that lock: no other process can be taken
for it, as could be by its number alone.
Try: python -c "from studio.desk.child import *; print(complaint(Path('words.txt')))"
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread

import trainers
from trainers.errors import RunError, StyloraError, TrainingError

ROOT = Path(trainers.__file__).resolve().parents[1]  # where `-m trainers` is found, whatever the current folder is
NICENESS = 5  # pictures asked for meanwhile come first


def launch(arguments: Sequence[str], words: Path) -> int:
    """Begin `python -m trainers` with these arguments, in a session of its own; returns its process number.

    Raises RunError: one that writes to the same file still lives, or no process can be begun.
    """
    with words.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the child has the lock, too, and keeps it
            process = subprocess.Popen(
                [sys.executable, "-m", "trainers", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=ROOT,
                env=os.environ | {"PYTHONUTF8": "1"},
                start_new_session=True,
            )
        except BlockingIOError:
            raise RunError(f"{words.parent.name} is still being trained", next_step="let it end first") from None
        except OSError as error:
            raise RunError("the training can't be begun", [error.strerror or str(error)]) from error
    Thread(target=process.wait, daemon=True, name=f"training {process.pid}").start()  # or it would stay as a zombie
    with suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
    return process.pid


def lives(words: Path) -> bool:
    """Is the process that writes this file still there?"""
    try:
        with words.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def interrupt(pid: int, sign: signal.Signals = signal.SIGINT) -> None:
    """Ask a living child to stop: as ctrl-C does once its step is saved; a second time, at once."""
    if pid > 0:  # 0 would be this process and all its own
        with suppress(ProcessLookupError):  # it ended just now
            os.killpg(pid, sign)


def complaint(words: Path, start: int = 0) -> StyloraError:
    """The error that a child wrote after byte `start` of its words, as it was raised there."""
    lines = words.read_bytes()[start:].decode(errors="replace").splitlines() if words.is_file() else []
    begins = [number for number, line in enumerate(lines) if line.startswith("Error: ")]
    if not begins:
        return _wordless(lines)
    what: list[str] = []
    faults: list[str] = []
    step = ""
    for line in lines[begins[-1] :]:
        if line.startswith("  - "):
            faults.append(line[4:])
        elif line.startswith("Next: "):
            step = line[6:]
        elif not faults and not step:
            what.append(line.removeprefix("Error: "))
    return TrainingError("\n".join(what), faults, step)


def _wordless(lines: Sequence[str]) -> StyloraError:
    """It was killed, or fell over a bug, of which the last line of the traceback tells."""
    if any(line.startswith("Traceback") for line in lines):
        return TrainingError(
            "the training broke off: this is a fault of stylora", [lines[-1]], "resume it, or report it"
        )
    return TrainingError(
        "the training broke off without a word: the system may have ended it because memory ran out",
        next_step="resume it, or start one with a smaller train.micro_batch",
    )
