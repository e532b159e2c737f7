"""What a PyTorch user could write in place of ``jacli.jacobian``, as a competent one would.

Every peer gets a function ``(batch, *input) -> (batch, n_out)`` with frozen parameters and returns its
Jacobian in the layout in which it arises; `as_matrices` brings it to ``(batch, n_out, n_in)``, untimed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jacfwd, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.workloads import Sizes

Function = Callable[[Tensor], Tensor]
Runner = Callable[[], Tensor]

_FORWARD_INPUTS = 4096
"""Forward mode is not tried beyond: ``jacfwd`` pushes all tangents at once."""

_FORWARD_RATIO = 16
"""Nor where there are this many times more inputs than outputs: reverse mode has so many fewer passes."""


@dataclass(frozen=True)
class Peer:
    """One way to write it.

    Args:
        name: As the tables show it.
        prepare: ``(function, x, chunk) -> runner``; what the runner does is timed, preparing is not.
        layout: Axes of the result, for `as_matrices`.
        unit: What a trial on a part of the work cuts: ``samples``, ``outputs`` or ``inputs``.
        chunk_of: What ``chunk`` counts.
        chunks: The chunk sizes to choose from; None is everything at once.
        copies: How many (sample, cotangent) pairs are in memory at once.
        retains: Whether each copy keeps all activations, or only passes through.
        forward: Forward mode.
        attention: Only worth its own line where the network has attention.
    """

    name: str
    prepare: Callable[[Function, Tensor, int | None], Runner]
    layout: str
    unit: str
    chunk_of: str
    chunks: tuple[int | None, ...]
    copies: Callable[[Sizes, int | None], int]
    retains: bool = False
    forward: bool = False
    attention: bool = False

    def variants(self, sizes: Sizes) -> list[int | None]:
        """The chunk sizes that are smaller than the whole, and the whole where it is offered."""
        whole = sizes.count(self.chunk_of)
        return [chunk for chunk in self.chunks if chunk is None or chunk < whole]

    def bytes_needed(self, sizes: Sizes, chunk: int | None) -> int:
        """A rough estimate: every copy holds three of its largest tensor, or all; and twice the result."""
        each = sizes.total if self.retains else 3 * max(sizes.largest, sizes.n_in, sizes.n_out)
        result = 2 * sizes.batch * sizes.n_in * sizes.n_out
        return (self.copies(sizes, chunk) * each + result) * sizes.itemsize

    def why_not(self, sizes: Sizes) -> str | None:
        """Why it does not apply to this work."""
        if self.forward and sizes.n_in > _FORWARD_INPUTS:
            return f"{sizes.n_in} inputs, over {_FORWARD_INPUTS}"
        if self.forward and sizes.n_in > _FORWARD_RATIO * sizes.n_out:
            return f"{sizes.n_in} inputs for {sizes.n_out} outputs: reverse mode needs far fewer passes"
        if self.unit == "samples" and sizes.batch == 1:
            return "one sample: the same work as without vmap over samples"
        return None


def flat(model: nn.Module) -> Function:
    """The model with its outputs as vectors."""
    return lambda x: model(x).flatten(1)


def part_of(function: Function, x: Tensor, unit: str, limit: int) -> tuple[Function, Tensor]:
    """The same work on the first ``limit`` samples, outputs or inputs only."""
    if unit == "samples":
        return function, x[:limit]
    if unit == "outputs":
        return lambda point: function(point)[:, :limit], x
    rest = x.flatten(1)[:, limit:]

    def of_first_inputs(first: Tensor) -> Tensor:
        return function(torch.cat([first, rest], 1).unflatten(1, x.shape[1:]))

    return of_first_inputs, x.flatten(1)[:, :limit].contiguous()


def as_matrices(result: Tensor, layout: str) -> Tensor:
    """As ``(batch, n_out, n_in)``, whatever the layout: ``obi`` is (n_out, batch, *input), and so on."""
    if not isinstance(result, Tensor):  # JAX's
        result = torch.from_numpy(np.array(result))
    if layout == "ibo":
        return result.permute(1, 2, 0)
    matrices = result.flatten(2)
    return matrices.transpose(0, 1) if layout == "obi" else matrices


def reference(model: nn.Module, x: Tensor) -> Tensor:
    """``(batch, n_out, n_in)`` in float64: one plain pass an output, or an input where those are few."""
    function = flat(copy.deepcopy(model).double())
    x = x.double()
    n_out, n_in = function(x[:1]).shape[1], x[0].numel()
    if 8 * n_in < n_out:
        basis = torch.eye(n_in, dtype=x.dtype, device=x.device).unflatten(1, x.shape[1:])
        columns = [jvp(function, (x,), (tangent.expand_as(x),))[1].detach() for tangent in basis]
        return torch.stack(columns, 2)
    return as_matrices(_loop(function, x, None)(), "obi")


def _loop(function: Function, x: Tensor, chunk: int | None) -> Runner:
    """The forum thread's: one reverse pass an output, summed over the samples (of a block)."""

    def run() -> Tensor:
        result: Tensor | None = None
        start = 0
        for block in x.split(chunk or len(x)):
            point = block.detach().requires_grad_()
            with torch.enable_grad():
                y = function(point)
            if result is None:
                result = x.new_empty(y.shape[1], *x.shape)
            for i in range(y.shape[1]):
                (gradient,) = torch.autograd.grad(y[:, i].sum(), point, retain_graph=True)
                result[i, start : start + len(block)] = gradient
            start += len(block)
        assert result is not None
        return result

    return run


