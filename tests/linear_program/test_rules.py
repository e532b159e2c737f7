"""The contract of every rule: OPERATORS x precisions, against the plain pullback of the module itself."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from torch import fx

from jacli.linear_program.call import Call
from jacli.linear_program.graph import operator_name
from jacli.linear_program.rules import RULES, find_rule
from jacli.network import NotTraceableError, exact_arithmetic
from tests.clauses import broken
from tests.linear_program.contract import (
    ARITHMETICS,
    BATCHES,
    at,
    below_autograd,
    error,
    jacobian,
    network,
    program,
    pulled,
    pushed,
    repeats,
    vectors,
)
from tests.linear_program.operators import AS_TRACED, BATCH, OPERATORS

A_FEW = [
    "conv2d 3x3 padded",
    "linear",
    "residual block",
    "window attention",
    "small convolutional network",
    "decoder",
    "written through a view",
    "long short-term memory by cells",
]

NOT_FUNCTIONAL = [
    *("conv2d padding around", "pad around", "cosine similarity", "root mean square norm"),
    *(
        "recurrent layer",
        "long short-term memory",
        "gated recurrent units",
        "long short-term memory by cells",
    ),
]
"""Torch cannot functionalise these below autograd: such a network is not traced."""


ELSEWHERE = {
    *("_to_copy", "_reshape_alias", "alias"),  # inside of operators, where a graph shows none
    *("cudnn_batch_norm", "_native_batch_norm_legit_no_training"),  # of CUDA, and of exported programs
}
"""Operators with a rule that no case reaches."""


on_a_cpu = pytest.mark.skipif(
    os.environ.get("JACLI_TEST_DEVICE", "cpu") != "cpu", reason="CUDA's recurrent layers are other operators"
)

NO_FORWARD_MODE_ON_CUDA = (
    "long short-term memory",
    "gated recurrent units",
    "long short-term memory by cells",
)
"""Torch has no forward mode for their fused cells."""


@pytest.fixture(autouse=True)
def exact():
    with exact_arithmetic():
        yield


def linearized(name, arithmetic, device, batch=BATCH):
    x = at(name, batch, arithmetic.dtype, device)
    return program(name, arithmetic.dtype, device).linearize(x, precision=arithmetic.precision)


def rows_are_those_of_the_plain_pullback(name, arithmetic, device):
    """One, three and more than n_out cotangents at a time, each twice; the caller's vectors are unchanged."""
    found, expected = linearized(name, arithmetic, device), jacobian(name, BATCH, device)
    for count in (1, 3, found.n_out + 2):
        u = vectors(count, BATCH, found.n_out, found.outputs)
        given = u.clone()
        rows = found.vjp(u)
        assert rows.dtype == arithmetic.dtype
        assert error(rows, pulled(expected, u)) <= arithmetic.tolerance, count
        assert torch.equal(u, given)
        assert repeats(found.vjp(u), rows, arithmetic.tolerance)


def columns_are_those_of_the_plain_pullback(name, arithmetic, device):
    """One, three and more than n_in tangents at a time, each twice; the caller's vectors are unchanged."""
    found, expected = linearized(name, arithmetic, device), jacobian(name, BATCH, device)
    for count in (1, 3, found.n_in + 2):
        v = vectors(count, BATCH, found.n_in, found.outputs)
        given = v.clone()
        columns = found.jvp(v)
        assert columns.dtype == arithmetic.dtype
        assert error(columns, pushed(expected, v)) <= arithmetic.tolerance, count
        assert torch.equal(v, given)
        assert repeats(found.jvp(v), columns, arithmetic.tolerance)


def outputs_are_the_modules_own(name, arithmetic, device):
    """Bit for bit, at every batch size; other attention kernels round differently."""
    dtype = arithmetic.dtype
    for batch in BATCHES:
        x = at(name, batch, dtype, device)
        found = program(name, dtype, device).linearize(x).outputs
        own = network(name, dtype, device)(x, {})
        assert found.shape == own.shape and found.dtype == own.dtype
        if OPERATORS[name].outputs:
            allowed = OPERATORS[name].outputs if device.type == "cpu" else 1e-5
            assert error(found[None], own[None].double()) <= allowed
        else:
            assert repeats(found, own), batch


