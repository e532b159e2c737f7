"""Summary of an open result file on a few lines: the ``repr`` of its reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np

from jacli.errors import ResultsError
from jacli.errors.printable import escape
from jacli.options.table import Changes, names_of, usual_options
from jacli.store.attributes import Attributes
from jacli.store.schema import CHECKSUMS
from jacli.store.untrusted_file import DAMAGED
from jacli.untrusted.hdf5_chunks import checked

_DAMAGED = (*DAMAGED, OSError, ResultsError)

_SAID_OF_MODEL = ("model_path", "arch", "model_format")
_SAID_OF_METHOD = ("method", "dtype", "precision")


def describe_open(path: Path, file: h5py.File, names: Sequence[str], attributes: Attributes) -> list[str]:
    """Samples, model, inputs, options and datasets; what is damaged is left out.

    Args:
        path: Of the file.
        file: Open or closed.
        names: Of its datasets.
        attributes: Of its root.
    """
    if not file:
        return [f"<jacli results {escape(str(path))}, closed>"]
    lines = [f"<jacli results {escape(str(path))}: {_progress(file, attributes)}"]
    model = [str(attributes[name]) for name in _SAID_OF_MODEL if attributes.get(name)]
    said = {
        "model": ", ".join(model),
        "inputs": attributes.get("inputs_path", ""),
        "method": ", ".join(str(attributes[n]) for n in _SAID_OF_METHOD if n in attributes),
        "options": ", ".join(_options(attributes)),
    }
    lines += [f"  {name}: {escape(str(what))}" for name, what in said.items() if what]
    rows = [row for name in names if not name.startswith(CHECKSUMS) for row in _dataset(file, name)]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    lines += [f"  {name:{widths[0]}}  {shape:{widths[1]}}  {dtype}" for name, shape, dtype in rows]
    lines[-1] += ">"
    return lines


def _progress(file: h5py.File, attributes: Attributes) -> str:
    try:
        done = int(np.count_nonzero(checked(file["done"])[:]))
        samples = len(file["done"])
        finished = "complete" if attributes.flag("complete") else "not complete"
    except _DAMAGED as error:
        return f"damaged ({escape(str(error).splitlines()[0] if str(error) else type(error).__name__)})"
    return f"{done} of {samples} samples done, {finished}"


def _options(attributes: Attributes) -> Iterator[str]:
    """Those that have no line of their own, change numbers and are not the command's defaults."""
    with suppress(*_DAMAGED):
        usual = usual_options()
        of_interest = names_of(lambda o: o.changes is not Changes.NOTHING and not o.positional)
        for name, value in attributes.json_object("config").items():
            if name in of_interest and name not in _SAID_OF_METHOD and value != usual[name]:
                yield f"{name}={value}"


def _dataset(file: h5py.File, name: str) -> Iterator[tuple[str, str, str]]:
    with suppress(*_DAMAGED):
        dataset = file[name]
        yield escape(name), str(dataset.shape), str(dataset.dtype)
