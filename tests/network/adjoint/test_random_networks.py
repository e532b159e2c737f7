"""Programs of random networks: every rule beside every other."""

from __future__ import annotations

import copy

import torch
from hypothesis import HealthCheck, given, settings

from jacli.network import TensorNetwork, exact_arithmetic, frozen_twin, trace_network
from jacli.network.adjoint import Program
from tests.network.adjoint.contract import error, plain_jacobian
from tests.network.adjoint.random_networks import Drawn, networks
from tests.reference import reference_jacobian

drawn = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    # Drawing a network builds it; and a failing one is small enough as it is drawn.
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)


def both_ways(found):
    """The Jacobian out of rows and out of columns, ``(n_out, batch, n_in)`` each."""
    like = found.outputs
    rows = found.vjp(torch.eye(found.n_out).to(like)[:, None].expand(-1, found.batch, -1))
    columns = found.jvp(torch.eye(found.n_in).to(like)[:, None].expand(-1, found.batch, -1))
    return rows, columns.permute(2, 1, 0)


def program_of(module, x):
    network = TensorNetwork.of_module(frozen_twin(module))
    return network, Program(trace_network(network, x, {}).graph)


@given(networks())
@drawn
def test_float64_is_the_double_loop(case: Drawn) -> None:
    """At the batch size drawn and at one more."""
    with exact_arithmetic():
        module = copy.deepcopy(case.network).double()
        network, program = program_of(module, case.x.double())
        for x in (case.x.double(), torch.cat([case.x, case.x[:1]]).double()):
            expected = reference_jacobian(lambda points: network(points, {}), x).permute(2, 0, 1)
            for found in both_ways(program.linearize(x)):
                assert error(found, expected) <= 1e-10


@given(networks())
@drawn
def test_float32_and_bf16_are_the_networks_own_linearisation(case: Drawn) -> None:
    """Held against plain float32 pulls of the network itself: the same masks and winners, kink or not."""
    with exact_arithmetic():
        network, program = program_of(case.network, case.x)
        expected = plain_jacobian(lambda points: network(points, {}), case.x).transpose(0, 1).double()
        for precision, allowed in (("ieee", 1e-4), ("bf16", 0.05)):
            for found in both_ways(program.linearize(case.x, precision=precision)):
                assert error(found, expected) <= allowed, precision
