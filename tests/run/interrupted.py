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
from tests.fork_server import import_everything

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
    code = wait_for(pid, _LONGEST)
    return _give_up(pid) if code is None else code


def wait_for(pid: int, seconds: float) -> int | None:
    """The exit code of a process if it ends within so many seconds."""
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if (left := until - time.monotonic()) <= 0:
            return None
        time.sleep(min(left, 0.005))


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


def interrupt(
    arguments: Sequence[str], folder: Path, number: int, seconds: float, shares: tuple[float, float]
) -> list[int]:
    """Run the command and send it a signal, twice; then let it end by itself.

    How long a run takes depends on the machine and on what else it does.  If it ends before its signal
    comes, everything begins anew in an empty folder, and that signal comes sooner.

    Args:
        arguments: Of the command.
        folder: Where it runs; made here.
        number: Of the signal.
        seconds: About how long a run takes that nothing disturbs.
        shares: Of the time that a run takes, until the first signal and until the second.

    Returns:
        The exit codes of the three runs.
    """
    takes = [seconds, seconds * (1 - shares[0] / 2)]  # the second starts anew, but goes on
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.chdir(folder)
        codes: list[int] = []
        for share, longest in zip(shares, tuple(takes), strict=True):
            pid = start(arguments, folder / "log")
            if number != signal.SIGKILL:
                wait_until_it_listens(pid)
            began = time.monotonic()
            code = wait_for(pid, share * longest)
            if code is None:
                os.kill(pid, number)
                code = wait(pid)
            codes.append(code)
            if code == 0:
                takes[len(codes) - 1] = 0.9 * min(longest, time.monotonic() - began)
                break
        else:
            return [*codes, wait(start(arguments, folder / "log"))]


def moments(runs: int, seed: int) -> list[tuple[float, float]]:
    """Two random shares of a run for each of the runs: of each ``1 / runs`` of its time, one."""
    draw = random.Random(seed)
    parts = zip(draw.sample(range(runs), runs), draw.sample(range(runs), runs), strict=True)
    return [((one + draw.random()) / runs, (other + draw.random()) / runs) for one, other in parts]


def main(folder: Path, signal_name: str, runs: int, seed: int, arguments: list[str]) -> None:
    """A run that nothing disturbs, ``whole.h5``, and ``runs`` with its plan that are ended and continued.

    Writes ``codes.json``: exit codes of each.
    """
    torch.set_num_threads(1)
    import_everything()
    os.chdir(folder)
    assert wait(start([*arguments, "-o", "plan.h5"], folder / "log")) == 0, (folder / "log").read_text()
    began = time.monotonic()
    repeated = ["compute", "--config", str(folder / "plan.h5"), "-o"]
    assert wait(start([*repeated, "whole.h5"], folder / "log")) == 0, (folder / "log").read_text()
    seconds = time.monotonic() - began
    codes = {
        str(run): interrupt(
            [*repeated, "out.h5"], folder / str(run), signal.Signals[signal_name], seconds, shares
        )
        for run, shares in enumerate(moments(runs, seed))
    }
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
