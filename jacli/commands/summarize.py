"""`jacli summarize`: tables of norms and singular values of result files, in little memory.

What `compute` stored is read; what is missing is computed from the Jacobian in pieces of a few MiB, so
that neither many samples nor one huge sample is ever in memory as a whole.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from numpy.typing import NDArray

from jacli import summary
from jacli.errors import ResultsError, UsageError
from jacli.errors.printable import count_of
from jacli.run.declared import check_declared, check_work
from jacli.run.labelled import labelled
from jacli.store.indexed import IndexedDataset, Shards
from jacli.store.sources import as_python
from jacli.store.structure import check_numbers, check_structure
from jacli.store.untrusted_file import DAMAGED, open_guarded, reading_results
from jacli.summary import COLUMNS, Array, FileSummary, Statistics, Table
from jacli.untrusted.content import why_unseen
from jacli.untrusted.hdf5_chunks import checked

if TYPE_CHECKING:
    from jacli.spectrum.stored import StoredJacobian

BLOCK_NUMBERS = 2**20
"""Stored statistics read at once: 8 MiB in float64."""

MAX_GRAM_SIDE = 4096
"""Singular values are computed while min(n_out, n_in) is at most this (a Gram matrix of 128 MiB)."""

STORED = (
    "frobenius_norm",
    "spectral_norm",
    "nuclear_norm",
    "class_norms",
    "singular_values",
    "singular_value_error",
)


def summarize(
    files: Sequence[str | os.PathLike[str]],
    *,
    per_sample: bool = False,
    per_class: bool = False,
    by: str | None = None,
    dataset: str | None = None,
    output_axes: int = 1,
    sort: str | None = None,
    limit: int | None = None,
) -> Table:
    """Norms, ranks and condition of the Jacobians in result files, or in any HDF5 file that holds some.

    Args:
        files: HDF5 files; several are put side by side.
        per_sample: One row per sample, in place of statistics over the file.
        per_class: One row per class: its input-gradient's norm.
        by: Statistics over groups of samples: ``label``, the label that each has; ``correct``, whether its
            largest output is at that label.
        dataset: Name of the Jacobian ``(batch, *input, *output)`` where it is not `jacobian`; nothing
            stored beside it is used then.
        output_axes: How many of the last axes of such a dataset are outputs.
        sort: Column to sort by, ``-name`` from large to small.
        limit: Keep this many rows of each file.

    Memory: about 32 MiB for what is read at once and what the singular values need of it (a few Gram
    matrices of the smaller side), whatever the file's size; plus the numbers in the table, with
    ``per_class`` the norm of each class of each sample (float32).

    Raises:
        UsageError: No file, options that exclude each other, an unknown column.
        ResultsError: A file cannot be read, or holds nothing to summarise.
    """
    if not files:
        raise UsageError("No file to summarise was given.", hint="Name one: `jacli summarize out.h5`.")
    _check_table(per_sample=per_sample, per_class=per_class, by=by, dataset=dataset)
    if output_axes < 1:
        raise UsageError(
            f"--output-axes {output_axes}: at least the last axis is outputs.", hint="Give 1 or more."
        )
    columns, table = summary.columns_over_file, summary.table_over_file
    if per_sample:
        columns, table = summary.columns_per_sample, summary.table_per_sample
    elif per_class:
        columns, table = summary.columns_per_class, summary.table_per_class
    elif by:
        columns, table = partial(summary.columns_by, by), partial(summary.table_by, by)
    summary.check_order(columns(len(files) > 1), sort, limit)
    paths = [Path(file) for file in files]
    short = [path.name for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    summaries = [
        summarize_file(path, name, dataset, output_axes, per_class, by)
        for path, name in zip(paths, names, strict=True)
    ]
    result = table([file for file, _ in summaries])
    notes = tuple(f"{file.name}: {note}" for file, notes in summaries for note in notes)
    return summary.arranged(replace(result, notes=notes), sort=sort, limit=limit)


def _check_table(*, per_sample: bool, per_class: bool, by: str | None, dataset: str | None) -> None:
    asked = [
        name
        for name, given in (("--per-sample", per_sample), ("--per-class", per_class), ("--by", by))
        if given
    ]
    if len(asked) > 1:
        raise UsageError(
            f"{' and '.join(asked)} exclude each other.",
            why="Each makes a different table.",
            hint="Ask for one table at a time.",
        )
    if by is not None and by not in summary.GROUPINGS:
        why = f"It must be {' or '.join(summary.GROUPINGS)}."
        raise UsageError(f"--by {by} is wrong.", why=why, hint="Give one of them.")
    if by and dataset:
        raise UsageError(
            "--by does not go with --dataset.",
            why="Only result files of jacli hold the labels of samples.",
            hint="Leave one of them out.",
        )


def summarize_file(
    path: Path,
    name: str,
    dataset: str | None = None,
    output_axes: int = 1,
    per_class: bool = False,
    by: str | None = None,
) -> tuple[FileSummary, list[str]]:
    """One file's columns, block by block, and remarks about it."""
    try:
        with open_guarded(path) as file:
            merged = {"sources": as_python(file.attrs["sources"])} if "sources" in file.attrs else {}
            with contextlib.closing(Shards(path, merged)) as shards:
                return _summarize_open(file, shards, path, name, dataset, output_axes, per_class, by)
    except OSError as error:
        raise _unreadable(path, error) from error


