"""Labels of a result's samples, and whether the network gives each sample its label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from jacli.errors import ResultsError
from jacli.errors.printable import count_of
from jacli.run.declared import check_declared
from jacli.store.indexed import Shards
from jacli.store.structure import check_numbers

_READ_BYTES = 64 * 2**20
"""Bytes of outputs read at once."""


def correct_samples(datasets: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """Whether each sample's largest output is at its label, ``(b,)``; False where an output is NaN.

    >>> datasets = {"outputs": np.array([[1.0, 2.0], [3.0, 0.0]]), "labels": np.array([1, 1])}
    >>> correct_samples(datasets)
    array([ True, False])

    Args:
        datasets: Of a result file: ``outputs`` ``(b, n)`` and ``labels`` ``(b,)``.

    Returns:
        None without labels, or where the outputs have no single axis of classes.
    """
    if "labels" not in datasets or "outputs" not in datasets or len(datasets["outputs"].shape) != 2:
        return None
    outputs, labels = datasets["outputs"], datasets["labels"]
    n_samples, n_out = outputs.shape
    step = max(1, _READ_BYTES // max(1, n_out * outputs.dtype.itemsize))
    correct = np.zeros(n_samples, bool)
    if n_out == 0:
        return correct
    for start in range(0, n_samples, step):
        stop = min(n_samples, start + step)
        rows = np.asarray(outputs[start:stop])
        # NaN counts as the largest for argmax; a tie is the first of its outputs.
        known = ~np.isnan(rows).any(axis=1)
        correct[start:stop] = known & (rows.argmax(axis=1) == labels[start:stop])
    return correct


def accuracy_notes(datasets: Mapping[str, Any]) -> list[str]:
    """The accuracy, as a note for the user; no note if there are no labels or outputs.

    >>> datasets = {"outputs": np.array([[1.0, 2.0], [3.0, 0.0]]), "labels": np.array([1, 1])}
    >>> accuracy_notes(datasets)
    ['the largest output is the label for 1 of 2 samples (accuracy 50.0 %)']
    """
    correct = correct_samples(datasets)
    if correct is None:
        return []
    right = int(correct.sum())
    share = f"{100 * right / len(correct) if len(correct) else math.nan:.1f} %"
    return [
        f"the largest output is the label for {right} of {count_of(len(correct), 'sample')} "
        f"(accuracy {share})"
    ]


def labelled(
    path: Path, file: h5py.File, shards: Shards, batch: int, by: str | None, notes: list[str]
) -> tuple[NDArray[np.int64] | None, NDArray[np.bool_] | None]:
    """The label of each sample of an open result file, and whether its largest output is there.

    Args:
        path: For messages.
        file: Open.
        shards: Of the file.
        batch: Its number of samples.
        by: The grouping that needs them, ``label`` or ``correct``; None where they are welcome only.
        notes: Gets a remark where the accuracy cannot be told.

    Returns:
        Each ``(batch,)``; None where the file does not tell.

    Raises:
        ResultsError: What ``by`` needs is not there, or is damaged, or its shard is gone.
    """
    try:
        return _read(path, file, shards, batch, by)
    except ResultsError as error:
        if by is not None:
            raise
        notes.append(f"no accuracy: {error.summary}")
        return None, None


def _read(
    path: Path, file: h5py.File, shards: Shards, batch: int, by: str | None
) -> tuple[NDArray[np.int64] | None, NDArray[np.bool_] | None]:
    shapes = check_numbers(path, file, ("labels", "outputs"), whole=("labels",))
    if shapes.get("labels") != (batch,):
        if by is None:
            return None, None
        raise ResultsError(
            f"{path} holds no labels.",
            why=f"--by {by} groups the samples by label.",
            hint="Compute it again with --labels FILE, one class index per sample.",
        )
    needed: dict[str, h5py.Dataset] = {name: file[name] for name in shapes}
    check_declared(path, batch, needed)
    datasets: dict[str, Any] = {name: shards.dataset(values) for name, values in needed.items()}
    correct = correct_samples(datasets) if shapes.get("outputs", ())[:1] == (batch,) else None
    if correct is None and by == "correct":
        why = f"Its outputs have shape {shapes['outputs'][1:]} per sample." if "outputs" in shapes else ""
        raise ResultsError(
            f"{path}: it is not known which samples are classified correctly.",
            why=why or "It holds no outputs.",
            hint="This needs outputs with one axis, an entry per class; --by label does not.",
        )
    return np.asarray(datasets["labels"][:], np.int64), correct
