from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from jacli.untrusted import hdf5_guard
from jacli.untrusted.hdf5_guard import examine_hdf5


@pytest.fixture(autouse=True)
def fresh_child() -> Iterator[None]:
    hdf5_guard._close_child()
    yield
    hdf5_guard._close_child()


def _file(path: Path, **datasets: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


def test_a_sound_file_has_no_problem(tmp_path: Path) -> None:
    found = examine_hdf5(_file(tmp_path / "a.h5", x=np.zeros(3)))
    assert (found.problem, found.external_link) == (None, None)
    assert found.bytes == (tmp_path / "a.h5").stat().st_size


def test_what_hdf5_refuses_cleanly_is_left_to_the_reader(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("no HDF5")
    assert examine_hdf5(tmp_path / "words").problem is None
    assert examine_hdf5(tmp_path / "nothing").problem is None


def test_a_file_is_walked_again_only_when_it_changes(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.h5", x=np.zeros(3))
    first = examine_hdf5(path)
    assert examine_hdf5(path) is first
    with h5py.File(path, "r+") as file:
        file["y"] = np.zeros(30_000)
    assert examine_hdf5(path).bytes > first.bytes


def test_one_child_serves_many_files(tmp_path: Path) -> None:
    paths = [_file(tmp_path / f"{n}.h5", x=np.zeros(3)) for n in range(200)]
    examine_hdf5(paths[0])
    child, started = hdf5_guard._CHILDREN[0], time.monotonic()
    assert all(found.problem is None for found in [examine_hdf5(path) for path in paths])
    assert hdf5_guard._CHILDREN[0] is child
    assert time.monotonic() - started < 10


def test_a_child_that_crashes_is_told_and_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = _file(tmp_path / "good.h5", x=np.zeros(3)), _file(tmp_path / "bad.h5", x=np.zeros(4))
    walker = tmp_path / "walk.py"
    walker.write_text(
        "import os, sys, json\n"
        "for line in sys.stdin:\n"
        "    if 'bad' in line: os.kill(os.getpid(), 11)\n"
        "    found = {'problem': None, 'external_link': None, 'bytes': 1, 'sources': []}\n"
        "    print(json.dumps(found), flush=True)\n"
    )
    monkeypatch.setattr(hdf5_guard, "WALKER", walker)
    found = [examine_hdf5(good), examine_hdf5(bad)]
    assert found[0].problem is None
    assert "SIGSEGV" in str(found[1].problem)
    assert examine_hdf5(_file(tmp_path / "third.h5", x=np.zeros(5))).problem is None


def test_a_child_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walker = tmp_path / "walk.py"
    walker.write_text("import time\ntime.sleep(100)\n")
    monkeypatch.setattr(hdf5_guard, "WALKER", walker)
    monkeypatch.setattr(hdf5_guard, "SECONDS", 0.5)
    assert "busy" in str(examine_hdf5(_file(tmp_path / "a.h5", x=np.zeros(3))).problem)
    assert not hdf5_guard._CHILDREN


def test_a_child_that_went_idle_is_followed_by_another(tmp_path: Path) -> None:
    examine_hdf5(_file(tmp_path / "a.h5", x=np.zeros(3)))
    child = hdf5_guard._CHILDREN[0].process
    assert child.stdin is not None
    child.stdin.close()  # it ends as it does when nothing is asked
    child.wait()
    child.stdin = open(os.devnull, "wb")  # noqa: SIM115 - closed with the child
    assert examine_hdf5(_file(tmp_path / "b.h5", x=np.zeros(3))).problem is None


def _index(path: Path, source: str, name: str = "x") -> Path:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(source, name, (3,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("x", layout)
    return path


def test_numbers_may_come_from_beside_the_file(tmp_path: Path) -> None:
    beside = _file(tmp_path / "part.h5", x=np.ones(3))
    found = examine_hdf5(_index(tmp_path / "index.h5", "part.h5"))
    assert found.problem is None
    assert found.sources == (str(beside),)
    assert found.bytes > beside.stat().st_size
    assert examine_hdf5(_index(tmp_path / "lost.h5", "nobody.h5")).problem is None


def test_numbers_from_elsewhere_must_be_results(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "here").mkdir()
    other = _file(tmp_path / "other" / "part.h5", x=np.ones(3))
    index = _index(tmp_path / "here" / "index.h5", "../other/part.h5")
    assert "another place" in str(examine_hdf5(index).problem)
    assert "another place" in str(examine_hdf5(_index(tmp_path / "absolute.h5", str(other))).problem)
    with h5py.File(other, "r+") as file:
        file.attrs["schema"] = "jacli/1"
    os.utime(index, ns=(1, 1))  # what is known of it is known of its parts as they were
    assert examine_hdf5(index).problem is None


def test_a_missing_part_is_not_taken_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "current").mkdir()
    _file(tmp_path / "current" / "part.h5", x=np.ones(3))
    monkeypatch.chdir(tmp_path / "current")
    assert "missing beside it" in str(examine_hdf5(_index(tmp_path / "index.h5", "part.h5")).problem)


def test_parts_made_of_parts_are_refused(tmp_path: Path) -> None:
    _file(tmp_path / "first.h5", x=np.ones(3))
    _index(tmp_path / "second.h5", "first.h5")
    assert "made of parts" in str(examine_hdf5(_index(tmp_path / "third.h5", "second.h5")).problem)
    assert "made of parts" in str(examine_hdf5(_index(tmp_path / "circle.h5", "circle.h5")).problem)


def test_a_link_into_another_file_is_told(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.h5", x=np.zeros(3), out=h5py.ExternalLink("other.h5", "/x"))
    assert examine_hdf5(path).external_link == "out"
    assert examine_hdf5(path).problem is None


def test_numbers_of_a_raw_file_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", (4,), "u1", external=[("/etc/hostname", 0, 4)])
    assert "/etc/hostname" in str(examine_hdf5(tmp_path / "a.h5").problem)


@pytest.mark.slow
def test_a_thousand_shards_take_seconds(tmp_path: Path) -> None:
    paths = [_file(tmp_path / f"{n}.h5", **{f"d{k}": np.zeros(3) for k in range(18)}) for n in range(1000)]
    started = time.monotonic()
    [examine_hdf5(path) for path in paths]
    assert time.monotonic() - started < 15  # about 2 s on an idle machine


def _chunk_of_zeros(path: Path, mebibytes: int, *, dtype: str = "f4", **options: object) -> Path:
    """One chunk that is a thousandth of that as stored, packed in pieces: the test needs no memory for it."""
    packer = zlib.compressobj(9)
    packed = b"".join([*(packer.compress(bytes(2**20)) for _ in range(mebibytes)), packer.flush()])
    shape = (4, mebibytes * 2**18 // np.dtype(dtype).itemsize)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", shape, dtype, chunks=shape, compression="gzip", **options)
        dataset.id.write_direct_chunk((0, 0), packed, 0 if not options else 0b01)
    return path


@pytest.mark.parametrize(
    ("mebibytes", "options"),
    [(896, {}), (896, {"dtype": "f8"}), (400, {}), (400, {"shuffle": True})],
    ids=["896 MiB", "896 MiB in float64", "400 MiB", "400 MiB, shuffled"],
)
def test_a_chunk_that_takes_gigabytes_to_unpack_is_refused(
    tmp_path: Path, mebibytes: int, options: dict[str, object]
) -> None:
    """Its own size is below a gigabyte: what counts is the peak, copies included."""
    found = examine_hdf5(_chunk_of_zeros(tmp_path / "a.h5", mebibytes, **options))
    assert "more than 1,073,741,824 bytes of memory" in str(found.problem)
