from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from jacli.durable.sink import FileSink
from jacli.errors import OutputError, UsageError
from jacli.store import ResultLayout, ResultWriter, WriteCancelled, open_results, part_path
from tests.store.layouts import IMAGES, random_batch, write_file

LAYOUTS = {
    "images": IMAGES,
    "one output": ResultLayout(5, (6,), (), n_singular_values=1, nuclear_norm=True, batch_size=2),
    "maps": ResultLayout(5, (6, 2), (7, 3), batch_size=2),
    "scalars": ResultLayout(5, (), (3,), batch_size=5),
    "top": ResultLayout(5, (6,), (7,), selected=2, per_sample_classes=True, batch_size=3),
    "float16": replace(IMAGES, save_dtype="float16", input_dtype="float16"),
    "float64": replace(IMAGES, save_dtype="float64", output_dtype="float64"),
    "gzip": replace(IMAGES, compress="gzip"),
    "lzf": replace(IMAGES, compress="lzf"),
    "no jacobian": replace(IMAGES, save_jacobian=False, save_inputs=False),
    "factors": replace(IMAGES, save_jacobian=False, factor_width=2),
    "factors of maps": ResultLayout(5, (6, 2), (7, 3), save_jacobian=False, factor_width=3, batch_size=2),
    "factors, gzip": replace(IMAGES, save_jacobian=False, factor_width=2, compress="gzip"),
    "chunked": ResultLayout(9, (3, 100, 90), (11,), batch_size=2),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_what_was_written_is_read(tmp_path: Path, layout: ResultLayout) -> None:
    written = write_file(tmp_path / "out.h5", layout)
    with open_results(tmp_path / "out.h5") as results:
        assert results.complete
        assert len(results) == layout.n_samples
        assert results.done.all()
        for name, values in written.items():
            np.testing.assert_array_equal(results[name][...], values, strict=True)
    assert not part_path(tmp_path / "out.h5").exists()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_xarray_finds_named_dimensions(tmp_path: Path, layout: ResultLayout) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    written = write_file(tmp_path / "out.h5", layout)
    with xarray.open_dataset(tmp_path / "out.h5", engine="h5netcdf") as dataset:
        assert not dataset.coords
        rooted = {name for name in layout.datasets() if "/" not in name}
        assert set(dataset.data_vars) == rooted
        for name in rooted:
            assert dataset[name].dims == layout.datasets()[name].dims
            assert dataset[name].attrs["long_name"]
        np.testing.assert_array_equal(dataset["outputs"].values, written["outputs"])


def test_xarray_finds_factors(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    written = write_file(tmp_path / "out.h5", LAYOUTS["factors"])
    with xarray.open_dataset(tmp_path / "out.h5", engine="h5netcdf", group="factors") as factors:
        assert factors.left.dims == ("batch", "n_classes", "bottleneck")
        product = xarray.dot(factors.left, factors.right, dim="bottleneck")
    assert product.dims == ("batch", "n_classes", "c", "h", "w")
    np.testing.assert_allclose(
        product.values,
        np.einsum("bor,brchw->bochw", written["factors/left"], written["factors/right"]),
        rtol=1e-5,
    )


class Lazy:
    """Rows that do not exist: only what `Rows` promises, every piece computed when it is asked for."""

    def __init__(self, left: np.ndarray, right: np.ndarray) -> None:
        self._left, self._right = left, right
        self.shape = (len(left), *right.shape[2:], left.shape[1])
        self.dtype = left.dtype
        self.asked: list[tuple[slice, ...]] = []

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, piece: tuple[slice, ...]) -> np.ndarray:
        self.asked.append(piece)
        rows, *inputs, outputs = piece
        left, right = self._left[rows, outputs], self._right[(rows, slice(None), *inputs)]
        return np.einsum("bor,brchw->bchwo", left, right)


@pytest.mark.parametrize("save_dtype", ["float32", "float16", "float64"])
def test_a_block_may_be_computed_piece_by_piece(tmp_path: Path, save_dtype: str) -> None:
    layout = ResultLayout(3, (3, 100, 90), (11,), batch_size=2, save_dtype=save_dtype)
    draw = np.random.default_rng(1)
    left, right = (draw.standard_normal(shape, np.float32) for shape in ((3, 11, 2), (3, 2, 3, 100, 90)))
    expected = np.einsum("bor,brchw->bchwo", left, right)
    with ResultWriter.create(tmp_path / "out.h5", layout, {}, overwrite=False) as writer:
        for start, stop in ((0, 2), (2, 3)):
            lazy = Lazy(left[start:stop], right[start:stop])
            writer.write_batch(start, {**random_batch(layout, start, stop), "jacobian": lazy})
            bounds = {tuple((s.start, s.stop) for s in piece) for piece in lazy.asked}
            assert len(bounds) == len(lazy.asked)  # each once
            sizes = [np.prod([stop - start for start, stop in piece]) for piece in bounds]
            assert sum(sizes) == np.prod(lazy.shape)
            assert max(sizes) * np.dtype(save_dtype).itemsize <= 4 * 2**20
        writer.finish()
    with open_results(tmp_path / "out.h5") as results:
        np.testing.assert_allclose(
            results.jacobian[...], expected, rtol=1e-2 if save_dtype == "float16" else 1e-5, atol=1e-3
        )


def test_the_recheck_is_written_afterwards(tmp_path: Path) -> None:
    """What is on disk can be read back before the file is published."""
    with ResultWriter.create(tmp_path / "out.h5", IMAGES, {}, overwrite=False) as writer:
        blocks = {start: random_batch(IMAGES, start, min(start + 4, 10)) for start in (0, 4, 8)}
        for start, block in blocks.items():
            writer.write_batch(start, block)
        assert set(writer.datasets) == set(IMAGES.datasets())
        np.testing.assert_array_equal(writer.datasets["jacobian"][5], blocks[4]["jacobian"][1])
        with pytest.raises(TypeError):
            writer.datasets["jacobian"] = 1
        writer.write_recheck(5, 1e-6, False)
        writer.write_recheck(9, 3e-3, True)
        writer.finish()
    with open_results(tmp_path / "out.h5") as results:
        assert np.isnan(results.verified_error[[0, 1, 2, 3, 4, 6, 7, 8]]).all()
        assert results.verified_error[[5, 9]].tolist() == [1e-6, 3e-3]
        assert results.near_kink.tolist() == [-1] * 5 + [0] + [-1] * 3 + [1]
        assert results.datasets["jacobian"].shape == (10, 3, 5, 4, 7)


def test_zstd(tmp_path: Path) -> None:
    pytest.importorskip("hdf5plugin")
    written = write_file(tmp_path / "out.h5", replace(IMAGES, compress="zstd"))
    with open_results(tmp_path / "out.h5") as results:
        np.testing.assert_array_equal(results.jacobian[...], written["jacobian"])


def test_zstd_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(UsageError, match=re.escape("jacli[compress]")):
        ResultWriter.create(tmp_path / "out.h5", replace(IMAGES, compress="zstd"), {}, overwrite=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_strided_views_and_blocks_across_chunks(tmp_path: Path, order: tuple[int, ...]) -> None:
    """Autograd has the class axis first: a block arrives as a transposed view, halved blocks misaligned."""
    layout = ResultLayout(9, (3, 100, 90), (11,), batch_size=4)
    jacobian = (
        np.random.default_rng(0).standard_normal((11, 9, 3, 100, 90), np.float32).transpose(1, 2, 3, 4, 0)
    )
    rows = [(0, 3), (3, 4), (4, 9)]
    with ResultWriter.create(tmp_path / "out.h5", layout, {}, overwrite=False) as writer:
        for start, stop in (rows[at] for at in order):
            writer.write_batch(start, {**random_batch(layout, start, stop), "jacobian": jacobian[start:stop]})
        writer.finish()
    with open_results(tmp_path / "out.h5") as results:
        np.testing.assert_array_equal(results.jacobian[...], jacobian)


def test_a_block_is_not_copied_whole(tmp_path: Path) -> None:
    layout = ResultLayout(1, (3, 128, 128), (200,))
    block = random_batch(layout, 0, 1)
    block["jacobian"] = np.zeros((200, 1, 3, 128, 128)).transpose(1, 2, 3, 4, 0)  # 79 MB, float64
    with ResultWriter.create(tmp_path / "out.h5", layout, {}, overwrite=False) as writer:
        tracemalloc.start()
        try:
            writer.write_batch(0, block)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 16 * 2**20


def test_overflow_into_float16_is_counted(tmp_path: Path) -> None:
    layout = replace(IMAGES, save_dtype="float16")
    block = random_batch(layout, 0, 4)
    block["jacobian"] = np.zeros((4, 3, 5, 4, 7), np.float32)
    block["jacobian"][0, 0, 0, 0, :3] = [1e6, -1e6, np.inf]
    with ResultWriter.create(tmp_path / "out.h5", layout, {}, overwrite=False) as writer:
        writer.write_batch(0, block)
        assert writer.overflowed == 2


def test_attributes(tmp_path: Path) -> None:
    config = {"batch_size": 4, "classes": [0, 3]}
    write_file(
        tmp_path / "out.h5", config=config, model_path="/m.pt", n=3, x=0.5, on=True, shard=None, odd="a\udcff"
    )
    with open_results(tmp_path / "out.h5") as results:
        attrs = dict(results.attrs)
    assert json.loads(attrs.pop("config")) == config
    assert attrs == {
        "schema": "jacli/2",
        "complete": True,
        "model_path": "/m.pt",
        "n": 3,
        "x": 0.5,
        "on": True,
        "odd": "a\\udcff",
    }


def test_static_classes(tmp_path: Path) -> None:
    layout = ResultLayout(2, (6,), (7,), selected=3, batch_size=2)
    with ResultWriter.create(tmp_path / "out.h5", layout, {}, overwrite=False) as writer:
        writer.write_static("class_index", np.array([0, 3, 6]))
        writer.write_batch(0, random_batch(layout, 0, 2))
        writer.finish()
    with open_results(tmp_path / "out.h5") as results:
        assert results.class_index.tolist() == [0, 3, 6]


def test_a_block_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    block = random_batch(IMAGES, 0, 4)
    with ResultWriter.create(tmp_path / "out.h5", IMAGES, {}, overwrite=False) as writer:
        with pytest.raises(ValueError, match="jacobian"):
            writer.write_batch(0, {name: rows for name, rows in block.items() if name != "jacobian"})
        with pytest.raises(ValueError, match="same number of rows"):
            writer.write_batch(0, {**block, "outputs": block["outputs"][:2]})
        with pytest.raises(ValueError, match="do not fit"):
            writer.write_batch(8, block)


def test_an_exception_before_the_first_block_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        ResultWriter.create(tmp_path / "out.h5", IMAGES, {}, overwrite=False),
    ):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_an_exception_keeps_what_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    with (
        pytest.raises(KeyboardInterrupt),
        ResultWriter.create(out, IMAGES, {"command": "test"}, overwrite=False) as writer,
    ):
        writer.write_batch(0, random_batch(IMAGES, 0, 4), inputs_sha256="ab" * 32)
        raise KeyboardInterrupt
    assert not out.exists()
    with ResultWriter.reopen(out, overwrite=False) as writer:
        assert (writer.committed, writer.inputs_sha256) == (4, "ab" * 32)
        assert writer.attributes["command"] == "test"
        writer.expect(IMAGES)
        for start in (4, 8):
            writer.write_batch(start, random_batch(IMAGES, start, min(10, start + 4)))
        writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]
    with open_results(out) as results:
        assert results.complete
        assert results.done.all()
        for start in (0, 4, 8):
            for name, values in random_batch(IMAGES, start, min(10, start + 4)).items():
                np.testing.assert_array_equal(results[name][start : start + 4], values)


