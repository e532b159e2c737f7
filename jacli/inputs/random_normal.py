"""``random:64x3x224x224``: standard normal inputs that need no file."""

from __future__ import annotations

import numpy as np

from jacli.errors import UsageError
from jacli.inputs.source import StoredArray, Wanted, refuse_key


def make_random(source: str, wanted: Wanted, *, seed: int) -> StoredArray:
    """Standard normal float32 samples.

    Sample i comes from a generator of its own, ``numpy.random.default_rng((seed, i))``, so it is the
    same whatever range is read, by whatever shard.

    >>> stored = make_random("random:4x2", Wanted(), seed=0)
    >>> np.array_equal(stored.read_slice(0, 4)[2:], stored.read_slice(2, 4))
    True

    Raises:
        UsageError: The shape or the seed cannot be read.
    """
    refuse_key(source, wanted, why="Random inputs are one array without a name.")
    shape = _parse_shape(source)
    if seed < 0:
        raise UsageError(
            f"--seed {seed} is negative.", why="A seed is a non-negative integer.", hint="Give 0 or more."
        )

    def draw(start: int, stop: int) -> np.ndarray:
        rows = np.empty((stop - start, *shape[1:]), np.float32)
        for row, sample in enumerate(range(start, stop)):
            np.random.default_rng((seed, sample)).standard_normal(dtype=np.float32, out=rows[row, ...])
        return rows

    return StoredArray(None, shape, np.dtype("float32"), draw)


def _parse_shape(source: str) -> tuple[int, ...]:
    sizes = source.split(":", 1)[1].split("x")
    if not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes):
        raise UsageError(
            f"{source} cannot be read.",
            why="A shape is positive numbers with x between them, the number of samples first.",
            hint="Write it as random:64x3x224x224.",
        )
    return tuple(int(size) for size in sizes)