def one_program_serves_every_batch_size(name, arithmetic, device):
    """Linearisations of one program coexist: another batch does not change the first."""
    first = linearized(name, arithmetic, device)
    u = vectors(3, BATCH, first.n_out, first.outputs)
    rows, points = first.vjp(u), at(name, BATCH, torch.float64, device)
    for batch in set(BATCHES) - {BATCH}:
        found, expected = linearized(name, arithmetic, device, batch), jacobian(name, batch, device)
        assert (found.batch, found.n_out, found.n_in) == (batch, first.n_out, first.n_in)
        cotangents = vectors(3, batch, found.n_out, found.outputs)
        tangents = vectors(3, batch, found.n_in, found.outputs)
        assert error(found.vjp(cotangents), pulled(expected, cotangents)) <= 1e-12, batch
        assert error(found.jvp(tangents), pushed(expected, tangents)) <= 1e-12, batch
    assert repeats(first.vjp(u), rows)
    assert torch.equal(at(name, BATCH, torch.float64, device), points)


def adjoint_identity(name, arithmetic, device):
    """<u, J v> = <J' u, v>, in turns: neither direction disturbs the other."""
    found = linearized(name, arithmetic, device)
    for count in (1, 4):
        u = vectors(count, BATCH, found.n_out, found.outputs)
        v = vectors(count, BATCH, found.n_in, found.outputs)
        columns, rows = found.jvp(v), found.vjp(u)
        scale = u.norm(dim=2) * columns.norm(dim=2) + rows.norm(dim=2) * v.norm(dim=2)
        assert (((u * columns).sum(2) - (rows * v).sum(2)).abs() <= 1e-12 * scale).all()


def vectors_that_share_memory_are_served(name, arithmetic, device):
    """Cotangents expanded over the samples, and tangents stored transposed."""
    found, expected = linearized(name, arithmetic, device), jacobian(name, BATCH, device)
    spread = torch.eye(found.n_out).to(found.outputs)[:, None].expand(-1, BATCH, -1)
    turned = torch.eye(found.n_in).to(found.outputs)[:, :, None].expand(-1, -1, BATCH).mT
    assert error(found.vjp(spread), expected.transpose(0, 1)) <= 1e-12
    assert error(found.jvp(turned), expected.permute(2, 0, 1)) <= 1e-12
    assert torch.equal(spread[:, 1], torch.eye(found.n_out).to(spread))


def what_torch_has_no_forward_mode_of_is_not_pushed_through(name, arithmetic, device):
    found = linearized(name, arithmetic, device)
    with pytest.raises(NotImplementedError, match="forward AD"):
        found.jvp(vectors(1, BATCH, found.n_in, found.outputs))


def a_rule_that_is_there_is_used(name, arithmetic, device):
    """Exactly the operators listed in `AS_TRACED` are differentiated by autograd."""
    expected = {operator for operator, cases in AS_TRACED.items() if name in cases}
    linearized(name, arithmetic, device)
    assert set(program(name, arithmetic.dtype, device).without_rule) == expected


IN_EVERY_ARITHMETIC = ("float64", "float32", "bf16")
CONTRACT = {
    rows_are_those_of_the_plain_pullback: IN_EVERY_ARITHMETIC,
    outputs_are_the_modules_own: ("float64", "float32"),
    a_rule_that_is_there_is_used: ("float32", "bf16"),
}
"""Clauses for every operator, each with its arithmetics."""

CONTRACT_BOTH_WAYS = {
    **CONTRACT,
    columns_are_those_of_the_plain_pullback: IN_EVERY_ARITHMETIC,
    one_program_serves_every_batch_size: ("float64",),
    adjoint_identity: ("float64",),
    vectors_that_share_memory_are_served: ("float64",),
}
CONTRACT_OF_REVERSE_MODE = {**CONTRACT, what_torch_has_no_forward_mode_of_is_not_pushed_through: ("float64",)}


def clauses_of(name, device):
    """The contract of an operator: clauses, each with its arithmetics."""
    clauses = dict(CONTRACT_BOTH_WAYS if OPERATORS[name].forward else CONTRACT_OF_REVERSE_MODE)
    if device.type == "cuda" and name in NO_FORWARD_MODE_ON_CUDA:
        del clauses[columns_are_those_of_the_plain_pullback]
    return clauses