def test_what_is_not_an_unfinished_result_is_left_alone(tmp_path: Path) -> None:
    part = part_path(tmp_path / "out.h5")
    part.write_bytes(b"somebody's own")
    with pytest.raises(OutputError, match="cannot be continued"):
        ResultWriter.reopen(tmp_path / "out.h5", overwrite=False)
    with pytest.raises(OutputError, match="unfinished file of another run"):
        ResultWriter.create(tmp_path / "out.h5", IMAGES, {}, overwrite=True)
    assert part.read_bytes() == b"somebody's own"
    with h5py.File(part, "w") as file:
        file["x"] = 1
    before = part.read_bytes()
    with pytest.raises(OutputError, match="no schema"):
        ResultWriter.reopen(tmp_path / "out.h5", overwrite=False)
    assert part.read_bytes() == before


def test_a_file_of_other_shapes_is_not_continued(tmp_path: Path) -> None:
    with ResultWriter.create(tmp_path / "out.h5", IMAGES, {}, overwrite=False) as writer:
        writer.write_batch(0, random_batch(IMAGES, 0, 4))
    with ResultWriter.reopen(tmp_path / "out.h5", overwrite=False) as writer:
        with pytest.raises(OutputError, match="jacobian"):
            writer.expect(replace(IMAGES, save_dtype="float64"))
        writer.expect(IMAGES)


