"""The reference of a linear program: the module's own Jacobian, by plain reverse passes one at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, fx, nn
from torch.func import vjp

from jacli.linear_program import LinearProgram
from jacli.network import TensorNetwork, frozen_twin, trace_network
from tests.linear_program.operators import BATCH, OPERATORS, Of, points, seeded

BATCHES = (1, BATCH, 7)


@dataclass(frozen=True)
class Arithmetic:
    """Precisions of the forward pass and of the linear passes, and the error allowed.

    Attributes:
        dtype: Of the network and the input.
        precision: Of the passes.
        tolerance: Relative error allowed, Frobenius over a sample.
    """

    dtype: torch.dtype
    precision: str
    tolerance: float


ARITHMETICS = {
    "float64": Arithmetic(torch.float64, "ieee", 1e-12),
    "float32": Arithmetic(torch.float32, "ieee", 1e-5),
    "bf16": Arithmetic(torch.float32, "bf16", 0.02),
}


@cache
def network(name: str, dtype: torch.dtype, device: torch.device) -> TensorNetwork:
    """The case's module; its weights are float32 numbers in every dtype."""
    seeded(name)
    return TensorNetwork.of_module(frozen_twin(OPERATORS[name].make()).to(device, dtype))


def at(name: str, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The case's input."""
    return points(OPERATORS[name], batch).to(device, dtype)


@cache
def traced(name: str, dtype: torch.dtype, device: torch.device) -> fx.GraphModule:
    """The case's graph."""
    return trace_network(network(name, dtype, device), at(name, BATCH, dtype, device), {}).graph


@cache
def program(name: str, dtype: torch.dtype, device: torch.device) -> LinearProgram:
    """One program per case, shared by all tests as it is by all batches of a run.

    Tracing is most of the work.  A graph that says nothing of its dtype is the same in float32: it is cast.
    """
    graph = traced(name, torch.float64, device)
    if dtype == torch.float64:
        return LinearProgram(graph)
    own = network(name, torch.float64, device).module
    if depends_on_dtype(graph, own):
        return LinearProgram(traced(name, dtype, device))
    return LinearProgram(copy.deepcopy(graph).to(dtype))


def depends_on_dtype(graph: fx.GraphModule, module: nn.Module) -> bool:
    """Whether an operator of the graph names a dtype, or reads a tensor that is none of the module's."""
    own = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    return any(
        getattr(graph, str(node.target)).data_ptr() not in own
        if node.op == "get_attr"
        else any(isinstance(value, torch.dtype) for value in (*node.args, *node.kwargs.values()))
        for node in graph.graph.nodes
    )


@cache
def below_autograd(name: str, device: torch.device) -> LinearProgram:
    """A program of the same graph in float64 after an in-place write.

    Torch functionalises such writes below autograd, where operators are different: ``addmm`` for ``linear``,
    ``native_layer_norm`` for ``layer_norm``.
    """
    x = at(name, BATCH, torch.float64, device)
    own = network(name, torch.float64, device)
    after_a_write = TensorNetwork.of_module(Of(lambda m, x: m.own(x.clone().mul_(1)), own=own.module))
    return LinearProgram(trace_network(after_a_write, x, {}).graph)


@cache
def jacobians(name: str, device: torch.device) -> dict[int, Tensor]:
    """``(batch, n_out, n_in)`` in float64 for each batch size; all sizes share the passes."""
    own = network(name, torch.float64, device)
    x = torch.cat([at(name, batch, torch.float64, device) for batch in BATCHES])
    of_all = plain_jacobian(lambda x: own(x, {}), x)
    return dict(zip(BATCHES, of_all.split(BATCHES), strict=True))


def jacobian(name: str, batch: int, device: torch.device) -> Tensor:
    """``(batch, n_out, n_in)`` in float64."""
    return jacobians(name, device)[batch]


def plain_jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``(batch, n_out, n_in)``: one plain reverse pass per output, with one cotangent for all samples."""
    outputs, pullback = vjp(function, x)
    rows = []
    for o in range(outputs[0].numel()):
        cotangents = torch.zeros_like(outputs).reshape(len(outputs), -1)
        cotangents[:, o] = 1
        rows.append(pullback(cotangents.reshape(outputs.shape))[0].flatten(1))
    return torch.stack(rows, dim=1)


def vectors(count: int, batch: int, width: int, like: Tensor) -> Tensor:
    """Random vectors ``(count, batch, width)``."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, batch, width, generator=generator).to(like)


def pulled(jacobians: Tensor, cotangents: Tensor) -> Tensor:
    """What `vjp` must give: ``u[i, b] @ J[b]`` in float64."""
    return torch.einsum("kbo,boi->kbi", cotangents.double(), jacobians)


def pushed(jacobians: Tensor, tangents: Tensor) -> Tensor:
    """What `jvp` must give: ``J[b] @ v[i, b]`` in float64."""
    return torch.einsum("kbi,boi->kbo", tangents.double(), jacobians)


def repeats(again: Tensor, before: Tensor, rounding: float = 1e-5) -> bool:
    """Whether the same work gave the same numbers: bit for bit on a CPU; cuDNN adds in any order."""
    if again.is_cuda:
        return bool((again - before).abs().max() <= rounding * before.abs().max())
    return torch.equal(again, before)


def error(found: Tensor, expected: Tensor) -> float:
    """The largest relative error of a sample of ``(k, batch, ...)``; 0 for a sample that is zero in both."""
    assert found.shape == expected.shape
    gap = (found.double() - expected).transpose(0, 1).flatten(1).norm(dim=1)
    scale = expected.transpose(0, 1).flatten(1).norm(dim=1)
    return float(torch.where(gap == 0, 0.0, gap / scale).max())
