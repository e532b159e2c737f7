"""Norms and singular values of Jacobians on disk, read in pieces so that no large sample is held whole."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jacli.spectrum.boxes import ChunkedArray, box_extents, read_boxes, sample_chunks
from jacli.spectrum.exact import Spectrum, singular_values, streamed_singular_values

PIECE_NUMBERS = 4 * 2**20
"""Largest piece in numbers: 32 MiB in float64."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class StoredJacobian:
    """A stored array ``(batch, *domain, *output)``, read as one matrix ``(n_out, n_in)`` per sample.

    Attributes:
        array: On disk.
        output_axes: Number of axes, counted from the end, that are outputs.
    """

    array: ChunkedArray
    output_axes: int

    @property
    def domain_shape(self) -> tuple[int, ...]:
        return self.array.shape[1 : len(self.array.shape) - self.output_axes]

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.array.shape[len(self.array.shape) - self.output_axes :]

    @property
    def n_in(self) -> int:
        return math.prod(self.domain_shape)

    @property
    def n_out(self) -> int:
        return math.prod(self.output_shape)

    @property
    def samples_at_once(self) -> int:
        """Number of samples that fit in `PIECE_NUMBERS`, in whole chunks if possible; 0 if none fits."""
        fit = PIECE_NUMBERS // max(1, self.n_in * self.n_out)
        chunk = self.array.chunks[0] if self.array.chunks else 1
        return fit // chunk * chunk or fit

    def class_norms(self, start: int, stop: int) -> Array:
        """2-norms over the domain of samples ``start:stop``, ``(stop - start, n_out)``."""
        if self.samples_at_once:
            samples = self._samples(start, stop)
            return np.asarray(np.sqrt(np.einsum("nio,nio->no", samples, samples)))
        squares = np.zeros((stop - start, *self.output_shape))
        for row in range(stop - start):
            for outputs, part in self._pieces(start + row):
                target = squares[row][outputs]  # a view
                target += np.einsum("io,io->o", part, part).reshape(target.shape)
        return np.sqrt(squares).reshape(stop - start, self.n_out)

    def singular_values(self, start: int, stop: int) -> Spectrum:
        """All singular values of samples ``start:stop``, ``(stop - start, min(n_out, n_in))``."""
        if self.samples_at_once:
            return singular_values(torch.from_numpy(self._samples(start, stop)).mT)
        spectra = [
            streamed_singular_values(lambda i=i: self._matrix_pieces(i), min(self.n_in, self.n_out))  # type: ignore[misc]
            for i in range(start, stop)
        ]
        return Spectrum(torch.cat([s.values for s in spectra]), torch.cat([s.errors for s in spectra]))

    def _samples(self, start: int, stop: int) -> Array:
        """Whole samples, ``(stop - start, n_in, n_out)``."""
        return np.asarray(self.array[start:stop], np.float64).reshape(stop - start, self.n_in, self.n_out)

    def _matrix_pieces(self, sample: int) -> Iterator[Tensor]:
        """One sample in slabs ``(smaller side, part of the larger side)``, as views."""
        for _, part in self._pieces(sample):
            yield torch.from_numpy(part.T if self.n_in >= self.n_out else part)

    def _pieces(self, sample: int) -> Iterator[tuple[tuple[slice, ...], Array]]:
        """One sample in boxes: its whole smaller side by a part of the larger side, whose axes are split.

        Yields:
            The slices along the output axes, and the numbers as ``(domain, outputs)``.
        """
        shape = self.array.shape[1:]
        chunks = sample_chunks(self.array)
        split = len(self.domain_shape)
        cut = slice(0, split) if self.n_in >= self.n_out else slice(split, len(shape))
        extents = [max(1, n) for n in shape]
        room = max(1, PIECE_NUMBERS // max(1, min(self.n_in, self.n_out)))
        extents[cut] = box_extents(shape[cut], chunks[cut], room)
        for box, numbers in read_boxes(self.array, sample, extents):
            yield box[split:], numbers.reshape(math.prod(numbers.shape[:split]), -1)
