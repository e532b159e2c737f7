"""Faster kernels for the transposed convolutions of reverse passes.

What torch offers for a transposed convolution is slow where the kernel strides or the input has few
channels.  On a CPU it is therefore written as an ordinary convolution wherever the geometry allows
(`rewrite_transposed`):

* stride 1: with the flipped kernel, channels in and out swapped;
* a kernel of one pixel with a stride: a product of channels, whose pixels are then spread by the stride;
* a stride s with few input channels, or with a kernel as large as the stride: a *sub-pixel* convolution whose
  s x s phases are channels, shuffled into pixels afterwards (Shi et al., CVPR 2016; arXiv:1609.05158);
* stride 1 to few channels, in either direction: *super-pixels*, a convolution of stride m with m x m pixels
  side by side as channels, so that the inner loops of the kernels are long enough.

Axes: n images, i channels in, o channels out, h w pixels.  Kernels are those of the ordinary convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from jacli.linear_program.pass_settings import PassSettings

SUPER_PIXEL_MAX_CHANNELS = 4
"""Channels of the result up to which super-pixels are faster."""

SUB_PIXEL_MAX_CHANNELS = 32
"""Channels of all phases together up to which a sub-pixel convolution is faster, whatever the kernel."""

GPU_MAX_KERNEL_SIDE, GPU_MAX_IMAGE_SIDE = 3, 32
"""Pixels of the kernel and of the image up to which a flipped kernel is faster in exact float32 on a GPU."""


@dataclass(frozen=True)
class Geometry:
    """Geometry of a convolution: one number per axis of the image."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def plain(self, images: Tensor, kernel: Tensor) -> Tensor:
        """The ordinary convolution of ``n i h w`` with a kernel ``(o, i / groups, ...)``."""
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        result: Tensor = conv(images, kernel, None, self.stride, self.padding, self.dilation, self.groups)
        return result

    def transpose(self, images: Tensor, kernel: Tensor, shape: Sequence[int]) -> Tensor:
        """The transposed of `plain` with the same kernel, to images of ``shape`` pixels."""
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.stride) - 1]
        least = [
            (n - 1) * s - 2 * p + d * (k - 1) + 1
            for n, s, p, d, k in zip(
                images.shape[2:], self.stride, self.padding, self.dilation, kernel.shape[2:], strict=True
            )
        ]
        more = [n - m for n, m in zip(shape, least, strict=True)]
        # No window reaches the last pixels; torch's output padding covers less than a stride of them.
        output_padding = [
            min(m, max(s, d) - 1) for m, s, d in zip(more, self.stride, self.dilation, strict=True)
        ]
        result: Tensor = conv(
            images, kernel, None, self.stride, self.padding, output_padding, self.groups, self.dilation
        )
        left = [m - n for m, n in zip(more, output_padding, strict=True)]
        return F.pad(result, [n for after in reversed(left) for n in (0, after)]) if any(left) else result


@dataclass(frozen=True)
class Rewriting:
    """A convolution written as a faster one: a rearranged kernel, and how to apply it.

    Attributes:
        kernel: Rearranged.
        run: ``(images, kernel) -> images``.
    """

    kernel: Tensor
    run: Callable[[Tensor, Tensor], Tensor]

    def laid_out(self, settings: PassSettings) -> Callable[[Tensor], Tensor]:
        """The function of images alone, its kernel in the dtype and memory format of the passes."""
        kernel = settings.images(self.kernel.to(settings.dtype))
        return lambda images: self.run(images, kernel)


def _is_square(kernel: Tensor, geometry: Geometry) -> bool:
    """Whether both axes of an image are treated alike, in one group, without dilation."""
    alike = (kernel.shape[2:], geometry.stride, geometry.padding, geometry.dilation)
    square = kernel.dim() == 4 and all(len(set(numbers)) == 1 for numbers in alike)
    return square and geometry.groups == 1 and geometry.dilation[0] == 1


def rewrite_plain(kernel: Tensor, geometry: Geometry, shape: Sequence[int]) -> Rewriting | None:
    """A faster convolution in place of an ordinary one; None if there is none."""
    few = kernel.shape[0] <= SUPER_PIXEL_MAX_CHANNELS and kernel.shape[-1] > 1 and geometry.stride[0] == 1
    if not (_is_square(kernel, geometry) and few):
        return None
    return _super_pixels(kernel, geometry.padding[0], shape)


