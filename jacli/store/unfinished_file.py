"""Opening an unfinished result to write on: whatever is written must land in the file itself.

HDF5 follows links and names of other files also where it writes, so that a ``.part`` that was made to do harm
would have a run change a file that nobody named.  A run lays out plain datasets, each under one name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py

from jacli.durable.sink import FileSink
from jacli.errors import ResultsError
from jacli.store.lay_out import CHECKSUMMED_METADATA
from jacli.store.paths import not_continued
from jacli.store.pieces import in_row_order
from jacli.store.schema import SCHEMA, DatasetLayout
from jacli.store.structure import check_structure, dataset_names
from jacli.store.untrusted_file import DAMAGED, reading_results
from jacli.untrusted.hdf5_guard import examine_hdf5


def open_unfinished(part: Path) -> tuple[FileSink, h5py.File]:
    """The file as its last commit left it, and HDF5's view of it, open for writing.

    Raises:
        OutputError: It is no unfinished result, is damaged, or would have other files changed.
    """
    try:
        sink = FileSink(part, create=False)
    except (OSError, ValueError) as error:
        raise not_continued(part, str(error)) from error
    try:
        # The child reads the path: the sink has put the last commit in place.
        problem = examine_hdf5(part).problem
        if problem is not None:
            raise not_continued(part, problem)
        # What only the sink's driver opens, the child has not seen.
        h5py.File(part, "r").close()
        file = h5py.File(sink, "r+", libver=CHECKSUMMED_METADATA)
    except OSError as error:
        sink.close()
        raise not_continued(part, (str(error).splitlines() or [""])[-1]) from error
    except BaseException:
        sink.close()
        raise
    try:
        _check_content(part, file)
    except BaseException as error:
        file.close()
        sink.close()
        if isinstance(error, ResultsError):
            raise not_continued(part, error.why) from error
        if isinstance(error, (OSError, *DAMAGED)):
            raise not_continued(part, (str(error).splitlines() or [""])[-1]) from error
        raise
    return sink, file


def layouts_of(
    part: Path, file: h5py.File, expected: Mapping[str, DatasetLayout]
) -> dict[str, DatasetLayout]:
    """The layout of the datasets, checked to be exactly those that the run would have created.

    Raises:
        OutputError: They are not.
    """
    layouts: dict[str, DatasetLayout] = {}
    for name, layout in expected.items():
        with reading_results(part, *DAMAGED):
            dataset = file.get(name)
        skipped = int(layout.grows)  # so far it has as many entries as there were batches
        has_rows = isinstance(dataset, h5py.Dataset) and dataset.shape is not None
        expected_row = (layout.shape[skipped:], layout.dtype)
        if not has_rows or (dataset.shape[skipped:], dataset.dtype) != expected_row:
            raise not_continued(part, f"its dataset {name} is not that of this run")
        layouts[name] = replace(layout, chunks=dataset.chunks)
        if not in_row_order(layouts[name]):
            raise not_continued(part, f"its dataset {name} lies in chunks that no run makes")
    known = {*expected, *(dim for layout in expected.values() for dim in layout.dims)}
    others = [name for name in dataset_names(file) if name not in known]
    if others:
        raise not_continued(part, f"this run has no dataset {others[0]}")
    return layouts


def _check_content(part: Path, file: h5py.File) -> None:
    why = _written_elsewhere(file)
    if why is not None:
        raise not_continued(part, why)
    if file.attrs.get("schema") != SCHEMA or "done" not in file or "complete" not in file.attrs:
        raise not_continued(part, f"it has no schema {SCHEMA}")
    check_structure(part, file)


def _written_elsewhere(file: h5py.File) -> str | None:
    """A name whose numbers would be written to another place than its own; None where there is none."""
    places: dict[int, str] = {}
    problems: list[str] = []

    def look(name: bytes, info: Any) -> bool | None:
        shown = name.decode("utf-8", "replace")
        try:
            if info.type != h5py.h5l.TYPE_HARD:
                raise ValueError(f"its {shown} is a link to another place")
            item = h5py.h5o.open(file.id, name)
            other = places.setdefault(h5py.h5o.get_info(item).addr, shown)
            if other != shown:
                raise ValueError(f"its {shown} and its {other} are the same numbers")
            if isinstance(item, h5py.h5d.DatasetID) and h5py.Dataset(item).is_virtual:
                raise ValueError(f"its {shown} takes its numbers from other datasets")
        except Exception as error:
            problems.append(str(error))  # h5py does not carry it out of a callback
            return True
        return None

    file.id.links.visit(look, info=True)
    return problems[0] if problems else None
