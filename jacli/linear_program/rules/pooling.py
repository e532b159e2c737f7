"""Rules of pools and of nearest-neighbour upsampling.

Axes: k vectors, n samples, c channels, h w pixels, a b windows of p x q pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jacli.device.hardware import is_gpu
from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.local_map import Diagonal, LocalMap, Transposed
from jacli.linear_program.pass_settings import PassSettings
from jacli.linear_program.rule import linear

aten = torch.ops.aten


class MaxPool:
    """Max-pooling: each output is the input at its argmax.  ``dy_a = dx_argmax(a)``, ``x̄_argmax(a) += ȳ_a``.

    Args:
        argmax: Flat pixel of the argmax of each window, ``n c a b``.
        window: Arguments of the pool: kernel, stride, padding, dilation, ceil_mode.
        shape_in: ``n c h w``.
        settings: Of the passes.
    """

    def __init__(
        self, argmax: Tensor, window: Sequence[object], shape_in: torch.Size, settings: PassSettings
    ) -> None:
        self._argmax = argmax
        self._window = window
        self._shape_in = shape_in
        self._settings = settings
        self._repeated: Tensor | None = None

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        k, n = len(g), self._shape_in[0]
        if self._repeated is None or len(self._repeated) != k * n:
            argmax = self._argmax.expand(k, *self._argmax.shape).reshape(k * n, *self._argmax.shape[1:])
            self._repeated = self._settings.images(argmax)
        windows = self._settings.images(g.reshape(k * n, *g.shape[2:]))  # k n c a b -> (k n) c a b
        like = self._settings.empty_images(g, (k * n, *self._shape_in[1:]))
        pixels: Tensor = aten.max_pool2d_with_indices_backward(windows, like, *self._window, self._repeated)
        return pixels.view(k, n, *pixels.shape[1:])

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        argmax = self._argmax.flatten(2).expand(len(t), -1, -1, -1)  # n c a b -> k n c (a b)
        return t.flatten(3).gather(3, argmax).view(len(t), *self._argmax.shape)

    def commute_diagonal(self, factors: Tensor) -> Diagonal:
        """The diagonal map E with ``pool D = E pool``: E has the factor of each window's argmax."""
        at_argmax = factors.expand(self._shape_in).flatten(2).gather(2, self._argmax.flatten(2))
        return Diagonal(at_argmax.view(self._argmax.shape))


class NonOverlappingMaxPool(MaxPool):
    """Max-pooling whose windows do not overlap: the vjp repeats each cotangent over its window, times a mask.

    This is several times as fast as the sum that overlapping windows need.

    Args:
        argmax: As `MaxPool`.
        window: As `MaxPool`; kernel equal to stride, no padding.
        side: Height and width of a window, ``(p, q)``.
        shape_in: As `MaxPool`.
        settings: As `MaxPool`.
        factors: A diagonal map after the pool that it absorbs, ``n c a b``.
    """

    def __init__(
        self,
        argmax: Tensor,
        window: Sequence[object],
        side: tuple[int, int],
        shape_in: torch.Size,
        settings: PassSettings,
        factors: Tensor | None = None,
    ) -> None:
        super().__init__(argmax, window, shape_in, settings)
        self._side = side
        self._factors = factors
        self._mask: Tensor | None = None

    def _argmax_mask(self) -> Tensor:
        """``n a p (b q c)``: the factors at each argmax (1 without factors), else zeros."""
        (_, c, _, width), (p, q) = self._shape_in, self._side
        argmax, factors = self._argmax.to(torch.int32), self._factors
        if factors is not None and factors.dtype == torch.bool:
            argmax, factors = argmax.masked_fill(~factors, -1), None
        a, b = argmax.shape[2:]
        rows = torch.arange(a * p, dtype=torch.int32, device=argmax.device).view(a, p, 1)
        columns = torch.arange(b * q, dtype=torch.int32, device=argmax.device)
        pixels = (rows * width + columns).repeat_interleave(c, 2)  # a p (b q c)
        mask = (self._repeated_in_rows(argmax)[:, :, None] == pixels).to(self._settings.dtype)
        return mask if factors is None else mask.mul_(self._repeated_in_rows(factors)[:, :, None])

    def _repeated_in_rows(self, windows: Tensor) -> Tensor:
        """``... c a b -> ... a (b q c)``: each window's number repeated q times, channels last.

        Products then run over whole rows of the image instead of over the channels of one pixel.
        """
        *batch, c, a, b = windows.shape
        last = windows.movedim(-3, -1)[..., None, :].expand(*batch, a, b, self._side[1], c)
        return last.reshape(*batch, a, -1)

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        if self._mask is None:
            self._mask = self._argmax_mask()
        k, (n, c, height, width) = len(g), self._shape_in
        (p, q), (a, b) = self._side, self._argmax.shape[2:]
        rows = self._repeated_in_rows(g)[:, :, :, None] * self._mask  # k n a p (b q c)
        pixels = rows.view(k, n, a * p, b * q, c)
        if (a * p, b * q) != (height, width):
            pixels = F.pad(pixels, (0, 0, 0, width - b * q, 0, height - a * p))
        return pixels.permute(0, 1, 4, 2, 3)  # k n h w c -> k n c h w

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        pooled = super().jvp(t, may_overwrite=may_overwrite)
        return pooled if self._factors is None else pooled.mul_(self._factors)

    def absorb_diagonal(self, factors: Tensor) -> NonOverlappingMaxPool:
        """The product of a diagonal map and this one, ``D pool``, as one map."""
        both = factors if self._factors is None else self._factors * factors
        return NonOverlappingMaxPool(
            self._argmax, self._window, self._side, self._shape_in, self._settings, both
        )


