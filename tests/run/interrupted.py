"""Runs `jacli compute` again and again and ends it at random moments: ``python -m tests.run.interrupted``.

Each run is a fork of this process, which has imported everything and started no thread, so that hundreds
of them take a minute.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch

from jacli.cli import main as jacli_main

_LONGEST = 60.0
"""Seconds after which a run hangs."""


def start(arguments: Sequence[str], log: Path) -> int:
    """A process that runs the command; its number."""
    pid = os.fork()
    if pid:
        return pid
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 99
    try:
        with mock.patch.object(sys, "argv", ["jacli", *arguments]):
            jacli_main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code of a process, negative for a signal."""
    began = time.monotonic()
    while time.monotonic() - began < _LONGEST:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"process {pid} hangs")


def interrupt(arguments: Sequence[str], folder: Path, number: int, seconds: float, seed: int) -> list[int]:
    """Run the command and send it a signal at a random moment, twice; then let it end by itself.

    Returns:
        The exit codes.
    """
    draw, codes = random.Random(seed), []
    folder.mkdir()
    os.chdir(folder)
    while not codes or codes[-1] not in (0, 1, 2, 3, 4, 5, 6, 99):
        pid = start(arguments, folder / "log")
        if len(codes) < 2:
            time.sleep(draw.uniform(0.0, seconds))
            os.kill(pid, number)
        codes.append(wait(pid))
    return codes


def main(folder: Path, signal_name: str, runs: int, seed: int, arguments: list[str]) -> None:
    """A run that nothing disturbs, ``whole.h5``, and ``runs`` with its plan that are ended and continued.

    Writes ``codes.json``: exit codes of each.
    """
    torch.set_num_threads(1)
    os.chdir(folder)
    assert wait(start([*arguments, "-o", "plan.h5"], folder / "log")) == 0, (folder / "log").read_text()
    began = time.monotonic()
    repeated = ["compute", "--config", str(folder / "plan.h5"), "-o"]
    assert wait(start([*repeated, "whole.h5"], folder / "log")) == 0, (folder / "log").read_text()
    seconds = time.monotonic() - began
    codes = {
        str(run): interrupt(
            [*repeated, "out.h5"], folder / str(run), signal.Signals[signal_name], seconds, seed + run
        )
        for run in range(runs)
    }
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
