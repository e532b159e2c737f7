from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from jacli.errors import OutputError, ResultsError
from jacli.store import ResultLayout, ResultWriter, open_results
from jacli.store.batches import damaged_batches
from jacli.store.indexed import IndexedDataset
from jacli.store.merge import COPIED_BYTES, write_merged
from jacli.store.shard_file import ShardFile, count_samples, read_shard
from jacli.store.sources import sources_of
from tests.store.layouts import IMAGES, random_batch

LAYOUTS = {
    "images": IMAGES,
    "one output": ResultLayout(10, (6,), (), n_singular_values=1, nuclear_norm=True, batch_size=2),
    "maps": ResultLayout(10, (6, 2), (7, 3), batch_size=2),
    "top": ResultLayout(10, (6,), (7,), selected=2, per_sample_classes=True, batch_size=3),
    "the same classes": ResultLayout(10, (6,), (7,), selected=2, batch_size=3),
    "float16": replace(IMAGES, save_dtype="float16"),
    "gzip": replace(IMAGES, compress="gzip"),
    "factors": replace(IMAGES, save_jacobian=False, factor_width=2),
    "no jacobian": replace(IMAGES, save_jacobian=False, save_inputs=False),
    "samples beyond a chunk": ResultLayout(10, (3, 100, 90), (43,), batch_size=2),
    "large statistics": ResultLayout(10, (2,), (COPIED_BYTES // 8 + 1,), batch_size=2),
}
VIRTUAL = pytest.mark.parametrize("virtual", [True, False], ids=["index", "copy"])


def write_shards(folder: Path, layout: ResultLayout, counts: tuple[int, ...] = (4, 3, 3)) -> list[ShardFile]:
    """Shards of so many samples; what is in them depends on the sample alone."""
    shards, start = [], 0
    whole = random_batch(layout, 0, sum(counts))
    for number, count in enumerate(counts):
        path = folder / f"shard{number}.h5"
        own = replace(layout, n_samples=count)
        rows = {name: values[start : start + count] for name, values in whole.items()}
        with ResultWriter.create(path, own, {"created": f"at {number}"}, overwrite=False) as writer:
            for first in range(0, count, layout.batch_size):
                stop = min(count, first + layout.batch_size)
                writer.write_batch(first, {name: values[first:stop] for name, values in rows.items()})
            if layout.selected is not None and not layout.per_sample_classes:
                writer.write_static("class_index", np.array([5, 3]))
            writer.finish()
        shards.append(read_shard(path))
        start += count
    return shards


def merge(out: Path, shards: list[ShardFile], *, virtual: bool, overwrite: bool = False) -> None:
    write_merged(out, shards, {"schema": "jacli/2"}, virtual=virtual, overwrite=overwrite)


@VIRTUAL
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_it_holds_what_one_file_would(tmp_path: Path, layout: ResultLayout, virtual: bool) -> None:
    [single] = write_shards(tmp_path, layout, (10,))
    (tmp_path / "shards").mkdir()
    merge(tmp_path / "out.h5", write_shards(tmp_path / "shards", layout), virtual=virtual)
    with open_results(tmp_path / "out.h5") as merged, open_results(single.path) as one:
        assert merged.complete and merged.names == one.names and len(merged) == 10
        for name in one.names:
            if one.datasets[name].dims[0].label == "batches":
                continue  # of the shards, each with batches of its own
            a, b = merged.datasets[name], one.datasets[name]
            np.testing.assert_array_equal(np.asarray(a[...]), b[...], strict=True)
            # How far a process was is told of its own file only.
            assert set(a.attrs) == set(b.attrs) - {"inputs_sha256", "overflowed"}
            assert [axis.label for axis in a.dims] == [axis.label for axis in b.dims]
            assert a.attrs["long_name"] == b.attrs["long_name"]
    assert not list(tmp_path.glob("out.h5.*"))


@VIRTUAL
def test_batches_and_checksums_are_those_of_the_shards(tmp_path: Path, virtual: bool) -> None:
    shards = write_shards(tmp_path, IMAGES, (6, 3, 1))
    merge(tmp_path / "out.h5", shards, virtual=virtual)
    with open_results(tmp_path / "out.h5") as merged:
        assert merged.batch_start.tolist() == [0, 4, 6, 9]  # the first shard was written in two batches
        assert not list(damaged_batches(merged.datasets, 10))
        for name in ("jacobian", "outputs"):
            own = [open_results(shard.path)["checksums/" + name] for shard in shards]
            np.testing.assert_array_equal(merged["checksums/" + name], np.concatenate(own))


@VIRTUAL
@pytest.mark.parametrize("name", ["jacobian", "outputs", "singular_values"])
def test_a_shard_that_is_not_what_was_written_is_not_merged(tmp_path: Path, virtual: bool, name: str) -> None:
    shards = write_shards(tmp_path, IMAGES)
    with h5py.File(shards[1].path, "r+") as file:
        file[name][2] *= -1
    with pytest.raises(ResultsError, match=r"shard1\.h5 was damaged after it was written") as raised:
        merge(tmp_path / "out.h5", shards, virtual=virtual)
    assert f"rows 0 to 2 of {name}" in raised.value.why
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_an_index_leaves_what_is_large_in_the_shards(tmp_path: Path, layout: ResultLayout) -> None:
    merge(tmp_path / "out.h5", write_shards(tmp_path, layout), virtual=True)
    with h5py.File(tmp_path / "out.h5") as file:
        virtual = {name for name in layout.datasets() if file[name].is_virtual}
        assert all(np.isnan(file[name].fillvalue) for name in virtual)
        assert {source.file_name for name in virtual for source in file[name].virtual_sources()} <= {
            "shard0.h5",
            "shard1.h5",
            "shard2.h5",
        }
    large = {"jacobian", "inputs", "factors/left", "factors/right"} & set(layout.datasets())
    assert virtual == large | ({"class_norms"} if layout is LAYOUTS["large statistics"] else set())


@VIRTUAL
def test_xarray_opens_it(tmp_path: Path, virtual: bool) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    merge(tmp_path / "out.h5", write_shards(tmp_path, IMAGES), virtual=virtual)
    with xarray.open_dataset(tmp_path / "out.h5", engine="h5netcdf") as dataset:
        assert dataset.jacobian.dims == ("batch", "c", "h", "w", "n_classes")
        np.testing.assert_array_equal(dataset.jacobian.values, random_batch(IMAGES, 0, 10)["jacobian"])


@pytest.mark.parametrize("compress", ["gzip", "lzf"])
def test_a_copy_keeps_the_compression(tmp_path: Path, compress: str) -> None:
    merge(tmp_path / "out.h5", write_shards(tmp_path, replace(IMAGES, compress=compress)), virtual=False)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["jacobian"].compression == compress and file["jacobian"].shuffle


KEYS = [
    3,
    -1,
    np.int64(5),
    slice(2, 9),
    slice(1, None, 3),
    slice(None, None, -2),
    slice(4, 4),
    [9, 0, 0, 5],
    np.arange(10) % 2 == 0,
    Ellipsis,
    (),
    (slice(3, 8), 1),
    (4, ..., 2),
    (slice(0, 10, 4), ..., slice(1, 3)),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_an_index_is_sliced_as_an_array(tmp_path: Path, key: object) -> None:
    merge(tmp_path / "out.h5", write_shards(tmp_path, IMAGES), virtual=True)
    expected = random_batch(IMAGES, 0, 10)["jacobian"]
    with open_results(tmp_path / "out.h5") as results:
        jacobian = results.jacobian
        assert isinstance(jacobian, IndexedDataset)
        assert (len(jacobian), jacobian.ndim, jacobian.shape) == (10, 5, expected.shape)
        np.testing.assert_array_equal(np.asarray(jacobian[key]), expected[key], strict=True)  # type: ignore[index]
        np.testing.assert_array_equal(np.asarray(jacobian), expected)
        with pytest.raises(IndexError):
            jacobian[10]


OPENS_FEW = """
import sys, resource, numpy as np, h5py
from jacli.store import open_results
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
with open_results(sys.argv[1]) as results:
    print(np.isnan(results.jacobian[...]).sum(), end=" ")
with h5py.File(sys.argv[1]) as file:
    print(np.isnan(file["jacobian"][...]).sum() > 0)
"""


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    """HDF5 itself then reads NaN without a word; if it stops to, `IndexedDataset` may go."""
    layout = ResultLayout(60, (3,), (2,), batch_size=1)
    merge(tmp_path / "out.h5", write_shards(tmp_path, layout, (1,) * 60), virtual=True)
    ran = subprocess.run(
        [sys.executable, "-c", OPENS_FEW, str(tmp_path / "out.h5")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "0 True\n"
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 40  # of this process


def test_an_index_moves_with_its_shards(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    merge(tmp_path / "a" / "out.h5", write_shards(tmp_path / "a" / "deep", IMAGES), virtual=True)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)  # new times
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "link.h5").symlink_to(tmp_path / "b" / "out.h5")
    for path in (tmp_path / "b" / "out.h5", tmp_path / "link.h5"):
        with open_results(path) as results:
            np.testing.assert_array_equal(results.jacobian[...], random_batch(IMAGES, 0, 10)["jacobian"])


def _remove(path: Path) -> None:
    path.unlink()


def _repeat(path: Path) -> None:
    """The same run, repeated a moment later: as large, and another file."""
    with h5py.File(path, "r+") as file:
        file.attrs["created"] = "at 9"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [(_remove, "shard1.h5 is gone"), (_repeat, "shard1.h5 was replaced"), (_cut, "shard1.h5 was replaced")],
)
def test_a_lost_shard_is_named_where_it_is_needed(tmp_path: Path, change, message: str) -> None:
    merge(tmp_path / "out.h5", write_shards(tmp_path, IMAGES), virtual=True)
    change(tmp_path / "shard1.h5")
    with open_results(tmp_path / "out.h5") as results:
        assert len(results.singular_values) == 10
        for needs in (lambda: results.jacobian, lambda: results["inputs"], lambda: results.datasets):
            with pytest.raises(ResultsError, match=message):
                needs()


def test_a_shard_that_goes_while_it_is_read(tmp_path: Path) -> None:
    merge(tmp_path / "out.h5", write_shards(tmp_path, IMAGES), virtual=True)
    with open_results(tmp_path / "out.h5") as results:
        jacobian = results.jacobian
        (tmp_path / "shard2.h5").unlink()
        assert np.isfinite(jacobian[0]).all()
        with pytest.raises(ResultsError, match=r"shard2\.h5 cannot be read"):
            jacobian[9]


def test_damaged_sources_are_refused(tmp_path: Path) -> None:
    merge(tmp_path / "out.h5", write_shards(tmp_path, IMAGES), virtual=True)
    for text in ("{", "[1]", '[{"name": 1}]', "3"):
        with h5py.File(tmp_path / "out.h5", "r+") as file:
            file.attrs["sources"] = text
        with open_results(tmp_path / "out.h5") as results, pytest.raises(ResultsError, match="`sources`"):
            _ = results.jacobian


def _shift(sources: list[dict[str, int]]) -> None:
    for source in sources[1:]:
        source["start"] += 1
        source["stop"] += 1


def _overlap(sources: list[dict[str, int]]) -> None:
    sources[1]["start"] -= 1
    sources[1]["stop"] -= 1


def _exchange(sources: list[dict[str, int]]) -> None:
    """Shards of as many samples: the rows still follow one another."""
    for name in ("name", "size", "modified", "identity"):
        sources[1][name], sources[2][name] = sources[2][name], sources[1][name]


SOURCES = {
    "shifted": (_shift, "follow one another"),
    "overlapping": (_overlap, "follow one another"),
    "in another order": (lambda sources: sources.reverse(), "follow one another"),
    "twice": (lambda sources: sources.append(sources[-1]), "follow one another"),
    "the first is missing": (lambda sources: sources.pop(0), "follow one another"),
    "the last is missing": (lambda sources: sources.pop(), "hold 7 samples"),
    "none": (lambda sources: sources.clear(), "hold 0 samples"),
    "exchanged": (_exchange, "samples that the index has in rows"),
}


@pytest.mark.parametrize(("change", "message"), SOURCES.values(), ids=SOURCES.keys())
def test_sources_that_are_not_those_of_the_rows_are_refused(tmp_path: Path, change, message: str) -> None:
    """Rows of another shard would be handed out as those that were asked for."""
    merge(tmp_path / "out.h5", write_shards(tmp_path, IMAGES), virtual=True)
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        sources = json.loads(file.attrs["sources"])
        change(sources)
        file.attrs["sources"] = json.dumps(sources)
    with open_results(tmp_path / "out.h5") as results:
        for rows in (slice(None), 4, [9, 5]):
            with pytest.raises(ResultsError, match=message):
                results.jacobian[rows]


def test_an_index_that_does_not_say_its_samples_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    merge(out, write_shards(tmp_path, IMAGES), virtual=True)
    with h5py.File(out, "r+") as file:
        del file["sample_index"]
    with pytest.raises(ResultsError, match="does not say which"), open_results(out) as results:
        results.jacobian[...]


def test_sources_say_which_rows_are_whose(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, IMAGES)
    merge(tmp_path / "out.h5", shards, virtual=False)
    with open_results(tmp_path / "out.h5") as results:
        sources = sources_of(results.path, results.attrs)
    assert [(source.name, source.start, source.stop) for source in sources] == [
        ("shard0.h5", 0, 4),
        ("shard1.h5", 4, 7),
        ("shard2.h5", 7, 10),
    ]
    assert [source.size for source in sources] == [shard.path.stat().st_size for shard in shards]
    assert [count_samples(shard.path) for shard in shards] == [4, 3, 3]


@VIRTUAL
def test_an_existing_file_is_refused_and_replaced_at_the_end_only(
    tmp_path: Path, virtual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, out = write_shards(tmp_path, IMAGES), tmp_path / "out.h5"
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        merge(out, shards, virtual=virtual)
    (tmp_path / "out.h5.part.new").write_text("of a merge that was killed")

    def look(done: int, total: int) -> None:
        assert out.read_text() == "mine" and 0 < done <= total == 10

    write_merged(out, shards, {"schema": "jacli/2"}, virtual=virtual, overwrite=True, progress=look)
    assert count_samples(out) == 10
    assert not list(tmp_path.glob("out.h5.*"))


@VIRTUAL
@pytest.mark.parametrize("writes", [0, 2, 10])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, virtual: bool, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, out = write_shards(tmp_path, IMAGES), tmp_path / "out.h5"
    out.write_text("mine")
    real, left = os.pwrite, [writes]

    def pwrite(descriptor: int, data: object, position: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, position)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OutputError, match="disk is full") as raised:
        merge(out, shards, virtual=virtual, overwrite=True)
    assert raised.value.exit_code == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5", *(f"shard{n}.h5" for n in range(3))]
    assert out.read_text() == "mine"


def test_a_disk_without_room_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write_shards(tmp_path, IMAGES)
    monkeypatch.setattr("jacli.store.merge.free_bytes", lambda out: 10)
    with pytest.raises(OutputError, match="does not fit"):
        merge(tmp_path / "out.h5", shards, virtual=False)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, replace(IMAGES, compress="gzip"))
    with h5py.File(shards[1].path, "r+") as file:
        file["jacobian"].id.write_direct_chunk((0,) * 5, b"no gzip")
    with pytest.raises(ResultsError, match=r"shard1\.h5 was damaged"):
        merge(tmp_path / "out.h5", shards, virtual=False)
    assert not list(tmp_path.glob("out.h5*"))


@VIRTUAL
def test_memory_is_that_of_some_chunks(tmp_path: Path, virtual: bool) -> None:
    layout = ResultLayout(24, (64, 64, 64), (6,), batch_size=2)  # 6 MiB a sample
    shards = write_shards(tmp_path, layout, (12, 12))
    tracemalloc.start()
    merge(tmp_path / "out.h5", shards, virtual=virtual)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * 2**20  # a shard has 72 MiB


@VIRTUAL
def test_whoever_stops_it_leaves_nothing_behind(tmp_path: Path, virtual: bool) -> None:
    shards = write_shards(tmp_path, IMAGES)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_merged(
            tmp_path / "out.h5",
            shards,
            {"schema": "jacli/2"},
            virtual=virtual,
            overwrite=False,
            progress=stop,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"shard{number}.h5" for number in range(3)]


def test_a_file_without_positions_is_no_shard(tmp_path: Path) -> None:
    [shard, *_] = write_shards(tmp_path, IMAGES)
    with h5py.File(shard.path, "r+") as file:
        del file["sample_index"]
    with pytest.raises(ResultsError, match="is not a shard"):
        read_shard(shard.path)


@VIRTUAL
@pytest.mark.parametrize("value", [float("nan"), "x", [1, 2], -3, 1.5], ids=str)
def test_a_count_of_overflowed_values_that_is_none_is_refused(
    tmp_path: Path, virtual: bool, value: object
) -> None:
    shards = write_shards(tmp_path, IMAGES)
    with h5py.File(shards[1].path, "r+") as file:
        file["done"].attrs["overflowed"] = value
    with pytest.raises(ResultsError, match="overflowed"):
        merge(tmp_path / "out.h5", shards, virtual=virtual)
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("value", [2, 255])
def test_a_sample_is_done_only_where_it_says_one(tmp_path: Path, value: int) -> None:
    (shard, *_) = write_shards(tmp_path, IMAGES)
    with h5py.File(shard.path, "r+") as file:
        file["done"][1] = value
    assert read_shard(shard.path).done == shard.samples - 1
