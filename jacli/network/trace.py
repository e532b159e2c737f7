"""From a callable to one graph of ATen operators, valid at every batch size.

The graph is taken with ``make_fx`` on fake tensors (shapes only: no arithmetic, whatever the network's
size), from any format: a Python module, TorchScript and an exported program all end in the same
operators.  It is taken at two batch sizes, which tells three things at once: that the network does the
same at both, which axis of every tensor is the batch's, and which of the numbers baked into the graph
(the ``2`` of ``view(2, -1)``) are the batch size; these are put back as such.

A graph that this goes wrong for does not go unnoticed: its outputs are compared with the network's own in
every batch, and its derivatives in some (`jacli.engine.batch_checks`).
"""

from __future__ import annotations

import gc
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from jacli.device.torch_switches import batched_pass, thawed
from jacli.errors import means_out_of_memory, telling_line
from jacli.linear_map import Extra
from jacli.linear_program.graph import NotTraceableError, value_of
from jacli.network.network import TensorNetwork

_SIZES = (2, 3)
"""Batch sizes of the two traces; networks treat a lone sample specially (``squeeze()``) more often."""


@dataclass(frozen=True)
class TracedNetwork:
    """A network as a graph of functional ATen operators.

    Attributes:
        graph: Inputs ``x`` and then the arguments ``extra``; one output, ``(batch, *output)``.
        extra: Names of the further arguments, in order.
        batch_axis: Node to the axis of its tensor that counts samples; nodes without one, or whose
            batch axis was merged with another, are not in it.
        layers: Node to the name of the layer whose parameter it used, or that was used last before it.
    """

    graph: fx.GraphModule
    extra: tuple[str, ...]
    batch_axis: Mapping[fx.Node, int]
    layers: Mapping[fx.Node, str]

    @property
    def source(self) -> fx.Node:
        """The placeholder of the points."""
        first: fx.Node = next(iter(self.graph.graph.nodes))
        return first

    @property
    def output(self) -> fx.Node:
        """The node whose value is the output."""
        (returned,) = self.graph.graph.output_node().args
        assert isinstance(returned, fx.Node)  # `_trace_once` sees to it
        return returned


def trace_network(network: TensorNetwork, x: Tensor, extra: Extra) -> TracedNetwork:
    """The graph of a network.

    Args:
        network: The network; only its structure and its parameters matter, it is not run.
        x: Points ``(batch, *input)``, at least one; only shape, dtype and device matter.
        extra: Further arguments of these points, one row a sample.

    Raises:
        NotTraceableError: Control flow that depends on values, state, operators unknown to tracing,
            or a graph that changes with the batch size.

    Cost: two traces, 0.1 to 1 s each for networks of a hundred layers; no memory to speak of.
    """
    if network.fresh:
        raise NotTraceableError("the model keeps state between calls")
    names = tuple(extra)
    first, second = (
        _trace_once(network, *(_resized(t, size) for t in (x, *(extra[n] for n in names))), names=names)
        for size in _SIZES
    )
    _check_same(first, second)
    axes = _batch_axes(first, second)
    try:
        _put_batch_size_back(first, second)
    except (KeyError, TypeError, ValueError) as error:  # arguments of other lengths or kinds
        raise NotTraceableError("it does other things at other batch sizes") from error
    first.recompile()
    return TracedNetwork(first, names, axes, _layer_names(first, network))


def _resized(rows: object, size: int) -> Any:
    """``size`` rows like the given ones (their first, repeated): shapes are all that counts."""
    if not isinstance(rows, Tensor):
        return rows
    return rows[:1].expand(size, *rows.shape[1:]).contiguous()


def _trace_once(network: TensorNetwork, *arguments: Any, names: Sequence[str]) -> fx.GraphModule:
    """The functional graph at one batch size; every node's ``meta["val"]`` has its shape."""
    network = network.sharing()  # a model may store what it computes, of which a trace has only shapes

    def run(x: Tensor, *extra: Any) -> Tensor:
        return network(x, dict(zip(names, extra, strict=True)))

    # A scripted attention layer would take its inference path, which has no derivative.
    unfrozen = thawed(network.module) if network.scripted_attention else nullcontext()
    try:
        with unfrozen, _no_custom_derivatives():
            graph = _make_graph(run, arguments)
        if any(node.target is torch._C._set_grad_enabled for node in graph.graph.nodes):
            raise NotTraceableError("it switches gradients off inside")
        if any(_mutates(node) for node in graph.graph.nodes):
            graph = _functional(graph, arguments)
        graph.graph.eliminate_dead_code()
    except Exception as error:  # whatever a model's code does with tensors that have no values
        if means_out_of_memory(error) or isinstance(error, NotTraceableError):
            raise
        raise NotTraceableError(f"it cannot be traced: {telling_line(error).rstrip('.')}") from error
    if any(_mutates(node) for node in graph.graph.nodes):
        raise NotTraceableError("it writes into tensors in place in a way that cannot be undone")
    (returned,) = graph.graph.output_node().args
    if not isinstance(returned, fx.Node) or not isinstance(value_of(returned), Tensor):
        raise NotTraceableError("its output does not depend on the input")
    return graph


