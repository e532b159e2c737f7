"""Tracing: one graph of ATen operators for a network, valid at every batch size.

``make_fx`` traces the network on fake tensors, which have shapes but no numbers, so that tracing does no
arithmetic.  It works for every format: a Python module, TorchScript and an exported program all consist of
the same operators.  Two traces at two batch sizes tell three things: whether the network runs the same
operators at both, which axis of each tensor is the batch axis, and which of the numbers baked into the graph
(the ``2`` of ``view(2, -1)``) are multiples of the batch size.  The graph then computes these from its input.

A wrong graph does not go unnoticed: for every batch its outputs are compared with the network's own, and for
some batches its derivatives (`jacli.engine.batch_checks`).
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
from jacli.linear_maps import Extra
from jacli.linear_program.graph import NotTraceableError, value_of
from jacli.network.network import TensorNetwork

_SIZES = (2, 3)
"""Batch sizes of the two traces.  Not 1: some networks treat a single sample specially (``squeeze()``)."""


@dataclass(frozen=True)
class TracedNetwork:
    """A network as a graph of functional ATen operators.

    Attributes:
        graph: Inputs ``x`` and then the arguments ``extra``; one output, ``(batch, *output)``.
        extra: Names of the further arguments, in order.
        batch_axis: Node to the batch axis of its tensor; without the nodes that have none, or whose batch
            axis was merged with another.
        layers: Node to the name of the layer whose parameter it uses, or else of the latest such layer
            before it.
    """

    graph: fx.GraphModule
    extra: tuple[str, ...]
    batch_axis: Mapping[fx.Node, int]
    layers: Mapping[fx.Node, str]

    @property
    def source(self) -> fx.Node:
        """The placeholder of the input."""
        first: fx.Node = next(iter(self.graph.graph.nodes))
        return first

    @property
    def output(self) -> fx.Node:
        """The node whose value is the output."""
        (returned,) = self.graph.graph.output_node().args
        assert isinstance(returned, fx.Node)  # `_trace_once` ensures it
        return returned


def trace_network(network: TensorNetwork, x: Tensor, extra: Extra) -> TracedNetwork:
    """Trace a network.

    >>> from jacli.network import TensorNetwork
    >>> network = TensorNetwork.of_module(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU()).eval())
    >>> traced = trace_network(network, torch.zeros(1, 3), {})
    >>> [node.target.__name__ for node in traced.graph.graph.nodes if node.op == "call_function"]
    ['clone.default', 'linear.default', 'relu.default']

    Args:
        network: The network; its structure and parameters matter, it is not run on numbers.
        x: Input ``(batch, *input)`` of at least one sample; only shape, dtype and device matter.
        extra: Further arguments of these samples, one row per sample.

    Raises:
        NotTraceableError: The network has control flow that depends on values, keeps state, uses operators
            unknown to tracing, or runs other operators at another batch size.

    Cost: two traces, 0.1 to 1 s each for a network of a hundred layers; negligible memory.
    """
    if network.copy_each_call:
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
    """``size`` copies of the first row: only shapes matter."""
    if not isinstance(rows, Tensor):
        return rows
    return rows[:1].expand(size, *rows.shape[1:]).contiguous()


def _trace_once(network: TensorNetwork, *arguments: Any, names: Sequence[str]) -> fx.GraphModule:
    """The functional graph at one batch size; ``meta["val"]`` of each node is a fake tensor of its shape."""
    network = network.sharing()  # the model may store fake tensors in its attributes

    def run(x: Tensor, *extra: Any) -> Tensor:
        return network(x, dict(zip(names, extra, strict=True)))

    # In eval mode a scripted attention layer takes a fast path that has no derivative.
    unfrozen = thawed(network.module) if network.scripted_attention else nullcontext()
    try:
        with unfrozen, _no_custom_derivatives():
            graph = _make_graph(run, arguments)
        if any(node.target is torch._C._set_grad_enabled for node in graph.graph.nodes):
            raise NotTraceableError("it switches gradients off inside")
        if any(_mutates(node) for node in graph.graph.nodes):
            graph = _functional(graph, arguments)
        graph.graph.eliminate_dead_code()
    except Exception as error:  # the model's code may fail in any way on fake tensors
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
        warnings.simplefilter("ignore")  # about code that reads values while it is traced
        return make(*arguments)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Pause the garbage collector.

    Collecting an abandoned context manager runs its exit (which restores a dispatch mode, for example) in the
    middle of a traced operator; the trace then fails, once in thousands of times.
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
    """Refuse ``autograd.Function``: a graph keeps its result but loses the derivative that it defines."""
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
    """Silence torch's tracebacks about shapes that do not fit: here they are an answer, not an error."""
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
    """The same graph without in-place writes (functionalisation).

    In the traced graph an in-place write such as ``y[:, 0] = 0`` is a node that no other node reads.

    ``functionalize`` drops constants, so they are passed as arguments and put back afterwards.  It knows only
    the operators below autograd (``addmm`` in place of ``linear``), which run the same kernels.
    """
    names = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    unique = list(dict.fromkeys(names))
    constants = [getattr(graph, name) for name in unique]
    count = len(arguments)

    def run(*everything: Any) -> Any:
        return _Bound(graph, dict(zip(unique, everything[count:], strict=True))).run(*everything[:count])

    graph_module = _make_graph(
        functionalize(run, remove="mutations"), [*arguments, *constants], pre_dispatch=False
    )
    for node, name in zip(list(graph_module.graph.nodes)[count : count + len(unique)], unique, strict=True):
        _keep_constant(graph_module, name, getattr(graph, name))
        with graph_module.graph.inserting_after(node):
            constant = graph_module.graph.get_attr(name)
        constant.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(constant)
        graph_module.graph.erase_node(node)
    for node in graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.as_strided_.default):
        # Average pooling of a channels-last tensor ends with it: other strides, the same numbers.
        if list(node.args[1]) == list(value_of(node.args[0]).shape):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
    for node in graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.copy.default):
        _replace_copy(graph_module.graph, node)
    graph_module.recompile()
    return graph_module


def _replace_copy(graph: fx.Graph, node: fx.Node) -> None:
    """Replace ``copy(into, values)``, the trace of ``into[...] = values``, by operators with a derivative."""
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
    """Runs a graph with other values of its constants."""

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
    """The batch axis of each tensor that has exactly one: the axis whose size grew from 2 to 3."""
    axes: dict[fx.Node, int] = {}
    for a, b in zip(first.graph.nodes, second.graph.nodes, strict=True):
        one, two = value_of(a), value_of(b)
        if isinstance(one, Tensor) and isinstance(two, Tensor) and one.dim() == two.dim():
            moved = [i for i in range(one.dim()) if one.shape[i] != two.shape[i]]
            if len(moved) == 1 and (one.shape[moved[0]], two.shape[moved[0]]) == _SIZES:
                axes[a] = moved[0]
    return axes


def _put_batch_size_back(first: fx.GraphModule, second: fx.GraphModule) -> None:
    """Replace numbers that differ between the two graphs by multiples of the batch size of the input."""
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
    """Node to the name of the latest layer on the way to it; layers are known by their parameters."""
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
