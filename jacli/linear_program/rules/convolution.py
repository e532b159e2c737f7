"""The rule of convolutions, and the kernels that pull cotangents through them.

A convolution is linear: a tangent is pushed by the convolution itself, a cotangent pulled by the transposed
one.  What torch offers for the latter is slow where the kernel strides or the input has few channels, so that
on a CPU it is written as an ordinary convolution wherever the geometry allows (`_transposed_way`):

* stride 1: with the flipped kernel, channels in and out swapped;
* one pixel with a stride: a product of channels, its pixels then put apart;
* a stride s, few input channels or a kernel that is as large as its stride: a *sub-pixel* convolution whose
  s x s phases are channels (Shi et al., 2016), shuffled into pixels afterwards;
* stride 1 to few channels, in either direction: m x m pixels side by side as channels of a convolution of
  stride m (*super-pixels*), so that the kernels' inner loops have something to run over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from jacli.device.hardware import is_gpu
from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.local_map import Key, Scale
from jacli.linear_program.prepared import Passes, Weighted

_FEW_CHANNELS = 4
_FEW_PHASES = 32
_SMALL_KERNEL, _SMALL_IMAGE = 3, 32


@dataclass(frozen=True)
class Geometry:
    """How a convolution slides: one number an axis of the image."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def plain(self, images: Tensor, kernel: Tensor) -> Tensor:
        """The convolution that is not transposed, whose kernel is ``(c_out, c_in / groups, ...)``."""
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        result: Tensor = conv(images, kernel, None, self.stride, self.padding, self.dilation, self.groups)
        return result

    def transpose(self, images: Tensor, kernel: Tensor, shape: Sequence[int]) -> Tensor:
        """Its transposed, to images of the pixels ``shape``, the kernel being the same."""
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.stride) - 1]
        least = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, s, p, d, k in zip(
                images.shape[2:], self.stride, self.padding, self.dilation, kernel.shape[2:], strict=True
            )
        ]
        more = [n - m for n, m in zip(shape, least, strict=True)]
        # The transposed convolution can be told of pixels that no window reached only up to a stride of them.
        told = [min(m, max(s, d) - 1) for m, s, d in zip(more, self.stride, self.dilation, strict=True)]
        result: Tensor = conv(
            images, kernel, None, self.stride, self.padding, told, self.groups, self.dilation
        )
        left = [m - n for m, n in zip(more, told, strict=True)]
        return F.pad(result, [n for after in reversed(left) for n in (0, after)]) if any(left) else result


class Convolution(Weighted):
    """The derivative of a convolution, or of a transposed one, at any point.

    Args:
        kernel: ``(c_out, c_in / groups, ...)``; of a transposed one ``(c_in, c_out / groups, ...)``.
        geometry: How it slides.
        shape_in: Of the operand, ``(batch, c_in, ...)``.
        shape_out: Of the result.
        passes: How vectors are carried.
        key: What the kernel was made from, if from constants alone.
    """

    def __init__(
        self,
        kernel: Tensor,
        geometry: Geometry,
        shape_in: torch.Size,
        shape_out: torch.Size,
        passes: Passes,
        key: Key | None,
    ) -> None:
        super().__init__(passes, key)
        self.kernel, self.geometry, self.shape_in, self.shape_out = kernel, geometry, shape_in, shape_out

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        return self._run(g, self.shape_out, self.shape_in, adjoint=True)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        return self._run(t, self.shape_in, self.shape_out, adjoint=False)

    def _run(self, vectors: Tensor, before: torch.Size, after: torch.Size, *, adjoint: bool) -> Tensor:
        k, batch = len(vectors), after[0]
        way = self.prepared(
            (self.geometry, before[1:], after[1:], adjoint), lambda: self._way(adjoint=adjoint)
        )
        images = self.passes.images(vectors.reshape(k * batch, *before[1:]))
        result: Tensor = way(images)
        return result.view(k, batch, *result.shape[1:])

    def _way(self, *, adjoint: bool) -> Callable[[Tensor], Tensor]:
        """How vectors go in one direction: from images to images."""
        geometry = self.geometry
        kernel = self.passes.images(self.kernel.to(self.passes.dtype))
        shape = (self.shape_in if adjoint else self.shape_out)[2:]
        # Backwards through a transposed convolution, as forwards through a plain one, nothing is transposed.
        plain = adjoint == geometry.transposed
        if len(shape) <= 2:
            exact_on_gpu = is_gpu(self.passes.device) and not self.passes.images_last
            find = _plain_way if plain else _transposed_way_on_gpu if exact_on_gpu else _transposed_way
            found = find(self.kernel, geometry, shape)
            if found is not None:
                return found.laid_out(self.passes)
        if plain:
            return lambda images: _cut(geometry.plain(images, kernel), shape)
        return lambda images: geometry.transpose(images, kernel, shape)

    def scaled_in(self, scale: Scale) -> Convolution | None:
        """This convolution of the scaled operand."""
        return self._scaled("in", scale)

    def scaled_out(self, scale: Scale) -> Convolution | None:
        """The scaled result of this convolution."""
        return self._scaled("out", scale)

    def _scaled(self, side: str, scale: Scale) -> Convolution | None:
        if scale.axis != 1 - len(self.shape_in):
            return None
        # The kernel's first axis is the operand's channels in a transposed convolution, else the result's;
        # the second one is the other's, group by group.
        factors, groups = scale.factors, self.geometry.groups
        later = (1,) * (self.kernel.dim() - 2)
        if (side == "out") != self.geometry.transposed:
            kernel = self.kernel * factors.reshape(-1, 1, *later)
        else:
            of_groups = factors.reshape(groups, 1, -1, *later)
            kernel = (self.kernel.unflatten(0, (groups, -1)) * of_groups).flatten(0, 1)
        key = self.folded_key(side, scale)
        return Convolution(kernel, self.geometry, self.shape_in, self.shape_out, self.passes, key)


