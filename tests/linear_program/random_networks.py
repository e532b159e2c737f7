"""Small random networks, as hypothesis draws them: layers whose shapes fit, with branches that join again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.linear_program.operators.normalisation import batch_norm, trained

Shape = tuple[int, ...]
Draw = Callable[[st.SearchStrategy], Any]
Layer = tuple[nn.Module, Shape]

LARGEST = 160
"""Largest result of a layer, in numbers per sample."""


class Function(nn.Module):
    """A function without weights, printed by its name."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def extra_repr(self) -> str:
        return self.name

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Join(nn.Module):
    """Two branches of one value that meet again."""

    def __init__(self, how: str, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.how, self.left, self.right = how, left, right

    def extra_repr(self) -> str:
        return self.how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "halves":
            one, two = x.chunk(2, 1)
            return torch.cat([self.right(two), self.left(one)], 1)
        left, right = self.left(x), self.right(x)
        if self.how == "product":
            return left * torch.sigmoid(right)
        return torch.cat([left, right], 1) if self.how == "cat" else left + right


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


@dataclass(frozen=True)
class Drawn:
    """A network in eval mode in float32, and an input that float32 holds exactly."""

    network: nn.Module
    x: Tensor


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu in place": lambda: Function("relu_", lambda x: x.clone().relu_()),
    "relu6": nn.ReLU6,
    "leaky relu": lambda: nn.LeakyReLU(0.2),
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish in place": lambda: Function("hardswish_", lambda x: functional.hardswish(x + 0.5, True)),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "sine": lambda: Function("sin", torch.sin),
    "square": lambda: Function("x * x", lambda x: 0.5 * x * x),
    "written": lambda: Function("y[:, 0] *= 2", _written),
    "dropout": nn.Dropout,
}


def _written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] *= 2
    return y


def _activation(draw: Draw, shape: Shape) -> Layer:
    return ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))](), shape


def _softmax(draw: Draw, shape: Shape) -> Layer:
    wide = [i + 1 for i, n in enumerate(shape) if n > 1]
    return (nn.Softmax(draw(st.sampled_from(wide))), shape) if wide else _activation(draw, shape)


def _linear(draw: Draw, shape: Shape) -> Layer:
    out = draw(st.integers(2, 9))
    return nn.Linear(shape[-1], out, bias=draw(st.booleans())), (*shape[:-1], out)


