"""Linear programs beyond single operators: links of cut networks, and outputs that are constant."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import jacli
from jacli.linear_program import LinearProgram
from jacli.linear_program.graph import NotTraceableError
from jacli.network import CutNetwork, TensorNetwork, any_cut, exact_arithmetic, frozen_twin, trace_network
from tests.linear_program.contract import error, plain_jacobian, pulled, pushed, vectors
from tests.narrow import NARROW


@pytest.fixture(autouse=True)
def exact():
    with exact_arithmetic():
        yield


def check(found, expected):
    u = vectors(3, found.batch, found.n_out, found.outputs)
    v = vectors(3, found.batch, found.n_in, found.outputs)
    assert error(found.vjp(u), pulled(expected, u)) <= 1e-12
    assert error(found.jvp(v), pushed(expected, v)) <= 1e-12


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("name", NARROW)
def test_pieces_of_a_cut_network(name, batch):
    """Each link with the constants that cross its cut: masks, indices, detached values."""
    module, shape, *_ = NARROW[name]
    network = TensorNetwork.of_module(frozen_twin(module).double())
    x = torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
    traced = trace_network(network, x, {})
    cut = CutNetwork(traced, any_cut(traced))
    values = cut.values(x, {})
    for first, last in ((0, 1), (1, 2), (0, 2)):
        span, point = cut.span(first, last), cut.point(first, x, values)
        constants = cut.constants(first, last, values)
        expected = plain_jacobian(lambda z, span=span, constants=constants: span(z, constants), point)
        found = LinearProgram(span.module).linearize(point, [constants[name] for name in span.constants])
        assert torch.equal(found.outputs, span(point, constants))
        check(found, expected)


class Detached(nn.Module):
    def forward(self, x):
        return torch.sin(x.detach())


def test_an_output_that_does_not_move_has_a_jacobian_of_zeros():
    x = torch.randn(2, 5)
    network = TensorNetwork.of_module(Detached())
    found = LinearProgram(trace_network(network, x, {}).graph).linearize(x)
    assert torch.equal(found.outputs, torch.sin(x))
    assert torch.equal(found.vjp(torch.ones(3, 2, 5)), torch.zeros(3, 2, 5))
    assert torch.equal(found.jvp(torch.ones(3, 2, 5)), torch.zeros(3, 2, 5))


def test_more_vectors_than_one_chunk_and_fewer_after():
    """Chunks of different sizes in turn: nothing cached for one size is used for another."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 7)
    )
    network = TensorNetwork.of_module(frozen_twin(module).double())
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    expected = plain_jacobian(lambda z: network(z, {}), x)
    found = LinearProgram(trace_network(network, x, {}).graph).linearize(x)
    for count in (8, 3, 8, 1, 16):
        u, v = vectors(count, 2, found.n_out, x), vectors(count, 2, found.n_in, x)
        assert error(found.vjp(u), pulled(expected, u)) <= 1e-12
        assert error(found.jvp(v), pushed(expected, v)) <= 1e-12


def test_an_earlier_answer_is_not_written_over_by_a_later_one():
    network = TensorNetwork.of_module(nn.Sequential(nn.ReLU(), nn.ReLU()))
    x = torch.randn(2, 5)
    found = LinearProgram(trace_network(network, x, {}).graph).linearize(x)
    u = torch.randn(3, 2, 5)
    first = found.vjp(u)
    kept = first.clone()
    found.vjp(torch.randn(3, 2, 5))
    found.jvp(u)
    assert torch.equal(first, kept)


def test_the_answer_is_the_callers_own_to_write_to():
    network = TensorNetwork.of_module(nn.ReLU())
    x, u = torch.randn(2, 5), torch.randn(3, 2, 5)
    found = LinearProgram(trace_network(network, x, {}).graph).linearize(x)
    first = found.vjp(u)
    kept = first.clone()
    first += 1
    assert torch.equal(found.vjp(u), kept)


@pytest.mark.parametrize(
    "shut",
    [torch.relu, lambda x: x.clamp(min=0), lambda x: torch.where(x > 0, x, 0.0)],
    ids=["relu", "clamp", "where"],
)
@pytest.mark.parametrize("steep", [torch.sqrt, torch.log, lambda x: 1 / x], ids=["sqrt", "log", "reciprocal"])
def test_an_infinite_slope_is_left_to_plain_passes(shut, steep):
    """Autograd never multiplies a masked infinite slope; times the mask's zero it would be NaN."""

    class Steep(nn.Module):
        def forward(self, x):
            return steep(shut(x).flatten(1))

    x = torch.tensor([[-1.0, 2.0, -3.0], [4.0, -0.5, 0.25]])
    network = TensorNetwork.of_module(Steep())
    program = LinearProgram(trace_network(network, x, {}).graph)
    with pytest.raises(NotTraceableError, match="not finite"):
        program.linearize(x)
    rows = plain_jacobian(lambda z: network(z, {}), x)
    assert bool(rows.isfinite().all()) and torch.equal(jacli.jacobian(Steep(), x).mT, rows)
    above = x.abs() + 0.1
    rows = plain_jacobian(lambda z: network(z, {}), above)
    u = torch.eye(3)[:, None].expand(3, 2, 3)
    assert torch.allclose(program.linearize(above).vjp(u).movedim(0, 1), rows)


def test_complex_numbers_on_the_way_are_refused():
    """They depend on the input, but no vector passes through them."""

    class Spectrum(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x).abs()

    x = torch.randn(2, 7, dtype=torch.float64)
    traced = trace_network(TensorNetwork.of_module(Spectrum()), x, {})
    with pytest.raises(NotTraceableError, match=r"fft_r2c|fft_rfft"):
        LinearProgram(traced.graph).linearize(x)
    # By plain passes it is served.
    rows = torch.autograd.functional.jacobian(lambda z: torch.fft.rfft(z).abs(), x[:1])[0, :, 0]
    assert torch.allclose(jacli.jacobian(Spectrum(), x)[0].mT, rows)