def test_a_large_block_can_be_given_up_halfway(tmp_path: Path) -> None:
    layout = ResultLayout(4, (3, 128, 128), (200,), batch_size=2)  # 79 MB a block
    asked = []

    def later() -> bool:
        asked.append(1)
        return len(asked) > 10

    block = {**random_batch(layout, 0, 2), "jacobian": np.broadcast_to(np.float32(1), (2, 3, 128, 128, 200))}
    with (
        pytest.raises(WriteCancelled),
        ResultWriter.create(tmp_path / "out.h5", layout, {}, overwrite=False) as writer,
    ):
        writer.write_batch(0, block)
        writer.write_batch(2, {**random_batch(layout, 2, 4), "jacobian": block["jacobian"]}, given_up=later)
    with ResultWriter.reopen(tmp_path / "out.h5", overwrite=False) as writer:
        assert writer.committed == 2


KILLED = """
import os, sys
from pathlib import Path
from jacli.store import ResultWriter
from tests.store.layouts import IMAGES, random_batch
writer = ResultWriter.create(Path(sys.argv[1]), IMAGES, {"command": "test"}, overwrite=False)
for start in (0, 4):
    writer.write_batch(start, random_batch(IMAGES, start, start + 4))
    writer.commit()
writer.write_batch(8, random_batch(IMAGES, 8, 10))  # not committed
os._exit(9)
"""


