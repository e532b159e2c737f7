"""The rule of convolutions: ordinary and transposed, over one, two or three axes.

Axes: k vectors, n samples, i channels in, o channels out; ``...`` are the axes of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jacli.device.hardware import is_gpu
from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.convolution_kernels import (
    Geometry,
    rewrite_plain,
    rewrite_transposed,
    rewrite_transposed_on_gpu,
)
from jacli.linear_program.local_map import LocalMap, Scale, WeightedMap
from jacli.linear_program.pass_settings import PassSettings
from jacli.linear_program.rule import linear
from jacli.linear_program.weight_cache import Key


class Convolution(WeightedMap):
    """``dy = W ⋆ dx``, a convolution or a transposed one; the vjp is the other of the two, ``x̄ = W ⋆ᵀ ȳ``.

    Args:
        kernel: W, ``(o, i / groups, ...)``; of a transposed convolution ``(i, o / groups, ...)``.
        geometry: Stride, padding and so on.
        shape_in: Of the operand, ``(n, i, ...)``.
        shape_out: Of the result, ``(n, o, ...)``.
        settings: Of the passes.
        key: Names the constants that W was computed from; None if it changes with the batch.
    """

    def __init__(
        self,
        kernel: Tensor,
        geometry: Geometry,
        shape_in: torch.Size,
        shape_out: torch.Size,
        settings: PassSettings,
        key: Key | None,
    ) -> None:
        super().__init__(settings, key)
        self.kernel, self.geometry, self.shape_in, self.shape_out = kernel, geometry, shape_in, shape_out

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        return self._run(g, self.shape_out, self.shape_in, reverse=True)

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        return self._run(t, self.shape_in, self.shape_out, reverse=False)

    def _run(self, vectors: Tensor, before: torch.Size, after: torch.Size, *, reverse: bool) -> Tensor:
        k, n = len(vectors), after[0]
        layout = self.geometry, before[1:], after[1:], reverse
        convolve = self.laid_out(layout, lambda: self._convolve(reverse=reverse))
        images: Tensor = convolve(self.settings.images(vectors.reshape(k * n, *before[1:])))
        return images.view(k, n, *images.shape[1:])

    def _convolve(self, *, reverse: bool) -> Callable[[Tensor], Tensor]:
        """The convolution of one direction, from images to images, by the fastest kernel."""
        geometry = self.geometry
        kernel = self.settings.images(self.kernel.to(self.settings.dtype))
        shape = (self.shape_in if reverse else self.shape_out)[2:]
        # The reverse pass of a transposed convolution is an ordinary convolution.
        plain = reverse == geometry.transposed
        if len(shape) <= 2:
            exact_on_gpu = is_gpu(self.settings.device) and not self.settings.channels_last
            transposed = rewrite_transposed_on_gpu if exact_on_gpu else rewrite_transposed
            rewrite = rewrite_plain if plain else transposed
            rewriting = rewrite(self.kernel, geometry, shape)
            if rewriting is not None:
                return rewriting.laid_out(self.settings)
        if plain:
            return lambda images: _cropped(geometry.plain(images, kernel), shape)
        return lambda images: geometry.transpose(images, kernel, shape)

    def scaled_in(self, scale: Scale) -> Convolution | None:
        """This convolution after a scale, as one; None if the scale is along another axis."""
        return self._scaled("in", scale)

    def scaled_out(self, scale: Scale) -> Convolution | None:
        """This convolution before a scale, as one; None if the scale is along another axis."""
        return self._scaled("out", scale)

    def _scaled(self, side: str, scale: Scale) -> Convolution | None:
        if scale.axis != 1 - len(self.shape_in):
            return None
        # The kernel is `o i/groups ...`; of a transposed convolution it is `i o/groups ...`.
        factors, groups = scale.factors, self.geometry.groups
        later = (1,) * (self.kernel.dim() - 2)
        if (side == "out") != self.geometry.transposed:
            kernel = self.kernel * factors.reshape(-1, 1, *later)
        else:
            of_groups = factors.reshape(groups, 1, -1, *later)
            kernel = (self.kernel.unflatten(0, (groups, -1)) * of_groups).flatten(0, 1)
        key = self.folded_key(side, scale)
        return Convolution(kernel, self.geometry, self.shape_in, self.shape_out, self.settings, key)


def _cropped(images: Tensor, shape: Sequence[int]) -> Tensor:
    """The first ``shape`` pixels, without those of the output padding of a transposed convolution."""
    if tuple(images.shape[2:]) == tuple(shape):
        return images
    for axis, n in enumerate(shape):
        images = images.narrow(2 + axis, 0, n)
    return images


@linear(
    *("convolution", "conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
)
def convolution(call: Call) -> Sequence[LocalMap]:
    """``y = W ⋆ x + b;  dy = W ⋆ dx,  x̄ = W ⋆ᵀ ȳ``, with the transposed convolution ⋆ᵀ.

    >>> from jacli import jacobian
    >>> import torch
    >>> from torch.nn import functional as F
    >>> kernel = torch.tensor([[[5.0, 7.0]]])
    >>> jacobian(lambda x: F.conv1d(x, kernel), torch.ones(1, 1, 3), method="adjoint")[0, 0, :, 0].tolist()
    [[5.0, 0.0], [7.0, 5.0], [0.0, 7.0]]
    """
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
    return [Convolution(kernel, geometry, x.shape, call.out.shape, call.settings, call.key("weight"))]


def _padding(call: Call, n: int) -> tuple[int, ...]:
    """The padding in numbers.

    Raises:
        NoRule: ``same`` pads one side more than the other.
    """
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
