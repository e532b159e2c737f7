"""``jacli.open``: the reader of result files, with the columns of `jacli summarize`."""

from __future__ import annotations

import os
from functools import cached_property

import numpy as np

from jacli.commands.summarize import summarize_file
from jacli.store import Results
from jacli.store.reader import Dataset, open_as
from jacli.summary import COLUMNS, Array


class OpenResults(Results):
    """A result file, open for reading, with a column per name in `jacli.summary.COLUMNS`.

    ``results.stable_rank`` is the column of `jacli summarize --per-sample`: ``(B,)``, NaN where a sample
    is not done.  What the file does not store is computed from its Jacobian, at the first access.
    """

    def __getitem__(self, name: str) -> Dataset:
        if name in self.names or name not in COLUMNS:
            return super().__getitem__(name)
        values = self._columns[name]
        if values is None:
            raise KeyError(
                f"{self.path} does not determine {name}: it holds {', '.join(self.names)}. "
                "Compute it again with more singular values."
            )
        return values

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *COLUMNS]

    @cached_property
    def _columns(self) -> dict[str, Array | None]:
        """Every column, one entry per sample of the file."""
        done = np.asarray(self["done"]) == 1
        file_summary, _ = summarize_file(self.path, self.path.name)
        return {
            name: None if values is None else _spread(values, done)
            for name, values in file_summary.columns.items()
        }


def open_with_columns(path: str | os.PathLike[str]) -> OpenResults:
    """Open a result file; also an unfinished ``OUT.part``, whose ``done`` says how far it is.

    Use it as a context manager, or close it.  ``repr`` shows what is there.

    Large datasets are read as they are indexed; a column of `jacli summarize` is an attribute:

    >>> from jacli import compute
    >>> outcome = compute("sample_models/digits_cnn.pt", "sample_models/digits.npy", "columns.h5")
    >>> with open_with_columns("columns.h5") as results:
    ...     len(results), results.complete, "jacobian" in results
    ...     results.jacobian[:2].shape, results.jacobian[3, ..., 7].shape
    ...     results.stable_rank.shape
    (64, True, True)
    ((2, 1, 8, 8, 10), (1, 8, 8))
    (64,)

    Raises:
        ResultsError: No such file, damaged, not a jacli result, or of a schema that this version cannot read.
    """
    return open_as(OpenResults, path)


def _spread(values: Array, done: np.ndarray) -> Array:
    """Values of the samples that are done at their places among all samples, NaN at the others."""
    column = np.full(len(done), np.nan)
    column[done] = values
    return column