def test_killed_after_two_blocks_the_part_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, out], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert killed.returncode == 9
    assert not out.exists()
    with open_results(part_path(out)) as results:
        assert not results.complete
        assert results.done.tolist() == [1] * 8 + [0] * 2
        np.testing.assert_array_equal(results.jacobian[4:8], random_batch(IMAGES, 4, 8)["jacobian"])
        assert np.isnan(results.jacobian[8:]).all()  # never zeros for what is not there
    with pytest.raises(OutputError, match="unfinished file of another run"):
        ResultWriter.create(out, IMAGES, {}, overwrite=True)
    assert part_path(out).exists()


def test_an_existing_result_is_only_replaced_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    out.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        ResultWriter.create(out, IMAGES, {}, overwrite=False)
    with ResultWriter.create(out, IMAGES, {}, overwrite=True) as writer:
        assert out.read_text() == "precious"
        writer.write_batch(0, random_batch(IMAGES, 0, 4))
        writer.finish()
    with open_results(out) as results:
        assert results.complete


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_that_appears_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    def refuse_link(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not hard_links:
        monkeypatch.setattr(os, "link", refuse_link)
    out = tmp_path / "out.h5"
    with (
        pytest.raises(OutputError, match="rename that file"),
        ResultWriter.create(out, IMAGES, {}, overwrite=False) as writer,
    ):
        out.write_text("precious")
        writer.finish()
    assert out.read_text() == "precious"
    with open_results(part_path(out)) as results:  # the work is not thrown away
        assert results.complete


def test_without_hard_links_the_file_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_link(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse_link)
    write_file(tmp_path / "out.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    for out, message in [
        (tmp_path, "is a folder"),
        (tmp_path / "none" / "out.h5", "no folder"),
        (tmp_path / ("x" * 300), "cannot be written"),
        (Path("/proc/out.h5"), "cannot be written|does not fit"),
    ]:
        with pytest.raises(OutputError, match=message) as raised:
            ResultWriter.create(out, IMAGES, {}, overwrite=False)
        assert raised.value.exit_code == 4
        assert raised.value.hint
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_said_with_both_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"need 21,580 bytes, and 1,000 are free"):
        ResultWriter.create(tmp_path / "out.h5", IMAGES, {}, overwrite=False)
    ResultWriter.create(tmp_path / "out.h5", replace(IMAGES, compress="gzip"), {}, overwrite=False).close()


