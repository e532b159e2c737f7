"""The contract of every method on every case: METHODS x CASES."""

import copy
import os
import warnings
from functools import cache

import pytest
import torch
from torch import nn

import jacli
from jacli.api import InMemoryRun
from jacli.device.precision import precisions_of
from jacli.errors import MethodError
from jacli.methods import fill
from jacli.methods.filling import slabs
from jacli.network import (
    CutLinearized,
    CutNetwork,
    Linearized,
    LinearProgram,
    TensorNetwork,
    any_cut,
    exact_arithmetic,
    frozen_twin,
    trace_network,
)
from jacli.options.methods import AUTOGRAD_METHODS, CHAIN, METHOD_NAMES, METHODS, PROGRAM_METHODS, Method
from jacli.plans.request import Request
from jacli.run.request import WantedOutputs
from jacli.verify.tolerances import PASSES
from tests.cases import CASES, build
from tests.clauses import broken
from tests.reference import reference_jacobian
from tests.work import TracedOnce, Work


@pytest.fixture(autouse=True)
def exact():
    with exact_arithmetic():
        yield


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


DEVICE = os.environ.get("JACLI_TEST_DEVICE", "cpu")

SERVED = [
    (name, method)
    for name in CASES
    for method in METHOD_NAMES
    if not (method == "factored" and name == "linear")
    and not (DEVICE == "cuda" and name == "lstm" and method in ("forward", "tangent"))
    and not (method in (*PROGRAM_METHODS, "factored") and name.startswith("stateful"))
]
"""A network of one layer has no place to cut it, and one that keeps state cannot be traced.  CUDA's fused
recurrent cells have no forward mode in torch."""


def linearized(name, method, device):
    """A case's linearisation in float64; cut at its narrowest place for ``factored``."""
    module, x, case = build(name, torch.float64, device)
    network = TensorNetwork.of_module(
        frozen_twin(module),
        select=case.select,
        copy_each_call=name.startswith("stateful"),
        squeezes_batch_of_one=True,
    )
    if method not in (*PROGRAM_METHODS, "factored"):
        return Linearized(network, x, {})
    traced = trace_network(network, x, {})
    if method in PROGRAM_METHODS:
        return Linearized(network, x, {}, program=LinearProgram(traced.graph, names=traced.extra))
    return CutLinearized(network, x, {}, cut_network=CutNetwork(traced, any_cut(traced)))


def selected(module, case):
    """The module as a function that gives the selected output of a fresh copy, for the reference."""

    def run(x):
        output = copy.deepcopy(module)(x)
        return output if case.select is None else output[int(case.select)]

    return run


def relative(a, b):
    assert a.shape == b.shape
    return float((a.double() - b.double()).norm() / b.double().norm())


@cache
def reference(name, device):
    module, x, case = build(name, torch.float64, device)
    return reference_jacobian(selected(module, case), x)


@cache
def reference_of_five(name, device):
    """Five points, and their Jacobians."""
    module, _, case = build(name, torch.float64, device)
    x = torch.randn(5, *case.shape, generator=torch.Generator().manual_seed(5)).to(device)
    return x, reference_jacobian(selected(module, case), x.double())


@cache
def problem(name, dtype, device, *, alone=False):
    """A case as a problem, probed and traced once for all methods; ``alone`` for batches of one sample."""
    module, x, case = build(name, dtype, device)
    request, which = Request(batch_size=1 if alone else None), WantedOutputs(select=case.select)
    return TracedOnce.of(InMemoryRun(module, x, request, which, {}, (), dtype=None, labels=None).problem)


def jacobian(name, dtype, device, **options):
    """``(batch, n_in, n_out)`` by the engine, with the plan that `choose` makes of the options."""
    work = Work(
        Request(**options, search_share=10.0),
        problem(name, dtype, device, alone=options.get("batch_size") == 1),
    )
    return work.matrices().mT


@cache
def wrapped(name, kind, device):
    """A case as TorchScript, one module for all methods."""
    module, x, _ = build(name, torch.float32, device)
    return kind(module, x)


@cache
def jacobian_in(name, method, dtype, precision, device):
    """With the sizes that jacli chooses."""
    return jacobian(name, dtype, device, method=method, precision=precision)


def reduced_precisions(device):
    """Those of this device beside its exact arithmetic."""
    return [precision for precision in precisions_of(device, torch.float32) if precision != "ieee"]


def equals_the_reference(name, method, device):
    for dtype, tolerance in TOLERANCE.items():
        found = jacobian_in(name, method, dtype, "ieee", device)
        assert relative(found, reference(name, device)) < tolerance, dtype


def same_for_every_chunk_and_batch_size(name, method, device):
    expected = reference(name, device)
    for batch_size, chunk_size in ((1, 1), (1, 3), (2, 2), (len(expected), 100)):
        if method == "loop":
            chunk_size = None
        found = jacobian(
            name, torch.float64, device, method=method, batch_size=batch_size, chunk_size=chunk_size
        )
        assert relative(found, expected) < 1e-10, (batch_size, chunk_size)


def equals_the_reference_in_every_precision(name, method, device):
    """Whatever the chunk and batch size, on four calls; and it is not the exact arithmetic in disguise."""
    expected = reference(name, device)
    exact = jacobian_in(name, method, torch.float32, "ieee", device)
    for precision in reduced_precisions(device):
        found = jacobian_in(name, method, torch.float32, precision, device)
        assert relative(found, expected) < PASSES[precision], precision
        for batch_size, chunk_size in ((1, 3), (2, 2), (len(expected), 100)):
            found = jacobian(
                name,
                torch.float32,
                device,
                method=method,
                precision=precision,
                batch_size=batch_size,
                chunk_size=chunk_size,
            )
            assert relative(found, expected) < PASSES[precision], (precision, batch_size, chunk_size)
        # Matrices of a few numbers have no kernel of tensor cores: TF32 is then the exact arithmetic.
        in_disguise = device.type == "cpu" and name != "dead_gradient" and torch.equal(found, exact)
        assert not in_disguise, precision


