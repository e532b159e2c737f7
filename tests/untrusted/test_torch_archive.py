from __future__ import annotations

import io
import pickle
import zipfile

import pytest
import torch

from jacli.untrusted.pickle_scan import STORAGE_BYTES, scan_pickle
from jacli.untrusted.torch_archive import NoTorchSaveError, check_torchscript, scan_torch_save
from jacli.untrusted.zip_archive import ArchiveError


def _saved(value: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _rewritten(content: bytes, change: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    """With members replaced by their name without the folder, or added."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", kind) as new:
        folder = old.namelist()[0].partition("/")[0]
        members = {name: old.read(name) for name in old.namelist()}
        for name, member in (members | {f"{folder}/{n}": m for n, m in change.items()}).items():
            new.writestr(name, member)
    return buffer.getvalue()


def test_every_storage_of_torch_has_its_size() -> None:
    for kind in torch._storage_classes - {torch.storage.TypedStorage}:
        itemsize = 1 if kind is torch.UntypedStorage else kind._dtype.itemsize
        assert STORAGE_BYTES[kind.__name__] == itemsize


@pytest.mark.parametrize("zipped", [True, False])
def test_storages_are_noted_with_their_bytes(zipped: bool) -> None:
    tensors = {"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.float64), "c": torch.zeros(0)}
    scan = scan_torch_save(io.BytesIO(_saved(tensors, zipped=zipped)), is_zip=zipped)
    assert sorted(scan.storages.values()) == [0, 40, 48]


def test_a_record_shorter_than_the_pickle_says_is_refused() -> None:
    content = _rewritten(_saved(torch.zeros(100)), {"data/0": b"\0" * 399})
    with pytest.raises(ArchiveError, match="said to have 400 bytes, and has 399"):
        scan_torch_save(io.BytesIO(content), is_zip=True)


def test_a_deflated_record_is_refused_only_where_it_would_be_mapped() -> None:
    content = _rewritten(_saved(torch.zeros(100)), {}, zipfile.ZIP_DEFLATED)
    scan_torch_save(io.BytesIO(content), is_zip=True)
    with pytest.raises(ArchiveError, match="has 0"):
        scan_torch_save(io.BytesIO(content), is_zip=True, mapped=True)


def test_an_archive_in_two_folders_is_refused() -> None:
    buffer = io.BytesIO(_saved(torch.zeros(2)))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("other/data.pkl", b"")
    with pytest.raises(ArchiveError, match="2 folders"):
        scan_torch_save(buffer, is_zip=True)


def test_a_legacy_file_shorter_than_its_storages_is_refused() -> None:
    content = _saved(torch.zeros(1000), zipped=False)
    with pytest.raises(ValueError, match="4,000 bytes of numbers"):
        scan_torch_save(io.BytesIO(content[:-3000]), is_zip=False)


def test_a_pickle_of_another_program_is_told_apart() -> None:
    with pytest.raises(NoTorchSaveError):
        scan_torch_save(io.BytesIO(pickle.dumps([1, 2], protocol=2)), is_zip=False)


def test_a_programs_pickles_are_looked_at() -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), buffer)
    assert check_torchscript(io.BytesIO(buffer.getvalue()))
    for change in ({"data/0": b""}, {"data.pkl": b"PK"}, {"constants.pkl": b"\x80\x02"}):
        with pytest.raises(ArchiveError):
            check_torchscript(io.BytesIO(_rewritten(buffer.getvalue(), change)))


def test_a_length_beyond_the_pickles_end_takes_no_memory() -> None:
    with pytest.raises(ValueError):
        scan_pickle(io.BytesIO(b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x"))


@pytest.mark.parametrize(("levels", "says"), [(1, "no text"), (15, "no text"), (60, "a tuple of")])
def test_a_class_named_by_a_tuple_is_refused_at_once(levels: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        scan_pickle(io.BytesIO(b"\x80\x04)" + b"2\x86" * levels + b"2\x93."))


@pytest.mark.parametrize("count", [b"N", b"J\xff\xff\xff\xff"])
def test_a_storage_without_a_size_is_refused(count: bytes) -> None:
    pid = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + count + b"tQ."
    with pytest.raises(ValueError, match="storage"):
        scan_pickle(io.BytesIO(b"\x80\x02" + pid))


def nested_key(levels: int, *, shared: bool) -> bytes:
    """A pickle of a dict whose key is a tuple in a tuple; shared, each has the one below twice."""
    inner = b"".join(
        b"q" + bytes([n % 256]) + (b"h" + bytes([n % 256]) + b"\x86" if shared else b"\x85")
        for n in range(levels)
    )
    return b"\x80\x02}K\x01\x85" + inner + b"K\x01s."


@pytest.mark.parametrize(("levels", "shared"), [(34, True), (200, True), (100_000, False)])
def test_keys_that_would_be_hashed_for_ever_are_refused(levels: int, shared: bool) -> None:
    with pytest.raises(ValueError, match="a tuple of"):
        scan_pickle(io.BytesIO(nested_key(levels, shared=shared)))


def test_ordinary_tuples_pass() -> None:
    value = {"shapes": [(1, 2, (3, 4))] * 1000, ("a", ("b", 1)): tuple(range(100_000))}
    assert not scan_pickle(io.BytesIO(pickle.dumps(value))).globals
    scan_pickle(io.BytesIO(nested_key(10, shared=True)))
    scan_pickle(io.BytesIO(nested_key(100, shared=False)))
