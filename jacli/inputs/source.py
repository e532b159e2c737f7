"""An opened array of inputs and the samples chosen from it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType

import numpy as np

from jacli.errors import InputsError, JacliError
from jacli.errors.printable import count_of

_HASHED_BYTES = 64 * 2**20
"""Bytes of rows read at once, to be hashed."""


def _close_nothing() -> None:
    """For arrays that hold no open file."""


@dataclass(frozen=True)
class StoredArray:
    """What a loader returns: an array that is still on disk.

    Attributes:
        key: Name of the array in its file; None where the file holds a single one without a name.
        shape: (n_samples, *sample) as stored.
        dtype: As read: native byte order; bfloat16, which NumPy lacks, as float32.
        read_slice: (start, stop) -> rows of the array, as anything that `numpy.asarray` takes.
        close: Releases the file.
        file_bytes: Size of the file and of others that it draws from; None: the size of the file alone.
    """

    key: str | None
    shape: tuple[int, ...]
    dtype: np.dtype
    read_slice: Callable[[int, int], np.ndarray]
    close: Callable[[], None] = _close_nothing
    file_bytes: int | None = None


class InputSource:
    """The chosen samples of an array of inputs; nothing is read before `read`.

    Attributes:
        path: Absolute path of the file; None for random inputs.
        format: What the file is, in words.
        key: Name of the array in the file, or None.
        shape: Shape of one sample.
        dtype: Of the rows that `read` returns, as stored.
        index: int64, positions of the chosen samples in the file.
    """

    def __init__(
        self,
        *,
        path: str | None,
        format: str,
        stored: StoredArray,
        index: np.ndarray,
        room: int | None = None,
        all_shards: np.ndarray | None = None,
    ) -> None:
        self.path = path
        self.format = format
        self.key = stored.key
        self.shape = stored.shape[1:]
        self.dtype = stored.dtype
        self.index = index
        self._stored = stored
        self._room = room
        self._all_shards = index if all_shards is None else all_shards

    def __len__(self) -> int:
        return len(self.index)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start:stop`` of the chosen samples: a fresh contiguous array (stop - start, *shape).

        Raises:
            InputsError: The file turns out to be damaged there.
        """
        positions = self.index[start:stop]
        needed = len(positions) * math.prod(self.shape) * self.dtype.itemsize
        if self._room is not None and needed > self._room:
            raise InputsError(
                f"{self.path} declares {needed:,} bytes in {count_of(len(positions), 'sample')}.",
                why=f"Their shape is {self.shape}; the file, unpacked, may take {self._room:,} bytes.",
                hint="Check where the file comes from; if its data are real, save them as .npy.",
            )
        rows = np.empty((len(positions), *self.shape), self.dtype)
        with reading(self.path or self.format, self.format):
            for first, last in _runs(positions):
                at = int(positions[first])
                rows[first:last] = self._stored.read_slice(at, at + last - first)
        return rows

    def sha256(self, start: int, stop: int) -> hashlib._Hash:
        """SHA-256 of rows ``start:stop`` as `read` gives them, 64 MiB at a time; may be updated further."""
        digest = hashlib.sha256()
        step = max(1, _HASHED_BYTES // max(1, math.prod(self.shape) * self.dtype.itemsize))
        for first in range(start, stop, step):
            digest.update(self.read(first, min(first + step, stop)).tobytes())
        return digest

    def at(self, index: np.ndarray) -> InputSource:
        """The samples at these positions of the file, in place of this source: they share the open file."""
        return InputSource(
            path=self.path,
            format=self.format,
            stored=self._stored,
            index=index,
            room=self._room,
            all_shards=self._all_shards,
        )

    def of_all_shards(self) -> InputSource:
        """The samples of the whole run, of which these may be one shard's."""
        return self.at(self._all_shards)

    def close(self) -> None:
        """Release the file."""
        self._stored.close()

    def __enter__(self) -> InputSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _runs(positions: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges [first, last) of ``positions`` that follow one another in the file: one read each."""
    if not len(positions):
        return
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    bounds = [0, *breaks.tolist(), len(positions)]
    yield from pairwise(bounds)


@contextmanager
def reading(name: str, format: str) -> Iterator[None]:
    """Turn whatever a library raises over a damaged file into one InputsError.

    The libraries document no complete list (struct.error, zlib.error, KeyError, ...), so nothing
    narrower than Exception is honest here.

    >>> with reading("x.npy", "NumPy array"):
    ...     raise KeyError("descr")
    Traceback (most recent call last):
        ...
    jacli.errors.InputsError: x.npy cannot be read.
    It starts as a NumPy array does, but reading it failed: 'descr'
    It may be damaged or truncated: copy or download it again.
    """
    try:
        yield
    except JacliError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InputsError(
            f"{name} cannot be read.",
            why=f"It starts as a {format} does, but reading it failed: {lines[-1]}",
            hint="It may be damaged or truncated: copy or download it again.",
        ) from error


@dataclass(frozen=True)
class Wanted:
    """Which array of a file is wanted.

    Attributes:
        key: Its name; None: the only one.
        named_by: What names the file: INPUTS, or an option (``--arg mask``), which has no key.
    """

    key: str | None = None
    named_by: str = "INPUTS"

    @property
    def of_inputs(self) -> bool:
        """Whether the file is that of the inputs."""
        return self.named_by == Wanted.named_by

    @property
    def remedy(self) -> str:
        """What to do where a file holds several arrays."""
        if self.of_inputs:
            return "Name one of them with --inputs-key."
        return f"Save the one that {self.named_by} means in a file of its own."


def choose_key(path: object, arrays: Mapping[str, tuple[int, ...]], wanted: Wanted) -> str:
    """The array that is wanted.

    >>> choose_key("x.npz", {"x": (5, 3)}, Wanted())
    'x'
    >>> choose_key("x.npz", {"x": (5, 3), "y": (5,)}, Wanted())
    Traceback (most recent call last):
        ...
    jacli.errors.InputsError: x.npz holds several arrays.
    They are x (5, 3), y (5,).
    Name one of them with --inputs-key.

    Args:
        path: For the messages.
        arrays: Names and shapes of what the file holds.
        wanted: What was asked for.

    Raises:
        InputsError: Unknown key; several arrays and no key; no array at all.
    """
    if not arrays:
        raise InputsError(f"{path} holds no array.", hint="Save the inputs as one array, shape (batch, ...).")
    listing, key = _list_arrays(arrays), wanted.key
    if key is not None:
        if key not in arrays:
            raise InputsError(
                f"{path} holds no array {key!r}.", why=f"It holds {listing}.", hint=wanted.remedy
            )
        return key
    if len(arrays) == 1:
        return next(iter(arrays))
    if wanted.of_inputs and any(name.rpartition(".")[2] in ("weight", "bias") for name in arrays):
        raise InputsError(
            f"{path} looks like the weights of a model.",
            why=f"It holds {listing}.",
            hint="Give MODEL first and INPUTS second, or name the array of inputs with --inputs-key.",
        )
    raise InputsError(f"{path} holds several arrays.", why=f"They are {listing}.", hint=wanted.remedy)


_LISTED = 20


def _list_arrays(arrays: Mapping[str, tuple[int, ...]]) -> str:
    shown = [f"{name} {shape}" for name, shape in list(arrays.items())[:_LISTED]]
    more = [f"and {len(arrays) - _LISTED} more"] if len(arrays) > _LISTED else []
    return ", ".join(shown + more)


def refuse_key(path: object, wanted: Wanted, *, why: str) -> None:
    """Refuse a key where the file holds one array without a name.

    >>> refuse_key("x.npy", Wanted("x"), why="A NumPy array has no name.")
    Traceback (most recent call last):
        ...
    jacli.errors.InputsError: x.npy holds no array 'x'.
    A NumPy array has no name.
    Leave out --inputs-key.
    """
    if wanted.key is not None:
        raise InputsError(f"{path} holds no array {wanted.key!r}.", why=why, hint="Leave out --inputs-key.")
