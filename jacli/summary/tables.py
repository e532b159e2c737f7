"""The tables of `jacli summarize`: pure functions from columns of numbers to plain rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jacli.errors import UsageError
from jacli.errors.printable import count_of
from jacli.summary.columns import COLUMNS, Array

Cell = str | int | float | None
Row = tuple[Cell, ...]


@dataclass(frozen=True)
class FileSummary:
    """The columns of one file's samples.

    Attributes:
        name: The file, as it is to be named in tables.
        samples: ``(b,)`` position of each sample in the inputs.
        columns: Name of a column -> ``(b,)``, or None.
        classes: ``(c,)`` or ``(b, c)`` ids of the outputs; None unless a table per class was asked for.
        class_norms: ``(b, c)``, likewise.
        labels: ``(b,)`` class of each sample; None where the file holds none.
        correct: ``(b,)`` whether the largest output is at the label; None where that is not known.
    """

    name: str
    samples: NDArray[np.int64]
    columns: dict[str, Array | None]
    classes: NDArray[np.int64] | None = None
    class_norms: NDArray[np.floating] | None = None
    labels: NDArray[np.int64] | None = None
    correct: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Table:
    """Plain rows under named columns, and remarks that belong beside them.

    Attributes:
        columns: Their names.
        rows: A cell per column.
        notes: Remarks.
        keys: How many of the first columns say what a row is about.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    keys: int = 1


ACCURACY = "accuracy"
"""A row of tables: the share of samples whose largest output is at their label."""

SPREAD = ("mean", "median", "min", "max", "p5", "p95")
PER_GROUP = ("count", "mean", "median", "max", "not_finite")
GROUPINGS = ("correct", "label")
PER_CLASS = ("class", "count", "mean", "median", "min", "max", "std", "not_finite")


def columns_over_file(several: bool) -> tuple[str, ...]:
    """Column names of `table_over_file`.

    >>> columns_over_file(several=True)
    ('metric', 'file', 'mean', 'median', 'min', 'max', 'p5', 'p95', 'not_finite')
    """
    return ("metric", *_file_column(several), *SPREAD, "not_finite")


def columns_per_sample(several: bool) -> tuple[str, ...]:
    """Column names of `table_per_sample`.

    >>> columns_per_sample(several=False)[:3]
    ('sample', 'frobenius_norm', 'spectral_norm')
    """
    return (*_file_column(several), "sample", *COLUMNS)


def columns_per_class(several: bool) -> tuple[str, ...]:
    """Column names of `table_per_class`.

    >>> columns_per_class(several=True)[:3]
    ('class', 'file', 'count')
    """
    return (PER_CLASS[0], *_file_column(several), *PER_CLASS[1:])


def columns_by(grouping: str, several: bool) -> tuple[str, ...]:
    """Column names of `table_by`.

    >>> columns_by("label", several=False)
    ('metric', 'label', 'count', 'mean', 'median', 'max', 'not_finite')
    """
    return ("metric", *_file_column(several), grouping, *PER_GROUP)


def table_over_file(files: Sequence[FileSummary]) -> Table:
    """Metric by spread over the samples: mean, median, min, max, 5 % and 95 % percentiles.

    NaN and infinite samples are left out of these and counted in ``not_finite``.  With several files,
    the rows of one metric stand together.  Where the samples have labels, the last rows are the accuracy.

    >>> norms = {name: None for name in COLUMNS} | {"frobenius_norm": np.array([1.0, 3.0, np.nan])}
    >>> file = FileSummary("out.h5", np.arange(3), norms, labels=np.array([7, 7, 8]))
    >>> table_over_file([file]).rows[0]
    ('frobenius_norm', 2.0, 2.0, 1.0, 3.0, 1.1, 2.9, 1)
    """
    several = len(files) > 1
    rows: list[Row] = []
    for metric in COLUMNS:
        for file in files:
            values = file.columns[metric]
            rows.append((metric, *_file_cell(file, several), *_spread(values), _count_not_finite(values)))
    for file in files:
        if file.correct is not None and file.correct.size:
            share = (float(file.correct.mean()), *[None] * len(SPREAD))
            rows.append((ACCURACY, *_file_cell(file, several), *share))
    return Table(columns_over_file(several), tuple(rows), keys=1 + several)