@pytest.mark.parametrize("name", OPERATORS)
def test_the_contract_holds(name, device):
    """Clause by clause; the failure names every broken clause with its arithmetic."""
    failures = [
        broken(clause, name, ARITHMETICS[arithmetic], device)
        for clause, arithmetics in clauses_of(name, device).items()
        for arithmetic in arithmetics
    ]
    assert not any(failures), "\n".join(filter(None, failures))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in OPERATORS if name not in NOT_FUNCTIONAL])
def test_the_same_below_autograd(name, device):
    """After an in-place write the graph has different operators, with their own rules."""
    case, x = OPERATORS[name], at(name, BATCH, torch.float64, device)
    found, expected = below_autograd(name, device).linearize(x), jacobian(name, BATCH, device)
    own = network(name, torch.float64, device)(x, {})
    assert error(found.outputs[None], own[None]) <= (1e-14 if case.outputs else 0)
    u = vectors(found.n_out + 2, BATCH, found.n_out, x)
    assert error(found.vjp(u), pulled(expected, u)) <= 1e-12
    if case.forward:
        v = vectors(found.n_in + 2, BATCH, found.n_in, x)
        assert error(found.jvp(v), pushed(expected, v)) <= 1e-12


@on_a_cpu
@pytest.mark.parametrize("name", NOT_FUNCTIONAL)
def test_what_cannot_be_traced_below_autograd_is_refused(name, device):
    with pytest.raises(NotTraceableError, match="cannot be undone"):
        below_autograd(name, device)


@pytest.mark.slow
def test_every_operator_that_has_a_rule_is_in_the_contract(device):
    """Above autograd or below it."""
    programs = [program(name, torch.float64, device) for name in OPERATORS]
    programs += [below_autograd(name, device) for name in OPERATORS if name not in NOT_FUNCTIONAL]
    met = {
        operator_name(node)
        for one in programs
        for node in one.graph.graph.nodes
        if node.op == "call_function"
    }
    assert set(RULES) - met == ELSEWHERE


def test_the_batch_norm_of_cudnn_is_the_same_scale():
    """It does not run on a CPU, and its arguments have different names."""
    graph, weight, bias, mean, var = fx.Graph(), *torch.rand(4, 3)
    names = [graph.placeholder("x"), *map(graph.get_attr, ("weight", "bias", "mean", "var"))]
    node = graph.call_function(torch.ops.aten.cudnn_batch_norm.default, (*names, False, 0.1, 0.01))
    call = Call(
        node=node,
        target=node,
        args=(x := torch.randn(2, 3, 5, 4), weight, bias, mean, var, False, 0.1, 0.01),
        kwargs={},
        out=torch.nn.functional.batch_norm(x, mean, var, weight, bias, eps=0.01),
        results=None,
        item=0,
        live={names[0]},
        constant=set(names[1:]),
        settings=SimpleNamespace(dtype=torch.float32),
    )
    find_rule(node)(call)
    ((scale,),) = [edge.maps for edge in call.edges]
    t = torch.randn(6, 2, 3, 5, 4)
    torch.testing.assert_close(
        scale.jvp(t, may_overwrite=False), t * (weight / (var + 0.01).sqrt())[:, None, None]
    )


@pytest.mark.parametrize("name", A_FEW)
def test_reduced_passes_of_float64_points(name, device):
    """The forward pass stays in float64, and the results are float64."""
    x = at(name, BATCH, torch.float64, device)
    found = program(name, torch.float64, device).linearize(x, precision="bf16")
    u = vectors(3, BATCH, found.n_out, x)
    rows = found.vjp(u)
    assert repeats(found.outputs, network(name, torch.float64, device)(x, {}))
    assert rows.dtype == torch.float64
    assert 1e-6 < error(rows, pulled(jacobian(name, BATCH, device), u)) <= 0.02


@pytest.mark.parametrize("name", A_FEW)
def test_tf32_is_float32_where_there_is_none(name, device):
    x = at(name, BATCH, torch.float32, device)
    found = program(name, torch.float32, device).linearize(x, precision="tf32")
    u = vectors(3, BATCH, found.n_out, x)
    allowed = 1e-5 if device.type == "cpu" else 5e-3
    assert error(found.vjp(u), pulled(jacobian(name, BATCH, device), u)) <= allowed