def _norm(draw: Draw, shape: Shape) -> Layer:
    """Batch norm, or a norm over at least four numbers: over fewer the result is mostly rounding."""
    groups = [g for g in (1, 2, 3) if shape[0] % g == 0 and math.prod(shape) // g >= 4]
    kind = draw(st.sampled_from(["batch", "layer", "group"]))
    if kind == "layer" and shape[-1] >= 4:
        return trained(nn.LayerNorm(shape[-1])), shape
    if kind == "group" and groups and len(shape) > 1:
        return trained(nn.GroupNorm(draw(st.sampled_from(groups)), shape[0])), shape
    return batch_norm(shape[0], len(shape) - 1), shape


def _moved(draw: Draw, shape: Shape) -> Layer:
    axis = draw(st.integers(1, len(shape)))
    n = shape[axis - 1]
    kind = draw(st.sampled_from(["flip", "roll", "slice", "swap", "pad", "flatten"]))
    if kind == "flip":
        return Function(f"flip {axis}", lambda x: x.flip(axis)), shape
    if kind == "roll":
        return Function(f"roll {axis}", lambda x: x.roll(1, axis)), shape
    if kind == "slice" and n > 2:
        left = (*shape[: axis - 1], n - 1, *shape[axis:])
        return Function(f"slice {axis}", lambda x: x.narrow(axis, 1, n - 1)), left
    if kind == "swap" and len(shape) > 1:
        swapped = (shape[-1], *shape[1:-1], shape[0])
        return Function("swap", lambda x: x.transpose(1, -1)), swapped
    if kind == "pad":
        return Function("pad", lambda x: functional.pad(x, (1, 2))), (*shape[:-1], shape[-1] + 3)
    return nn.Flatten(), (math.prod(shape),)


def _conv(draw: Draw, shape: Shape) -> Layer:
    c, size = shape[0], shape[1:]
    kinds = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d)}[len(size)]
    groups = draw(st.sampled_from([g for g in (1, 2, 3, c) if c % g == 0]))
    out = groups * draw(st.integers(1, max(1, 6 // groups)))
    kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    reach = dilation * (kernel - 1)
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if draw(st.integers(0, 3)):
        after = tuple((n + 2 * padding - reach - 1) // stride + 1 for n in size)
        return kinds[0](c, out, kernel, **options), (out, *after)
    after = tuple((n - 1) * stride - 2 * padding + reach + 1 for n in size)
    return kinds[1](c, out, kernel, **options), (out, *after)


def _pool(draw: Draw, shape: Shape) -> Layer:
    size = shape[1:]
    kernel, stride, up = draw(st.integers(2, 3)), draw(st.integers(1, 3)), draw(st.booleans())
    padding = draw(st.integers(0, 1))
    kinds = {1: (nn.MaxPool1d, nn.AvgPool1d), 2: (nn.MaxPool2d, nn.AvgPool2d)}[len(size)]
    layer = kinds[draw(st.integers(0, 1))](kernel, stride, padding, ceil_mode=up)
    if any(n + 2 * padding < kernel for n in size):
        return nn.Identity(), shape
    return layer, tuple(layer(torch.zeros(1, *shape)).shape[1:])


def _image(draw: Draw, shape: Shape) -> Layer:
    """Layers for images only."""
    c, h, w = shape
    kind = draw(st.sampled_from(["mean", "adaptive", "upsample", "shuffle", "rows", "reflect"]))
    if kind == "mean":
        return Function("mean", lambda x: x.mean((2, 3))), (c,)
    if kind == "adaptive":
        size = (draw(st.integers(1, h)), draw(st.integers(1, w)))
        return nn.AdaptiveAvgPool2d(size), (c, *size)
    if kind == "upsample":
        mode = draw(st.sampled_from(["nearest", "bilinear"]))
        return nn.Upsample(scale_factor=2, mode=mode), (c, 2 * h, 2 * w)
    if kind == "shuffle" and c % 4 == 0:
        return nn.PixelShuffle(2), (c // 4, 2 * h, 2 * w)
    if kind == "reflect" and min(h, w) > 1:
        return nn.ReflectionPad2d((1, 0, 1, 1)), (c, h + 2, w + 1)
    return Function("rows", lambda x: x.flatten(2).transpose(1, 2)), (h * w, c)


def _rows(draw: Draw, shape: Shape) -> Layer:
    """Layers for sequences only."""
    length, width = shape
    kind = draw(st.sampled_from(["attention", "attention", "mean", "first", "largest", "gram"]))
    if kind == "attention":
        heads = draw(st.sampled_from([n for n in (1, 2, 3) if width % n == 0]))
        return Attention(width, heads), shape
    if kind == "mean":
        return Function("mean", lambda x: x.mean(1)), (width,)
    if kind == "first":
        return Function("first", lambda x: x[:, 0]), (width,)
    if kind == "largest":
        return Function("largest", lambda x: x.amax(1)), (width,)
    return Function("gram", lambda x: 0.3 * (x @ torch.tanh(x).mT)), (length, length)


def _vector(draw: Draw, shape: Shape) -> Layer:
    """Layers for vectors only."""
    (n,) = shape
    sides = [(c, n // c) for c in range(2, n) if n % c == 0]
    if sides and draw(st.booleans()):
        side = draw(st.sampled_from(sides))
        return nn.Unflatten(1, side), side
    return _linear(draw, shape)


_BY_AXES = {1: [_vector, _linear], 2: [_rows, _linear, _conv, _pool], 3: [_image, _conv, _conv, _pool]}
_ANYWHERE = [_activation, _activation, _norm, _moved, _softmax]


def _layer(draw: Draw, shape: Shape, *, keep: bool = False, branches: bool = True) -> Layer:
    """One layer or a pair of branches; an activation if the drawn layer does not fit."""
    if branches and draw(st.integers(0, 3)) == 0:
        return _join(draw, shape)
    module, after = draw(st.sampled_from([*_BY_AXES[len(shape)], *_ANYWHERE]))(draw, shape)
    fits = min(after) >= 1 and math.prod(after) <= LARGEST
    return (module, after) if fits and (after == shape or not keep) else _activation(draw, shape)


def _chain(draw: Draw, shape: Shape, least: int, most: int, **options: Any) -> Layer:
    layers = []
    for _ in range(draw(st.integers(least, most))):
        layer, shape = _layer(draw, shape, **options)
        layers.append(layer)
    return nn.Sequential(*layers), shape


def _join(draw: Draw, shape: Shape) -> Layer:
    how = draw(st.sampled_from(["sum", "product", "cat", "halves"]))
    if how == "halves" and shape[0] % 2:
        how = "sum"
    inner = (shape[0] // 2, *shape[1:]) if how == "halves" else shape
    left, right = (_chain(draw, inner, 0, 2, keep=True, branches=False)[0] for _ in range(2))
    if how == "cat":
        return Join(how, left, right), (2 * shape[0], *shape[1:])
    return Join(how, left, right), shape


@st.composite
def networks(draw: Draw) -> Drawn:
    """A network of three to nine layers on images, sequences or vectors, with one to three samples."""
    small = st.integers(2, 6)
    shape = draw(
        st.one_of(st.tuples(st.integers(1, 4), small, small), st.tuples(small, small), st.tuples(small))
    )
    torch.manual_seed(draw(st.integers(0, 999)))
    body, after = _chain(draw, shape, 3, 9)
    if math.prod(after) > 30:
        body = nn.Sequential(*body, nn.Flatten(), nn.Linear(math.prod(after), 7))
    return Drawn(body.eval(), torch.randn(draw(st.integers(1, 3)), *shape))
