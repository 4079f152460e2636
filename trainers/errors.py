"""What can go wrong, as a tree. Only the command line catches and prints these.

StyloraError
├── ConfigError      a setting is unknown, of the wrong type or out of range
├── DatasetError     the folder or files in it can't be trained on
├── BaseError        the base model can't be had, or is of another kind
├── AdapterError     an adapter file can't be read, or doesn't fit the base
├── RunError         a run folder can't be written, read or resumed
└── TrainingError    the training itself went wrong (NaN, a part that doesn't learn, out of memory)
"""

from __future__ import annotations

from collections.abc import Sequence


class StyloraError(Exception):
    """Says what is wrong (`what`), each single fault (`faults`) and what to do next (`next_step`)."""

    def __init__(self, what: str, faults: Sequence[str] = (), next_step: str = "") -> None:
        self.what, self.faults, self.next_step = what, tuple(faults), next_step
        super().__init__(what, self.faults, next_step)

    def __str__(self) -> str:
        lines = [self.what, *(f"  - {fault}" for fault in self.faults)]
        if self.next_step:
            lines.append(f"Next: {self.next_step}")
        return "\n".join(lines)


class ConfigError(StyloraError):
    """A setting is unknown, of the wrong type or out of range."""


class DatasetError(StyloraError):
    """The folder or files in it can't be trained on."""


class BaseError(StyloraError):
    """The base model can't be had, or is of another kind."""


class AdapterError(StyloraError):
    """An adapter file can't be read, or doesn't fit the base."""


class RunError(StyloraError):
    """A run folder can't be written, read or resumed."""


class TrainingError(StyloraError):
    """The training itself went wrong."""
