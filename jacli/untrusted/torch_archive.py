"""Files of torch.save, examined before torch reads them: no pickle is run, nothing is allocated."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from typing import IO

from jacli.untrusted.pickle_scan import PickleScan, lying_storage, scan_pickle
from jacli.untrusted.zip_archive import ArchiveError, check_zip, read_member

UNPACKED = 64 * 2**20
"""Bytes that an archive may unpack to beyond its own: torch stores all but code as it is."""
_MAGIC = 0x1950A86A20F9469CFC6C  # first of the four pickles of a file written before PyTorch 1.6


class NoTorchSaveError(ValueError):
    """A pickle, but not one that torch.save wrote."""


def scan_torch_save(file: IO[bytes], *, is_zip: bool, mapped: bool = False) -> PickleScan:
    """Follow the pickle that holds the object, and compare the sizes it names with what is there.

    >>> import torch
    >>> torch.save(torch.nn.Linear(3, 2), "module.pt")
    >>> with open("module.pt", "rb") as file:
    ...     scan_torch_save(file, is_zip=True).globals >= {"torch.nn.modules.linear.Linear"}
    True

    Args:
        file: Seekable.
        is_zip: An archive; else a pickle of the time before PyTorch 1.6.
        mapped: torch will map the archive into memory: it takes a deflated storage as it lies there.  The
            members are not compared with their checksums then, which would cost one read of the file.

    Raises:
        NoTorchSaveError: It is a pickle of another program.
        ValueError: It is damaged or made to mislead its reader; a sentence says how.
    """
    return _scan_zip(file, mapped) if is_zip else _scan_legacy(file)


def _scan_zip(file: IO[bytes], mapped: bool) -> PickleScan:
    members = check_zip(file, checksums=not mapped, expansion=UNPACKED)
    _check_one_root(members)
    names = [name for name in members if name.endswith("/data.pkl")]
    if not names:
        raise ArchiveError("Its zip archive has no pickle data.pkl.")
    return _scan_member(file, members, min(names, key=len), mapped=mapped)


def check_torchscript(file: IO[bytes]) -> set[str]:
    """The classes that a TorchScript archive's pickles name, once these are found to say true sizes.

    >>> with open("sample_models/digits_cnn.pt", "rb") as file:
    ...     sorted(check_torchscript(file))[:1]
    ['__torch__.digits_cnn.DigitsCNN']

    Raises:
        ArchiveError: It is damaged or made to mislead its reader; a sentence says how.
    """
    members = check_zip(file, expansion=UNPACKED)
    _check_one_root(members)
    named: set[str] = set()
    for name in members:
        if name.lower().endswith((".pkl", ".debug_pkl")):  # torch's reader ignores case
            # Of the inputs it was traced with, torch writes the pickle without the numbers.
            named |= _scan_member(file, members, name, numbers=not name.endswith("traced_inputs.pkl")).globals
    return named


def _check_one_root(members: Iterable[str]) -> None:
    """All members lie in one folder: torch takes the first member's, whatever others hold."""
    roots = {name.partition("/")[0] for name in members}
    if len(roots) > 1:
        raise ArchiveError(f"Its members lie in {len(roots)} folders, and torch writes one.")


def _scan_member(
    file: IO[bytes],
    members: Mapping[str, zipfile.ZipInfo],
    name: str,
    *,
    numbers: bool = True,
    mapped: bool = False,
) -> PickleScan:
    """Follow one pickle, ``FOLDER/NAME.pkl``, whose storages are the members of ``FOLDER/NAME/``.

    Args:
        file: The archive.
        members: What `check_zip` found in it.
        name: The pickle.
        numbers: Whether the storages are there.
        mapped: As for `scan_torch_save`.
    """
    records = name.removesuffix(".pkl") + "/"
    there = {
        member.removeprefix(records): info.file_size
        for member, info in members.items()
        if member.startswith(records) and (not mapped or info.compress_type == zipfile.ZIP_STORED)
    }
    try:
        with zipfile.ZipFile(file) as archive:
            content = read_member(archive, name)
        if content[:1] != b"\x80":
            raise ValueError("no pickle of torch's")
        scan = scan_pickle(io.BytesIO(content))
    except ArchiveError:
        raise
    except ValueError as error:
        raise ArchiveError(f"Its pickle {name} is damaged: {error}.") from error
    problem = lying_storage(scan, there) if numbers else None
    if problem is not None:
        raise ArchiveError(problem)
    return scan


def _scan_legacy(file: IO[bytes]) -> PickleScan:
    size = file.seek(0, 2)
    file.seek(0)
    try:
        if scan_pickle(file).root != _MAGIC:
            raise NoTorchSaveError
        for _ in ("protocol version", "system information"):
            scan_pickle(file)
        scan = scan_pickle(file)
    except NoTorchSaveError:
        raise
    except ValueError as error:
        raise ValueError(
            f"It is a pickle (torch.save before PyTorch 1.6) that is truncated or incomplete: {error}"
        ) from error
    declared = sum(scan.storages.values())
    if declared > size:
        raise ValueError(
            f"It is said to hold {declared:,} bytes of numbers, and has {size:,}: it is truncated."
        )
    return scan