def _summarize_open(
    file: h5py.File,
    shards: Shards,
    path: Path,
    name: str,
    dataset: str | None,
    output_axes: int,
    per_class: bool,
    by: str | None,
) -> tuple[FileSummary, list[str]]:
    with reading_results(path, *DAMAGED):  # links in a circle, among others
        if str(file.attrs.get("schema")).startswith("jacli/"):
            check_structure(path, file)
        jacobian, axes = _find_jacobian(file, path, dataset, output_axes)
        if not dataset:
            check_numbers(path, file, (key for key in STORED if _is_dataset(file, key)))
        stored = {} if dataset else {key: file[key] for key in STORED if _is_dataset(file, key)}
    if jacobian is None and not stored:
        raise _nothing_there(file, path)
    batch = (next(iter(stored.values())) if jacobian is None else jacobian).shape[0]
    wrong = [key for key, values in stored.items() if values.shape[:1] != (batch,)]
    if wrong:
        raise ResultsError(
            f"{path}: {', '.join(wrong)} does not have one entry per sample.",
            why=f"The file has {count_of(batch, 'sample')}.",
            hint="The file is damaged or was edited; compute it again.",
        )
    check_declared(path, batch, stored)
    done, notes = _done(file, batch)
    complete, source, more = _what_to_compute(jacobian, axes, stored)
    # Only now: what is not read may lie in shards that are gone.
    stored = {key: shards.dataset(values) for key, values in stored.items()}
    if source is not None:
        source = replace(source, array=shards.dataset(source.array))
    notes += [*more, *(() if dataset else _reduced(file, shards, batch))]
    labels, correct = (None, None) if dataset else labelled(path, file, shards, batch, by, notes)
    if source is not None:
        check_work(path, jacobian, done)
    blocks: list[dict[str, Array | None]] = []
    norms: list[NDArray[np.float32]] = []
    for start in range(0, batch, step := _samples_at_once(source, stored)):
        stop = min(batch, start + step)
        if not done[start:stop].any():
            continue
        known = _block_statistics(source, stored, start, stop, complete=complete)
        finished = done[start:stop]
        columns = {key: column.function(known) for key, column in COLUMNS.items()}
        blocks.append({key: None if c is None else c[finished] for key, c in columns.items()})
        if per_class and known.class_norms is not None:
            norms.append(known.class_norms[finished].astype(np.float32))
    joined = {key: summary.joined([block[key] for block in blocks]) for key in COLUMNS}
    notes += summary.remarks(joined, int(done.sum()))
    if per_class and not norms:
        notes.append("norms of classes: none are stored or could be computed")
    index = np.arange(batch)
    if not dataset and _is_dataset(file, "sample_index") and file["sample_index"].shape == (batch,):
        index = checked(file["sample_index"])[:]
    classes, class_norms = None, None
    if norms:
        class_norms = np.concatenate(norms)
        classes = np.arange(class_norms.shape[1])
        if not dataset and _is_dataset(file, "class_index"):
            classes = checked(file["class_index"])[:]
            classes = classes[done] if classes.ndim == 2 else classes
    labels = None if labels is None else labels[done]
    correct = None if correct is None else correct[done]
    return FileSummary(name, index[done], joined, classes, class_norms, labels, correct), notes