def table_by(grouping: str, files: Sequence[FileSummary]) -> Table:
    """Metric by group of samples: how many there are, mean, median and max over them.

    >>> norms = {name: None for name in COLUMNS} | {"frobenius_norm": np.array([1.0, 3.0, np.nan])}
    >>> file = FileSummary("out.h5", np.arange(3), norms, labels=np.array([7, 7, 8]))
    >>> table_by("label", [file]).rows[0]
    ('frobenius_norm', 7, 2, 2.0, 2.0, 3.0, 0)

    Args:
        grouping: ``correct``: samples whose largest output is at their label (``yes``), and the others
            (``no``); ``label``: the samples of each label, with the accuracy among them.
        files: Each with what the grouping needs.
    """
    several = len(files) > 1
    rows: list[Row] = []
    for metric in (*COLUMNS, *([ACCURACY] if grouping == "label" else [])):
        of_metric: list[tuple[int, Row]] = []
        for file in files:
            for order, (group, members) in enumerate(_groups(grouping, file)):
                statistics = _of_group(file, metric, members)
                if statistics is not None:
                    at = group if isinstance(group, int) else order
                    of_metric.append((at, (metric, *_file_cell(file, several), group, *statistics)))
        rows += [row for _, row in sorted(of_metric, key=lambda pair: pair[0])]  # files keep their order
    return Table(columns_by(grouping, several), tuple(rows), keys=2 + several)


def _groups(grouping: str, file: FileSummary) -> Iterable[tuple[str | int, NDArray[np.bool_]]]:
    """The name of each group that has samples, and which they are."""
    if grouping == "label":
        assert file.labels is not None
        for label in np.unique(file.labels).tolist():
            yield label, file.labels == label
        return
    assert file.correct is not None
    yield from (("yes", file.correct), ("no", ~file.correct))


def _of_group(file: FileSummary, metric: str, members: NDArray[np.bool_]) -> tuple[Cell, ...] | None:
    """The cells of `PER_GROUP`; None where the file does not know the accuracy."""
    count = int(members.sum())
    if metric == ACCURACY:
        return (
            None if file.correct is None else (count, float(file.correct[members].mean()), None, None, None)
        )
    values = file.columns[metric]
    values = None if values is None else values[members]
    mean, median, _, largest, *_ = _spread(values)
    return count, mean, median, largest, _count_not_finite(values)


def table_per_sample(files: Sequence[FileSummary]) -> Table:
    """One row per sample, one column per metric.

    >>> norms = {name: None for name in COLUMNS} | {"frobenius_norm": np.array([1.0, 3.0, np.nan])}
    >>> file = FileSummary("out.h5", np.arange(3), norms, labels=np.array([7, 7, 8]))
    >>> [row[:2] for row in table_per_sample([file]).rows]
    [(0, 1.0), (1, 3.0), (2, nan)]
    """
    several = len(files) > 1
    rows: list[Row] = []
    for file in files:
        metrics = [file.columns[metric] for metric in COLUMNS]
        for i, sample in enumerate(file.samples.tolist()):
            cells = (None if values is None else float(values[i]) for values in metrics)
            rows.append((*_file_cell(file, several), sample, *cells))
    return Table(columns_per_sample(several), tuple(rows), keys=1 + several)


def table_per_class(files: Sequence[FileSummary]) -> Table:
    """One row per class: how the norms of this output's input-gradient spread over the samples.

    With several files, the rows of one class stand together.

    >>> columns = {name: None for name in COLUMNS}
    >>> file = FileSummary("out.h5", np.arange(2), columns, np.array([7]), np.array([[1.0], [3.0]]))
    >>> table_per_class([file]).rows
    ((7, 2, 2.0, 2.0, 1.0, 3.0, 1.0, 0),)
    """
    several = len(files) > 1
    rows: list[Row] = []
    for file in files:
        for class_id, norms in _norms_by_class(file):
            finite = norms[np.isfinite(norms)].astype(np.float64)
            mean, median, low, high = _spread(finite)[:4]
            deviation = float(finite.std()) if finite.size else None
            spread = (mean, median, low, high, deviation, norms.size - finite.size)
            rows.append((class_id, *_file_cell(file, several), norms.size, *spread))
    if several:
        rows.sort(key=lambda row: row[0])  # type: ignore[arg-type,return-value]  # stable: files keep order
    return Table(columns_per_class(several), tuple(rows), keys=1 + several)


