"""The graph of a network: the same numbers at every batch size, functional, or refused with a reason."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import Tensor, nn

from jacli.device.torch_switches import _precision_switches
from jacli.linear_program.graph import value_of
from jacli.network import NotTraceableError, TensorNetwork, exact_arithmetic, frozen_twin, trace_network
from tests.cases import BATCH, CASES, build

STATELESS = [name for name in CASES if not name.startswith("stateful")]
ATTENTION = ("attention", "flash_attention")
"""Their graphs use other kernels than the module, which round otherwise."""


@pytest.fixture(autouse=True)
def exact():
    with exact_arithmetic():
        yield


def network_of(module, **options):
    return TensorNetwork.of_module(frozen_twin(module), **options)


def points(size, *shape, dtype=torch.float64):
    return torch.randn(size, *shape, dtype=dtype, generator=torch.Generator().manual_seed(size))


def run(traced, *arguments):
    with torch.no_grad():
        return traced.graph(*arguments)


def wrapped(module, x, kind):
    if kind == "scripted":
        return torch.jit.script(module)
    if kind == "traced":
        return torch.jit.trace(module, x, check_trace=False)
    return module


def mutable_operators(traced):
    schemas = [getattr(node.target, "_schema", None) for node in traced.graph.graph.nodes]
    return [schema.name for schema in schemas if schema is not None and schema.is_mutable]


def check_equal(module, *shape, sizes=(1, 2, 5), tolerance=0.0, select=None, lone=False, dtype=torch.float64):
    """The graph of a module gives what the module gives, and has no writes left in it."""
    network = network_of(module, select=select, squeezes_batch_of_one=lone)
    traced = trace_network(network, points(2, *shape, dtype=dtype), {})
    assert not mutable_operators(traced)
    for size in sizes:
        x = points(size, *shape, dtype=dtype)
        own, found = network(x, {}), run(traced, x)
        assert found.shape == own.shape and found.dtype == own.dtype, size
        assert float((found - own).abs().max()) <= tolerance * float(own.abs().max()), size
    return traced


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # nn.LSTM checks its input's size
@pytest.mark.parametrize("kind", ["eager", "scripted", "traced"])
@pytest.mark.parametrize("name", STATELESS)
def test_the_graph_is_the_network_at_every_batch_size(name, kind):
    """Traced at two and three samples, from a batch of two; run at one, two and five."""
    module, x, case = build(name, torch.float64)
    if kind == "traced" and not case.exportable:
        pytest.skip("tracing fixes what squeeze() does")
    lone = name == "squeezed"
    check_equal(
        wrapped(module, x, kind),
        *case.shape,
        sizes=(2, 5) if lone else (1, 2, 5),
        tolerance=1e-12 if name in ATTENTION else 0.0,
        select=case.select,
        lone=lone,
    )


@pytest.mark.parametrize("name", ["residual", "in_place", "attention", "flash_attention", "lstm"])
def test_float32_to_its_rounding(name):
    module, _, case = build(name, torch.float32)
    check_equal(module, *case.shape, tolerance=1e-6, dtype=torch.float32)


class Writes(nn.Module):
    """One way of writing in place, chosen by name."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.linear = nn.Linear(5, 6)
        self.top = nn.Linear(6, 7)
        self.register_buffer("shift", torch.randn(6))
        self.register_buffer("mask", torch.tensor([True, False, True, True, False, True]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        z = y.clone()
        if self.how == "slice from a number":
            z[:, 1:3] = 0.5
        elif self.how == "slice from a tensor":
            z[:, 1:3] = y[:, 3:5] * y[:, :2]
        elif self.how == "slice from a constant":
            z[:, :2] = self.shift[:2]
        elif self.how == "slice that is added to":
            z[:, 1:4] += y[:, :3]
        elif self.how == "through a merged view":
            z.view(-1)[::3].mul_(2)
        elif self.how == "masked":
            z[:, self.mask] = y[:, self.mask] ** 2
        elif self.how == "masked_fill_":
            z.masked_fill_(y > 0.3, -1.0)
        elif self.how == "column by column":
            for i in range(6):
                z[:, i] = y[:, i - 1].sin()
        elif self.how == "new tensor filled in":
            z = torch.zeros_like(y)
            z[:, :3] = y[:, 3:]
            z[:, 3:] = y[:, :3].tanh()
        elif self.how == "rows":
            z[:] = y.flip(1)
        return self.top(z)


WRITES = [
    "slice from a number",
    "slice from a tensor",
    "slice from a constant",
    "slice that is added to",
    "masked",
    "masked_fill_",
    "column by column",
    "new tensor filled in",
    "rows",
    "through a merged view",
]


@pytest.mark.parametrize("how", WRITES)
def test_writes_are_undone(how):
    check_equal(Writes(how).double(), 5, tolerance=1e-14)


@pytest.mark.parametrize("how", WRITES)
def test_what_is_written_has_its_derivative(how):
    """``copy``, which functionalisation leaves for a write into a slice, would have none."""
    network = network_of(Writes(how).double())
    x = points(3, 5)
    traced = trace_network(network, x, {})
    u = points(3, 7)
    own, found = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad((network(own, {}) * u).sum(), own)
    (gradient,) = torch.autograd.grad((traced.graph(found) * u).sum(), found)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


class PooledChannelsLast(nn.Module):
    """Average pooling of a channels-last tensor ends in ``as_strided_``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.top = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.contiguous(memory_format=torch.channels_last)).relu_()
        return self.top(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))


def test_pooling_of_channels_last():
    check_equal(PooledChannelsLast().double(), 3, 5, 4, tolerance=1e-14)


class Branches(nn.Module):
    def __init__(self, condition) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 7)
        self.condition = condition

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) if self.condition(x) else torch.relu(self.linear(x))


class Appends(nn.Module):
    """More operators for more samples."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.sin(row) for row in x.unbind(0)])


class MakesConstant(nn.Module):
    """A tensor made of numbers, as many as there are samples."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.5 + i for i in range(x.shape[0])], dtype=x.dtype)[:, None] * x


class NotAMultiple(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x[:1]])[: len(x) + 1][:-1].narrow(0, 0, len(x)) * (len(x) + 1)


class ScriptedBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return torch.sin(x)
        return torch.cos(x)


REFUSED = {
    "a branch on values": (lambda: Branches(lambda x: x.sum() > 0), "cannot be traced"),
    "a scripted branch on values": (lambda: torch.jit.script(ScriptedBranch()), "cannot be traced"),
    "a number read from a value": (lambda: Branches(lambda x: x.amax().item() > 0), "cannot be traced"),
    "numpy": (lambda: Branches(lambda x: x.detach().numpy().any()), "cannot be traced"),
    "a branch on the batch size": (lambda: Branches(lambda x: len(x) > 2), "other things at other batch"),
    "an operator a sample": (Appends, "other things at other batch"),
    "a constant of the batch's shape": (MakesConstant, "constant of it depends on the batch size"),
    "a number that is no multiple": (NotAMultiple, "in another way than as a multiple"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason_and_silently(name, capfd, caplog):
    make, reason = REFUSED[name]
    network = network_of(make().double())
    with (
        caplog.at_level(logging.DEBUG),
        warnings.catch_warnings(),
        pytest.raises(NotTraceableError, match=reason) as refused,
    ):
        warnings.simplefilter("error")
        trace_network(network, points(2, 5), {})
    assert "\n" not in str(refused.value)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_shape_that_does_not_fit_is_not_logged(capfd):
    """Torch logs a traceback for it, from a handler of its own."""
    network = network_of(nn.Sequential(nn.Flatten(), nn.Linear(60, 7)).double())
    with pytest.raises(NotTraceableError, match="cannot be traced"):
        trace_network(network, points(2, 5), {})
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


@pytest.mark.parametrize("name", ["stateful", "stateful_buffer"])
def test_state_is_refused(name):
    module, x, _ = build(name, torch.float64)
    with pytest.raises(NotTraceableError, match="state between calls"):
        trace_network(network_of(module, copy_each_call=True), x, {})


def test_running_out_of_memory_is_no_reason_against_tracing(monkeypatch):
    """It is passed on: a run has remedies for it."""

    def fails(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr("jacli.network.trace._make_graph", fails)
    with pytest.raises(RuntimeError, match="allocate memory"):
        trace_network(network_of(nn.Linear(5, 7).double()), points(2, 5), {})


class Conditioned(nn.Module):
    """An offset, a weight and a mask for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 7)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        return torch.where(mask[:, None], self.linear(x), torch.sin(self.linear(x))) * scale + offset


@pytest.mark.parametrize("size", [1, 2, 5])
def test_further_arguments_have_a_row_a_sample(size):
    network = network_of(Conditioned().double(), arguments={"scale": 3.0})

    def extra(n):
        return {"offset": points(n, 7), "mask": torch.arange(n) % 2 == 0}

    traced = trace_network(network, points(2, 5), extra(2))
    assert traced.extra == ("offset", "mask")
    x = points(size, 5)
    assert torch.equal(run(traced, x, *extra(size).values()), network(x, extra(size)))


def test_traced_from_a_single_sample_as_from_many():
    module, x, _ = build("residual", torch.float64)
    network = network_of(module)
    one, many = trace_network(network, x[:1], {}), trace_network(network, torch.cat([x] * 3), {})
    assert [n.target for n in one.graph.graph.nodes] == [n.target for n in many.graph.graph.nodes]


class Moves(nn.Module):
    """Batch axis first, in the middle, merged with another, and first again."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sin(self.linear(x)).transpose(0, 1)
        z = torch.cos(y).reshape(-1, 6)
        return torch.tanh(z).reshape(5, -1, 6).transpose(0, 1)


def test_the_batch_axis_of_every_tensor_is_known():
    traced = check_equal(Moves().double(), 5, 4)
    axes = {str(n.target): traced.batch_axis.get(n) for n in traced.graph.graph.nodes}
    assert axes["aten.sin.default"] == 0
    assert axes["aten.cos.default"] == 1
    assert axes["aten.tanh.default"] is None  # merged: 10 and 15 rows
    assert traced.batch_axis[traced.source] == traced.batch_axis[traced.output] == 0


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 3))
        self.head = nn.Linear(3, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sin(self.encoder(x)))


@pytest.mark.parametrize("kind", ["eager", "scripted", "traced"])
def test_layers_are_named_by_the_parameters_last_used(kind):
    module = TwoParts().double()
    traced = trace_network(network_of(wrapped(module, points(2, 9), kind)), points(2, 9), {})
    names = {str(n.target): traced.layers.get(n) for n in traced.graph.graph.nodes}
    assert names["aten.tanh.default"] == "encoder.0"
    assert names["aten.sin.default"] == "encoder.2"
    assert traced.layers[traced.output] == "head"
    assert traced.source not in traced.layers


def test_every_node_has_its_shape_at_two_samples():
    module, x, _ = build("in_place", torch.float64)
    traced = trace_network(network_of(module), x, {})
    assert value_of(traced.source).shape == (2, *x.shape[1:])
    assert value_of(traced.output).shape == (2, 7)
    for node in traced.graph.graph.nodes:
        if node.op not in ("output", "get_attr"):
            assert value_of(node) is not None, node


def test_parameters_are_not_copied():
    """A network's graph costs no memory to speak of."""
    module, x, _ = build("residual", torch.float64)
    network = network_of(module)
    traced = trace_network(network, x, {})
    own = {p.data_ptr() for p in network.module.parameters()}
    constants = [*traced.graph.parameters(), *traced.graph.buffers()]
    assert {c.data_ptr() for c in constants} == own


def process_wide():
    return (
        [getattr(holder, name) for holder, name, _ in _precision_switches()],
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch._C._get_graph_executor_optimize(),
        logging.getLogger("torch._subclasses.fake_tensor").disabled,
        len(warnings.filters),
        torch.random.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("fails", [False, True])
def test_the_process_stays_as_it_is(fails):
    module = (
        Branches(lambda x: x.sum() > 0) if fails else torch.jit.script(build("attention", torch.float64)[0])
    )
    shape = (5,) if fails else CASES["attention"].shape
    network = network_of(module.double())
    flags = [p.requires_grad for p in network.module.parameters()]
    before = process_wide()
    try:
        trace_network(network, points(BATCH, *shape), {})
        assert not fails
    except NotTraceableError:
        assert fails
    assert process_wide() == before
    assert [p.requires_grad for p in network.module.parameters()] == flags


def refusal(module: nn.Module, x: Tensor) -> str:
    network = TensorNetwork.of_module(frozen_twin(module))
    with exact_arithmetic(), pytest.raises(NotTraceableError) as refused:
        trace_network(network, x, {})
    return str(refused.value)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Clamped(nn.Linear):
    def forward(self, x):
        return StraightThrough.apply(super().forward(x))


class GateWithoutGradient(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        with torch.no_grad():
            gate = 1 + y.abs().mean(1, keepdim=True)
        return y * gate


def test_a_derivative_that_a_graph_would_lose_is_not_traced():
    x = torch.randn(2, 5)
    assert "derivative of its own" in refusal(Clamped(5, 3), x)
    assert "gradients off" in refusal(GateWithoutGradient(5, 3), x)
    y = torch.randn(3, requires_grad=True)
    assert torch.equal(torch.autograd.grad(StraightThrough.apply(9 * y).sum(), y)[0], torch.full((3,), 9.0))


class _KeepsMean(nn.Module):
    """Stores what it computes, and looks at it: a trace on the module would leave it a fake tensor."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        h = self.layer(x).tanh()
        if float(getattr(self, "mean", 0.0)) > 9:
            return x[:, :3]
        self.mean = h.mean().detach()
        return h


class _KeepsFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        self.features = [self.layer(x), {"rectified": torch.relu(self.layer(x))}]
        return self.features[0] + self.features[1]["rectified"]


@pytest.mark.parametrize("kind", [_KeepsMean, _KeepsFeatures])
def test_a_trace_leaves_nothing_in_the_module(kind):
    network = network_of(kind().double())
    x = points(3, 4)
    expected = network(x, {})
    before = dict(vars(network.module))
    traced = trace_network(network, x, {})
    assert vars(network.module) == before
    assert torch.equal(run(traced, x), expected) and torch.equal(network(x, {}), expected)


@pytest.mark.parametrize("kind", [_KeepsMean, _KeepsFeatures])
def test_a_graph_has_the_parameters_of_the_module(kind):
    """They are shared, not copied: of a large network there is no memory for two."""
    network = network_of(kind().double())
    traced = trace_network(network, points(3, 4), {})
    own = {tensor.data_ptr() for tensor in network.module.parameters()}
    held = [value for value in vars(traced.graph).values() if isinstance(value, Tensor)]
    held += [*traced.graph.parameters(), *traced.graph.buffers()]
    assert own <= {tensor.data_ptr() for tensor in held}