def _replicate(function: Function, x: Tensor, chunk: int | None) -> Runner:
    n_out = function(x[:1]).shape[1]

    def run() -> Tensor:
        repeated = x.repeat(n_out, *[1] * (x.dim() - 1)).requires_grad_()
        y = function(repeated).view(n_out, len(x), n_out)
        (gradient,) = torch.autograd.grad(y.diagonal(dim1=0, dim2=2).sum(), repeated)
        return gradient.view(n_out, *x.shape)

    return run


def _of_a_sample(function: Function) -> Function:
    return lambda sample: function(sample.unsqueeze(0)).squeeze(0)


def _summed(function: Function) -> Function:
    return lambda x: function(x).sum(0)


def _vmap_jacrev(function: Function, x: Tensor, chunk: int | None) -> Runner:
    jacobians: Function = vmap(jacrev(_of_a_sample(function)), chunk_size=chunk)
    return lambda: jacobians(x)


def _jacrev(function: Function, x: Tensor, chunk: int | None) -> Runner:
    jacobians: Function = jacrev(_summed(function), chunk_size=chunk)
    return lambda: jacobians(x)


def _jacrev_math(function: Function, x: Tensor, chunk: int | None) -> Runner:
    """As above, with attention as products and a softmax: the fused kernels have no batching rule."""
    jacobians: Function = jacrev(_summed(function), chunk_size=chunk)

    def run() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return jacobians(x)

    return run


def _vmap_jacfwd(function: Function, x: Tensor, chunk: int | None) -> Runner:
    jacobians: Function = vmap(jacfwd(_of_a_sample(function)), chunk_size=chunk)
    return lambda: jacobians(x)


def _shared_jvp(function: Function, x: Tensor, chunk: int | None) -> Runner:
    """All samples move together; ``jacfwd`` itself has no chunk size, so its body is written out."""
    n_in = x[0].numel()

    def run() -> Tensor:
        basis = torch.eye(n_in, dtype=x.dtype, device=x.device).unflatten(1, x.shape[1:])
        push = vmap(lambda tangent: jvp(function, (x,), (tangent.expand_as(x),))[1], chunk_size=chunk)
        columns: Tensor = push(basis)
        return columns

    return run


def _functional(function: Function, x: Tensor, chunk: int | None) -> Runner:
    def run() -> Tensor:
        result = torch.autograd.functional.jacobian(_summed(function), x, vectorize=True)
        assert isinstance(result, Tensor)
        return result

    return run


def _rows(sizes: Sizes, chunk: int | None) -> int:
    return (chunk or sizes.n_out) * sizes.batch


def _columns(sizes: Sizes, chunk: int | None) -> int:
    return (chunk or sizes.n_in) * sizes.batch


_CHUNKS = (4, 8, 16, 32, None)
_BLOCKS = (8, 32, None)

TORCH_PEERS = (
    Peer("loop", _loop, "obi", "outputs", "samples", _BLOCKS, lambda sizes, chunk: sizes.batch, True),
    Peer("replicate", _replicate, "obi", "outputs", "", (None,), _rows, True),
    Peer(
        "vmap(jacrev)",
        _vmap_jacrev,
        "boi",
        "samples",
        "samples",
        _BLOCKS,
        lambda sizes, chunk: (chunk or sizes.batch) * sizes.n_out,
    ),
    Peer("jacrev", _jacrev, "obi", "outputs", "outputs", _CHUNKS, _rows),
    Peer("jacrev, math", _jacrev_math, "obi", "outputs", "outputs", _CHUNKS, _rows, attention=True),
    Peer(
        "vmap(jacfwd)",
        _vmap_jacfwd,
        "boi",
        "samples",
        "samples",
        _BLOCKS,
        lambda sizes, chunk: (chunk or sizes.batch) * sizes.n_in,
        forward=True,
    ),
    Peer("jacfwd", _shared_jvp, "ibo", "inputs", "inputs", _CHUNKS, _columns, forward=True),
    Peer("functional", _functional, "obi", "outputs", "", (None,), _rows),
)
