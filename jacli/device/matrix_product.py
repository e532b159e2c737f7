"""Products of matrices by the faster kernel of this machine.

On AMD's processors MKL's float32 matrix product takes a slow path; oneDNN's convolution with a kernel of one
pixel is the same product at more than twice the speed.  Which one it is on this machine is measured once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

_FEW_ROWS = 16

_LARGE = 64
"""Rows of a matrix below which nothing is gained."""

_COLUMNS = 2048
"""Of the right operand at once: what is made of them stays in the cache until it is put into place."""

_CLEARLY = 0.8
"""A convolution must take less than this part of a matrix product's time to be taken in its place."""


class Matrix:
    """Right operand of many products ``rows @ matrix``, laid out for the kernel that is fastest.

    Args:
        matrix: ``(p, n)``.
    """

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self._as_kernel: Tensor | None = None
        if min(matrix.shape) >= 8 and _by_convolution(matrix):
            kernel = matrix.t().contiguous()[:, :, None, None]
            self._as_kernel = kernel.contiguous(memory_format=torch.channels_last)
            self._matrix = self._as_kernel[:, :, 0, 0].t()  # held once

    def rows_times(self, rows: Tensor) -> Tensor:
        """``(..., p) @ (p, n)``, one product whatever the number of axes in front."""
        flat = rows.reshape(-1, rows.shape[-1])
        n = self._matrix.shape[1]
        if self._as_kernel is None or len(flat) < _FEW_ROWS:
            product = torch.mm(flat, self._matrix)
        else:
            pixels = flat.view(1, len(flat), 1, -1).permute(0, 3, 1, 2)
            product = F.conv2d(pixels, self._as_kernel).permute(0, 2, 3, 1).reshape(len(flat), n)
        return product.reshape(*rows.shape[:-1], n)


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """``left @ right`` for each of a batch.

    Args:
        left: ``(batch, m, n)``.
        right: ``(batch, n, p)``.
        out: Where to write, ``(batch, m, p)``.
    """
    if min(left.shape[1:]) < _LARGE or right.shape[2] < _COLUMNS or not _by_convolution(right):
        return torch.bmm(left, right) if out is None else torch.bmm(left, right, out=out)
    if out is None:
        out = left.new_empty(len(left), left.shape[1], right.shape[2])
    with torch.no_grad():
        for sample in range(len(left)):
            kernel = left[sample, :, :, None, None].contiguous()
            for start in range(0, right.shape[2], _COLUMNS):
                # The columns of the right matrix are pixels, its rows channels.
                pixels = right[sample, :, start : start + _COLUMNS].reshape(1, right.shape[1], 1, -1)
                out[sample, :, start : start + _COLUMNS] = F.conv2d(pixels, kernel)[0, :, 0]
    return out


def _by_convolution(matrix: Tensor) -> bool:
    on_cpu = matrix.device.type == "cpu" and matrix.dtype == torch.float32
    return on_cpu and torch.backends.mkldnn.is_available() and convolution_pays()


@cache
def convolution_pays() -> bool:
    """Whether a convolution with one pixel beats the matrix product that it is; measured once a process."""
    rows, matrix = torch.ones(1024, 256), torch.ones(256, 256)
    pixels = rows.view(1, 1024, 1, 256).permute(0, 3, 1, 2)
    kernel = matrix[:, :, None, None].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        product = _seconds(lambda: torch.mm(rows, matrix))
        return _seconds(lambda: F.conv2d(pixels, kernel)) < _CLEARLY * product


def _seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(8):
        began = perf_counter()
        work()
        best = min(best, perf_counter() - began)
    return best
