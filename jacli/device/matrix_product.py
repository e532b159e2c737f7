"""Matrix products by whichever kernel is faster on this machine: GEMM, or a convolution of one pixel.

On AMD processors, MKL's float32 matrix product (GEMM) takes a slow path.  oneDNN's convolution with a kernel
of 1 x 1 pixels computes the same product at more than twice the speed.  Once per process, both are timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

_MIN_ROWS = 16
"""With fewer rows on the left, `Matrix` uses the plain product."""

_MIN_SIDE = 64
"""With fewer rows or columns on the left, `product` uses the plain product: nothing is gained."""

_COLUMNS_PER_CONVOLUTION = 2048
"""Columns of the right operand at a time: few enough for their results to stay in the cache until copied."""

_MAX_SHARE_OF_PRODUCT_TIME = 0.8
"""The convolution replaces the matrix product if it takes less than this share of its time."""


class Matrix:
    """Right operand of many products ``rows @ matrix``, laid out once for the faster kernel.

    Args:
        matrix: ``(p, n)``.
    """

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self._as_kernel: Tensor | None = None
        if min(matrix.shape) >= 8 and _by_convolution(matrix):
            kernel = matrix.t().contiguous()[:, :, None, None]
            self._as_kernel = kernel.contiguous(memory_format=torch.channels_last)
            self._matrix = self._as_kernel[:, :, 0, 0].t()  # a view: the numbers are in memory once

    def rows_times(self, rows: Tensor) -> Tensor:
        """``(..., p) @ (p, n)``, as one product over all leading axes."""
        flat = rows.reshape(-1, rows.shape[-1])
        n = self._matrix.shape[1]
        if self._as_kernel is None or len(flat) < _MIN_ROWS:
            product = torch.mm(flat, self._matrix)
        else:
            pixels = flat.view(1, len(flat), 1, -1).permute(0, 3, 1, 2)
            product = F.conv2d(pixels, self._as_kernel).permute(0, 2, 3, 1).reshape(len(flat), n)
        return product.reshape(*rows.shape[:-1], n)


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """``left @ right``, sample by sample.

    >>> left, right = torch.randn(2, 300, 64), torch.randn(2, 64, 5)
    >>> torch.allclose(product(left, right), left @ right, atol=1e-4)
    True

    Args:
        left: ``(batch, m, n)``.
        right: ``(batch, n, p)``.
        out: Where to write, ``(batch, m, p)``; new memory if None.
    """
    if (
        min(left.shape[1:]) < _MIN_SIDE
        or right.shape[2] < _COLUMNS_PER_CONVOLUTION
        or not _by_convolution(right)
    ):
        return torch.bmm(left, right) if out is None else torch.bmm(left, right, out=out)
    if out is None:
        out = left.new_empty(len(left), left.shape[1], right.shape[2])
    with torch.no_grad():
        for sample in range(len(left)):
            kernel = left[sample, :, :, None, None].contiguous()
            for start in range(0, right.shape[2], _COLUMNS_PER_CONVOLUTION):
                columns = slice(start, start + _COLUMNS_PER_CONVOLUTION)
                # The columns of the right matrix are pixels, its rows channels.
                pixels = right[sample, :, columns].reshape(1, right.shape[1], 1, -1)
                out[sample, :, columns] = F.conv2d(pixels, kernel)[0, :, 0]
    return out


def _by_convolution(matrix: Tensor) -> bool:
    on_cpu = matrix.device.type == "cpu" and matrix.dtype == torch.float32
    return on_cpu and torch.backends.mkldnn.is_available() and convolution_pays()


@cache
def convolution_pays() -> bool:
    """Is a convolution of one pixel clearly faster than the same matrix product?  Timed once a process."""
    rows, matrix = torch.ones(1024, 256), torch.ones(256, 256)
    pixels = rows.view(1, 1024, 1, 256).permute(0, 3, 1, 2)
    kernel = matrix[:, :, None, None].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        product = _seconds(lambda: torch.mm(rows, matrix))
        return _seconds(lambda: F.conv2d(pixels, kernel)) < _MAX_SHARE_OF_PRODUCT_TIME * product


def _seconds(work: Callable[[], object]) -> float:
    """The shortest of eight runs."""
    best = float("inf")
    for _ in range(8):
        began = perf_counter()
        work()
        best = min(best, perf_counter() - began)
    return best
