"""How long does ``jacli --help`` take?  Wall time of fresh processes, beside an empty Python.

Run ``make bench-startup`` or ``python benchmarks/startup.py``; exits 1 when the median is over 0.5 s.
One process of each kind runs first and is not counted: it writes the bytecode and fills the file cache.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LIMIT_SECONDS = 0.5
REPEATS = 10
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "jacli --help": [sys.executable, "-m", "jacli", "--help"],
}


def main() -> int:
    """Print one line a command; the exit code is 1 if jacli is over the limit."""
    print(f"{'seconds':<16}{'median':>8}{'min':>8}{'max':>8}")
    for name, command in COMMANDS.items():
        seconds = time_processes(command)
        median = statistics.median(seconds)
        print(f"{name:<16}{median:>8.3f}{min(seconds):>8.3f}{max(seconds):>8.3f}")
    if median > LIMIT_SECONDS:  # of jacli, the last command
        print(f"jacli --help takes more than {LIMIT_SECONDS} s", file=sys.stderr)
        return 1
    return 0


def time_processes(command: list[str]) -> list[float]:
    """Wall time in seconds of each of ``REPEATS`` fresh processes, after one that is not counted."""
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


if __name__ == "__main__":
    sys.exit(main())
