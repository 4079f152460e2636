"""Who is next: jobs of several desks in turn, those of one desk in the order they came. Plain bookkeeping, no threads.

Try it: python -c "from studio.desk.turns import *; t = Turns(); t.add('ann', 1); t.add('bob', 2); print(t.take())"
"""

from __future__ import annotations

from copy import deepcopy


class Turns:
    """The jobs that wait, by their numbers. Next is the desk whose last turn is the longest ago, or was never."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[int]] = {}  # desk -> its jobs
        self._turns: dict[str, int] = {}  # desk -> the number of its last turn
        self._taken = 0

    def add(self, desk: str, job: int, instead_of: int | None = None) -> None:
        """Put a job behind the others of its desk, or in the place of one of them."""
        line = self._waiting.setdefault(desk, [])
        if instead_of in line:
            line[line.index(instead_of)] = job
        else:
            line.append(job)

    def take(self) -> int | None:
        """The next job, which no longer waits; None where there is none."""
        if not self._waiting:
            return None
        desk = min(self._waiting, key=lambda desk: self._turns.get(desk, 0))
        self._taken += 1
        self._turns[desk] = self._taken
        line = self._waiting[desk]
        job = line.pop(0)
        if not line:
            del self._waiting[desk]
        return job

    def drop(self, job: int) -> bool:
        """Let a job go; whether it was waiting."""
        for desk, line in self._waiting.items():
            if job in line:
                line.remove(job)
                if not line:
                    del self._waiting[desk]
                return True
        return False

    def order(self) -> list[int]:
        """All waiting jobs in the order in which they will be taken, should none be added."""
        copy, found = deepcopy(self), list[int]()
        while (job := copy.take()) is not None:
            found.append(job)
        return found
