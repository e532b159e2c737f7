"""An unfinished file that was edited is continued only where it is what a run lays out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from jacli.durable.write_ahead_log import journal_path
from jacli.errors import JacliError, OutputError
from jacli.store import ResultLayout, ResultWriter, part_path
from jacli.store.batches import first_damage
from jacli.store.lay_out import CHECKSUMMED_METADATA
from tests.store.layouts import IMAGES, random_batch

Edit = Callable[[h5py.File], object]

PRECIOUS = b"precious" * 10_000


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The name of a result whose first batch is finished, beside two files that are nobody's business."""
    out = tmp_path / "out.h5"
    _begin(out, IMAGES)
    (tmp_path / "other.bin").write_bytes(PRECIOUS)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        for name, layout in IMAGES.datasets().items():
            other.create_dataset(name, data=np.full(layout.shape, 7, layout.dtype))
    return out


def _begin(out: Path, layout: ResultLayout, done: int = 4) -> None:
    with ResultWriter.create(out, layout, {}, overwrite=False) as writer:
        writer.write_batch(0, random_batch(layout, 0, done), inputs_sha256="f" * 64)


def _edit(out: Path, edit: Edit) -> None:
    journal_path(part_path(out)).unlink()  # or the last commit would be laid over the change
    with h5py.File(part_path(out), "r+", libver=CHECKSUMMED_METADATA) as file:
        edit(file)


def _go_on(out: Path, layout: ResultLayout = IMAGES) -> None:
    """As a run does: reopen, compare, write what is missing."""
    with ResultWriter.reopen(out, overwrite=False) as writer:
        writer.expect(layout)
        writer.inputs_sha256  # noqa: B018
        damage = first_damage(writer.datasets, writer.committed)
        assert not damage, damage
        for start in range(writer.committed, layout.n_samples, layout.batch_size):
            stop = min(start + layout.batch_size, layout.n_samples)
            writer.write_batch(start, random_batch(layout, start, stop))
        writer.write_recheck(0, 0.5, False)
        writer.finish()


def _outside(file: h5py.File, name: str, folder: Path) -> None:
    layout = IMAGES.datasets()[name]
    del file[name]
    place = [(str(folder / "other.bin"), 0, h5py.h5f.UNLIMITED)]
    file.create_dataset(name, layout.shape, layout.dtype, external=place)


def _linked(file: h5py.File, name: str, folder: Path) -> None:
    del file[name]
    file[name] = h5py.ExternalLink(str(folder / "other.h5"), name)


def _linked_group(file: h5py.File, name: str, folder: Path) -> None:
    del file["checksums"]
    file["checksums"] = h5py.ExternalLink("other.h5", "/checksums")


def _virtual(file: h5py.File, name: str, folder: Path) -> None:
    layout = IMAGES.datasets()[name]
    del file[name]
    whole = h5py.VirtualLayout(layout.shape, layout.dtype)
    whole[...] = h5py.VirtualSource("other.h5", name, layout.shape)
    file.create_virtual_dataset(name, whole)


@pytest.mark.parametrize("name", ["done", "verified_error", "jacobian", "frobenius_norm"])
@pytest.mark.parametrize("change", [_outside, _linked, _linked_group, _virtual])
def test_no_other_file_is_written_to(out: Path, change: Callable[..., None], name: str) -> None:
    folder = out.parent
    _edit(out, lambda file: change(file, name, folder))
    before = {path: path.read_bytes() for path in folder.glob("other.*")}
    with pytest.raises(OutputError, match="cannot be continued") as raised:
        _go_on(out)
    assert {path: path.read_bytes() for path in folder.glob("other.*")} == before
    assert "--no-resume" in raised.value.hint
    assert not out.exists()


def _soft(file: h5py.File) -> None:
    file.move("outputs", "elsewhere")
    file["outputs"] = h5py.SoftLink("/elsewhere")


def _circle(file: h5py.File) -> None:
    del file["outputs"]
    file["outputs"] = h5py.SoftLink("/outputs")


def _same_numbers(file: h5py.File) -> None:
    del file["class_norms"]
    file["class_norms"] = file["singular_values"]


def _same_checksums(file: h5py.File) -> None:
    del file["checksums/outputs"]
    file["checksums/outputs"] = file["checksums/jacobian"]


def _group_in_itself(file: h5py.File) -> None:
    file["checksums/checksums"] = file["checksums"]


