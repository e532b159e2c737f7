"""One sample of a result file, as the recheck wants it: read in pieces of a few MiB, each once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jacli.spectrum.boxes import ChunkedArray, box_extents, read_boxes, sample_chunks
from jacli.verify import StoredProducts, StoredSample

PIECE_NUMBERS = 2 * 2**20
"""Numbers read at once, 16 MiB in float64: no smaller than a chunk, which would be decoded twice."""

Array = NDArray[np.float64]


def stored_sample(datasets: Mapping[str, ChunkedArray], row: int) -> StoredSample:
    """Sample ``row`` of a result: its outputs and norms now, its Jacobian when it is asked for.

    >>> datasets = {"outputs": np.ones((1, 2)), "class_norms": np.ones((1, 2))}
    >>> sample = stored_sample(datasets | {"jacobian": np.ones((1, 3, 2))}, row=0)
    >>> sample.outputs.tolist()
    [1.0, 1.0]

    Args:
        datasets: Of an open result, finished or not: ``outputs``, ``class_norms``, and ``jacobian`` or
            ``factors/left`` and ``factors/right`` or neither.
        row: Along the batch axis.
    """

    def flat(name: str) -> Tensor:
        return torch.from_numpy(np.asarray(datasets[name][row], np.float64).reshape(-1))

    output_axes = len(datasets["class_norms"].shape) - 1

    def products(index: Tensor, cotangents: Tensor) -> StoredProducts:
        if "jacobian" in datasets:
            return _of_jacobian(datasets["jacobian"], row, output_axes, index, cotangents.numpy())
        left, right = datasets["factors/left"], datasets["factors/right"]
        return _of_factors(left, right, row, index, cotangents.numpy())

    held = "jacobian" in datasets or {"factors/left", "factors/right"} <= set(datasets)
    return StoredSample(flat("outputs"), flat("class_norms"), products if held else None)


def _of_jacobian(
    jacobian: ChunkedArray, row: int, output_axes: int, index: Tensor, cotangents: Array
) -> StoredProducts:
    """Rows, products and row norms of ``(*domain, *output)`` in one pass; p + k products of its size."""
    split = len(jacobian.shape) - 1 - output_axes
    domain_shape, output_shape = jacobian.shape[1 : 1 + split], jacobian.shape[1 + split :]
    n_out, p = math.prod(output_shape), len(cotangents)
    rows = [np.zeros(domain_shape) for _ in index]
    pulled = np.zeros((p, *domain_shape))
    squares = np.zeros(n_out)
    numbered = np.arange(n_out).reshape(output_shape)
    for box, numbers in _boxes(jacobian, row):
        inputs, outputs = box[:split], numbered[box[split:]].reshape(-1)
        part = numbers.reshape(-1, len(outputs))
        shape = numbers.shape[:split]
        for at, here in _found(index, outputs):
            rows[at][inputs] = part[:, here].reshape(shape)
        pulled[:, *inputs] += (cotangents[:, outputs] @ part.T).reshape(p, *shape)
        squares[outputs] += np.einsum("io,io->o", part, part)
    return StoredProducts(_matrix(np.stack(rows)), _matrix(pulled), torch.from_numpy(np.sqrt(squares)))


def _of_factors(
    left: ChunkedArray, right: ChunkedArray, row: int, index: Tensor, cotangents: Array
) -> StoredProducts:
    """Rows and products of ``left . right``: by the narrow side first, never the whole product."""
    k, width = len(index), right.shape[1]
    numbered = np.arange(math.prod(left.shape[1:-1])).reshape(left.shape[1:-1])
    narrow = np.zeros((k + len(cotangents), width))
    for box, numbers in _boxes(left, row):
        outputs, columns = numbered[box[:-1]].reshape(-1), box[-1]
        part = numbers.reshape(len(outputs), -1)
        for at, here in _found(index, outputs):
            narrow[at, columns] = part[here]
        narrow[k:, columns] += cotangents[:, outputs] @ part
    wide = np.zeros((len(narrow), *right.shape[2:]))
    for box, numbers in _boxes(right, row):
        part = narrow[:, box[0]] @ numbers.reshape(len(numbers), -1)
        wide[(slice(None), *box[1:])] += part.reshape(len(narrow), *numbers.shape[1:])
    return StoredProducts(_matrix(wide[:k]), _matrix(wide[k:]))


def _found(index: Tensor, outputs: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Which of the wanted outputs a piece holds: position among the wanted, position in the piece."""
    for at, wanted in enumerate(index.tolist()):
        for here in np.flatnonzero(outputs == wanted):
            yield at, int(here)


def _matrix(values: Array) -> Tensor:
    return torch.from_numpy(values.reshape(len(values), math.prod(values.shape[1:])))


def _boxes(array: ChunkedArray, row: int) -> Iterator[tuple[tuple[slice, ...], Array]]:
    """One sample in boxes of whole chunks: the slices along its axes, and the numbers in float64."""
    return read_boxes(array, row, box_extents(array.shape[1:], sample_chunks(array), PIECE_NUMBERS))
