"""Are these numbers that a network can be differentiated at?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from jacli.errors import InputsError
from jacli.printable import count_of

if TYPE_CHECKING:
    from jacli.inputs.source import InputSource

LARGEST_SCALED = 20.0
"""The size of inputs that images hardly pass once they are normalised, in standard deviations."""

_NAMED = 5
_RUNS = 12
_READ_BYTES = 64 * 2**20
_SEARCHED_BYTES = 2**31
"""Of inputs that are searched for every sample that is not finite, once one was found."""


def check_dtype(dtype: np.dtype) -> None:
    """Refuse inputs that have no derivative: only float16, float32 and float64 pass.

    Raises:
        InputsError: With the remedy for this dtype.
    """
    if dtype.kind == "f" and dtype.itemsize <= 8:
        return
    if dtype == np.uint8:
        todo = "Scale it as the model was trained, for example x.astype('float32') / 255, and save that."
    elif dtype.kind in "iu":
        todo = (
            "Token ids have no derivative: give their embeddings, and a model that takes them. "
            "Anything else: x.astype('float32'), scaled as the model was trained."
        )
    elif dtype.kind == "b":
        todo = "A mask is no input to differentiate: pass it with --arg. Anything else: x.astype('float32')."
    elif dtype.kind == "c":
        todo = "Save real and imaginary part as two channels of floating numbers."
    else:
        todo = "Save it as float32: x.astype('float32')."
    raise InputsError(
        f"The inputs have dtype {dtype}.",
        why="A Jacobian is a derivative, so inputs must be floating numbers (float16, float32, float64).",
        todo=todo,
    )


def check_rows(
    rows: np.ndarray, positions: Sequence[int] | np.ndarray, source: InputSource | None = None
) -> None:
    """Refuse NaN and infinity.

    Args:
        rows: (batch, *sample), floating.
        positions: (batch,), where each row stands in the inputs, for the message.
        source: All chosen samples: they are searched for the message, so that it names every bad one.

    Raises:
        InputsError: Naming the first samples concerned, how many there are, and the others.
    """
    if _finite(rows).all():
        return
    looked_at = np.asarray(positions)
    bad = looked_at[~_finite(rows)]
    if source is not None:
        bad, looked_at = _all_not_finite(source)
    named = ", ".join(map(str, bad[:_NAMED].tolist())) + (", ..." if len(bad) > _NAMED else "")
    others = _others(bad, source) if source is not None and len(bad) < len(looked_at) else None
    raise InputsError(
        f"The inputs are not finite: NaN or infinity in {len(bad)} of {count_of(len(looked_at), 'sample')}.",
        why=f"{'Samples' if len(bad) > 1 else 'Sample'} {named}.",
        todo="Correct them, or leave them out: --samples " + others
        if others
        else "Correct them, or leave them out with --samples.",
    )


def scale_notes(rows: np.ndarray) -> list[str]:
    """A remark where images are not scaled as networks of images are trained: numbers of 0...255, mostly.

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


def _finite(rows: np.ndarray) -> np.ndarray:
    """Which rows hold finite numbers only, ``(batch,)``."""
    found: np.ndarray = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    return found


def _all_not_finite(source: InputSource) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the samples that are not finite, and of those looked at: all, up to `_SEARCHED_BYTES`."""
    size = max(1, math.prod(source.shape) * source.dtype.itemsize)
    stop = min(len(source), max(1, _SEARCHED_BYTES // size))
    step = max(1, _READ_BYTES // size)
    bad = [
        source.index[start : min(stop, start + step)][~_finite(source.read(start, min(stop, start + step)))]
        for start in range(0, stop, step)
    ]
    return np.concatenate(bad), source.index[:stop]


def _others(bad: np.ndarray, source: InputSource) -> str | None:
    """The other samples as ``--samples`` names them; None where a part was chosen, or that would be long."""
    if not np.array_equal(source.index, np.arange(len(source))):
        return None
    edges = [-1, *bad.tolist(), len(source)]
    runs = [(before + 1, after) for before, after in pairwise(edges) if after > before + 1]
    if len(runs) > _RUNS:
        return None
    return ",".join(f"{start or ''}:{'' if stop == len(source) else stop}" for start, stop in runs)