@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fsync", "fdatasync", "replace"])
def test_an_error_of_the_system_ends_in_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    writer = ResultWriter.create(tmp_path / "out.h5", IMAGES, {}, overwrite=False)
    writer.write_batch(0, random_batch(IMAGES, 0, 4))
    writer.commit()
    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        with pytest.raises(OutputError, match="4 finished samples kept"), writer:
            writer.write_batch(4, random_batch(IMAGES, 4, 8))
            writer.finish()
    with ResultWriter.reopen(tmp_path / "out.h5", overwrite=False) as again:
        # Once the journal is there the commit stands, even if the pages could not be put in place.
        assert again.committed == (8 if call == "pwrite" else 4)
        again.expect(IMAGES)
        for start in range(0, again.committed, 4):
            expected = random_batch(IMAGES, start, start + 4)["jacobian"]
            np.testing.assert_array_equal(again.datasets["jacobian"][start : start + 4], expected)


SMALL_DISK = ResultLayout(1000, (3, 32, 32), (10,), batch_size=4, compress="gzip")

FULL = """
import sys
from dataclasses import replace
from pathlib import Path
from jacli.errors import OutputError
from jacli.store import ResultLayout, ResultWriter
from tests.store.layouts import random_batch
layout = ResultLayout(1000, (3, 32, 32), (10,), batch_size=4, compress=sys.argv[2])
try:
    with ResultWriter.create(Path(sys.argv[1]), layout, {}, overwrite=False) as writer:
        for start in range(0, 1000, 4):
            writer.write_batch(start, random_batch(layout, start, start + 4))
            writer.commit()
        writer.finish()
except OutputError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real disk of 2 MiB."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("mounting a small disk needs root on Linux")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def _write_until_full(small_disk: Path, compress: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL, small_disk / "out.h5", compress],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )  # fmt: skip


def test_what_does_not_fit_is_not_begun(small_disk: Path) -> None:
    full = _write_until_full(small_disk, "none")
    assert full.returncode == 4
    assert "does not fit" in full.stdout
    assert not list(small_disk.iterdir())


def test_a_full_disk_ends_in_a_message_and_keeps_what_is_finished(small_disk: Path) -> None:
    full = _write_until_full(small_disk, "gzip")
    assert full.returncode == 4, full.stderr  # HDF5's own driver ends in a segmentation fault here
    assert "disk is full" in full.stdout
    assert not full.stderr
    with ResultWriter.reopen(small_disk / "out.h5", overwrite=False) as writer:
        assert writer.committed % 4 == 0
        assert 0 < writer.committed < 1000
        writer.expect(SMALL_DISK)
        for start in range(0, writer.committed, 4):
            expected = random_batch(SMALL_DISK, start, start + 4)["jacobian"]
            np.testing.assert_array_equal(writer.datasets["jacobian"][start : start + 4], expected)


def test_the_sink_is_a_file_for_hdf5(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "a.h5")
    values = np.arange(1000.0)
    with h5py.File(sink, "w") as file:
        file["x"] = values
    sink.close()
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["x"][...], values)
    with pytest.raises(FileExistsError):
        FileSink(tmp_path / "a.h5")
