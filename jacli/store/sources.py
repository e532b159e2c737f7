"""The files behind a merged index: named in its attribute ``sources``, and looked at before they are read.

HDF5 gives fill values for what a missing file would hold, without a word, and reads another file of the
same name as willingly.  So an index remembers each of its sources: size, time of change, and who made it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from jacli.errors import ResultsError
from jacli.errors.printable import quote_path
from jacli.store.attributes import Attributes
from jacli.store.untrusted_file import open_guarded

SHOWN = 5
"""Files named in a message; of the others their number."""


@dataclass(frozen=True)
class Source:
    """A shard of a merged result.

    Attributes:
        name: Relative to the folder of the merged file.
        start: Its first row there.
        stop: One past its last row.
        size: Bytes.
        modified: Time of its last change, in nanoseconds since 1970.
        identity: SHA-256 of its root attributes: a copy has the same, the same run repeated has another.
        inputs_sha256: Of its own rows of the inputs; None where it has none.
    """

    name: str
    start: int
    stop: int
    size: int
    modified: int
    identity: str
    inputs_sha256: str | None = None

    def __post_init__(self) -> None:
        """It comes out of a file: refuse what is of another kind."""
        numbers = (self.start, self.stop, self.size, self.modified)
        if not isinstance(self.name, str) or not all(type(number) is int for number in numbers):
            raise TypeError("a source has a name and whole numbers")
        if not isinstance(self.identity, str) or not isinstance(self.inputs_sha256, str | None):
            raise TypeError("what identifies a source is text")
        if "\0" in self.name or not 0 <= self.start <= self.stop:
            raise TypeError("a source has a name and a range of rows")


def sources_of(index: Path, attributes: Mapping[str, object]) -> tuple[Source, ...]:
    """The sources of a merged file; none of any other file.

    >>> sources_of(Path("out.h5"), {})
    ()

    Raises:
        ResultsError: They cannot be understood.
    """
    said = Attributes(index, attributes)
    try:
        sources = tuple(Source(**entry) for entry in said.json_list("sources"))
    except TypeError as error:
        raise said.damaged("sources", str(error)) from error
    ends = [0, *(source.stop for source in sources)]
    if any(source.start != end for source, end in zip(sources, ends, strict=False)):
        raise said.damaged("sources", "their rows do not follow one another")
    return sources


def attributes_of(file: h5py.File) -> dict[str, object]:
    """Root attributes as Python values.

    >>> with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
    ...     file.attrs["samples"] = np.int64(3)
    ...     attributes_of(file)
    {'samples': 3}
    """
    return {name: as_python(file.attrs[name]) for name in file.attrs}


def attributes_of_done(path: Path, done: h5py.Dataset) -> Attributes:
    """Attributes of ``done`` about the finished samples: ``overflowed`` and ``inputs_sha256``."""
    names = [name for name in ("overflowed", "inputs_sha256") if name in done.attrs]
    return Attributes(path, {name: as_python(done.attrs[name]) for name in names})


def as_python(value: object) -> object:
    """An attribute without NumPy, and without halves of characters, which could not be written again.

    >>> as_python(np.array([1, 2])), as_python(b"loop"), as_python(np.float64(0.5))
    ([1, 2], 'loop', 0.5)
    """
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def identity_of(attributes: Mapping[str, object]) -> str:
    """SHA-256 of root attributes, among which the moment of creation and the hashes of model and inputs.

    >>> identity_of({"a": 1, "b": 2}) == identity_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(dict(attributes), sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def path_of(index: Path, source: Source) -> Path:
    """Its current path; HDF5 itself looks beside a link to the index, then beside the index."""
    beside = index.parent / source.name
    if index.is_symlink() and not beside.exists():
        return index.resolve().parent / source.name
    return beside


def lost_sources(index: Path, sources: Iterable[Source]) -> list[str]:
    """Which of them are gone, or are other files now: a line each.

    Costs a ``stat`` each; one whose time of change is another (a folder that was copied) is opened too.
    """
    lost = []
    for source in sources:
        path = path_of(index, source)
        try:
            status = path.stat()
        except OSError:
            lost.append(f"{path} is gone")
            continue
        same = status.st_size == source.size and (
            status.st_mtime_ns == source.modified or _identity(path) == source.identity
        )
        if not same:
            lost.append(f"{path} was replaced")
    return lost


def check_sources(index: Path, attributes: Mapping[str, object]) -> None:
    """Refuse an index whose shards are not those that it was made of.

    Raises:
        ResultsError: Naming them.
    """
    lost = lost_sources(index, sources_of(index, attributes))
    if lost:
        more = f", and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        raise ResultsError(
            f"{index} is an index, and not all of its shards are there.",
            why=f"{', '.join(lost[:SHOWN])}{more}.",
            hint="Put them back, or compute them again, then run "
            f"jacli merge {quote_path(index)} --overwrite.",
        )


def _identity(path: Path) -> str | None:
    try:
        with open_guarded(path) as file:
            return identity_of(attributes_of(file))
    except (ResultsError, OSError, RuntimeError, KeyError, ValueError):
        return None