@dataclass(frozen=True)
class _Way:
    """A kernel in another order, and what to do with it."""

    kernel: Tensor
    run: Callable[[Tensor, Tensor], Tensor]

    def laid_out(self, passes: Passes) -> Callable[[Tensor], Tensor]:
        kernel = passes.images(self.kernel.to(passes.dtype))
        return lambda images: self.run(images, kernel)


def _is_square(kernel: Tensor, geometry: Geometry) -> bool:
    """Whether it treats both axes of an image alike, all channels together, without holes."""
    alike = (kernel.shape[2:], geometry.stride, geometry.padding, geometry.dilation)
    square = kernel.dim() == 4 and all(len(set(numbers)) == 1 for numbers in alike)
    return square and geometry.groups == 1 and geometry.dilation[0] == 1


def _plain_way(kernel: Tensor, geometry: Geometry, shape: Sequence[int]) -> _Way | None:
    """A convolution by a faster one than itself; None where there is none."""
    few = kernel.shape[0] <= _FEW_CHANNELS and kernel.shape[-1] > 1 and geometry.stride[0] == 1
    if not (_is_square(kernel, geometry) and few):
        return None
    return _super_pixels(kernel, geometry.padding[0], shape)


def _transposed_way(kernel: Tensor, geometry: Geometry, shape: Sequence[int]) -> _Way | None:
    """The transposed of a plain convolution as an ordinary one, where the geometry allows it."""
    size, c_in, padding = kernel.shape[2:], kernel.shape[1] * geometry.groups, geometry.padding
    reach = [d * (k - 1) - p for d, k, p in zip(geometry.dilation, size, padding, strict=True)]
    # Dilated, it may have output padding at stride 1 too: pixels that a plain convolution would not give.
    if max(geometry.stride) == 1 and min(reach) >= 0 and not any(geometry.output_padding):
        plain = replace(geometry, padding=tuple(reach))
        flipped = _flipped(kernel, geometry.groups)
        return _plain_way(flipped, plain, shape) or _Way(flipped, plain.plain)
    if not _is_square(kernel, geometry):
        return None
    s = geometry.stride[0]
    if size[0] == 1 and padding[0] == 0:
        return _Way(kernel.transpose(0, 1), lambda images, w: _put_apart(F.conv2d(images, w), s, shape))
    if c_in * s * s <= _FEW_PHASES or (size[0] == s and padding[0] == 0):
        return _sub_pixels(kernel, s, padding[0], shape)
    return None


def _transposed_way_on_gpu(kernel: Tensor, geometry: Geometry, shape: Sequence[int]) -> _Way | None:
    """As `_transposed_way`, but in exact float32 only where cuDNN's own transposed convolution is slower.

    Measured on an H100 (`benchmarks/NOTES.md`): tensor cores (TF32, bf16) gain by every rewriting.  Without
    them small images gain up to three times by the flipped kernel, large images and kernels lose.
    """
    stride, size = geometry.stride[0], kernel.shape[-1]
    few_channels = kernel.shape[1] * geometry.groups <= _FEW_CHANNELS
    if max(geometry.stride) > 1:
        serves = size <= stride
    else:
        serves = few_channels or (size <= _SMALL_KERNEL and max(shape) <= _SMALL_IMAGE)
    return _transposed_way(kernel, geometry, shape) if serves else None


def _flipped(kernel: Tensor, groups: int) -> Tensor:
    """``(c_out, c_in / groups, ...)`` to ``(c_in, c_out / groups, ...)``, the image's axes backwards."""
    turned = kernel.flip(list(range(2, kernel.dim())))
    return turned.view(groups, -1, *turned.shape[1:]).transpose(1, 2).flatten(0, 1)


def _put_apart(images: Tensor, stride: int, shape: Sequence[int]) -> Tensor:
    """Every pixel at a multiple of the stride, zeros between."""
    n, c = images.shape[:2]
    apart = images.new_zeros(n, *shape, c).permute(0, 3, 1, 2)
    apart[:, :, ::stride, ::stride][:, :, : images.shape[2], : images.shape[3]] = images
    return apart


