"""Which samples: ``0:100``, ``0,7,9``, ``::2``, ``-1``."""

from __future__ import annotations

import numpy as np

from jacli.errors import InputsError, UsageError
from jacli.errors.printable import count_of


def sample_positions(spec: str | None, n: int) -> np.ndarray:
    """Positions that ``spec`` chooses among ``n`` samples, in the order in which it names them.

    Pieces are separated by commas; each is a position or a slice, negative ones count from the end,
    and a slice that reaches past the end stops there, all as in Python.

    >>> sample_positions("0:3,-1", 10), sample_positions("::4", 10)
    (array([0, 1, 2, 9]), array([0, 4, 8]))

    Returns:
        int64 positions, each at most once, at least one.

    Raises:
        UsageError: Not readable, or a sample named twice.
        InputsError: A position that is not there, or nothing chosen.
    """
    if spec is None:
        return np.arange(n, dtype=np.int64)
    positions: list[int] = []
    for piece in spec.split(","):
        numbers = _parse_piece(spec, piece)
        if isinstance(numbers, slice):
            positions.extend(range(n)[numbers])
        elif -n <= numbers < n:
            positions.append(numbers % n)
        else:
            first = (
                f"; the first {numbers} would be 0:{numbers}" if spec == str(numbers) and numbers > 0 else ""
            )
            raise InputsError(
                f"--samples {spec}: there is no sample {numbers}.",
                why=f"The inputs hold {count_of(n, 'sample')}, positions 0 to {n - 1}.",
                hint=f"Choose among these{first}.",
            )
    if not positions:
        raise InputsError(
            f"--samples {spec} chooses no sample.",
            why=f"The inputs hold {count_of(n, 'sample')}, positions 0 to {n - 1}.",
            hint="Choose at least one.",
        )
    chosen = np.array(positions, dtype=np.int64)
    distinct, counts = np.unique(chosen, return_counts=True)
    if len(distinct) < len(chosen):
        raise UsageError(
            f"--samples {spec} names sample {int(distinct[counts > 1][0])} more than once.",
            why="Every sample has one row in the result.",
            hint="Name each sample once.",
        )
    return chosen


def _parse_piece(spec: str, piece: str) -> slice | int:
    """A position or a slice."""
    parts = piece.split(":")
    try:
        if len(parts) == 1:
            return int(piece)
        if len(parts) > 3:
            raise ValueError("more than two colons")
        numbers = slice(*(int(part) if part.strip() else None for part in parts))
        if numbers.step == 0:
            raise ValueError("a step of 0")
    except ValueError as error:
        raise UsageError(
            f"--samples {spec} cannot be read.",
            why=f"{piece!r} is neither a position nor a slice START:STOP[:STEP].",
            hint="Write it as 0:100, 0,7,9 or ::2.",
        ) from error
    return numbers
