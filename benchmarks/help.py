"""How long `stylora --help` takes: what a person waits for first. No heavy library may be imported for it.

`python benchmarks/help.py` runs it eleven times, drops the first, gives the median; `--append` adds it to RESULTS.md.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import results

GOAL = 0.4  # seconds
COMMAND = [sys.executable, "-c", "from studio.cli import main; main()", "--help"]  # what the console script does


def seconds() -> float:
    begun = time.perf_counter()
    subprocess.run(COMMAND, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def main() -> None:
    taken = [seconds() for _ in range(11)][1:]
    median = statistics.median(taken)
    number = f"{median:.2f} s ({min(taken):.2f} to {max(taken):.2f})"
    figure = results.Figure("stylora --help, median of 10", number, f"≤ {GOAL} s", median <= GOAL)
    results.report("help.py", [figure], "--append" in sys.argv)


if __name__ == "__main__":
    main()
