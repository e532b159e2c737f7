"""A chunk that does not unpack to the size of its shape is refused, whatever its filters; others are read."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import jacli
from jacli.commands.summarize import summarize
from jacli.errors import InputsError, ResultsError
from jacli.inputs import open_inputs
from jacli.store import open_results
from jacli.untrusted.hdf5_chunks import CheckedDataset, checked
from tests.store.layouts import IMAGES, write_file
from tests.store.signing import as_schema_1

SHAPE, CHUNKS = (12, 10, 6), (4, 5, 6)


def filters() -> dict[str, dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {
        "none": {},
        "gzip": {"compression": "gzip"},
        "lzf": {"compression": "lzf"},
        "shuffle": {"shuffle": True},
        "fletcher32": {"fletcher32": True},
        "gzip, shuffle, fletcher32": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    }
    try:
        import hdf5plugin
    except ImportError:
        return known
    more = {
        "zstd": hdf5plugin.Zstd(),
        "blosc": hdf5plugin.Blosc(),
        "lz4": hdf5plugin.LZ4(),
        "bitshuffle": hdf5plugin.Bitshuffle(),
        "bzip2": hdf5plugin.BZip2(),
    }
    return known | {name: {**options} for name, options in more.items()}


FILTERS = pytest.mark.parametrize("options", filters().values(), ids=filters().keys())

KEYS = [
    ...,
    (),
    3,
    -1,
    slice(2, 11, 3),
    slice(4, 4),
    slice(0, 12, 7),
    [1, 9],
    np.arange(12) % 5 == 0,
    (slice(None), 7),
    (slice(3, 5), ..., 2),
    (11, 9, 5),
]


def numbers() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE, np.float32)


def write(
    path: Path, options: dict[str, Any], *, dtype: str = "f4", without: tuple[int, ...] | None = None
) -> Path:
    """All chunks, or all but one: in place of one that is there, HDF5 stores none of another size."""
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", SHAPE, dtype, chunks=CHUNKS, **options)
        for at in np.ndindex(3, 2, 1):
            offset = tuple(i * chunk for i, chunk in zip(at, CHUNKS, strict=True))
            if offset != without:
                box = tuple(slice(i, i + chunk) for i, chunk in zip(offset, CHUNKS, strict=True))
                dataset[box] = numbers().astype(dtype)[box]
    return path


def shorten(dataset: h5py.Dataset, offset: tuple[int, ...], options: dict[str, Any]) -> None:
    """Put a soundly packed chunk of a smaller shape in place of one."""
    smaller = (2, *dataset.chunks[1:])
    with h5py.File("smaller", "w", driver="core", backing_store=False) as file:
        other = file.create_dataset("x", data=np.ones(smaller, dataset.dtype), chunks=smaller, **options)
        mask, packed = other.id.read_direct_chunk((0,) * len(smaller))
    dataset.id.write_direct_chunk(offset, packed, mask)


@FILTERS
@pytest.mark.parametrize("dtype", ["f4", ">f8", "f2", "i2", "u1", "c8"])
def test_sound_chunks_are_read(tmp_path: Path, options: dict[str, Any], dtype: str) -> None:
    with h5py.File(write(tmp_path / "a.h5", options, dtype=dtype)) as file:
        dataset = checked(file["x"])
        assert isinstance(dataset, CheckedDataset) and dataset.shape == SHAPE and len(dataset) == 12
        for key in KEYS:
            np.testing.assert_array_equal(dataset[key], file["x"][key], strict=True)
        np.testing.assert_array_equal(np.asarray(dataset), file["x"][...])
        with pytest.raises((IndexError, ValueError)):
            dataset[99]


@FILTERS
def test_a_chunk_that_unpacks_short_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    """Where its numbers are asked for; the others are read all the same."""
    with h5py.File(write(tmp_path / "a.h5", options, without=(4, 5, 0)), "r+") as file:
        shorten(file["x"], (4, 5, 0), options)
    with h5py.File(tmp_path / "a.h5") as file:
        dataset = checked(file["x"])
        for key in (..., 5, (7, 9), [0, 6], (slice(None), 9), np.arange(12) == 4):
            with pytest.raises(OSError, match=r"at \(4, 5, 0\) does not unpack to the 480 bytes"):
                dataset[key]
        for sound in (slice(0, 4), (5, 4), slice(8, None)):
            np.testing.assert_array_equal(dataset[sound], numbers()[sound])


@FILTERS
@pytest.mark.parametrize("length", [8, 479, 480, 481, 960])
def test_a_chunk_that_is_stored_without_its_filters(
    tmp_path: Path, options: dict[str, Any], length: int
) -> None:
    with h5py.File(write(tmp_path / "a.h5", options, without=(0, 0, 0)), "r+") as file:
        every = (1 << file["x"].id.get_create_plist().get_nfilters()) - 1
        file["x"].id.write_direct_chunk((0, 0, 0), bytes(length), every)
        if length == 480:
            np.testing.assert_array_equal(checked(file["x"])[0, 0], np.zeros(6))
            return
        with pytest.raises(OSError, match="does not unpack"):
            checked(file["x"])[0, 0]


def test_a_chunk_of_which_only_one_filter_was_left_out(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "a.h5", {"compression": "gzip", "shuffle": True}), "r+") as file:
        file["x"].id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(480)), 0b01)
        np.testing.assert_array_equal(checked(file["x"])[0, 0], np.zeros(6))
        file["x"].id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(479)), 0b01)
        with pytest.raises(OSError, match="does not unpack"):
            checked(file["x"])[0, 0]


def test_chunks_that_were_never_written_read_as_the_fill_value(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        huge = file.create_dataset("x", (2**40, 2**20), "f4", chunks=(1, 8), compression="gzip", fillvalue=2)
        huge[5, :8] = 1
        assert checked(huge)[5, :16].tolist() == [1] * 8 + [2] * 8
        assert checked(huge)[2**39, 3] == 2


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"compression": "lzf"}], ids=str)
def test_numbers_of_another_file_are_checked_as_well(tmp_path: Path, options: dict[str, Any]) -> None:
    with h5py.File(write(tmp_path / "part.h5", options, without=(8, 0, 0)), "r+") as part:
        layout = h5py.VirtualLayout(SHAPE, "f4")
        layout[:] = h5py.VirtualSource("part.h5", "x", SHAPE)
        with h5py.File(tmp_path / "index.h5", "w") as file:
            file.create_virtual_dataset("x", layout)
        part.flush()
    with open_inputs(str(tmp_path / "index.h5")) as source:
        np.testing.assert_array_equal(source.read(0, 8), numbers()[:8])
    with h5py.File(tmp_path / "part.h5", "r+") as part:
        shorten(part["x"], (8, 0, 0), options)
    with (
        open_inputs(str(tmp_path / "index.h5")) as source,
        pytest.raises(InputsError, match="does not unpack"),
    ):
        source.read(0, 12)


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"shuffle": True}, {}], ids=str)
def test_inputs_are_refused_and_nothing_is_computed(tmp_path: Path, options: dict[str, Any]) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 3)).eval()
    torch.jit.script(module).save(str(tmp_path / "model.pt"))
    with h5py.File(write(tmp_path / "x.h5", options, without=(8, 5, 0)), "r+") as file:
        shorten(file["x"], (8, 5, 0), options)
    with pytest.raises(InputsError, match="does not unpack to the 480 bytes of its shape"):
        jacli.compute(str(tmp_path / "model.pt"), str(tmp_path / "x.h5"), out=str(tmp_path / "out.h5"))
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("compress", ["gzip", "lzf"])
def test_results_are_refused(tmp_path: Path, compress: str) -> None:
    """Those of any schema, by whoever reads them."""
    layout = IMAGES.__class__(**{**IMAGES.__dict__, "compress": compress})
    write_file(out := tmp_path / "out.h5", layout)
    as_schema_1(out)
    with h5py.File(out, "r+") as file:
        for name in ("jacobian", "class_norms"):
            options = {"compression": compress, "shuffle": True}
            shorten(file[name], (0,) * file[name].ndim, options)
    with open_results(out) as results:
        with pytest.raises(OSError, match="does not unpack"):
            results.jacobian[0]
        with pytest.raises(OSError, match="does not unpack"):
            _ = results.class_norms
    with pytest.raises(ResultsError, match="does not unpack"):
        summarize([out], per_class=True)


@pytest.mark.parametrize("compression", ["lzf", "gzip"])
def test_a_chunk_that_does_not_compress_is_stored_without_that_filter(
    tmp_path: Path, compression: str
) -> None:
    """Filters may be left out one by one: what lzf makes no smaller is only shuffled."""
    rows = np.random.default_rng(0).standard_normal((10, 7), np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=rows, chunks=(10, 7), compression=compression, shuffle=True)
    with h5py.File(tmp_path / "a.h5") as file:
        mask, _ = file["x"].id.read_direct_chunk((0, 0))
        assert mask == (0b10 if compression == "lzf" else 0)
        np.testing.assert_array_equal(checked(file["x"])[...], rows)
