from __future__ import annotations

import io
import warnings
import zipfile

import numpy as np
import pytest
import torch

from jacli.untrusted.zip_archive import ArchiveError, check_zip, read_member


def _archive(*members: tuple[str, bytes], kind: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.comment = comment
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def _why(content: bytes, **options: int) -> str:
    with pytest.raises(ArchiveError) as error:
        check_zip(io.BytesIO(content), **options)
    return str(error.value)


SOUND = _archive(("a/one", b"1" * 100), ("a/two", b"2" * 100))


def test_what_torch_and_numpy_write_is_sound() -> None:
    zipped, packed = io.BytesIO(), io.BytesIO()
    torch.save({"x": torch.zeros(3)}, zipped)
    np.savez_compressed(packed, x=np.zeros(3), y=np.ones(3))
    for written in (zipped, packed):
        assert list(check_zip(written)) == zipfile.ZipFile(written).namelist()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "..\\evil"])
def test_a_name_that_leads_out_is_refused(name: str) -> None:
    assert "leads out of the archive" in _why(_archive((name, b"x")))


def test_two_members_of_one_name_are_refused_whatever_their_case() -> None:
    assert "two members of one name" in _why(_archive(("a/x", b"1"), ("a/x", b"2")))
    assert "two members of one name" in _why(_archive(("a/x", b"1"), ("A/X", b"2")))


def test_foreign_bytes_before_or_behind_are_refused() -> None:
    for content in (b"#!" + SOUND, SOUND + b"\0", _archive(("a/x", b"1"), comment=b"words")):
        assert "foreign bytes" in _why(content)


def test_a_wrong_checksum_is_told_with_the_member() -> None:
    damaged = SOUND.replace(b"2" * 100, b"2" * 99 + b"3")
    assert "The checksum of its member a/two is wrong" in _why(damaged)
    assert set(check_zip(io.BytesIO(damaged), checksums=False)) == {"a/one", "a/two"}


def test_more_than_may_be_unpacked_is_refused_before_it_is() -> None:
    packed = _archive(("a/x", b"\0" * 10**6), kind=zipfile.ZIP_DEFLATED)
    assert "unpacks to 1,000,000 bytes" in _why(packed, expansion=500_000)
    assert check_zip(io.BytesIO(packed), expansion=10**6)


def test_other_compressions_are_refused() -> None:
    assert "never uses" in _why(_archive(("a/x", b"\0" * 1000), kind=zipfile.ZIP_LZMA))


def test_members_that_share_bytes_are_refused() -> None:
    at = SOUND.rindex(b"PK\x01\x02")
    second = SOUND.index(b"PK\x03\x04", 1)
    inside = second - 50
    moved = SOUND[: at + 42] + inside.to_bytes(4, "little") + SOUND[at + 46 :]
    assert "overlaps" in _why(moved)


def test_no_more_of_a_member_is_unpacked_than_it_says() -> None:
    packed = bytearray(_archive(("a/x", b"\0" * 10**6), kind=zipfile.ZIP_DEFLATED))
    at = packed.index(b"PK\x01\x02")
    packed[at + 24 : at + 28] = (1000).to_bytes(4, "little")
    with zipfile.ZipFile(io.BytesIO(bytes(packed))) as archive, pytest.raises(ArchiveError, match="damaged"):
        read_member(archive, "a/x")