def _sub_pixels(kernel: Tensor, stride: int, padding: int, shape: Sequence[int]) -> _Way:
    """Pixel ``q s + r`` of the result hears from windows ``q + lowest .. q + highest`` (derivation below).

    Window j of the convolution reads pixel ``j s - padding + i`` with the kernel's number i.  So pixel
    ``x = q s + r`` hears from ``j = q + d`` through ``i = r + padding - s d``, where ``0 <= i < size``: for
    every phase r a kernel over d, all phases together one convolution with ``s s`` times the channels.
    """
    c_out, c_in, size, _ = kernel.shape
    s = stride
    lowest, highest = math.ceil((padding - size + 1) / s), (s - 1 + padding) // s
    reach = highest - lowest + 1
    phases = kernel.new_zeros(c_in, s, s, c_out, reach, reach)
    for ry, rx in ((y, x) for y in range(s) for x in range(s)):
        for dy, dx in ((y, x) for y in range(lowest, highest + 1) for x in range(lowest, highest + 1)):
            iy, ix = ry + padding - s * dy, rx + padding - s * dx
            if 0 <= iy < size and 0 <= ix < size:
                phases[:, ry, rx, :, dy - lowest, dx - lowest] = kernel[:, :, iy, ix].t()
    height, width = (math.ceil(n / s) for n in shape)

    def run(images: Tensor, w: Tensor) -> Tensor:
        rows, columns = images.shape[2:]
        frame = max(0, -lowest, height - 1 + highest - (rows - 1), width - 1 + highest - (columns - 1))
        first = frame + lowest
        found = F.conv2d(images, w, padding=frame)[:, :, first : first + height, first : first + width]
        return F.pixel_shuffle(found, s)[:, :, : shape[0], : shape[1]]

    return _Way(phases.reshape(c_in * s * s, c_out, reach, reach), run)


def _super_pixels(kernel: Tensor, padding: int, shape: Sequence[int]) -> _Way:
    """A convolution of stride 1 as one of stride m that gives ``m x m`` pixels as channels.

    Pixel ``m q + r`` is the kernel applied at ``m q``, moved by r within a kernel that is m - 1 larger.
    """
    c_out, c_in, size, _ = kernel.shape
    m = 4 if c_out == 1 else 2
    large = size + m - 1
    moved = kernel.new_zeros(c_out, m, m, c_in, large, large)
    for ry, rx in ((y, x) for y in range(m) for x in range(m)):
        moved[:, ry, rx, :, ry : ry + size, rx : rx + size] = kernel

    def run(images: Tensor, w: Tensor) -> Tensor:
        missing = [
            max(0, (math.ceil(n / m) - 1) * m + large - (have + 2 * padding))
            for n, have in zip(shape, images.shape[2:], strict=True)
        ]
        if any(missing):
            images = F.pad(images, (0, missing[1], 0, missing[0]))
        return F.pixel_shuffle(F.conv2d(images, w, stride=m, padding=padding), m)[
            :, :, : shape[0], : shape[1]
        ]

    return _Way(moved.reshape(c_out * m * m, c_in, large, large), run)


def _cut(images: Tensor, shape: Sequence[int]) -> Tensor:
    """The first pixels: what a transposed convolution was padded with goes."""
    if tuple(images.shape[2:]) == tuple(shape):
        return images
    for axis, n in enumerate(shape):
        images = images.narrow(2 + axis, 0, n)
    return images


def convolution(call: Call) -> None:
    """``conv1d`` to ``conv3d``, ``conv_transpose`` and the general ``convolution``."""
    call.only("input")
    x, kernel = call["input"], call["weight"]
    n = kernel.dim() - 2
    if x.dim() != n + 2:
        raise NoRule
    transposed = bool(call["transposed"]) if call.has("transposed") else call.has("output_padding")
    geometry = Geometry(
        stride=_each(call["stride"], n),
        padding=_padding(call, n),
        dilation=_each(call["dilation"], n),
        groups=call["groups"],
        transposed=transposed,
        output_padding=_each(call["output_padding"], n) if transposed else (),
    )
    derivative = Convolution(kernel, geometry, x.shape, call.out.shape, call.passes, call.key("weight"))
    call.edge("input", derivative)


def _padding(call: Call, n: int) -> tuple[int, ...]:
    """In numbers; what pads one side more than the other has no rule."""
    padding = call["padding"]
    if not isinstance(padding, str):
        return _each(padding, n)
    if padding == "valid":
        return (0,) * n
    both = [d * (k - 1) for d, k in zip(_each(call["dilation"], n), call["weight"].shape[2:], strict=True)]
    if any(b % 2 for b in both):
        raise NoRule
    return tuple(b // 2 for b in both)


def _each(value: int | Sequence[int], n: int) -> tuple[int, ...]:
    listed = [value] if isinstance(value, int) else list(value)
    return tuple(listed * n if len(listed) == 1 else listed)
