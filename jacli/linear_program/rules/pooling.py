"""Rules of pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jacli.device.hardware import is_gpu
from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.local_map import Diagonal, Transposed
from jacli.linear_program.prepared import Passes

aten = torch.ops.aten


class Winners:
    """Max-pooling: every window hears from its winner.

    Args:
        index: Flat pixel of the winner of each window, ``(batch, c, h_out, w_out)``.
        window: Arguments of the pool: kernel, stride, padding, dilation, ceil_mode.
        shape_in: ``(batch, c, h, w)``.
        passes: How vectors are carried.
    """

    def __init__(self, index: Tensor, window: Sequence[object], shape_in: torch.Size, passes: Passes) -> None:
        self._index = index
        self._window = window
        self._shape_in = shape_in
        self._passes = passes
        self._repeated: Tensor | None = None

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        k, batch = len(g), self._shape_in[0]
        if self._repeated is None or len(self._repeated) != k * batch:
            index = self._index.expand(k, *self._index.shape).reshape(k * batch, *self._index.shape[1:])
            self._repeated = self._passes.images(index)
        windows = self._passes.images(g.reshape(k * batch, *g.shape[2:]))
        like = self._passes.empty_images(g, (k * batch, *self._shape_in[1:]))
        pixels: Tensor = aten.max_pool2d_with_indices_backward(windows, like, *self._window, self._repeated)
        return pixels.view(k, batch, *pixels.shape[1:])

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        index = self._index.flatten(2).expand(len(t), -1, -1, -1)
        return t.flatten(3).gather(3, index).view(len(t), *self._index.shape)

    def behind(self, factors: Tensor) -> Diagonal:
        """A diagonal map before this one as one behind it: each window hears through its winner's factor."""
        at_winners = factors.expand(self._shape_in).flatten(2).gather(2, self._index.flatten(2))
        return Diagonal(at_winners.view(self._index.shape))


class ApartWinners(Winners):
    """Max-pooling with windows that do not overlap: cotangents spread over them, times a mask of winners.

    Several times as fast as adding numbers up where they may meet.

    Args:
        index: As `Winners`.
        window: As `Winners`; kernel equal to stride, no padding.
        side: Height and width of a window.
        shape_in: As `Winners`.
        passes: As `Winners`.
        factors: A diagonal map behind, ``(batch, c, h_out, w_out)``, taken into the mask.
    """

    def __init__(
        self,
        index: Tensor,
        window: Sequence[object],
        side: tuple[int, int],
        shape_in: torch.Size,
        passes: Passes,
        factors: Tensor | None = None,
    ) -> None:
        super().__init__(index, window, shape_in, passes)
        self._side = side
        self._factors = factors
        self._mask: Tensor | None = None

    def _winners(self) -> Tensor:
        """``(batch, h_out, down, w_out across c)``: factors at the winners, else zeros."""
        (_, c, _, width), (down, across) = self._shape_in, self._side
        index = self._index.to(torch.int32)
        factors = self._factors
        if factors is not None and factors.dtype == torch.bool:
            index, factors = index.masked_fill(~factors, -1), None
        h, w = index.shape[2:]
        rows = torch.arange(h * down, dtype=torch.int32, device=index.device).view(h, down, 1)
        columns = torch.arange(w * across, dtype=torch.int32, device=index.device)
        pixels = (rows * width + columns).repeat_interleave(c, 2)
        mask = (self._wide(index)[:, :, None] == pixels).to(self._passes.dtype)
        return mask if factors is None else mask.mul_(self._wide(factors)[:, :, None])

    def _wide(self, windows: Tensor) -> Tensor:
        """``(..., c, h_out, w_out)`` to ``(..., h_out, w_out across c)``: repeated across, channels last.

        Then products run over whole lines, not over the channels of one pixel.
        """
        *batch, c, h, w = windows.shape
        last = windows.movedim(-3, -1)[..., None, :].expand(*batch, h, w, self._side[1], c)
        return last.reshape(*batch, h, -1)

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        if self._mask is None:
            self._mask = self._winners()
        k, (batch, c, height, width) = len(g), self._shape_in
        (down, across), (h, w) = self._side, self._index.shape[2:]
        pixels = (self._wide(g)[:, :, :, None] * self._mask).view(k, batch, h * down, w * across, c)
        if (h * down, w * across) != (height, width):
            pixels = F.pad(pixels, (0, 0, 0, width - w * across, 0, height - h * down))
        return pixels.permute(0, 1, 4, 2, 3)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        pooled = super().push(t, mine=mine)
        return pooled if self._factors is None else pooled.mul_(self._factors)

    def times(self, factors: Tensor) -> ApartWinners:
        """This map, then a diagonal one."""
        both = factors if self._factors is None else self._factors * factors
        return ApartWinners(self._index, self._window, self._side, self._shape_in, self._passes, both)


def max_pool2d(call: Call) -> None:
    """``max_pool2d`` with or without its winners."""
    if call.item not in (None, 0):
        raise NoRule
    x = call["self"]
    window = _window(call)
    kernel, stride, padding, dilation, ceil_mode = window
    if x.dim() != 4:
        raise NoRule
    index = call.results[1]
    if kernel == stride and max(padding) == 0 and max(dilation) == 1 and not ceil_mode:
        call.edge("self", ApartWinners(index, window, (kernel[0], kernel[1]), x.shape, call.passes))
    else:
        call.edge("self", Winners(index, window, x.shape, call.passes))


