"""Is jacli right on this device?  The contract tests on it, and every path that only a GPU takes.

    python -m benchmarks.device.check --out results
    python -m benchmarks.device.check --device cpu --small   # rehearsal

Failures are collected, not stopped at.  The tests run in processes of their own beside the paths.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from benchmarks.device.paths import ALONE, PATHS
from benchmarks.device.record import Record, parser
from benchmarks.report import machine

TESTS = (
    "tests/run/test_host_copies.py",
    "tests/verify/test_probe.py",
    "tests/methods/test_methods.py",
    "tests/linear_program/test_rules.py",
)

CHOSEN = (
    "not (vectors_that_share or every_batch_size or a_rule_that_is_there or adjoint_identity or exactly_once)"
)
"""Left out: what does not depend on a device, or repeats the other tests."""

_FOR_THE_END = 15.0
"""Seconds kept for the paths that need the device to themselves."""


def main(arguments: list[str] | None = None) -> int:
    """Run paths and tests; 0 if nothing failed."""
    found = parser("check", "Is jacli right on this device?", seconds=150)
    found.add_argument("--only", nargs="+", choices=[*PATHS, *ALONE, "tests"], help="these alone (all)")
    options = found.parse_args(arguments)
    chosen = set(options.only or [*PATHS, *ALONE, "tests"])
    device: torch.device = options.device
    options.out.mkdir(parents=True, exist_ok=True)
    record = Record(options.out / "check.jsonl", options.seconds)
    record.add("machine", {"device": machine(device), "torch": torch.__version__, "small": options.small})
    tests = _start_tests(device, options.out, small=options.small) if "tests" in chosen else None
    for name in filter(chosen.__contains__, PATHS):
        path = PATHS[name]
        record.run(name, partial(path, device))
    if tests is not None:
        record.run("tests", partial(_wait, tests, record.left - _FOR_THE_END, options.out))
    for name in filter(chosen.__contains__, ALONE):
        path = ALONE[name]
        record.run(name, partial(path, device))
    return 1 if record.failures else 0


def _start_tests(device: torch.device, out: Path, *, small: bool) -> subprocess.Popen[bytes]:
    workers = 2 if small else max(2, (os.cpu_count() or 2) - 3)
    chosen = f"{CHOSEN} and (conv_relu or residual)" if small else CHOSEN
    words = [
        *(sys.executable, "-m", "pytest", *TESTS, "-k", chosen, "-n", str(workers)),
        *("-m", "not slow and not exhaustive", "-p", "no:cacheprovider", "-p", "benchmarks.device.failures"),
        *("-q", "--tb=short", "--timeout=100", "-W", "default", "--override-ini=filterwarnings=default"),
    ]
    environment = {
        **os.environ,
        "JACLI_TEST_DEVICE": device.type,
        "JACLI_FAILURES": str(out / "failures.txt"),
        "OMP_NUM_THREADS": "1",
    }
    log = (out / "tests.log").open("wb")
    return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=environment)


def _wait(tests: subprocess.Popen[bytes], seconds: float, out: Path) -> Mapping[str, object]:
    try:
        tests.wait(timeout=max(1.0, seconds))
        ended = f"exit {tests.returncode}"
    except subprocess.TimeoutExpired:
        tests.kill()
        tests.wait()
        subprocess.run(["pkill", "-f", "benchmarks.device.failures"], check=False)
        ended = "stopped at the deadline"
    counts = out / "failures.txt.counts"
    outcomes = counts.read_text().split() if counts.exists() else []
    failures = out / "failures.txt"
    found = {
        "ended": ended,
        "passed": outcomes.count("passed"),
        "failed": outcomes.count("failed"),
        "skipped": outcomes.count("skipped"),
    }
    if failures.exists():
        names = [line for line in failures.read_text().splitlines() if line.startswith("FAILED ")]
        raise AssertionError(f"{found}; {names[:40]}")
    return found


if __name__ == "__main__":
    sys.exit(main())
