"""What a training has told so far, read from its events file as the file grows. Imports no torch.

Try: python -c "from studio.desk.following import *; print(Follower(Path('runs/ink/events.jsonl')).read().step)"
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from trainers import events
from trainers.events import Event

RECENT = 20  # steps that the speed and the time left are judged by


@dataclass(frozen=True, kw_only=True)
class Course:
    """A training between two looks. `step` of `steps` updates are done; `saved` is the step of the last checkpoint.

    `seconds_left` is None until a step is timed; `speed` counts `started.unit` a second.
    """

    step: int = 0
    steps: int = 0
    losses: tuple[tuple[int, float], ...] = ()  # (step, loss on the batch)
    validations: tuple[tuple[int, float], ...] = ()  # (step, loss on what is kept apart)
    previews: tuple[tuple[int, Path], ...] = ()  # (step, a picture or a .txt)
    notes: tuple[str, ...] = ()
    saved: int = 0
    seconds_left: float | None = None
    speed: float | None = None
    started: events.Started | None = None
    busy: events.Busy | None = None  # what goes on before the first step, or after the last
    supervised: events.Supervised | None = None
    finished: events.Finished | None = None


class Follower:
    """Reads an events file from where it stopped the last time. May be asked from several threads."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = Lock()
        self._begin()

    def _begin(self) -> None:
        self._offset, self._step, self._steps, self._saved = 0, 0, 0, 0
        self._losses: dict[int, float] = {}
        self._validations: dict[int, float] = {}
        self._previews: dict[int, Path] = {}
        self._notes: dict[str, None] = {}
        self._recent: deque[events.Step] = deque(maxlen=RECENT)
        self._started: events.Started | None = None
        self._busy: events.Busy | None = None
        self._supervised: events.Supervised | None = None
        self._finished: events.Finished | None = None

    def read(self) -> Course:
        """The course up to the last whole line of the file; that of a file which isn't there is empty."""
        with self._lock:
            for line in self._new_lines():
                try:
                    event = events.from_json(line)
                except (ValueError, LookupError, TypeError, AttributeError):  # damaged, or of another version
                    continue
                self._take(event)
            return self._course()

    def _new_lines(self) -> list[str]:
        """The whole lines since the last time. A line that is cut short is left: it is finished, or taken away."""
        try:
            with self.file.open("rb") as stream:
                if stream.seek(0, 2) < self._offset:  # another file by now
                    self._begin()
                stream.seek(self._offset)
                data = stream.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode(errors="replace").split("\n")[:-1]  # not splitlines: JSON strings may hold U+2028

    def _take(self, event: Event) -> None:
        match event:
            case events.Started():
                self._go_back_to(event.first_step)
                self._started, self._steps = event, event.steps
            case events.Step():
                self._step, self._losses[event.step] = event.step, event.loss
                self._recent.append(event)
            case events.Validation():
                self._validations[event.step] = event.loss
            case events.Preview():
                self._previews[event.step] = Path(event.path)
            case events.Saved():
                self._saved = event.step
            case events.Note():
                self._notes[event.text] = None  # a resumed run says it again
            case events.Supervised():
                self._supervised = event
            case events.Finished():
                self._finished = event
        self._busy = event if isinstance(event, events.Busy) else None

    def _go_back_to(self, step: int) -> None:
        """A resumed run does again what came after its checkpoint: nothing if it was stopped, some if it broke off."""
        self._step, self._saved = step, min(step, self._saved)
        self._recent.clear()
        tables: tuple[dict[int, Any], ...] = (self._losses, self._validations, self._previews)
        for told in tables:
            for later in [one for one in told if one > step]:
                del told[later]

    def _course(self) -> Course:
        seconds = statistics.median(one.seconds for one in self._recent) if self._recent else None
        left = None if seconds is None else seconds * (self._steps - self._step)
        return Course(
            step=self._step,
            steps=self._steps,
            losses=tuple(self._losses.items()),
            validations=tuple(self._validations.items()),
            previews=tuple(self._previews.items()),
            notes=tuple(self._notes),
            saved=self._saved,
            seconds_left=left,
            speed=self._speed(),
            started=self._started,
            busy=self._busy,
            supervised=self._supervised,
            finished=self._finished,
        )

    def _speed(self) -> float | None:
        seconds = sum(one.seconds for one in self._recent)
        tokens = self._started is not None and self._started.unit == "tokens"
        return sum(one.weight if tokens else one.samples for one in self._recent) / seconds if seconds else None
