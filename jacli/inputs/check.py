"""Are these numbers that a network can be differentiated at?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jacli.errors import InputsError

_NAMED = 5


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


def check_rows(rows: np.ndarray, positions: Sequence[int] | np.ndarray) -> None:
    """Refuse NaN and infinity.

    Args:
        rows: (batch, *sample), floating.
        positions: (batch,), where each row stands in the inputs, for the message.

    Raises:
        InputsError: Naming the first samples concerned and how many there are.
    """
    finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    if finite.all():
        return
    bad = [int(position) for position in np.asarray(positions)[~finite]]
    named = ", ".join(str(position) for position in bad[:_NAMED]) + (", ..." if len(bad) > _NAMED else "")
    plural = "s" if len(bad) > 1 else ""
    raise InputsError(
        f"The inputs are not finite: NaN or infinity in {len(bad)} of {len(rows)} samples read.",
        why=f"Sample{plural} {named}.",
        todo="Correct them, or leave them out with --samples.",
    )
