"""The table of figures, RESULTS.md: one row a figure, with the day, the machine and the commit it was taken on.

`python benchmarks/results.py` prints the newest row of each benchmark; the scripts beside it add rows with `--append`.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("RESULTS.md")
HEAD = """# Figures

Each row was taken by the script of its name: `python benchmarks/<script>.py --append`.

| date | machine | commit | benchmark | number | goal |
| --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Figure:
    """One number with its words; `met` None where there is no goal."""

    benchmark: str
    number: str
    goal: str = "–"
    met: bool | None = None

    def __str__(self) -> str:
        verdict = "" if self.met is None else " met" if self.met else " MISSED"
        return f"{self.benchmark:58s} {self.number:>40s}   goal {self.goal}{verdict}"


def machine() -> str:
    """Processor and cores; says so when others were using them as this process began."""
    busy = f", busy (load {LOAD:.1f} before)" if LOAD > 0.5 else ""
    return f"{_processor()}, {os.cpu_count()} cores{busy}"


LOAD = os.getloadavg()[0]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """The commit's short name, with a + when files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=FILE.parent, capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "–") + ("+" if git("status", "--porcelain") else "")


def report(script: str, figures: Sequence[Figure], append: bool) -> None:
    """Print figures, and add them to the table where asked for."""
    for figure in figures:
        print(figure)
    if not append:
        return
    head = f"| {datetime.date.today()} | {machine()} | {commit()}"
    rows = [f"{head} | {script}: {f.benchmark} | {f.number} | {f.goal} |\n" for f in figures]
    FILE.write_text((FILE.read_text() if FILE.exists() else HEAD) + "".join(rows))


def newest() -> list[str]:
    """The last row of each benchmark."""
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    rows = [line for line in lines if line.startswith("| 2")]
    return list({row.split("|")[4]: row for row in rows}.values())


if __name__ == "__main__":
    print("\n".join(newest()) or f"{FILE} holds no figures yet: run the scripts beside it with --append")