def rewrite_transposed(kernel: Tensor, geometry: Geometry, shape: Sequence[int]) -> Rewriting | None:
    """An ordinary convolution in place of a transposed one; None if the geometry does not allow it."""
    size, c_in, padding = kernel.shape[2:], kernel.shape[1] * geometry.groups, geometry.padding
    reach = [d * (k - 1) - p for d, k, p in zip(geometry.dilation, size, padding, strict=True)]
    # With dilation there may be output padding at stride 1 too: pixels that no plain convolution gives.
    if max(geometry.stride) == 1 and min(reach) >= 0 and not any(geometry.output_padding):
        plain = replace(geometry, padding=tuple(reach))
        flipped = _flipped(kernel, geometry.groups)
        return rewrite_plain(flipped, plain, shape) or Rewriting(flipped, plain.plain)
    if not _is_square(kernel, geometry):
        return None
    s = geometry.stride[0]
    if size[0] == 1 and padding[0] == 0:
        return Rewriting(
            kernel.transpose(0, 1), lambda images, w: _spread_by_stride(F.conv2d(images, w), s, shape)
        )
    if c_in * s * s <= SUB_PIXEL_MAX_CHANNELS or (size[0] == s and padding[0] == 0):
        return _sub_pixels(kernel, s, padding[0], shape)
    return None


def rewrite_transposed_on_gpu(kernel: Tensor, geometry: Geometry, shape: Sequence[int]) -> Rewriting | None:
    """As `rewrite_transposed`, for exact float32 on a GPU: only where cuDNN's own kernel is slower.

    Measured on an H100 (`benchmarks/NOTES.md`): on tensor cores (TF32, bf16) every rewriting is faster.  In
    exact float32 the flipped kernel is up to three times as fast for small images, and slower for large ones.
    """
    stride, size = geometry.stride[0], kernel.shape[-1]
    few_channels = kernel.shape[1] * geometry.groups <= SUPER_PIXEL_MAX_CHANNELS
    if max(geometry.stride) > 1:
        faster = size <= stride
    else:
        faster = few_channels or (size <= GPU_MAX_KERNEL_SIDE and max(shape) <= GPU_MAX_IMAGE_SIDE)
    return rewrite_transposed(kernel, geometry, shape) if faster else None


def _flipped(kernel: Tensor, groups: int) -> Tensor:
    """``(o, i / groups, ...) -> (i, o / groups, ...)``, with the image axes reversed."""
    turned = kernel.flip(list(range(2, kernel.dim())))
    return turned.view(groups, -1, *turned.shape[1:]).transpose(1, 2).flatten(0, 1)


def _spread_by_stride(images: Tensor, stride: int, shape: Sequence[int]) -> Tensor:
    """Each pixel at a multiple of the stride, zeros between."""
    n, c = images.shape[:2]
    apart = images.new_zeros(n, *shape, c).permute(0, 3, 1, 2)
    apart[:, :, ::stride, ::stride][:, :, : images.shape[2], : images.shape[3]] = images
    return apart


def _sub_pixels(kernel: Tensor, stride: int, padding: int, shape: Sequence[int]) -> Rewriting:
    """Sub-pixel convolution: pixel ``q s + r`` depends on the windows ``q + lowest .. q + highest``.

    Window j of the convolution reads pixel ``j s - padding + u`` with the kernel's weight u.  So pixel
    ``x = q s + r`` depends on window ``j = q + d`` through ``u = r + padding - s d``, ``0 <= u < size``.
    This is one kernel over d for each phase r, and one convolution with ``s s`` times the channels for all.
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
        windows = F.conv2d(images, w, padding=frame)[:, :, first : first + height, first : first + width]
        return F.pixel_shuffle(windows, s)[:, :, : shape[0], : shape[1]]

    return Rewriting(phases.reshape(c_in * s * s, c_out, reach, reach), run)


def _super_pixels(kernel: Tensor, padding: int, shape: Sequence[int]) -> Rewriting:
    """A convolution of stride 1 as one of stride m whose channels are ``m x m`` pixels.

    Pixel ``m q + r`` is the kernel applied at ``m q``, shifted by r within a kernel that is m - 1 larger.
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

    return Rewriting(moved.reshape(c_out * m * m, c_in, large, large), run)