def _make_graph(
    run: Callable[..., Any], arguments: Sequence[Any], *, pre_dispatch: bool = True
) -> fx.GraphModule:
    # Parameters that require no gradient raise in fake mode unless real tensors are let in.
    make = make_fx(run, pre_dispatch=pre_dispatch, tracing_mode="fake", _allow_non_fake_inputs=True)
    with batched_pass(), _quiet(), _without_collection(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of code that looks at values while it is traced
        return make(*arguments)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Leave garbage alone for a while.

    What an abandoned context manager does when it is collected (put a dispatch mode back, for one) would
    happen in the middle of an operator of the trace, which then fails once in thousands of times.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _no_custom_derivatives() -> Iterator[None]:
    """A graph keeps what an ``autograd.Function`` computes and loses the derivative that it defines."""
    before = torch.autograd.Function.__dict__["apply"]

    def refuse(cls: type, *arguments: Any, **options: Any) -> Any:
        raise NotTraceableError(f"{cls.__name__} defines a derivative of its own")

    function: Any = torch.autograd.Function
    function.apply = classmethod(refuse)
    try:
        yield
    finally:
        function.apply = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch logs a whole traceback when a shape does not fit; here that is an answer, not an error."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def _functional(graph: fx.GraphModule, arguments: Sequence[Any]) -> fx.GraphModule:
    """The same graph without in-place writes.

    A graph does not show these: ``y[:, 0] = 0`` is a node that nobody uses.

    ``functionalize`` loses constants, so these become arguments for the while; and it knows the
    operators below autograd only (``addmm`` for ``linear``), which run the same kernels.
    """
    names = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    unique = list(dict.fromkeys(names))
    constants = [getattr(graph, name) for name in unique]
    count = len(arguments)

    def run(*everything: Any) -> Any:
        return _Bound(graph, dict(zip(unique, everything[count:], strict=True))).run(*everything[:count])

    made = _make_graph(functionalize(run, remove="mutations"), [*arguments, *constants], pre_dispatch=False)
    for node, name in zip(list(made.graph.nodes)[count : count + len(unique)], unique, strict=True):
        _keep_constant(made, name, getattr(graph, name))
        with made.graph.inserting_after(node):
            constant = made.graph.get_attr(name)
        constant.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(constant)
        made.graph.erase_node(node)
    for node in made.graph.find_nodes(op="call_function", target=torch.ops.aten.as_strided_.default):
        # Average pooling of a channels-last tensor ends in it: other strides, the same numbers.
        if list(node.args[1]) == list(value_of(node.args[0]).shape):
            node.replace_all_uses_with(node.args[0])
            made.graph.erase_node(node)
    for node in made.graph.find_nodes(op="call_function", target=torch.ops.aten.copy.default):
        _replace_copy(made.graph, node)
    made.recompile()
    return made


def _replace_copy(graph: fx.Graph, node: fx.Node) -> None:
    """``copy(into, values)``, what ``into[...] = values`` leaves, has no derivative; its parts do."""
    into, values = node.args[:2]
    with graph.inserting_before(node):
        cast = graph.call_function(torch.ops.aten.type_as.default, (values, into))
        spread = graph.call_function(torch.ops.aten.expand_as.default, (cast, into))
    assert isinstance(values, fx.Node)  # the schema says a tensor
    cast.meta["val"], spread.meta["val"] = value_of(values), value_of(node)
    node.replace_all_uses_with(spread)
    graph.erase_node(node)


def _keep_constant(graph: fx.GraphModule, name: str, value: Any) -> None:
    if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter):
        graph.register_buffer(name, value)
    else:
        setattr(graph, name, value)


