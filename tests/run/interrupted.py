"""Runs `jacli compute` again and again and ends it at random moments: ``python -m tests.run.interrupted``.

Each run is a fork of this process, which has imported everything and started no thread, so that hundreds
of them take a minute.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
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
    _give_up(pid)


def wait_until_it_listens(pid: int) -> None:
    """Until the command has installed its handlers, of which that of SIGUSR2 is the last."""
    began = time.monotonic()
    while time.monotonic() - began < _LONGEST:
        status = Path(f"/proc/{pid}/status").read_text()
        (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", status, flags=re.M)
        if int(caught, 16) >> (signal.SIGUSR2 - 1) & 1:
            return
        time.sleep(0.001)
    _give_up(pid)


def _give_up(pid: int) -> NoReturn:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"process {pid} hangs")


def interrupt(arguments: Sequence[str], folder: Path, number: int, seconds: float, seed: int) -> list[int]:
    """Run the command and send it a signal at a random moment, twice; then let it end by itself.

    How long a run takes depends on the machine and on what else it does, and one that goes on takes less
    than one from the beginning.  If it ends before its signal comes, everything begins anew in an empty
    folder, with the signal before the moment that was too late.

    Args:
        arguments: Of the command.
        folder: Where it runs; made here.
        number: Of the signal.
        seconds: About how long a run takes that nothing disturbs.
        seed: Of the moments.

    Returns:
        The exit codes of the three runs.
    """
    draw, latest = random.Random(seed), [seconds, seconds]
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.chdir(folder)
        codes: list[int] = []
        for window in tuple(latest):
            pid = start(arguments, folder / "log")
            if number != signal.SIGKILL:
                wait_until_it_listens(pid)
            moment = draw.uniform(0.0, window)
            time.sleep(moment)
            os.kill(pid, number)
            codes.append(wait(pid))
            if codes[-1] == 0:
                latest[len(codes) - 1] = moment
                break
        else:
            return [*codes, wait(start(arguments, folder / "log"))]


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