def every_entry_comes_exactly_once_in_every_precision(name, method, device):
    """Each row and column is its own unit vector's, not only close in the mean."""
    expected = reference(name, device)
    largest = expected.double().flatten(1).norm(dim=1).clamp(min=1e-30)
    for precision in reduced_precisions(device):
        found = jacobian_in(name, method, torch.float32, precision, device)
        gap = (found.double() - expected).norm(dim=1).amax(1)
        assert (gap <= PASSES[precision] * largest).all(), precision


def a_last_batch_that_is_not_full(name, method, device):
    """Five samples in batches of two, in float32; each sample's Jacobian is its own, whatever its batch."""
    module, _, case = build(name, torch.float32, device)
    x, expected = reference_of_five(name, device)
    found = jacli.jacobian(module, x, select=case.select, method=method, batch_size=2)
    assert relative(found.reshape(expected.shape), expected) < TOLERANCE[torch.float32]


def scripted(module, x):
    return torch.jit.script(module)


def traced(module, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # nn.LSTM checks its input's size
        return torch.jit.trace(module, x, check_trace=False)


def torchscript_four_calls_in_a_row(name, method, device):
    """TorchScript keeps no Python attribute; tracing fixes state and squeeze()."""
    kinds = [] if name == "stateful" else [scripted, traced] if CASES[name].exportable else [scripted]
    for kind in kinds:
        _, x, case = build(name, torch.float32, device)
        module, expected = wrapped(name, kind, device), reference(name, device)
        for call in range(4):
            found = jacli.jacobian(module, x, select=case.select, method=method)
            assert relative(found.reshape(expected.shape), expected) < 1e-4, (kind.__name__, call)


def every_entry_comes_exactly_once(name, method, device):
    linearization = linearized(name, method, device)
    count = torch.zeros(linearization.n_out, linearization.n_in, dtype=torch.int)
    for slab in slabs(METHODS[method], linearization, chunk_size=3):
        assert slab.values.shape == (linearization.batch, len(slab.outputs), len(slab.inputs))
        count[slab.outputs.start : slab.outputs.stop, slab.inputs.start : slab.inputs.stop] += 1
    assert (count == 1).all()


CONTRACT = [
    equals_the_reference,
    same_for_every_chunk_and_batch_size,
    a_last_batch_that_is_not_full,
    torchscript_four_calls_in_a_row,
]
CONTRACT_IN_EVERY_PRECISION = [
    equals_the_reference_in_every_precision,
    every_entry_comes_exactly_once_in_every_precision,
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "method"), SERVED)
def test_the_contract_holds(name, method, device):
    """Clause by clause; all that do not hold are named."""
    contract = [*CONTRACT]
    contract += [] if method == CHAIN else [every_entry_comes_exactly_once]
    contract += [] if method in AUTOGRAD_METHODS else CONTRACT_IN_EVERY_PRECISION
    failures = [broken(clause, name, method, device) for clause in contract]
    assert not any(failures), "\n".join(filter(None, failures))


@pytest.mark.parametrize("method", METHODS)
def test_passes_are_what_is_run(method, device):
    linearization = linearized("residual", method, device)
    pieces = list(slabs(METHODS[method], linearization, chunk_size=4))
    sizes = {"n_in": linearization.n_in, "n_out": linearization.n_out}
    assert len(pieces) == METHODS[method].passes(**sizes, chunk_size=4)


@pytest.mark.parametrize("name", ["linear", "stateful", "stateful_buffer"])
def test_factored_is_refused_by_name_where_there_is_no_cut(name, device):
    module, x, _ = build(name, torch.float64, device)
    with pytest.raises(MethodError, match="factored") as refused:
        jacli.jacobian(module, x, method="factored")
    assert ("no place to cut" if name == "linear" else "keeps state") in str(refused.value)


def test_a_missing_rule_is_refused_by_name(device):
    class NoForwardRule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    class Square(nn.Module):
        def forward(self, x):
            return NoForwardRule.apply(x)

    x = torch.randn(2, 5, device=device)
    with pytest.raises(MethodError, match="forward"):
        jacli.jacobian(Square(), x, method="forward")
    with pytest.raises(MethodError, match="vmap"):
        jacli.jacobian(Square(), x, method="vmap")
    assert torch.allclose(jacli.jacobian(Square(), x).diagonal(dim1=1, dim2=2), 2 * x)


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("module", [nn.Identity(), nn.Flatten(), nn.Dropout()], ids=repr)
def test_an_output_in_the_memory_of_the_input(module, method, device):
    """Autograd hands the very cotangents back there, which a method may write to afterwards."""
    x = torch.randn(2, 3, 4, device=device)
    found = jacli.jacobian(module, x, method=method).reshape(2, 12, 12)
    assert torch.equal(found, torch.eye(12, device=device).expand(2, -1, -1))


def test_fill_reports_memory():
    class Failing:
        batch, n_out, n_in, dtype, device = 1, 2, 3, torch.float32, torch.device("cpu")

        def batched(self):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    with pytest.raises(MemoryError):
        fill(Method("x", "batched"), Failing(), chunk_size=1)
