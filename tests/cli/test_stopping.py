"""Signals while torch's C++ code keeps Python from its handlers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jacli.cli.stopping import Stopped, stop_behind
from jacli.errors import OutputError, ResultsError, StoppedError
from jacli.store import open_results


class Hangs(nn.Module):
    """Never comes back from a large input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        while bool((x > 100).any()):
            y = y + 1
        return y


Start = Callable[[int], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A run of 40 samples, of which the given one hangs; ended after the test in any case."""
    torch.jit.script(Hangs().eval()).save(str(tmp_path / "hangs.pt"))
    started = []

    def start(row: int) -> subprocess.Popen[bytes]:
        x = np.random.default_rng(0).standard_normal((40, 3), dtype=np.float32)
        x[row] = 200.0
        np.save(tmp_path / "x.npy", x)
        process = subprocess.Popen(
            [sys.executable, "-m", "jacli", "compute", "hangs.pt", "x.npy", "-o", "out.h5", "--quiet",
             "--method", "loop", "--batch-size", "2"],
            cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def processor_seconds(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_it_hangs(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Until the loop has taken processor time while nothing more came into the file."""
    part = folder / "out.h5.part"
    while not part.exists():
        assert process.poll() is None
        time.sleep(0.05)
    size, since = -1, 0.0
    while (now := processor_seconds(process)) - since < 2 or part.stat().st_size != size:
        if part.stat().st_size != size:
            size, since = part.stat().st_size, now
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        pytest.param(signal.SIGINT, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, signal.SIGTERM, marks=pytest.mark.slow),
    ],
    ids=["SIGTERM", "Ctrl-C", "SIGUSR2 and SIGTERM"],
)
def test_a_second_signal_ends_a_loop_in_torchscript(
    start: Start, tmp_path: Path, first: signal.Signals, second: signal.Signals
) -> None:
    process = start(30)
    wait_until_it_hangs(process, tmp_path)
    process.send_signal(first)
    process.send_signal(first)  # as Slurm does: passed on by a shell, it is no second one
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(second)
    assert process.wait(10) == 128 + second
    with open_results(tmp_path / "out.h5.part") as results:
        done = np.flatnonzero(results.done)
        assert len(done) and done.max() < 30
        assert np.isfinite(results.jacobian[: len(done)]).all()


@pytest.mark.slow
def test_before_anything_is_finished(start: Start, tmp_path: Path) -> None:
    process = start(0)
    while processor_seconds(process) < 8:  # long enough to have begun with the first samples
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("reread", [False, True], ids=["by C", "by C and then by a reader of files"])
def test_a_stop_that_is_made_another_error_is_a_stop(reread: bool) -> None:
    """As by h5py's lock: "<FastRLock.__exit__> returned a result with an exception set"."""
    error: Exception = SystemError("returned a result with an exception set")
    error.__cause__ = Stopped(signal.SIGTERM)
    if reread:
        damaged = ResultsError("out.h5 cannot be read.", why=f"It is damaged: {error}.", hint="Copy it.")
        damaged.__cause__ = error
        error = damaged
    stopped = stop_behind(error)
    assert isinstance(stopped, StoppedError) and "SIGTERM" in stopped.what


def test_an_error_while_a_stopped_run_is_saved_is_that_error() -> None:
    full = OutputError("The disk is full.", why="", hint="")
    full.__cause__ = Stopped(signal.SIGTERM)
    assert stop_behind(full) is None


_DROPPED = """
import os, signal, time, weakref
from jacli.cli import stopping

class Thing:
    def __del__(self):
        if {finaliser}:
            os.kill(os.getpid(), {number}); time.sleep(0.01)  # the handler raises here, in vain

def callback(reference):
    if not {finaliser}:
        os.kill(os.getpid(), {number}); time.sleep(0.01)

stopping.listen()
thing = Thing()
reference = weakref.ref(thing, callback)
try:
    del thing
    for _ in range(200):
        time.sleep(0.01)
    print("went on")
except stopping.Stopped as stopped:
    print("stopped by", stopped.args[0])
"""


@pytest.mark.parametrize("finaliser", [True, False], ids=["finaliser", "weak reference"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2], ids=lambda n: n.name)
def test_a_stop_that_python_drops_comes_again(finaliser: bool, number: signal.Signals) -> None:
    program = _DROPPED.format(finaliser=finaliser, number=int(number))
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"stopped by {int(number)}\n", "")
