"""The file beneath HDF5: killed at any moment, it is as the last commit left it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from jacli.durable.sink import FileSink
from jacli.durable.write_ahead_log import PAGE, Commit, journal_path, read_journal, write_journal
from jacli.errors import OutputError
from jacli.store import ResultLayout, ResultWriter, open_results, part_path
from tests.store.killed import LAYOUTS, SYNCS, unsynced, write_on
from tests.store.layouts import IMAGES, random_batch
from tests.store.power import after_a_power_cut, record


@pytest.fixture
def no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that write hundreds of files, and read them from where they were written."""
    for name in SYNCS:
        monkeypatch.setattr(os, name, unsynced)


@pytest.mark.timeout(600)  # a process for each of its moments
@pytest.mark.usefixtures("no_syncs")
@pytest.mark.parametrize("name", LAYOUTS)
def test_killed_at_any_moment_nothing_is_lost_that_was_committed(tmp_path: Path, name: str) -> None:
    """Any call of the system may be the last one: what is on disk then can always be continued."""
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-m", "tests.store.killed", name, tmp_path],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True,
    )  # fmt: skip
    moments = sorted(tmp_path.glob("*.killed"))
    assert len(moments) > 30
    continued = 0
    for killed in moments:
        out = killed / "out.h5"
        continued += part_path(out).exists()
        write_on(out, LAYOUTS[name])
        with open_results(out) as results, open_results(tmp_path / "whole.h5") as whole:
            assert results.names == whole.names
            for dataset in whole.names:
                np.testing.assert_array_equal(results[dataset][...], whole[dataset][...])
        assert [path.name for path in killed.iterdir()] == [out.name]
    assert continued > 20


def test_memory_is_that_of_the_bookkeeping(tmp_path: Path) -> None:
    layout = ResultLayout(8, (3, 64, 64), (100,), batch_size=1)
    writer = ResultWriter.create(tmp_path / "out.h5", layout, {}, overwrite=False)
    for start in range(8):
        writer.write_batch(start, random_batch(layout, start, start + 1))
        assert len(writer._sink._pages) * PAGE < 2**20  # of a block of 5 MB
        writer.commit()
        assert not writer._sink._pages
    writer.finish()


def test_what_waits_in_memory_is_read_back(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "new")
    sink.write(memoryview(bytes(range(256)) * 40))  # 10,240 bytes: ends inside of a page
    sink.first_commit(tmp_path / "file", os.rename)
    sink.seek(10_000)
    sink.write(memoryview(b"x" * 3000))
    sink.seek(9_990)
    assert sink.read(20) == bytes(range(6, 16)) + b"x" * 10
    sink.seek(12_990)
    assert sink.read(20) == b"x" * 10 + bytes(10)
    assert (tmp_path / "file").read_bytes()[:10_240] == bytes(range(256)) * 40
    sink.commit()
    assert sink.error is None
    sink.close()
    assert (tmp_path / "file").read_bytes() == (bytes(range(256)) * 40)[:10_000] + b"x" * 3000


def test_a_reader_meanwhile_sees_the_last_commit_and_stops_nobody(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    with ResultWriter.create(out, IMAGES, {}, overwrite=False) as writer:
        writer.write_batch(0, random_batch(IMAGES, 0, 4))
        writer.commit()
        with h5py.File(part_path(out), "r") as reader:
            writer.write_batch(4, random_batch(IMAGES, 4, 8))
            assert reader["done"][:].tolist() == [1] * 4 + [0] * 6
            writer.commit()
        with h5py.File(part_path(out), "r") as reader:
            assert reader["done"][:].tolist() == [1] * 8 + [0] * 2
        writer.write_batch(8, random_batch(IMAGES, 8, 10))
        writer.finish()


def two_thirds(out: Path) -> None:
    """An unfinished file with two of its three blocks."""
    with ResultWriter.create(out, IMAGES, {"command": "test"}, overwrite=False) as writer:
        for start in (0, 4):
            writer.write_batch(start, random_batch(IMAGES, start, start + 4))


def test_a_file_that_was_cut_short_is_not_continued(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    two_thirds(out)
    whole = part_path(out).read_bytes()
    part_path(out).write_bytes(whole[:-100])
    with pytest.raises(OutputError, match="bytes, and had"):
        ResultWriter.reopen(out, overwrite=False)
    assert part_path(out).read_bytes() == whole[:-100]


def test_a_journal_is_not_laid_over_another_file(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    two_thirds(out)
    whole = part_path(out).read_bytes()
    part_path(out).unlink()
    part_path(out).write_bytes(whole)  # a copy, from a backup say, is as good
    with ResultWriter.reopen(out, overwrite=False) as writer:
        assert writer.committed == 8
    other = bytes(len(whole))
    part_path(out).write_bytes(other)
    journal = journal_path(part_path(out)).read_bytes()
    part_path(out).rename(tmp_path / "moved")
    part_path(out).write_bytes(other)
    with pytest.raises(OutputError, match="is of another file"):
        ResultWriter.reopen(out, overwrite=False)
    assert part_path(out).read_bytes() == other
    assert journal_path(part_path(out)).read_bytes() == journal


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_journal_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    part = tmp_path / "out.h5.part"
    write_journal(part, Commit(5000, 7, {1: b"a" * PAGE}))
    assert read_journal(part) == Commit(5000, 7, {1: b"a" * PAGE})
    good = journal_path(part).read_bytes()
    journal_path(part).write_bytes(good[:-9] + b"?" + good[-8:] if damage is None else damage)
    with pytest.raises(ValueError, match=r"checksum|begin"):
        read_journal(part)


@pytest.mark.usefixtures("no_syncs")  # which are recorded nevertheless
@pytest.mark.parametrize("name", LAYOUTS)
def test_after_a_power_cut_nothing_is_lost_that_was_committed(tmp_path: Path, name: str) -> None:
    """Whatever was not yet at the disk is there or not, sector by sector, at each moment."""
    layout, out = LAYOUTS[name], tmp_path / "out.h5"
    recorded = record(out, layout)
    draw = random.Random(0)
    moments = range(0, len(recorded.calls) + 1, max(1, len(recorded.calls) // 150))
    assert len(moments) > 50
    for moment in moments:
        content, journal, committed = after_a_power_cut(recorded, moment, draw)
        part_path(out).write_bytes(content)  # the same inode
        journal_path(part_path(out)).write_bytes(journal)
        with ResultWriter.reopen(out, overwrite=False) as writer:
            writer.expect(layout)
            assert writer.committed >= committed
            for start in range(0, writer.committed, layout.batch_size):
                stop = min(start + layout.batch_size, layout.n_samples)
                for dataset, values in random_batch(layout, start, stop).items():
                    np.testing.assert_array_equal(writer.datasets[dataset][start:stop], values)