def _no_group(file: h5py.File) -> None:
    del file["checksums"]
    file["checksums"] = 3


def _group_for_numbers(file: h5py.File) -> None:
    del file["done"]
    file.create_group("done")


def _null(file: h5py.File) -> None:
    del file["batch_start"]
    file["batch_start"] = h5py.Empty("i8")


def _endless(file: h5py.File) -> None:
    del file["done"]
    file.create_dataset("done", (2**40,), "u1", chunks=(2**20,))


def _one_more(file: h5py.File) -> None:
    file["more"] = np.zeros(10)


def _one_more_checksum(file: h5py.File) -> None:
    file.create_dataset("checksums/more", data=np.zeros(1, "u4"), maxshape=(None,))


def _more_batches(file: h5py.File) -> None:
    file["batch_start"].resize((7,))


STRUCTURES = {
    edit.__name__: edit
    for edit in (
        *(_soft, _circle, _same_numbers, _same_checksums, _group_in_itself),
        *(_no_group, _group_for_numbers, _null, _endless, _more_batches, _one_more, _one_more_checksum),
    )
}


@pytest.mark.parametrize("edit", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_it_holds_plain_datasets_each_under_one_name(out: Path, edit: Edit) -> None:
    _edit(out, edit)
    before = part_path(out).read_bytes()
    with pytest.raises(OutputError, match="cannot be continued"):
        _go_on(out)
    assert part_path(out).read_bytes() == before


@pytest.mark.parametrize("name", ["overflowed", "inputs_sha256"])
@pytest.mark.parametrize("value", [-5, 1.5, float("nan"), [1, 2], True], ids=str)
def test_what_done_says_is_read_by_its_type(out: Path, name: str, value: object) -> None:
    _edit(out, lambda file: file["done"].attrs.__setitem__(name, value))
    with pytest.raises(JacliError, match=name) as raised:
        _go_on(out)
    assert raised.value.exit_code == 4


@pytest.mark.parametrize(
    "value", ["a" * 64, b"\xff" * 64, np.bytes_(b"f" * 64)], ids=["text", "bytes", "ours"]
)
def test_the_hash_of_the_rows_is_read_however_hdf5_stores_text(out: Path, value: object) -> None:
    _edit(out, lambda file: file["done"].attrs.__setitem__("inputs_sha256", value))
    with ResultWriter.reopen(out, overwrite=False) as writer:
        assert len(writer.inputs_sha256) == 64


def _in_chunks(file: h5py.File, name: str, chunks: tuple[int, ...]) -> None:
    values = file[name][...]
    del file[name]
    file.create_dataset(name, data=values, chunks=chunks)


@pytest.mark.parametrize(
    ("name", "chunks"),
    [("jacobian", (3, 2, 5, 4, 7)), ("jacobian", (4, 3, 5, 4, 3)), ("outputs", (2, 5))],
)
def test_chunks_in_another_order_than_their_bytes_are_not_continued(
    out: Path, name: str, chunks: tuple[int, ...]
) -> None:
    """The checksum of a batch would be that of its pieces, and every later look would call it damaged."""
    _edit(out, lambda file: _in_chunks(file, name, chunks))
    with pytest.raises(OutputError, match=f"its dataset {name} lies in chunks"):
        _go_on(out)


@pytest.mark.parametrize("chunks", [(3, 3, 5, 4, 7), (1, 1, 2, 4, 7), (1, 2, 5, 4, 7), (10, 3, 5, 4, 7)])
def test_chunks_of_other_sizes_are_continued_with_right_checksums(out: Path, chunks: tuple[int, ...]) -> None:
    _edit(out, lambda file: _in_chunks(file, "jacobian", chunks))
    _go_on(out)
    with h5py.File(out) as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert not first_damage({name: file[name] for name in names}, IMAGES.n_samples)


@pytest.mark.parametrize("compress", ["none", "gzip", "lzf"])
def test_a_sound_one_is_continued(tmp_path: Path, compress: str) -> None:
    layout, out = replace(IMAGES, compress=compress), tmp_path / "out.h5"
    _begin(out, layout)
    _go_on(out, layout)
    with h5py.File(out) as file:
        expected = [random_batch(layout, start, min(start + 4, 10))["jacobian"] for start in (0, 4, 8)]
        np.testing.assert_array_equal(file["jacobian"], np.concatenate(expected))
        assert file.attrs["complete"]
