"""Rules of operators that move numbers, copy them or leave them as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.local_map import (
    Broadcast,
    Diagonal,
    LocalMap,
    Multiple,
    Permuted,
    Placed,
    Reshaped,
    Sliced,
)


def same(call: Call) -> None:
    """The result is the operand: clones, detours in memory, dropout when evaluating."""
    name = "input" if call.has("input") else "self"
    if call[name].dtype != call.out.dtype or call[name].shape != call.out.shape:
        raise NoRule
    call.edge(name)


def dropout(call: Call) -> None:
    """The identity when evaluating."""
    if call["train"]:
        raise NoRule
    call.edge("input")


def reshape(call: Call) -> None:
    """Views and reshapes, squeezes, flattenings: the same numbers in the same order."""
    name = "input" if call.has("input") else "self"
    shape_in = call[name].shape
    if call[name].dtype != call.out.dtype:  # the same bits as other numbers
        raise NoRule
    call.edge(name, *([] if shape_in == call.out.shape else [Reshaped(shape_in, call.out.shape)]))


def permute(call: Call) -> None:
    """Axes in another order, whatever the operator: seen from a tensor whose axes have names."""
    dim = call["self"].dim()
    axes = torch.empty(tuple(range(2, 2 + dim)), device="meta")
    moved = call.node.target(axes, *call.args[1:], **call.kwargs)  # type: ignore[operator]
    call.edge("self", Permuted(tuple(n - 2 for n in moved.shape)))


def expand(call: Call) -> None:
    """The operand repeated along axes."""
    call.edge("self", Broadcast(call["self"].shape, call.out.shape))


def slice_(call: Call) -> None:
    """``self[..., start:end:step, ...]`` along one axis."""
    shape, axis = call["self"].shape, call["dim"] % call["self"].dim()
    n = shape[axis]
    start, _, step = slice(call["start"], call["end"], call["step"]).indices(n)
    call.edge("self", Sliced(axis, start, step, shape, call.out.shape))


def narrow(call: Call) -> None:
    """A part of one axis by start and length."""
    shape, axis = call["self"].shape, call["dim"] % call["self"].dim()
    start = int(call["start"])
    call.edge(
        "self", Sliced(axis, start % max(shape[axis], 1) if start < 0 else start, 1, shape, call.out.shape)
    )


def select(call: Call) -> None:
    """One index of an axis, which goes."""
    shape, axis = call["self"].shape, call["dim"] % call["self"].dim()
    kept = torch.Size((*shape[:axis], 1, *shape[axis + 1 :]))
    part = Sliced(axis, call["index"] % shape[axis], 1, shape, kept)
    call.edge("self", part, Reshaped(kept, call.out.shape))


def split(call: Call) -> None:
    """One of the parts of an axis (``split``, ``chunk``, ``tensor_split``)."""
    whole, axis = call["self"], call["dim"] % call["self"].dim()
    assert call.item is not None  # each part is taken out by itself
    if sum(part.shape[axis] for part in call.results) != whole.shape[axis]:  # parts may be said to overlap
        raise NoRule
    start = sum(part.shape[axis] for part in call.results[: call.item])
    call.edge("self", Sliced(axis, start, 1, whole.shape, call.out.shape))


def unbind(call: Call) -> None:
    """One index of an axis, which goes."""
    shape, axis = call["self"].shape, call["dim"] % call["self"].dim()
    assert call.item is not None  # each part is taken out by itself
    kept = torch.Size((*shape[:axis], 1, *shape[axis + 1 :]))
    call.edge("self", Sliced(axis, call.item % shape[axis], 1, shape, kept), Reshaped(kept, call.out.shape))


def cat(call: Call) -> None:
    """Each operand is a part of the result."""
    axis, start, shape = call["dim"] % call.out.dim(), 0, call.out.shape
    for node, value in zip(call.node_of("tensors"), call["tensors"], strict=True):
        if value.dim() != call.out.dim():  # an empty tensor without axes is allowed
            continue
        call.edge(node, Placed(Sliced(axis, start, 1, shape, value.shape)))
        start += value.shape[axis]


def stack(call: Call) -> None:
    """Each operand is one index of a new axis."""
    axis, shape = call["dim"] % call.out.dim(), call.out.shape
    for i, (node, value) in enumerate(zip(call.node_of("tensors"), call["tensors"], strict=True)):
        kept = torch.Size((*shape[:axis], 1, *shape[axis + 1 :]))
        call.edge(node, Reshaped(value.shape, kept), Placed(Sliced(axis, i, 1, shape, kept)))


def slice_scatter(call: Call) -> None:
    """``self`` with a part of an axis replaced by ``src``."""
    whole, axis = call.out.shape, call["dim"] % call.out.dim()
    start, stop, step = slice(call["start"], call["end"], call["step"]).indices(whole[axis])
    part = Sliced(axis, start, step, whole, call["src"].shape)
    call.edge("src", Placed(part))
    call.edge("self", _all_but(call, axis, slice(start, stop, step)))


def select_scatter(call: Call) -> None:
    """``self`` with one index of an axis replaced by ``src``."""
    whole, axis = call.out.shape, call["dim"] % call.out.dim()
    at = call["index"] % whole[axis]
    kept = _resized(whole, axis, 1)
    call.edge("src", Reshaped(call["src"].shape, kept), Placed(Sliced(axis, at, 1, whole, kept)))
    call.edge("self", _all_but(call, axis, slice(at, at + 1)))


def _all_but(call: Call, axis: int, replaced: slice) -> Diagonal:
    kept = torch.ones(call.out.shape[axis], dtype=torch.bool, device=call.passes.device)
    kept[replaced] = False
    return Diagonal(kept.reshape(-1, *(1,) * (call.out.dim() - axis - 1)).expand(call.out.shape))


def fill(call: Call) -> None:
    """All of it one number: nothing of what was there is left."""
    call.only("self")


@dataclass(frozen=True)
class Rearranged:
    """Numbers in other places, by a function and the one that undoes it."""

    there: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        return self.back(g)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        return self.there(t)


def roll(call: Call) -> None:
    """Axes shifted around."""
    dims = [d % call.out.dim() for d in _listed(call["dims"])]
    if not dims:
        raise NoRule
    shifts = _listed(call["shifts"])
    axes = [1 + d for d in dims]
    call.edge(
        "self",
        Rearranged(
            lambda t: torch.roll(t, shifts, axes), lambda g: torch.roll(g, [-shift for shift in shifts], axes)
        ),
    )


def flip(call: Call) -> None:
    """Axes backwards."""
    axes = [1 + d % call.out.dim() for d in call["dims"]]
    call.edge("self", Rearranged(lambda t: t.flip(axes), lambda g: g.flip(axes)))


def pixel_shuffle(call: Call) -> None:
    """Channels to pixels."""
    factor = call["upscale_factor"]
    call.edge(
        "self", Rearranged(lambda t: F.pixel_shuffle(t, factor), lambda g: F.pixel_unshuffle(g, factor))
    )


def pixel_unshuffle(call: Call) -> None:
    """Pixels to channels."""
    factor = call["downscale_factor"]
    call.edge(
        "self", Rearranged(lambda t: F.pixel_unshuffle(t, factor), lambda g: F.pixel_shuffle(g, factor))
    )


def _listed(value: int | list[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


def constant_pad(call: Call) -> None:
    """A frame of constants around the operand; where a width is negative, that much less of it."""
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
            maps.append(Placed(Sliced(axis, max(0, before), 1, framed, kept)))
        shape = framed
    call.edge("self", *maps)


def _resized(shape: torch.Size, axis: int, n: int) -> torch.Size:
    return torch.Size((*shape[:axis], n, *shape[axis + 1 :]))


def add(call: Call) -> None:
    """``self + alpha other``, broadcast."""
    _sum(call, call["alpha"])


def subtract(call: Call) -> None:
    """``self - alpha other``, broadcast."""
    _sum(call, -call["alpha"])


def subtract_from(call: Call) -> None:
    """``other - alpha self``, broadcast."""
    _sum(call, 1, -call["alpha"])


def _sum(call: Call, of_other: float, of_self: float = 1) -> None:
    for name, factor in (("self", of_self), ("other", of_other)):
        value = call[name]
        if not isinstance(value, Tensor):
            continue
        maps: list[LocalMap] = [] if factor == 1 else [Multiple(factor)]
        if value.shape != call.out.shape:
            maps.append(Broadcast(value.shape, call.out.shape))
        call.edge(name, *maps)
