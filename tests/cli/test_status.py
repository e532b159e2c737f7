"""`jacli status` as it is read on a terminal of 80 columns."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from jacli.cli.status import duration
from jacli.cluster import shard_path
from jacli.options.values import Shard
from jacli.store import RunLock
from tests.run.shard_files import unfinished, write_shard, write_shards


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_shards_of_every_kind(jacli, here: Path) -> None:
    out, command = Path("out.h5"), ("jacli", "compute", "m.pt", "x.npy", "--shard", "auto")
    write_shard(out, Shard(1, 5))
    locks = [RunLock(shard_path(out, Shard(index, 5))) for index in (2, 5)]
    for index, state in ((2, "running"), (3, "stopped"), (4, "failed")):
        unfinished(
            shard_path(out, Shard(index, 5)),
            state,
            folder=here,
            done=1,
            samples=2,
            started=time.time() - 100,
            command=command,
            reason="The disk is full." if state == "failed" else "",
        )
    ran = jacli("status", "out.h5")
    for lock in locks:
        lock.release()
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0] == "out.h5 in 5 shards"
    assert lines[1].split() == ["shard", "state", "done", "of", "samples/s", "left", "where"]
    assert [line.split()[:4] for line in lines[3:8]] == [
        ["1/5", "complete", "2", "2"],
        ["2/5", "running", "1", "2"],
        ["3/5", "stopped", "1", "2"],
        ["4/5", "failed", "1", "2"],
        ["5/5", "waiting", "-", "-"],
    ]
    assert re.search(r"2/5 .* 0\.01 +0:01:40  process \d+ on \S+$", lines[4])
    assert lines[8] == "5 of about 10 samples are done, 0.01 samples/s, 0:08:20 left"
    assert lines[9:] == ["next: for i in {3..4}; do jacli compute m.pt x.npy --shard $i/5; done"]
    assert "4/5 failed: The disk is full." in ran.err


def test_many_shards_share_rows(jacli) -> None:
    write_shards(Path("out.h5"), 30, samples=60)
    for index in (3, 4, 9):
        shard_path(Path("out.h5"), Shard(index, 30)).unlink()
    ran = jacli("status", "out.h5")
    assert [line.split() for line in ran.out.splitlines()[3:5]] == [
        ["27", "of", "them", "complete", "54", "54", "-", "-", "-"],
        ["3", "of", "them", "missing", "-", "-", "-", "-", "-"],
    ]
    assert "for i in {3..4} 9; do" in ran.out
    told = json.loads(jacli("status", "out.h5", "--json").out)
    assert [len(run["files"]) for run in told] == [30]
    assert told[0]["files"][2]["state"] == "missing"


def test_lines_fit_a_terminal(jacli, here: Path) -> None:
    lock = RunLock(shard_path(Path("out.h5"), Shard(123, 1000)))
    unfinished(
        shard_path(Path("out.h5"), Shard(123, 1000)),
        "running",
        folder=here,
        done=12345,
        samples=50000,
        started=time.time() - 5,
    )
    ran = jacli("status", "out.h5")
    lock.release()
    table = [line for line in ran.out.splitlines() if not line.startswith("next")]
    assert max(map(len, table)) <= 80 or len(lock_host()) > 12


def lock_host() -> str:
    import socket

    return socket.gethostname()


def test_one_file_and_then_several(jacli, here: Path) -> None:
    write_shard(Path("a.h5"), Shard(1, 1)).rename("a.h5")
    unfinished(
        Path("b.h5"), "stopped", folder=here, command=("jacli", "compute", "m.pt", "x.npy", "-o", "b.h5")
    )
    ran = jacli("status", "a.h5", "b.h5")
    assert ran.code == 0
    first, second = ran.out.split("\n\n")
    assert first.splitlines()[0].split()[0] == "file" and "10 of 10 samples are done" in first
    assert "next: jacli compute m.pt x.npy -o b.h5" in second


def test_all_complete(jacli) -> None:
    write_shards(Path("out.h5"), 2)
    assert jacli("status", "out.h5").out.splitlines()[-2:] == [
        "10 of 10 samples are done",
        "next: jacli merge out.h5",
    ]


def test_nothing_there(jacli) -> None:
    ran = jacli("status", "out.h5")
    assert (ran.code, ran.out) == (4, "") and "Nothing is named" in ran.err
    assert jacli("status").code == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "0:01:00"),
        (3600 * 3 + 61, "3:01:01"),
        (86400 * 2 + 3660, "2 d 01:01"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
