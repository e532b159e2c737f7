"""One contract for every primitive of a linearisation, alone and with selected outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from jacli.errors import MethodError
from jacli.linear_maps import LinearMap
from jacli.network import (
    Linearized,
    LinearProgram,
    TensorNetwork,
    exact_arithmetic,
    frozen_twin,
    trace_network,
)
from tests.reference import reference_jacobian

PRIMITIVES: dict[str, Callable[[Linearized], LinearMap]] = {
    "tape": lambda linearization: linearization.tape(),
    "tape over copies": lambda linearization: linearization.tape(copies=2),
    "batched": lambda linearization: linearization.batched(),
    "program": lambda linearization: linearization.program(),
}
NETWORKS = {
    "smooth": lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), nn.Softplus()),
    "images": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.GELU(), nn.MaxPool2d(2), nn.Flatten()),
    "a constant": lambda: _Constant(),
    "a squeezed sample": lambda: _Squeezed(),
}
SELECTED = {"all outputs": None, "selected": [[2, 0, 2], [1, 3, 0], [3, 3, 3]]}


class _Constant(nn.Module):
    """Linear in some inputs, and of no use to the others: a second derivative of zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([3 * x[:, :3], torch.ones_like(x[:, :1])], 1)


class _Squeezed(nn.Module):
    """Drops the batch axis of a single sample."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)).squeeze()


@pytest.fixture(autouse=True)
def exact():
    with exact_arithmetic():
        yield


def linearized(name: str, batch: int, selected: list[list[int]] | None) -> tuple[Linearized, Tensor]:
    """A network at some points, and its Jacobians ``(b, o, i)``."""
    torch.manual_seed(0)
    module = NETWORKS[name]().double()
    shape = (2, 6, 6) if name == "images" else (5,)
    x = torch.randn(batch, *shape, dtype=torch.float64)
    network = TensorNetwork.of_module(frozen_twin(module), squeezes_batch_of_one=name == "a squeezed sample")
    traced = trace_network(network, x, {})
    index = None if selected is None else torch.tensor(selected)[:batch]
    expected = reference_jacobian(lambda points: network(points, {}), x).mT
    if index is not None:
        expected = expected[torch.arange(batch)[:, None], index]
    program = LinearProgram(traced.graph, names=traced.extra)
    return Linearized(network, x, {}, index, program=program), expected


def vectors(linear_map: LinearMap, k: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = linear_map.n_out, linear_map.n_in
    return tuple(  # type: ignore[return-value]
        torch.randn(k, linear_map.batch, n, generator=generator, dtype=linear_map.dtype) for n in sizes
    )


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


CONTRACT = pytest.mark.parametrize("selected", SELECTED)


@CONTRACT
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_products_are_those_of_the_jacobian(primitive, name, batch, selected):
    """Both products; so their adjoint identity holds as well: <u, J v> = <J'u, v>."""
    linearization, expected = linearized(name, batch, SELECTED[selected])
    with linearization:
        linear_map = PRIMITIVES[primitive](linearization)
        assert (linear_map.batch, linear_map.n_out, linear_map.n_in) == expected.shape
        u, v = vectors(linear_map)
        pulled, pushed = linear_map.vjp(u), linear_map.jvp(v)
    close(pulled, torch.einsum("kbo,boi->kbi", u, expected))
    close(pushed, torch.einsum("boi,kbi->kbo", expected, v))
    close((u * pushed).sum(2), (pulled * v).sum(2))


@CONTRACT
@pytest.mark.parametrize("samples", [slice(1, 3), torch.tensor([2, 0, 0, 1])], ids=["slice", "index"])
@pytest.mark.parametrize("name", ["smooth", "images"])
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_the_map_of_some_samples(primitive, name, samples, selected):
    linearization, expected = linearized(name, 3, SELECTED[selected])
    with linearization:
        some = PRIMITIVES[primitive](linearization).take(samples)
        u, v = vectors(some)
        close(some.vjp(u), torch.einsum("kbo,boi->kbi", u, expected[samples]))
        close(some.jvp(v), torch.einsum("boi,kbi->kbo", expected[samples], v))


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_a_map_ends_with_its_linearisation(primitive):
    """And so do those that were taken from it."""
    linearization, _ = linearized("smooth", 3, None)
    with linearization:
        linear_map = PRIMITIVES[primitive](linearization)
        some = linear_map.take(slice(2))
        u, v = vectors(linear_map)
        linear_map.vjp(u)
    for product, given in ((linear_map.vjp, u), (linear_map.jvp, v), (some.vjp, u[:, :2])):
        with pytest.raises(ValueError, match="closed"):
            product(given)
    assert linearization.outputs.shape == (3, 4)


def test_a_network_that_was_not_traced_has_no_program():
    network = TensorNetwork.of_module(frozen_twin(NETWORKS["smooth"]()))
    with (
        Linearized(network, torch.randn(2, 5), {}) as linearization,
        pytest.raises(MethodError, match="program") as refused,
    ):
        linearization.program()
    assert "not traced" in refused.value.why


class _Once(torch.autograd.Function):
    """A derivative of its own, which has none itself."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 3 * g * ctx.saved_tensors[0] ** 2


class _OnceDifferentiable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Once.apply(x)


def test_a_tape_without_a_second_derivative_has_no_jvp():
    """Its vjp serves all the same; the error names what is missing."""
    network = TensorNetwork.of_module(frozen_twin(_OnceDifferentiable()))
    x = torch.randn(2, 5)
    with Linearized(network, x, {}) as linearization:
        tape = linearization.tape()
        close(tape.vjp(torch.ones(1, 2, 5))[0], 3 * x**2)
        with pytest.raises(MethodError, match="jvp on a tape") as refused:
            tape.jvp(torch.ones(1, 2, 5))
    assert "differentiable" in refused.value.why
