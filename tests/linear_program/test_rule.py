"""`jacli.linear_program.rule`: a rule is one function (or one line), and nothing else lists it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from jacli.linear_program import LinearProgram
from jacli.linear_program.call import Call
from jacli.linear_program.local_map import Diagonal, LocalMap, Multiple
from jacli.linear_program.rule import RULES, bilinear, elementwise, linear, rule
from jacli.network import TensorNetwork, exact_arithmetic, trace_network
from tests.linear_program.contract import error, plain_jacobian, pulled, pushed, vectors

BATCH, N_IN, N_OUT = 3, 4, 5


def register(name: str, schema: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An operator that torch differentiates by itself and that the trace keeps whole."""
    library = torch.library.Library("jacli_tests", "FRAGMENT")
    library.define(f"{name}{schema}")
    for key in ("CompositeExplicitAutograd", "Autograd"):
        library.impl(name, function, key)
    LIBRARIES.append(library)  # operators live as long as their library
    return getattr(torch.ops.jacli_tests, name).default


LIBRARIES: list[torch.library.Library] = []
cubed = register("cubed", "(Tensor self) -> Tensor", lambda x: x * x * x)
tripled = register("tripled", "(Tensor self) -> Tensor", lambda x: x + x + x)
halved_product = register("halved_product", "(Tensor a, Tensor b) -> Tensor", lambda a, b: a * b / 2)


@contextmanager
def registered(*operators: str) -> Iterator[None]:
    """Rules of these operators for the length of a test."""
    try:
        yield
    finally:
        for name in operators:
            RULES.pop(name, None)


class Between(nn.Module):
    """A function of two values that both depend on the input, between two layers."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(N_IN, 6), nn.Linear(6, N_OUT)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(self.function(y, torch.tanh(y)))


def check(function: Callable[[Tensor, Tensor], Tensor]) -> LinearProgram:
    """Both directions of the network with this function are those of plain reverse passes."""
    torch.manual_seed(0)
    module = Between(function).double().eval().requires_grad_(False)
    x = torch.randn(BATCH, N_IN, dtype=torch.float64)
    network = TensorNetwork.of_module(module)
    with exact_arithmetic():
        program = LinearProgram(trace_network(network, x, {}).graph)
        found, expected = program.linearize(x), plain_jacobian(module, x)
        u, v = vectors(4, BATCH, N_OUT, x), vectors(4, BATCH, N_IN, x)
        assert error(found.vjp(u), pulled(expected, u)) <= 1e-12
        assert error(found.jvp(v), pushed(expected, v)) <= 1e-12
    return program


def test_an_operator_without_a_rule_is_differentiated_by_autograd() -> None:
    assert check(lambda y, _: cubed(y)).without_rule == {"cubed": 1}


def test_a_new_rule_is_one_function() -> None:
    with registered("cubed"):

        @rule("cubed")
        def _(call: Call) -> None:
            """``y = x³;  dy = 3 x² dx``."""
            call.edge("self", Diagonal(3 * call["self"] ** 2))

        assert check(lambda y, _: cubed(y)).without_rule == {}


def test_a_new_elementwise_rule_is_one_line() -> None:
    with registered("cubed"):
        elementwise("cubed", slope=lambda call: 3 * call["self"] ** 2)
        assert check(lambda y, _: cubed(y)).without_rule == {}


def test_a_new_linear_rule_returns_its_maps() -> None:
    with registered("tripled"):

        @linear("tripled")
        def _(call: Call) -> Sequence[LocalMap]:
            return [Multiple(3.0)]

        assert check(lambda y, _: tripled(y)).without_rule == {}


def test_a_new_bilinear_rule_is_one_line() -> None:
    def times(call: Call, operand: str, other: str) -> Sequence[LocalMap]:
        return [Diagonal(call[other]), Multiple(0.5)]

    with registered("halved_product"):
        bilinear("halved_product", a="a", b="b", times_b=times, times_a=times)
        assert check(halved_product).without_rule == {}


def test_a_wrong_rule_gives_wrong_numbers() -> None:
    """So these tests do run through the rule."""
    with registered("cubed"):
        elementwise("cubed", slope=lambda call: 2 * call["self"] ** 2)
        with pytest.raises(AssertionError):
            check(lambda y, _: cubed(y))


def test_two_rules_for_one_operator_are_refused() -> None:
    before = dict(RULES)
    with pytest.raises(ValueError, match="conv2d has two rules"):
        rule("conv2d")(lambda call: None)
    assert before == RULES