def _reduced(file: h5py.File, shards: Shards, batch: int) -> Iterator[str]:
    """A reduced precision, and the error that the run's recheck found with it."""
    precision = file.attrs.get("precision", "ieee")
    if not isinstance(precision, str) or precision not in ("tf32", "bf16"):
        return
    note = ""
    if _is_dataset(file, "verified_error") and file["verified_error"].shape == (batch,):
        errors = shards.dataset(file["verified_error"])[:]
        if np.isfinite(errors).any():
            note = f": {errors[np.isfinite(errors)].max():.1e} (relative) where rechecked"
    yield f"linear passes in {precision}: norms and singular values carry its error{note}"


def _find_jacobian(
    file: h5py.File, path: Path, dataset: str | None, output_axes: int
) -> tuple[h5py.Dataset | None, int]:
    """The Jacobian of the file, if there is one, and how many of its last axes are outputs."""
    name = dataset or "jacobian"
    if not _is_dataset(file, name):
        if dataset is None:
            return None, output_axes
        there = ", ".join(f"{key} {shape}" for key, shape in _datasets(file).items()) or "none"
        raise ResultsError(
            f"{path} has no dataset {dataset!r}.",
            why=f"Its datasets: {there}.",
            hint="Name one with --dataset.",
        )
    values = file[name]
    if dataset is None and "class_index" in file:
        output_axes = 1
    elif dataset is None and _is_dataset(file, "outputs"):
        output_axes = file["outputs"].ndim - 1
    if values.ndim < 1 + output_axes or values.dtype.kind not in "fiu":
        raise ResultsError(
            f"{path}: {name} is not a Jacobian.",
            why=f"Expected numbers of shape (batch, *input, *output) with {output_axes} output axes, "
            f"got {values.dtype} of shape {values.shape}.",
            hint="Name another dataset with --dataset, or the number of output axes with --output-axes.",
        )
    return values, output_axes


def _what_to_compute(
    jacobian: h5py.Dataset | None, output_axes: int, stored: dict[str, h5py.Dataset | IndexedDataset]
) -> tuple[bool, StoredJacobian | None, list[str]]:
    """What must be computed is what ``stored`` lacks; entries that do not serve are dropped from it.

    Returns:
        Whether all singular values of each sample are stored or will be computed; the Jacobian to
        compute from, None if nothing needs it; remarks.
    """
    values = stored.get("singular_values")
    lacking = [key for key in ("frobenius_norm", "class_norms") if key not in stored]
    if jacobian is None:
        # min(n_out, n_in) is unknown: the nuclear norm is written only when all values were known.
        complete = values is not None and "nuclear_norm" in stored
        lacking += [] if complete else ["complete set of singular values"]
        without = f"no Jacobian in the file, and without it no {', no '.join(lacking)}"
        return complete, None, [without] if lacking else []
    split = jacobian.ndim - output_axes
    side = min(math.prod(jacobian.shape[1:split]), math.prod(jacobian.shape[split:]))
    complete, notes = values is not None and values.shape[1] == side, []
    if not complete and side > MAX_GRAM_SIDE:
        why = f"min(n_out, n_in) = {side} is above {MAX_GRAM_SIDE}"
        notes = [f"not all singular values are stored, and they are not computed here: {why}"]
    elif not complete:
        for key in ("singular_values", "singular_value_error"):
            stored.pop(key, None)
        lacking.append("singular values")
        complete = True
    if not lacking:
        return complete, None, notes
    # Here and not above: a file with everything stored is summarised without the second torch takes.
    from jacli.spectrum.stored import StoredJacobian

    return complete, StoredJacobian(jacobian, output_axes), [*notes, f"computed here: {', '.join(lacking)}"]