class _Bound(fx.Interpreter):
    """Runs a graph with other values for its constants."""

    def __init__(self, graph: fx.GraphModule, constants: Mapping[str, Any]) -> None:
        super().__init__(graph)
        self._constants = constants

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._constants[target]


def _check_same(first: fx.GraphModule, second: fx.GraphModule) -> None:
    pairs = list(zip(first.graph.nodes, second.graph.nodes, strict=False))
    same = len(first.graph.nodes) == len(second.graph.nodes) and all(
        (a.op, a.target) == (b.op, b.target)
        and [n.name for n in a.all_input_nodes] == [n.name for n in b.all_input_nodes]
        for a, b in pairs
    )
    if not same:
        raise NotTraceableError("it does other things at other batch sizes")
    for a, b in pairs:
        if a.op == "get_attr":
            one, two = getattr(first, str(a.target)), getattr(second, str(b.target))
            if isinstance(one, Tensor) and one.shape != two.shape:
                raise NotTraceableError("a constant of it depends on the batch size")


def _batch_axes(first: fx.GraphModule, second: fx.GraphModule) -> dict[fx.Node, int]:
    """The batch axis of every tensor that has just one: the one whose size went from 2 to 3."""
    axes: dict[fx.Node, int] = {}
    for a, b in zip(first.graph.nodes, second.graph.nodes, strict=True):
        one, two = value_of(a), value_of(b)
        if isinstance(one, Tensor) and isinstance(two, Tensor) and one.dim() == two.dim():
            moved = [i for i in range(one.dim()) if one.shape[i] != two.shape[i]]
            if len(moved) == 1 and (one.shape[moved[0]], two.shape[moved[0]]) == _SIZES:
                axes[a] = moved[0]
    return axes


def _put_batch_size_back(first: fx.GraphModule, second: fx.GraphModule) -> None:
    """Numbers that differ between the two graphs are multiples of the batch size: compute them from it."""
    graph = first.graph
    pairs = list(zip(graph.nodes, second.graph.nodes, strict=True))
    source = pairs[0][0]
    with graph.inserting_after(next(a for a in reversed([a for a, _ in pairs]) if a.op == "placeholder")):
        batch = graph.call_function(torch.ops.aten.sym_size.int, (source, 0))
    batch.meta["val"] = _SIZES[0]
    multiples = {1: batch}

    def general(one: Any, two: Any) -> Any:
        if isinstance(one, (list, tuple)):
            return type(one)([general(p, q) for p, q in zip(one, two, strict=True)])
        if isinstance(one, dict):
            return {key: general(one[key], two[key]) for key in one}
        if isinstance(one, slice):
            return slice(*(general(getattr(one, n), getattr(two, n)) for n in ("start", "stop", "step")))
        if isinstance(one, fx.Node) or one == two:
            return one
        factor, rest = divmod(one, _SIZES[0]) if type(one) is int and type(two) is int else (0, 1)
        if rest or factor * _SIZES[1] != two:
            raise NotTraceableError(
                "a number in it depends on the batch size in another way than as a multiple"
            )
        if factor not in multiples:
            with graph.inserting_after(batch):
                multiples[factor] = graph.call_function(operator.mul, (batch, factor))
            multiples[factor].meta["val"] = one
        return multiples[factor]

    for a, b in pairs:
        if a.op == "call_function":
            a.args, a.kwargs = general(a.args, b.args), general(a.kwargs, b.kwargs)
    if not batch.users:
        graph.erase_node(batch)


def _layer_names(graph: fx.GraphModule, network: TensorNetwork) -> dict[fx.Node, str]:
    """For each node the layer that came last on the way to it, by whose parameter a node uses."""
    owners = {
        tensor.data_ptr(): name.rpartition(".")[0] or name
        for name, tensor in (*network.module.named_parameters(), *network.module.named_buffers())
    }
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    last: dict[fx.Node, tuple[int, str]] = {}
    for node in graph.graph.nodes:
        own = ""
        for argument in node.all_input_nodes:
            constant = getattr(graph, str(argument.target), None) if argument.op == "get_attr" else None
            if isinstance(constant, Tensor) and constant.data_ptr() in owners:
                own = owners[constant.data_ptr()]
        before = [last[argument] for argument in node.all_input_nodes if argument in last]
        if own:
            last[node] = (order[node], own)
        elif before:
            last[node] = max(before)
    return {node: name for node, (_, name) in last.items()}
