"""Programs of random networks: every rule beside every other."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, assume, given, settings

from jacli.linear_program import LinearProgram
from jacli.network import TensorNetwork, exact_arithmetic, frozen_twin, trace_network
from tests.linear_program.contract import error, plain_jacobian
from tests.linear_program.random_networks import Drawn, networks
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

WELL_CONDITIONED = 1e-6
"""Largest error of plain float32 passes against float64.  One network in fifty exceeds it: a mean over
the axis of a softmax is a constant, whose derivative is rounding alone."""


def both_ways(found):
    """The Jacobian by rows and by columns, ``(n_out, batch, n_in)`` each."""
    like = found.outputs
    rows = found.vjp(torch.eye(found.n_out).to(like)[:, None].expand(-1, found.batch, -1))
    columns = found.jvp(torch.eye(found.n_in).to(like)[:, None].expand(-1, found.batch, -1))
    return rows, columns.permute(2, 1, 0)


def network_of(case, dtype):
    return TensorNetwork.of_module(frozen_twin(case.network).to(dtype))


def program_of(network, x):
    return LinearProgram(trace_network(network, x, {}).graph)


def plain(network, x):
    """``(n_out, batch, n_in)`` in float64, by plain reverse passes of the network itself."""
    return plain_jacobian(lambda points: network(points, {}), x).transpose(0, 1).double()


@given(networks())
@drawn
def test_float64_is_the_double_loop(case: Drawn) -> None:
    """At the batch size of the trace and at one more."""
    with exact_arithmetic():
        network, x = network_of(case, torch.float64), case.x.double()
        expected = reference_jacobian(lambda points: network(points, {}), x).permute(2, 0, 1)
        assume(error(plain(network_of(case, torch.float32), case.x), expected) <= WELL_CONDITIONED)
        program = program_of(network, x)
        for batch in (x, torch.cat([x, x[:1]])):
            same = torch.arange(len(batch)) % len(x)
            for found in both_ways(program.linearize(batch)):
                assert error(found, expected[:, same]) <= 1e-10


@given(networks())
@drawn
def test_float32_and_bf16_are_the_networks_own_linearisation(case: Drawn) -> None:
    """Compared with plain float32 passes of the network itself: the same masks and argmaxes, kink or not."""
    with exact_arithmetic():
        network = network_of(case, torch.float32)
        expected, exact = plain(network, case.x), plain(network_of(case, torch.float64), case.x.double())
        assume(error(expected, exact) <= WELL_CONDITIONED)
        program = program_of(network, case.x)
        for precision, allowed in (("ieee", 1e-5), ("bf16", 0.06)):
            for found in both_ways(program.linearize(case.x, precision=precision)):
                assert error(found, expected) <= allowed, precision
