"""Who may write a result: one process, whatever became of the others."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from jacli.errors import OutputError
from jacli.store import RunLock, lock, read_holder
from jacli.store.lock import Holder, lock_path

ROOT = Path(__file__).parents[2]

HOLDS = """
import sys, time
from pathlib import Path
from jacli.store import RunLock
RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.h5"


def start_holder(out: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, out], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def elsewhere(**changes: object) -> Holder:
    """A process on another machine."""
    return replace(Holder.me(), **{"host": "node17", "pid": 4711, "space": "other", **changes})


def leave(out: Path, holder: Holder, *, age: float = 0.0) -> None:
    path = lock_path(out)
    path.write_text(json.dumps(asdict(holder)))
    os.utime(path, (time.time() - age, time.time() - age))


def test_it_is_held_until_it_is_released(out: Path) -> None:
    held = RunLock(out)
    assert read_holder(out) == held._me
    with pytest.raises(OutputError, match="Another process is writing") as refused:
        RunLock(out)
    assert f"process {os.getpid()} on" in refused.value.why
    held.check()
    held.release()
    held.release()
    assert read_holder(out) is None
    assert not list(out.parent.iterdir())
    RunLock(out).release()


def test_another_process_is_named_and_its_lock_is_free_when_it_was_killed(out: Path) -> None:
    with start_holder(out) as other:
        found = read_holder(out)
        assert found is not None and found.pid == other.pid
        with pytest.raises(OutputError) as refused:
            RunLock(out)
        assert f"process {other.pid} on" in refused.value.why
        other.kill()
        other.wait()
        assert read_holder(out) is None
        assert lock_path(out).exists()
        RunLock(out).release()
    assert not list(out.parent.iterdir())


def test_a_number_that_is_used_again_is_another_process(out: Path) -> None:
    leave(out, replace(Holder.me(), began=Holder.me().began - 1))
    assert read_holder(out) is None


def test_another_host_is_waited_for_until_it_gives_no_sign_of_life(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "GONE_AFTER", 0.6)
    leave(out, elsewhere(), age=0.1)
    assert read_holder(out) is not None
    said: list[str] = []
    began = time.monotonic()
    RunLock(out, said.append).release()
    assert 0.3 < time.monotonic() - began < 5
    assert "process 4711 on node17" in said[0]
    leave(out, elsewhere(), age=10)
    assert read_holder(out) is None
    RunLock(out, said.append).release()
    assert len(said) == 1


def test_a_host_that_gives_signs_of_life_keeps_its_lock(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "GONE_AFTER", 1.0)
    leave(out, elsewhere())
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.1):
            os.utime(lock_path(out))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(OutputError, match="Another process"):
            RunLock(out)
    finally:
        stop.set()
        thread.join()
    assert json.loads(lock_path(out).read_text())["host"] == "node17"


def test_a_job_that_was_started_again_is_its_own_successor(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    leave(out, elsewhere(job="99", restarts=0))
    began = time.monotonic()
    RunLock(out).release()
    assert time.monotonic() - began < 1
    monkeypatch.setattr(lock, "GONE_AFTER", 0.3)
    leave(out, elsewhere(job="99", restarts=1))  # another step of the same job is no predecessor
    said: list[str] = []
    RunLock(out, said.append).release()
    assert said


def test_who_was_taken_for_gone_writes_no_more(out: Path) -> None:
    held = RunLock(out)
    lock_path(out).unlink()
    successor = RunLock(out)
    with pytest.raises(OutputError, match="is now being written by another process"):
        held.check()
    held.release()
    assert read_holder(out) == successor._me  # and removes no lock of others
    successor.check()
    successor.release()


def test_where_the_kernel_keeps_no_locks_the_name_in_the_file_counts(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    held = RunLock(out)
    with pytest.raises(OutputError, match="Another process"):
        RunLock(out)
    held.release()
    RunLock(out).release()


def test_it_lives_as_long_as_its_process_renews_it(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEWED_EVERY", 0.05)
    held = RunLock(out)
    before = lock_path(out).stat().st_mtime_ns
    time.sleep(0.3)
    assert lock_path(out).stat().st_mtime_ns > before
    held.release()


@pytest.mark.parametrize("ahead", [1.0, 7200.0, 2e9], ids=["a second", "hours", "decades"])
def test_a_time_in_the_future_is_waited_for_no_longer_than_any_other(
    out: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    monkeypatch.setattr(lock, "GONE_AFTER", 0.6)
    leave(out, elsewhere(), age=-ahead)
    assert (read_holder(out) is None) == (ahead > 0.6)
    said: list[str] = []
    began = time.monotonic()
    RunLock(out, said.append).release()
    assert 0.5 < time.monotonic() - began < 5
    assert "waiting 1 s" in said[0] and "sign of life 0 s ago" in said[0]


@pytest.mark.parametrize("changes", [{"pid": "5"}, {"host": 5}, {"job": ["x"]}, {"restarts": None}], ids=str)
def test_a_lock_of_wrong_types_is_none(out: Path, changes: dict[str, object]) -> None:
    lock_path(out).write_text(json.dumps(asdict(elsewhere()) | changes))
    assert read_holder(out) is None
    with pytest.raises(OutputError, match="is not a lock of jacli"):
        RunLock(out)
    lock_path(out).write_text("[" * 100_000)
    with pytest.raises(OutputError, match="is not a lock of jacli"):
        RunLock(out)