@linear("max_pool2d", "max_pool2d_with_indices")
def max_pool2d(call: Call) -> Sequence[LocalMap]:
    """``y_a = max x over window a;  dy_a = dx_argmax(a),  x̄_argmax(a) += ȳ_a``.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[[[1.0, 4.0], [3.0, 2.0]]]])
    >>> jacobian(lambda x: F.max_pool2d(x, 2), x, method="adjoint").squeeze().tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    x = call["self"]
    if call.item not in (None, 0) or x.dim() != 4:
        raise NoRule
    window = _window(call)
    kernel, stride, padding, dilation, ceil_mode = window
    argmax = call.results[1]
    if kernel == stride and max(padding) == 0 and max(dilation) == 1 and not ceil_mode:
        return [NonOverlappingMaxPool(argmax, window, (kernel[0], kernel[1]), x.shape, call.settings)]
    return [MaxPool(argmax, window, x.shape, call.settings)]


def _window(call: Call) -> tuple[list[int], list[int], list[int], list[int], bool]:
    """Kernel, stride, padding and dilation, two numbers each, and ceil_mode."""
    kernel = _pair(call["kernel_size"])
    stride = _pair(call["stride"]) if call["stride"] else kernel
    return kernel, stride, _pair(call["padding"]), _pair(call["dilation"]), call["ceil_mode"]


def _pair(value: int | Sequence[int]) -> list[int]:
    listed = [value] if isinstance(value, int) else list(value)
    return listed * 2 if len(listed) == 1 else listed


@dataclass(frozen=True)
class AveragePool:
    """Average-pooling: ``dy_a = Σ dx / d over window a,  x̄_i = Σ ȳ_a / d over the windows a of pixel i``.

    Attributes:
        window: Arguments of the pool: kernel, stride, padding, ceil_mode, count_include_pad, divisor.
        shape_in: Of the operand.
        shape_out: Of the result.
        settings: Of the passes.
    """

    window: tuple[Any, ...]
    shape_in: torch.Size
    shape_out: torch.Size
    settings: PassSettings

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        windows = g.reshape(-1, *self.shape_out[1:])
        like_shape = (len(windows), *self.shape_in[1:])
        padding = self.window[2]
        if is_gpu(windows.device) and max(padding):
            # With channels last, GPU kernels forget the padding: wrong numbers, no error, up to torch 2.13
            # (https://github.com/pytorch/pytorch/issues/188344).
            windows, like = windows.contiguous(), windows.new_empty(like_shape)
        else:
            windows, like = self.settings.images(windows), self.settings.empty_images(g, like_shape)
        pixels: Tensor = aten.avg_pool2d_backward(windows, like, *self.window)
        return pixels.view(len(g), *self.shape_in)

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        pixels = self.settings.images(t.reshape(-1, *self.shape_in[1:]))
        windows: Tensor = aten.avg_pool2d(pixels, *self.window)
        return windows.view(len(t), *self.shape_out)


@dataclass(frozen=True)
class NearestUpsample:
    """Nearest-neighbour upsampling, times f: ``dy_p = f dx_a for every pixel p of window a,  x̄_a = f Σ ȳ_p``.

    Attributes:
        side: Height and width of a window, ``(p, q)``.
        factor: f.
        shape_in: ``n c a b``.
        settings: Of the passes.
    """

    side: tuple[int, int]
    factor: float
    shape_in: torch.Size
    settings: PassSettings

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        _, c, a, b = self.shape_in
        pixels = self.settings.images(g.reshape(-1, *g.shape[2:]))
        summed: Tensor = aten.avg_pool2d(pixels, self.side, self.side, [0, 0], False, True, 1)
        summed = summed if self.factor == 1 else summed.mul_(self.factor)
        return summed.view(len(g), -1, c, a, b)

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        k, (p, q), (n, c, a, b) = len(t), self.side, self.shape_in
        last = (t if self.factor == 1 else t * self.factor).permute(0, 1, 3, 4, 2)  # k n a b c
        repeated = last[:, :, :, None, :, None, :].expand(k, n, a, p, b, q, c)
        return repeated.reshape(k, n, a * p, b * q, c).permute(0, 1, 4, 2, 3)  # k n c (a p) (b q)


@linear("avg_pool2d")
def avg_pool2d(call: Call) -> Sequence[LocalMap]:
    """``y_a = Σ x / d over window a;  dy_a = Σ dx / d,  x̄_i = Σ ȳ_a / d over the windows a of pixel i``.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[[[1.0, 4.0], [3.0, 2.0]]]])
    >>> jacobian(lambda x: F.avg_pool2d(x, 2), x, method="adjoint").squeeze().tolist()
    [[0.25, 0.25], [0.25, 0.25]]
    """
    shape = call["self"].shape
    if len(shape) != 4:
        raise NoRule
    kernel = _pair(call["kernel_size"])
    stride = _pair(call["stride"]) if call["stride"] else kernel
    last = (call["ceil_mode"], call["count_include_pad"], call["divisor_override"])
    window = (kernel, stride, _pair(call["padding"]), *last)
    tiled = [n * k for n, k in zip(call.out.shape[2:], kernel, strict=True)] == list(shape[2:])
    if kernel == stride and tiled and max(window[2]) == 0:
        return [_tiled_average(call, kernel, call["divisor_override"] or kernel[0] * kernel[1])]
    return [AveragePool(window, shape, call.out.shape, call.settings)]


@linear("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def adaptive_avg_pool2d(call: Call) -> Sequence[LocalMap]:
    """As `avg_pool2d`, where all windows are of the same size.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[[[1.0, 4.0], [3.0, 2.0]]]])
    >>> jacobian(lambda x: F.adaptive_avg_pool2d(x, 1), x, method="adjoint").squeeze().tolist()
    [[0.25, 0.25], [0.25, 0.25]]
    """
    shape, sides = call["self"].shape, call.out.shape[2:]
    if len(shape) != 4 or any(n % m for n, m in zip(shape[2:], sides, strict=True)):
        raise NoRule
    window = [n // m for n, m in zip(shape[2:], sides, strict=True)]
    return [] if window == [1, 1] else [_tiled_average(call, window, window[0] * window[1])]


def _tiled_average(call: Call, window: Sequence[int], divisor: float) -> LocalMap:
    """Averages over windows that tile the image: the transposed of upsampling, divided by the window size."""
    return Transposed(NearestUpsample((window[0], window[1]), 1 / divisor, call.out.shape, call.settings))


@linear("upsample_nearest2d")
def upsample_nearest(call: Call) -> Sequence[LocalMap]:
    """``y_p = x_a for every pixel p of window a;  dy_p = dx_a,  x̄_a = Σ ȳ_p``, by whole factors.

    >>> from jacli import jacobian
    >>> x = torch.ones(1, 1, 1, 1)
    >>> jacobian(lambda x: F.interpolate(x, scale_factor=2), x, method="adjoint").squeeze().tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    shape, larger = call[call.first].shape, call.out.shape
    if any(m % n for n, m in zip(shape[2:], larger[2:], strict=True)):
        raise NoRule
    side = larger[2] // shape[2], larger[3] // shape[3]
    asked = call["scale_factors"] if call.has("scale_factors") else (call["scales_h"], call["scales_w"])
    if any(scale not in (None, n) for scale, n in zip(asked or (), side, strict=False)):
        raise NoRule  # 3 pixels times 3.1 are 9 too, but other pixels are nearest
    return [NearestUpsample(side, 1, shape, call.settings)]