def _window(call: Call) -> tuple[list[int], list[int], list[int], list[int], bool]:
    """Kernel, stride, padding and dilation, two numbers each, and ceil_mode."""
    kernel = _pair(call["kernel_size"])
    stride = _pair(call["stride"]) if call["stride"] else kernel
    return kernel, stride, _pair(call["padding"]), _pair(call["dilation"]), call["ceil_mode"]


def _pair(value: int | Sequence[int]) -> list[int]:
    listed = [value] if isinstance(value, int) else list(value)
    return listed * 2 if len(listed) == 1 else listed


@dataclass(frozen=True)
class Averages:
    """Average-pooling, whose windows are the same for every vector and sample.

    Attributes:
        window: Arguments of the pool: kernel, stride, padding, ceil_mode, count_include_pad, divisor.
        shape_in: Of the operand.
        shape_out: Of the result.
        passes: How vectors are carried.
    """

    window: tuple[Any, ...]
    shape_in: torch.Size
    shape_out: torch.Size
    passes: Passes

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        windows = g.reshape(-1, *self.shape_out[1:])
        like_shape = (len(windows), *self.shape_in[1:])
        padding = self.window[2]
        if is_gpu(windows.device) and max(padding):
            # With channels last, GPU kernels forget the padding: wrong numbers, no error, up to torch 2.13
            # (https://github.com/pytorch/pytorch/issues/188344).
            windows, like = windows.contiguous(), windows.new_empty(like_shape)
        else:
            windows, like = self.passes.images(windows), self.passes.empty_images(g, like_shape)
        pixels: Tensor = aten.avg_pool2d_backward(windows, like, *self.window)
        return pixels.view(len(g), *self.shape_in)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        pixels = self.passes.images(t.reshape(-1, *self.shape_in[1:]))
        windows: Tensor = aten.avg_pool2d(pixels, *self.window)
        return windows.view(len(t), *self.shape_out)


@dataclass(frozen=True)
class Spread:
    """Every pixel repeated over a window of its own, times a factor: nearest-neighbour upsampling.

    Attributes:
        side: Height and width of a window.
        factor: Of every number.
        shape_in: ``(batch, c, h, w)``.
        passes: How vectors are carried.
    """

    side: tuple[int, int]
    factor: float
    shape_in: torch.Size
    passes: Passes

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        _, c, h, w = self.shape_in
        pixels = self.passes.images(g.reshape(-1, *g.shape[2:]))
        summed: Tensor = aten.avg_pool2d(pixels, self.side, self.side, [0, 0], False, True, 1)
        summed = summed if self.factor == 1 else summed.mul_(self.factor)
        return summed.view(len(g), -1, c, h, w)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        (down, across), (batch, c, h, w) = self.side, self.shape_in
        last = (t if self.factor == 1 else t * self.factor).permute(0, 1, 3, 4, 2)
        repeated = last[:, :, :, None, :, None, :].expand(len(t), batch, h, down, w, across, c)
        return repeated.reshape(len(t), batch, h * down, w * across, c).permute(0, 1, 4, 2, 3)


def avg_pool2d(call: Call) -> None:
    """``avg_pool2d``."""
    shape = call["self"].shape
    if len(shape) != 4:
        raise NoRule
    kernel = _pair(call["kernel_size"])
    stride = _pair(call["stride"]) if call["stride"] else kernel
    last = (call["ceil_mode"], call["count_include_pad"], call["divisor_override"])
    window = (kernel, stride, _pair(call["padding"]), *last)
    tiled = [n * k for n, k in zip(call.out.shape[2:], kernel, strict=True)] == list(shape[2:])
    if kernel == stride and tiled and max(window[2]) == 0:
        _apart(call, kernel, call["divisor_override"] or kernel[0] * kernel[1])
    else:
        call.edge("self", Averages(window, shape, call.out.shape, call.passes))


def adaptive_avg_pool2d(call: Call) -> None:
    """``adaptive_avg_pool2d`` where every window is as large as the others: average-pooling."""
    shape, sides = call["self"].shape, call.out.shape[2:]
    if len(shape) != 4 or any(n % m for n, m in zip(shape[2:], sides, strict=True)):
        raise NoRule
    window = [n // m for n, m in zip(shape[2:], sides, strict=True)]
    if window == [1, 1]:
        call.edge("self")
    else:
        _apart(call, window, window[0] * window[1])


def _apart(call: Call, window: Sequence[int], divisor: float) -> None:
    """Windows that do not overlap."""
    spread = Spread((window[0], window[1]), 1 / divisor, call.out.shape, call.passes)
    call.edge("self", Transposed(spread))


def upsample_nearest(call: Call) -> None:
    """Nearest-neighbour upsampling by whole factors."""
    name = "input" if call.has("input") else "self"
    shape, larger = call[name].shape, call.out.shape
    if any(m % n for n, m in zip(shape[2:], larger[2:], strict=True)):
        raise NoRule
    side = larger[2] // shape[2], larger[3] // shape[3]
    asked = call["scale_factors"] if call.has("scale_factors") else (call["scales_h"], call["scales_w"])
    if any(scale not in (None, n) for scale, n in zip(asked or (), side, strict=False)):
        raise NoRule  # 3.1 times 3 pixels are 9 as well, but others win
    call.edge(name, Spread(side, 1, shape, call.passes))
