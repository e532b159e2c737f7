"""Rules of operators that move, copy, add or keep numbers.

In the formulas ``x[part]`` is a part of x along one axis; the cotangent of a part is embedded in zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.local_map import (
    Broadcast,
    Diagonal,
    Embedded,
    LocalMap,
    Multiple,
    Permuted,
    Reshaped,
    Sliced,
)
from jacli.linear_program.rule import linear, rule


@linear("clone", "contiguous", "alias", "lift_fresh_copy", "to", "_to_copy", "type_as")
def same(call: Call) -> Sequence[LocalMap]:
    """``y = x;  dy = dx``: copies and memory formats.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x.clone(), torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    x = call[call.first]
    if x.dtype != call.out.dtype or x.shape != call.out.shape:
        raise NoRule
    return []


@linear("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(call: Call) -> Sequence[LocalMap]:
    """``y = x;  dy = dx``, in eval mode.

    >>> from jacli import jacobian
    >>> from torch import nn
    >>> jacobian(nn.Dropout().eval(), torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if call["train"]:
        raise NoRule
    return []


@linear(
    *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"),
    *("reshape_as", "_reshape_alias"),
)
def reshape(call: Call) -> Sequence[LocalMap]:
    """``y = x`` in another shape;  ``dy = dx``: the same numbers in the same order.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> jacobian(lambda x: x.reshape(-1, 2, 1), x, method="adjoint").squeeze().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    x = call[call.first]
    if x.dtype != call.out.dtype:  # `view` as another dtype: the same bits, other numbers
        raise NoRule
    return [] if x.shape == call.out.shape else [Reshaped(x.shape, call.out.shape)]


@linear("permute", "transpose", "t", "movedim", "swapaxes", "swapdims", "moveaxis", "numpy_T", "mT")
def permute(call: Call) -> Sequence[LocalMap]:
    """``y_{..j..i..} = x_{..i..j..};  dy = dx`` with its axes in that order.

    The order is read off the operator itself: it runs on a tensor of no numbers whose sizes name its axes.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> jacobian(lambda x: x.unsqueeze(1).transpose(1, 2), x, method="adjoint")[0].tolist()
    [[[1.0], [0.0]], [[0.0], [1.0]]]
    """
    dim = call["self"].dim()
    axes = torch.empty(tuple(range(2, 2 + dim)), device="meta")
    moved = call.node.target(axes, *call.args[1:], **call.kwargs)  # type: ignore[operator]
    return [Permuted(tuple(n - 2 for n in moved.shape))]


@linear("expand", "expand_as", "broadcast_to")
def expand(call: Call) -> Sequence[LocalMap]:
    """``y_{ji} = x_i;  dy_{ji} = dx_i,  x̄_i = Σ_j ȳ_{ji}``.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> jacobian(lambda x: x.unsqueeze(2).expand(-1, -1, 2), x, method="adjoint")[0].tolist()
    [[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]]
    """
    return [Broadcast(call["self"].shape, call.out.shape)]


@linear("slice")
def slice_(call: Call) -> Sequence[LocalMap]:
    """``y = x[start:end:step];  dy = dx[start:end:step]``, along one axis.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x[:, 1:], torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [[0.0], [1.0]]
    """
    shape, axis = call["self"].shape, call["dim"] % call["self"].dim()
    start, _, step = slice(call["start"], call["end"], call["step"]).indices(shape[axis])
    return [Sliced(axis, start, step, shape, call.out.shape)]


@linear("narrow")
def narrow(call: Call) -> Sequence[LocalMap]:
    """``y = x[start:start + length];  dy = dx[start:start + length]``, along one axis.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x.narrow(1, 0, 1), torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [[1.0], [0.0]]
    """
    shape, axis = call["self"].shape, call["dim"] % call["self"].dim()
    start = int(call["start"])
    start = start % max(shape[axis], 1) if start < 0 else start
    return [Sliced(axis, start, 1, shape, call.out.shape)]


@linear("select")
def select(call: Call) -> Sequence[LocalMap]:
    """``y = x[i];  dy = dx[i]``, along one axis, which is dropped.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x[:, 1], torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [0.0, 1.0]
    """
    return _at_index(call, call["index"])


@linear("unbind")
def unbind(call: Call) -> Sequence[LocalMap]:
    """``y_i = x[i];  dy_i = dx[i]``, along one axis, which is dropped.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x.unbind(1)[1], torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [0.0, 1.0]
    """
    assert call.item is not None  # the graph picks each part by its number
    return _at_index(call, call.item)


def _at_index(call: Call, index: int) -> list[LocalMap]:
    shape, axis = call["self"].shape, call["dim"] % call["self"].dim()
    kept = _resized(shape, axis, 1)
    return [Sliced(axis, index % shape[axis], 1, shape, kept), Reshaped(kept, call.out.shape)]


@linear("split", "chunk", "split_with_sizes", "tensor_split")
def split(call: Call) -> Sequence[LocalMap]:
    """``y_i = x[part i];  dy_i = dx[part i]``, along one axis.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x.split(1, dim=1)[0], torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [[1.0], [0.0]]
    """
    whole, axis = call["self"], call["dim"] % call["self"].dim()
    assert call.item is not None  # the graph picks each part by its number
    if sum(part.shape[axis] for part in call.results) != whole.shape[axis]:  # parts may overlap
        raise NoRule
    start = sum(part.shape[axis] for part in call.results[: call.item])
    return [Sliced(axis, start, 1, whole.shape, call.out.shape)]


@rule("cat", "concat")
def cat(call: Call) -> None:
    """``y[part i] = x_i;  dy[part i] = dx_i,  x̄_i = ȳ[part i]``, along one axis.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> jacobian(lambda x: torch.cat([x, 3 * x], dim=1), x, method="adjoint")[0].tolist()
    [[1.0, 0.0, 3.0, 0.0], [0.0, 1.0, 0.0, 3.0]]
    """
    axis, start, shape = call["dim"] % call.out.dim(), 0, call.out.shape
    for node, value in zip(call.node_of("tensors"), call["tensors"], strict=True):
        if value.dim() != call.out.dim():  # an empty tensor without axes is allowed
            continue
        call.edge(node, Embedded(Sliced(axis, start, 1, shape, value.shape)))
        start += value.shape[axis]


@rule("stack")
def stack(call: Call) -> None:
    """``y[i] = x_i;  dy[i] = dx_i,  x̄_i = ȳ[i]``, along a new axis.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> jacobian(lambda x: torch.stack([x, 3 * x], dim=1), x, method="adjoint")[0].tolist()
    [[[1.0, 0.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]]
    """
    axis, shape = call["dim"] % call.out.dim(), call.out.shape
    for i, (node, value) in enumerate(zip(call.node_of("tensors"), call["tensors"], strict=True)):
        kept = _resized(shape, axis, 1)
        call.edge(node, Reshaped(value.shape, kept), Embedded(Sliced(axis, i, 1, shape, kept)))


@rule("slice_scatter")
def slice_scatter(call: Call) -> None:
    """``y = x, y[start:end:step] = s;  dy = dx, dy[start:end:step] = ds``, along one axis.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> jacobian(lambda x: x.slice_scatter(3 * x[:, :1], dim=1, end=1), x, method="adjoint")[0].tolist()
    [[3.0, 0.0], [0.0, 1.0]]
    """
    whole, axis = call.out.shape, call["dim"] % call.out.dim()
    start, stop, step = slice(call["start"], call["end"], call["step"]).indices(whole[axis])
    part = Sliced(axis, start, step, whole, call["src"].shape)
    call.edge("src", Embedded(part))
    call.edge("self", _all_but(call, axis, slice(start, stop, step)))


@rule("select_scatter")
def select_scatter(call: Call) -> None:
    """``y = x, y[i] = s;  dy = dx, dy[i] = ds``, along one axis.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> jacobian(lambda x: x.select_scatter(3 * x[:, 0], dim=1, index=1), x, method="adjoint")[0].tolist()
    [[1.0, 3.0], [0.0, 0.0]]
    """
    whole, axis = call.out.shape, call["dim"] % call.out.dim()
    at = call["index"] % whole[axis]
    kept = _resized(whole, axis, 1)
    call.edge("src", Reshaped(call["src"].shape, kept), Embedded(Sliced(axis, at, 1, whole, kept)))
    call.edge("self", _all_but(call, axis, slice(at, at + 1)))


def _all_but(call: Call, axis: int, replaced: slice) -> Diagonal:
    """Zero at the replaced indices of an axis, one elsewhere."""
    kept = torch.ones(call.out.shape[axis], dtype=torch.bool, device=call.settings.device)
    kept[replaced] = False
    return Diagonal(kept.reshape(-1, *(1,) * (call.out.dim() - axis - 1)).expand(call.out.shape))


@rule("fill", "zero")
def fill(call: Call) -> None:
    """``y = constant;  dy = 0``: no edge."""
    call.only("self")


@dataclass(frozen=True)
class Rearranged:
    """A permutation of numbers, by a function on vectors and its inverse."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        return self.inverse(g)

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        return self.forward(t)


@linear("roll")
def roll(call: Call) -> Sequence[LocalMap]:
    """``y_{i + s} = x_i;  dy_{i + s} = dx_i,  x̄_i = ȳ_{i + s}``, modulo the length of the axis.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x.roll(1, dims=1), torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    dims = [1 + d % call.out.dim() for d in _listed(call["dims"])]
    if not dims:  # rolls the flattened tensor
        raise NoRule
    shifts = _listed(call["shifts"])
    back = [-shift for shift in shifts]
    return [Rearranged(lambda t: torch.roll(t, shifts, dims), lambda g: torch.roll(g, back, dims))]


@linear("flip")
def flip(call: Call) -> Sequence[LocalMap]:
    """``y_i = x_{-1-i};  dy_i = dx_{-1-i}``, its own inverse.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x.flip(1), torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    dims = [1 + d % call.out.dim() for d in call["dims"]]
    return [Rearranged(lambda t: t.flip(dims), lambda g: g.flip(dims))]


@linear("pixel_shuffle")
def pixel_shuffle(call: Call) -> Sequence[LocalMap]:
    """``n (c r s) h w -> n c (h r) (w s)``: channels become pixels;  ``dy`` likewise.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: F.pixel_shuffle(x, 2), torch.ones(1, 4, 1, 1), method="adjoint").shape
    torch.Size([1, 4, 1, 1, 1, 2, 2])
    """
    r = call["upscale_factor"]
    return [Rearranged(lambda t: F.pixel_shuffle(t, r), lambda g: F.pixel_unshuffle(g, r))]


@linear("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Sequence[LocalMap]:
    """``n c (h r) (w s) -> n (c r s) h w``: pixels become channels;  ``dy`` likewise.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: F.pixel_unshuffle(x, 2), torch.ones(1, 1, 2, 2), method="adjoint").shape
    torch.Size([1, 1, 2, 2, 4, 1, 1])
    """
    r = call["downscale_factor"]
    return [Rearranged(lambda t: F.pixel_unshuffle(t, r), lambda g: F.pixel_shuffle(g, r))]


def _listed(value: int | list[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


@linear("constant_pad_nd", "pad")
def constant_pad(call: Call) -> Sequence[LocalMap]:
    """``y[part] = x, constants around it;  dy[part] = dx, zeros around it``.  A negative width crops x.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: F.pad(x, (1, 0)), torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if call.has("mode") and call["mode"] != "constant":
        raise NoRule
    shape, pad, maps = call["self"].shape, call["pad"], list[LocalMap]()
    for i in range(len(pad) // 2):
        axis, before, after = len(shape) - 1 - i, pad[2 * i], pad[2 * i + 1]
        kept = _resized(shape, axis, shape[axis] + min(before, 0) + min(after, 0))
        framed = _resized(shape, axis, shape[axis] + before + after)
        if kept != shape:
            maps.append(Sliced(axis, max(0, -before), 1, shape, kept))
        if framed != kept:
            maps.append(Embedded(Sliced(axis, max(0, before), 1, framed, kept)))
        shape = framed
    return maps


def _resized(shape: torch.Size, axis: int, n: int) -> torch.Size:
    return torch.Size((*shape[:axis], n, *shape[axis + 1 :]))


@rule("add")
def add(call: Call) -> None:
    """``y = a + alpha b;  dy = da + alpha db``, broadcast.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x + 3 * x.flip(1), torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [[1.0, 3.0], [3.0, 1.0]]
    """
    _sum(call, of_self=1, of_other=call["alpha"])


@rule("sub", "subtract")
def subtract(call: Call) -> None:
    """``y = a - alpha b;  dy = da - alpha db``, broadcast.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x - 3 * x.flip(1), torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [[1.0, -3.0], [-3.0, 1.0]]
    """
    _sum(call, of_self=1, of_other=-call["alpha"])


@rule("rsub")
def subtract_from(call: Call) -> None:
    """``y = b - alpha a;  dy = db - alpha da``, broadcast.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: 1 - x, torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [[-1.0, -0.0], [-0.0, -1.0]]
    """
    _sum(call, of_self=-call["alpha"], of_other=1)


def _sum(call: Call, *, of_self: float, of_other: float) -> None:
    for name, factor in (("self", of_self), ("other", of_other)):
        if not call.is_live(name):
            continue
        shape = call[name].shape
        maps: list[LocalMap] = [] if factor == 1 else [Multiple(factor)]
        if shape != call.out.shape:
            maps.append(Broadcast(shape, call.out.shape))
        call.edge(name, *maps)
