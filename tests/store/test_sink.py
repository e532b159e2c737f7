"""The file beneath HDF5: killed at any moment, it is as the last commit left it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from jacli.store import ResultLayout, ResultWriter, open_results, part_path
from jacli.store.journal import PAGE, Commit, journal_path, read_journal, write_journal
from jacli.store.sink import FileSink
from tests.store.killed import LAYOUTS, write_on
from tests.store.layouts import IMAGES, random_block


@pytest.mark.parametrize("name", LAYOUTS)
def test_killed_at_every_moment_nothing_is_lost_that_was_committed(tmp_path: Path, name: str) -> None:
    """Every call of the system may be the last one: what is on disk then can always be continued."""
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
        writer.write_block(start, random_block(layout, start, start + 1))
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
        writer.write_block(0, random_block(IMAGES, 0, 4))
        writer.commit()
        with h5py.File(part_path(out), "r") as reader:
            writer.write_block(4, random_block(IMAGES, 4, 8))
            assert reader["done"][:].tolist() == [1] * 4 + [0] * 6
            writer.commit()
        with h5py.File(part_path(out), "r") as reader:
            assert reader["done"][:].tolist() == [1] * 8 + [0] * 2
        writer.write_block(8, random_block(IMAGES, 8, 10))
        writer.finish()


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_journal_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    part = tmp_path / "out.h5.part"
    write_journal(part, Commit(5000, {1: b"a" * PAGE}))
    assert read_journal(part) == Commit(5000, {1: b"a" * PAGE})
    good = journal_path(part).read_bytes()
    journal_path(part).write_bytes(good[:-9] + b"?" + good[-8:] if damage is None else damage)
    with pytest.raises(ValueError, match=r"checksum|begin"):
        read_journal(part)
