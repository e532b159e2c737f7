"""Files beside a result are never opened through links, and what is none of ours is never overwritten."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import jacli
from jacli.cluster.queue import Submitted, write_submitted
from jacli.commands.submit import _written
from jacli.durable.write_ahead_log import Commit, journal_path, new_journal_path, write_journal
from jacli.errors import OutputError
from jacli.store import Progress, RunLock, progress_path, read_progress, write_progress
from jacli.store.lock import lock_path
from jacli.store.paths import new_part_path, new_progress_path, part_path
from jacli.untrusted.own_files import ForeignFileError, open_own, read_own, replace_own

PRECIOUS = b"precious\n"


def link(place: Path, victim: Path) -> None:
    place.symlink_to(victim)


def hard_link(place: Path, victim: Path) -> None:
    os.link(victim, place)


def chain(place: Path, victim: Path) -> None:
    (between := place.with_name("between")).symlink_to(victim)
    place.symlink_to(between)


def copy(place: Path, victim: Path) -> None:
    """No link, but a file of somebody else under that name."""
    place.write_bytes(victim.read_bytes())


LINKS = {"symbolic link": link, "hard link": hard_link, "chain of links": chain}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (path := tmp_path / "victim").write_bytes(PRECIOUS)
    return path


@pytest.mark.parametrize("put", [*LINKS.values(), copy], ids=[*LINKS, "other content"])
def test_a_lock_that_is_none_is_left_alone(
    tmp_path: Path, victim: Path, put: Callable[[Path, Path], None]
) -> None:
    put(lock_path(tmp_path / "out.h5"), victim)
    with pytest.raises(OutputError) as refused:
        RunLock(tmp_path / "out.h5")
    assert "out.h5.part.lock" in str(refused.value) and "Move it away" in refused.value.hint
    assert victim.read_bytes() == PRECIOUS
    assert lock_path(tmp_path / "out.h5").read_bytes() == PRECIOUS


@pytest.mark.parametrize("content", [b"", bytes(300)], ids=["empty", "zeros"])
def test_a_lock_that_a_power_cut_left_without_content_is_taken(tmp_path: Path, content: bytes) -> None:
    lock_path(tmp_path / "out.h5").write_bytes(content)
    RunLock(tmp_path / "out.h5").release()


@pytest.mark.parametrize("put", LINKS.values(), ids=LINKS)
@pytest.mark.parametrize(
    "place",
    [part_path, new_part_path, progress_path, new_progress_path, lambda out: journal_path(part_path(out)),
     lambda out: new_journal_path(part_path(out))],
    ids=["part", "part.new", "json", "json.new", "journal", "journal.new"],
)  # fmt: skip
def test_a_run_writes_through_no_link(
    tmp_path: Path,
    victim: Path,
    place: Callable[[Path], Path],
    put: Callable[[Path, Path], None],
) -> None:
    import torch

    torch.jit.script(torch.nn.Linear(3, 2).eval()).save(str(tmp_path / "model.pt"))
    np.save(tmp_path / "x.npy", np.ones((4, 3), np.float32))
    put(place(tmp_path / "out.h5"), victim)
    try:
        jacli.compute(str(tmp_path / "model.pt"), str(tmp_path / "x.npy"), out=str(tmp_path / "out.h5"))
    except OutputError as error:
        assert "out.h5.part" in str(error)
    else:
        assert (tmp_path / "out.h5").exists()
    assert victim.read_bytes() == PRECIOUS


@pytest.mark.parametrize("put", LINKS.values(), ids=LINKS)
def test_files_are_replaced_and_not_written_through(
    tmp_path: Path, victim: Path, put: Callable[[Path, Path], None]
) -> None:
    out, logs = tmp_path / "out.h5", tmp_path / "logs"
    logs.mkdir()
    write = {
        progress_path(out): lambda: write_progress(out, Progress("running", 3, 1)),
        new_progress_path(out): lambda: write_progress(out, Progress("running", 3, 1)),
        new_journal_path(part_path(out)): lambda: write_journal(part_path(out), Commit(0, 0, {})),
        logs / "array.sh": lambda: _written(logs / "array.sh", "#!/bin/sh"),
        logs / f"jobs.json.{os.getpid()}.new": lambda: write_submitted(logs, Submitted()),
    }
    for place, make in write.items():
        place.unlink(missing_ok=True)
        (place.parent / "between").unlink(missing_ok=True)
        put(place, victim)
        make()
        assert victim.read_bytes() == PRECIOUS, place
    assert read_progress(out) is not None
    assert (logs / "array.sh").read_text() == "#!/bin/sh" and not (logs / "array.sh").is_symlink()


def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
        with pytest.raises(ForeignFileError, match="not a regular file"):
            open_own(tmp_path / "pipe", flags)
    os.mkfifo(progress_path(tmp_path / "out.h5"))
    assert read_progress(tmp_path / "out.h5") is None


def test_what_is_too_long_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(bytes(11))
    with pytest.raises(ForeignFileError, match="more than 10 bytes"):
        read_own(tmp_path / "long", limit=10)
    assert read_own(tmp_path / "long", limit=11) == bytes(11)


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace_own(tmp_path / "folder", b"x", new=tmp_path / "folder.new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"state": "failed", "samples": 9, "done": 3, "folder": 5}',
        '{"state": "failed", "samples": 9, "done": 3, "command": "rm"}',
        '{"state": "failed", "samples": 9, "done": 3, "command": [1]}',
        '{"state": "failed", "samples": 9, "done": 3, "started": NaN}',
        '{"state": "failed", "samples": 9.5, "done": 3}',
        '{"state": ["x"], "samples": 9, "done": 3}',
        "null",
    ],
)
def test_progress_that_cannot_be_understood_is_none(tmp_path: Path, text: str) -> None:
    progress_path(tmp_path / "out.h5").write_text(text)
    assert read_progress(tmp_path / "out.h5") is None