def _samples_at_once(source: StoredJacobian | None, stored: dict[str, h5py.Dataset | IndexedDataset]) -> int:
    """Samples of which everything needed is held at once."""
    numbers = sum(math.prod(values.shape[1:]) for values in stored.values())
    step: int = max(1, BLOCK_NUMBERS // max(1, numbers))
    if source is not None:
        step = min(step, max(1, source.samples_at_once))
    return step


def _block_statistics(
    source: StoredJacobian | None,
    stored: dict[str, h5py.Dataset | IndexedDataset],
    start: int,
    stop: int,
    *,
    complete: bool,
) -> Statistics:
    """Statistics of some samples: those stored, and from the Jacobian those that are not."""
    known: dict[str, Array] = {}
    for key, values in stored.items():
        block = np.asarray(values[start:stop], np.float64)
        known[key] = block.reshape(stop - start, -1) if key == "class_norms" else block
    if source is not None:
        if "class_norms" not in known:
            known["class_norms"] = source.class_norms(start, stop)
        if "frobenius_norm" not in known:
            known["frobenius_norm"] = np.linalg.norm(known["class_norms"], axis=1)
        if complete and "singular_values" not in known:
            spectrum = source.singular_values(start, stop)
            known["singular_values"] = spectrum.values.numpy()
            known["singular_value_error"] = spectrum.errors.numpy()
    values = known.get("singular_values")
    if values is not None and values.shape[1]:
        known.setdefault("spectral_norm", values[:, 0])
        if complete:
            known.setdefault("nuclear_norm", values.sum(axis=1))
    if not complete:  # the k largest do not determine an entropy or sigma_min
        known.pop("singular_values", None)
    return Statistics(**known)


def _done(file: h5py.File, batch: int) -> tuple[NDArray[np.bool_], list[str]]:
    """Which samples are complete in the file, ``(batch,)``."""
    done = np.ones(batch, bool)
    if _is_dataset(file, "done") and file["done"].shape == (batch,):
        done = checked(file["done"])[:] == 1
    if not done.all():
        part = f"{int(done.sum())} of {count_of(batch, 'sample')}"
        return done, [f"incomplete: only the {part} that are done are summarised"]
    if not np.all(file.attrs.get("complete", True)):
        return done, ["the run that wrote this file did not finish"]
    return done, []


def _is_dataset(file: h5py.File, name: str) -> bool:
    return isinstance(file.get(name), h5py.Dataset)


def _datasets(file: h5py.File) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all datasets."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            shapes[name] = node.shape

    file.visititems(note)
    return shapes


def _nothing_there(file: h5py.File, path: Path) -> ResultsError:
    there = _datasets(file)
    matrices = [name for name, shape in there.items() if len(shape) >= 2]
    listed = ", ".join(f"{name} {shape}" for name, shape in there.items())
    named = matrices[0] if len(matrices) == 1 else "NAME"
    return ResultsError(
        f"{path} holds no Jacobian and no statistics of one.",
        why=f"Expected a dataset `jacobian`; there is {listed or 'nothing'}.",
        hint=f"If one of them is a Jacobian (batch, *input, *output), say `--dataset {named}`."
        if matrices
        else "Give a file that `jacli compute` wrote.",
    )


def _unreadable(path: Path, error: OSError) -> ResultsError:
    if not os.path.exists(path):
        what, why, hint = "cannot be read", why_unseen(path) or "It does not exist.", "Check the path."
        if os.path.exists(f"{path}.part"):
            hint = "The run that writes it is not finished: wait for it."
    elif path.is_dir():
        what, why = "is a folder", "Results are files."
        hint = "Name the result files in it."
    elif not h5py.is_hdf5(path):
        what, why = "is not an HDF5 file", "It does not start with the HDF5 signature, or cannot be opened."
        hint = "Give a file that `jacli compute` wrote."
    else:
        what, why = "cannot be read", str(error)
        hint = "It is damaged, or a run is still writing it; wait for the run, or compute it again."
    return ResultsError(f"{path} {what}.", why=why, hint=hint)
