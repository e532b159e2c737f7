"""Checks of the inputs' dtype and values before a network is differentiated at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jacli.errors import InputsError
from jacli.errors.printable import count_of

if TYPE_CHECKING:
    from jacli.inputs.source import InputSource

LARGEST_SCALED = 20.0
"""The size of inputs that images hardly pass once they are normalised, in standard deviations."""

_MAX_NAMED_SAMPLES = 5
_MAX_PIECES = 20
"""Pieces of a ``--samples`` that somebody would still copy."""

_READ_BYTES = 64 * 2**20
_MAX_SEARCHED_BYTES = 2**31
"""Largest inputs, in bytes, that are searched for every sample that is not finite, once one was found."""


def check_dtype(dtype: np.dtype, what: str = "") -> None:
    """Refuse inputs that have no derivative: only float16, float32 and float64 pass.

    >>> check_dtype(np.dtype("float32"))
    >>> check_dtype(np.dtype("uint8"))
    Traceback (most recent call last):
        ...
    jacli.errors.InputsError: The inputs have dtype uint8.
    A Jacobian is a derivative, so inputs must be floating numbers (float16, float32, float64).
    Scale it as the model was trained, for example x.astype('float32') / 255, and save that.

    Args:
        dtype: Of the inputs.
        what: What is wrong with another one, where the inputs are no file.

    Raises:
        InputsError: With the remedy for this dtype.
    """
    if dtype.kind == "f" and dtype.itemsize <= 8:
        return
    if dtype == np.uint8:
        hint = "Scale it as the model was trained, for example x.astype('float32') / 255, and save that."
    elif dtype.kind in "iu":
        hint = (
            "Token ids have no derivative: give their embeddings, and a model that takes them. "
            "Anything else: x.astype('float32'), scaled as the model was trained."
        )
    elif dtype.kind == "b":
        hint = "A mask is no input to differentiate: pass it with --arg. Anything else: x.astype('float32')."
    elif dtype.kind == "c":
        hint = "Save real and imaginary part as two channels of floating numbers."
    else:
        hint = "Save it as float32: x.astype('float32')."
    raise InputsError(
        what or f"The inputs have dtype {dtype}.",
        why="A Jacobian is a derivative, so inputs must be floating numbers (float16, float32, float64).",
        hint=hint,
    )


def check_rows(
    rows: np.ndarray, positions: Sequence[int] | np.ndarray, source: InputSource | None = None
) -> None:
    """Refuse NaN and infinity.

    >>> check_rows(np.array([[1.0], [np.nan]]), positions=[4, 5])
    Traceback (most recent call last):
        ...
    jacli.errors.InputsError: The inputs are not finite: NaN or infinity in 1 of 2 samples read.
    Sample 5.
    Correct them, or leave them out with --samples.

    Args:
        rows: (batch, *sample), floating.
        positions: (batch,), where each row stands in the inputs, for the message.
        source: All samples of the run: where a row is refused, they are all looked at.

    Raises:
        InputsError: Naming the first samples concerned, how many there are, and the ``--samples`` without
            them.
    """
    bad = _not_finite(rows, positions)
    if not bad:
        return
    read, hint = len(rows), "Correct them, or leave them out with --samples."
    if source is not None:
        whole = source.of_all_shards()
        row_bytes = max(1, rows[:1].nbytes)
        step = max(1, _READ_BYTES // row_bytes)
        last = int(np.flatnonzero(np.isin(whole.index, bad)).max())
        read = min(len(whole), max(last + 1, _MAX_SEARCHED_BYTES // row_bytes))
        bad = []
        for start in range(0, read, step):
            stop = min(start + step, read)
            bad += _not_finite(whole.read(start, stop), whole.index[start:stop])
        if read == len(whole):
            hint = _leaving_out(whole.index[~np.isin(whole.index, bad)])
    named = ", ".join(map(str, bad[:_MAX_NAMED_SAMPLES])) + (", ..." if len(bad) > _MAX_NAMED_SAMPLES else "")
    raise InputsError(
        f"The inputs are not finite: NaN or infinity in {len(bad)} of {count_of(read, 'sample')} read.",
        why=f"{'Samples' if len(bad) > 1 else 'Sample'} {named}.",
        hint=hint,
    )


def scale_notes(rows: np.ndarray) -> list[str]:
    """A remark where images are not scaled as networks of images are trained: numbers of 0...255, mostly.

    >>> scale_notes(np.full((1, 3, 8, 8), 255.0))
    ['the inputs reach 255 in size: are they scaled as in training? Images of 0...255 are mostly divided by
        255 and normalised']

    Args:
        rows: The first samples, (batch, *sample); those of three axes (channels, height, width) are images.
    """
    if rows.ndim != 4 or rows.size == 0:
        return []
    largest = float(np.abs(rows).max())
    if largest <= LARGEST_SCALED:
        return []
    return [
        f"the inputs reach {largest:.4g} in size: are they scaled as in training? "
        "Images of 0...255 are mostly divided by 255 and normalised"
    ]


def _not_finite(rows: np.ndarray, positions: Sequence[int] | np.ndarray) -> list[int]:
    """Positions of the rows that hold NaN or infinity."""
    finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    bad: list[int] = np.asarray(positions)[~finite].tolist()
    return bad


def _leaving_out(good: np.ndarray) -> str:
    """What to do, with the ``--samples`` that names all others where that is short."""
    if len(good) == 0:
        return "Correct them: no sample is finite."
    pieces = []
    for run in np.split(good, np.flatnonzero(np.diff(good) != 1) + 1):
        pieces.append(str(run[0]) if len(run) == 1 else f"{run[0]}:{run[-1] + 1}")
    if len(pieces) > _MAX_PIECES:
        return "Correct them, or save the others: x[np.isfinite(x.reshape(len(x), -1)).all(1)]."
    return f"Correct them, or leave them out: --samples {','.join(pieces)}."