def check_order(columns: Sequence[str], sort: str | None, limit: int | None) -> None:
    """Refuse an unknown column to sort by, or a limit below 1, before any work is done.

    >>> check_order(("class", "mean"), sort="-mean", limit=3)
    >>> check_order(("class", "mean"), sort="men", limit=None)
    Traceback (most recent call last):
        ...
    jacli.errors.UsageError: --sort men: this table has no column 'men'.
    Its columns are class, mean.
    Name one of them; a leading '-' sorts from large to small.
    """
    if sort is not None and sort.removeprefix("-") not in columns:
        raise UsageError(
            f"--sort {sort}: this table has no column {sort.removeprefix('-')!r}.",
            why=f"Its columns are {', '.join(columns)}.",
            hint="Name one of them; a leading '-' sorts from large to small.",
        )
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} would leave no rows.", hint="Give 1 or more.")


def arranged(table: Table, *, sort: str | None = None, limit: int | None = None) -> Table:
    """The table sorted by a column (``-name``: descending; unknown numbers last), then cut to a length.

    With several files, ``limit`` rows of each are kept.

    >>> table = Table(("class", "mean"), ((0, 1.5), (1, None), (2, 2.5)))
    >>> arranged(table, sort="-mean", limit=2).rows
    ((2, 2.5), (0, 1.5))

    Raises:
        UsageError: There is no such column, or the limit is below 1.
    """
    check_order(table.columns, sort, limit)
    rows: Iterable[Row] = table.rows
    if sort is not None:
        at = table.columns.index(sort.removeprefix("-"))
        known = [row for row in rows if not _is_unknown(row[at])]
        known.sort(key=lambda row: row[at], reverse=sort.startswith("-"))  # type: ignore[arg-type,return-value]
        rows = known + [row for row in table.rows if _is_unknown(row[at])]
    return replace(table, rows=tuple(_first_rows(rows, table.columns, limit)))


def _first_rows(rows: Iterable[Row], columns: Sequence[str], limit: int | None) -> Iterable[Row]:
    """The first rows, as many of each file."""
    at = columns.index("file") if "file" in columns else None
    seen: Counter[Cell] = Counter()
    for row in rows:
        file = None if at is None else row[at]
        seen[file] += 1
        if limit is None or seen[file] <= limit:
            yield row


def remarks(columns: dict[str, Array | None], samples: int) -> list[str]:
    """What must be known beside a table: how many samples are not finite, or singular.

    >>> columns = {"frobenius_norm": np.array([1.0, np.inf]), "condition_number": None}
    >>> remarks(columns, samples=2)
    ['1 of 2 samples have a Jacobian that is not finite; left out, see not_finite']
    """
    if samples == 0:
        return ["no sample is done: the table is empty"]
    norm = columns["frobenius_norm"] if columns["frobenius_norm"] is not None else columns["spectral_norm"]
    bad = 0 if norm is None else int((~np.isfinite(norm)).sum())
    condition = columns["condition_number"]
    singular = 0 if condition is None else int(np.isinf(condition).sum())
    notes = []
    if bad:
        notes.append(
            f"{bad} of {count_of(samples, 'sample')} have a Jacobian that is not finite; "
            "left out, see not_finite"
        )
    if singular:
        notes.append(
            f"{singular} of {count_of(samples, 'sample')} are singular to rounding: infinite condition number"
        )
    return notes


def _is_unknown(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _file_column(several: bool) -> tuple[str, ...]:
    return ("file",) if several else ()


def _file_cell(file: FileSummary, several: bool) -> tuple[str, ...]:
    return (file.name,) if several else ()


def _count_not_finite(values: Array | None) -> int | None:
    return None if values is None else int(values.size - np.isfinite(values).sum())


def _spread(values: Array | None) -> tuple[float | None, ...]:
    """Mean, median, min, max, 5 % and 95 % of the finite values; None where there are none."""
    finite = np.empty(0) if values is None else values[np.isfinite(values)]
    if finite.size == 0:
        return (None,) * len(SPREAD)
    low, high = np.percentile(finite, [5, 95])
    numbers = (finite.mean(), np.median(finite), finite.min(), finite.max(), low, high)
    return tuple(float(number) for number in numbers)


def _norms_by_class(file: FileSummary) -> Iterable[tuple[int, NDArray[np.floating]]]:
    """Class id and the norms of that class, ids increasing."""
    norms, classes = file.class_norms, file.classes
    if norms is None or classes is None:
        return
    if classes.ndim == 1:  # the same outputs for every sample: a class is a column
        for at in np.argsort(classes, kind="stable").tolist():
            yield int(classes[at]), norms[:, at]
        return
    order = np.argsort(classes, axis=None, kind="stable")  # --classes top:k: each sample has its own
    ids, starts = np.unique(classes.ravel()[order], return_index=True)
    yield from zip(ids.tolist(), np.split(norms.ravel()[order], starts[1:]), strict=True)
