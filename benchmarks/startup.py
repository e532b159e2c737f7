"""How long do small commands take?  Wall time of fresh processes, each pair side by side in one run.

``jacli --help`` beside an empty Python, and ``jacli compute`` on a sample model beside
``benchmarks/plain_run.py``, which does the same by hand: load, one reverse pass per class, singular
values, an HDF5 file.

Run ``make bench-startup`` or ``python benchmarks/startup.py``; exits 1 when ``--help`` takes over 0.5 s
(median), or the small run over 1.3 times the plain script (minimum over minimum: other processes only add).
One process of each kind runs first and is not counted: it writes the bytecode and fills the file cache.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELP_LIMIT_SECONDS = 0.5
SMALL_RUN_LIMIT_RATIO = 1.3
REPEATS = 10
_ROOT = Path(__file__).parents[1]
_SAMPLE = [str(_ROOT / "sample_models" / name) for name in ("digits_cnn.pt", "digits.npy")]


def main() -> int:
    """Print one line per command; the exit code is 1 if jacli is over a limit."""
    with tempfile.TemporaryDirectory() as folder:
        plain = str(_ROOT / "benchmarks/plain_run.py")
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "jacli --help": [sys.executable, "-m", "jacli", "--help"],
            "plain script": [sys.executable, plain, *_SAMPLE, f"{folder}/plain.h5"],
            "jacli compute": [
                *(sys.executable, "-m", "jacli", "compute", *_SAMPLE),
                *("-o", f"{folder}/jacli.h5", "--overwrite", "--quiet"),
            ],
        }
        seconds = time_processes(commands)
    print(f"{'seconds':<16}{'median':>8}{'min':>8}{'max':>8}")
    for name, measured in seconds.items():
        print(f"{name:<16}{statistics.median(measured):>8.3f}{min(measured):>8.3f}{max(measured):>8.3f}")
    ratio = min(seconds["jacli compute"]) / min(seconds["plain script"])
    print(f"jacli compute takes {ratio:.2f} times the plain script")
    failed = False
    if statistics.median(seconds["jacli --help"]) > HELP_LIMIT_SECONDS:
        print(f"jacli --help takes more than {HELP_LIMIT_SECONDS} s", file=sys.stderr)
        failed = True
    if not ratio <= SMALL_RUN_LIMIT_RATIO:
        print(f"that is more than {SMALL_RUN_LIMIT_RATIO} times", file=sys.stderr)
        failed = True
    return int(failed)


def time_processes(commands: dict[str, list[str]]) -> dict[str, list[float]]:
    """Wall seconds of ``REPEATS`` processes per command, in turns; the first of each is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    # Installed packages have their bytecode; where no process may write it, jacli alone would go without.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(REPEATS + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            seconds[name].append(time.perf_counter() - start)
    return {name: measured[1:] for name, measured in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
