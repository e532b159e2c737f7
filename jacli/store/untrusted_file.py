"""Opening a result file that nobody vouches for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from jacli.errors import ResultsError
from jacli.untrusted.content import MAX_EXPANSION, WHAT_TO_DO, Content
from jacli.untrusted.hdf5_guard import examine_hdf5

DAMAGED = (KeyError, ValueError, TypeError, RuntimeError)
"""Exceptions that h5py raises over damaged metadata, besides OSError."""


def open_guarded(path: Path) -> h5py.File:
    """Open it for reading, once a child process has walked it unharmed.

    >>> with h5py.File("small.h5", "w") as file:
    ...     file["x"] = [1.0]
    >>> with open_guarded(Path("small.h5")) as file:
    ...     list(file)
    ['x']

    Raises:
        ResultsError: It would crash, mislead or exhaust whoever reads it.
        OSError: HDF5 refuses it, or it is not there.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        kind, hint = WHAT_TO_DO[Content.NO_FILE]
        raise ResultsError(f"{path} is not a regular file.", why=kind, hint=hint)
    if os.path.isfile(path):
        findings = examine_hdf5(path)
        why = findings.problem
        if why is None and findings.external_link is not None:
            why = f"It holds a link to another file, {findings.external_link!r}, which results never do."
        if why is not None:
            raise ResultsError(
                f"{path} is damaged or malicious.", why=why, hint="Copy it again, or compute it again."
            )
    return h5py.File(path, "r")


@contextmanager
def reading_results(path: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Around reading an open file: what HDF5 raises over damaged numbers becomes a ResultsError.

    >>> with reading_results(Path("out.h5")):
    ...     raise OSError("inflate() failed")
    Traceback (most recent call last):
        ...
    jacli.errors.ResultsError: out.h5 cannot be read.
    It is damaged: inflate() failed.
    Copy it again, or compute it again.

    Args:
        path: For the message.
        *kinds: Taken besides OSError, where nothing else could raise them.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, (OSError, *kinds)):
            raise
        raise ResultsError(
            f"{path} cannot be read.",
            why=f"It is damaged: {(str(error).splitlines() or [type(error).__name__])[-1]}.",
            hint="Copy it again, or compute it again.",
        ) from error


def read_whole(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """All of a dataset that is small beside a Jacobian, if that is true.

    >>> with h5py.File("small.h5", "w") as file:
    ...     file["x"] = [1.0]
    >>> with h5py.File("small.h5") as file:
    ...     read_whole(Path("small.h5"), file["x"])
    array([1.])

    Raises:
        ResultsError: It declares more than the file can hold.
    """
    room = examine_hdf5(path).bytes + MAX_EXPANSION
    if dataset.nbytes > room:
        raise ResultsError(
            f"{path} is damaged or malicious.",
            why=f"Its dataset {dataset.name} declares {dataset.nbytes:,} bytes, far more than the file has.",
            hint="Copy it again, or compute it again.",
        )
    return np.asarray(dataset[...])


def closed(path: Path) -> ResultsError:
    """The error for reading from a closed file.

    >>> print(closed(Path("out.h5")))
    out.h5 was closed.
    Datasets are read from the open file; arrays already read stay valid.
    Read inside the `with` block, or open the file again with jacli.open.
    """
    return ResultsError(
        f"{path} was closed.",
        why="Datasets are read from the open file; arrays already read stay valid.",
        hint="Read inside the `with` block, or open the file again with jacli.open.",
    )
