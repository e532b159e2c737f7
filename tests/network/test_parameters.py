"""Which argument of ``forward`` the inputs are, and how arguments nest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from jacli.errors import UsageError
from jacli.network import TensorNetwork, input_parameter
from jacli.network.parameters import as_declared, nested


class TimeFirst(nn.Module):
    def forward(self, t: torch.Tensor, state: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        return gain * t * state


class ListOfStates(nn.Module):
    def forward(self, states: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return x + states[0] * states[1]


class Open(nn.Module):
    def forward(self, *args: Any, **named: Any) -> torch.Tensor:
        return args[0]


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize(
    ("given", "asked", "found"),
    [
        ((), None, None),
        (("gain",), None, None),
        (("t",), None, "state"),
        (("t", "gain"), None, "state"),
        (("state",), None, None),
        (("t", "state"), None, "gain"),
        ((), "state", "state"),
        (("t.0", "t.1"), None, "state"),
    ],
)
def test_the_inputs_are_the_first_argument_that_is_not_named(
    given: tuple[str, ...], asked: str | None, found: str | None, scripted: bool
) -> None:
    model = torch.jit.script(TimeFirst()) if scripted else TimeFirst()
    assert input_parameter(model, given, asked) == found


@pytest.mark.parametrize("model", [Open(), lambda *args: args[0], max], ids=["any", "lambda", "builtin"])
def test_a_signature_that_does_not_tell_takes_them_first(model: Any) -> None:
    assert input_parameter(model, ("t",)) is None


@pytest.mark.parametrize(
    ("given", "asked", "why"),
    [
        (("t", "state", "gain"), None, "name every one"),
        (("t",), "t", "names it as well"),
        ((), "stat", "are t, state, gain"),
        (("t.0",), "t", "names it as well"),
    ],
)
def test_inputs_without_an_argument(given: tuple[str, ...], asked: str | None, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        input_parameter(TimeFirst(), given, asked)


def test_nested_arguments() -> None:
    flat = {"state.1": "c", "state.0": "h", "batch.mask": 1, "batch.at.0": 2, "t": {"kept": "as it is"}}
    assert nested(flat) == {
        "state": ("h", "c"),
        "batch": {"mask": 1, "at": (2,)},
        "t": {"kept": "as it is"},
    }
    assert nested({"states.0": 1, "states.1": 2}, lists={"states"}) == {"states": [1, 2]}


@pytest.mark.parametrize(
    "flat", [{"a": 1, "a.0": 2}, {"a.0": 2, "a": 1}, {"a.0": 1, "a.2": 2}, {"a.1": 1}, {"a.b": 1, "a.b.c": 2}]
)
def test_nested_arguments_that_are_not_whole(flat: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        nested(flat)


def test_torchscript_gets_what_it_declares() -> None:
    """A tensor for a number, a list for parts: its calls convert neither."""
    timed = torch.jit.script(TimeFirst())
    given = as_declared(timed, {"t": 0.5, "gain": 2.0}, torch.float64)
    assert isinstance(given["t"], torch.Tensor) and given["gain"] == 2.0
    network = TensorNetwork.of_module(timed, arguments=given, input_arg="state")
    x = torch.ones(2, 3, dtype=torch.float64)
    assert torch.equal(network(x, {}), x)
    rows = {"states.0": x, "states.1": 2 * x}
    for model in (ListOfStates(), torch.jit.script(ListOfStates())):
        listed = TensorNetwork.of_module(model, input_arg="x")
        assert torch.equal(listed(x, rows), 3 * x)


def test_inputs_may_be_part_of_an_argument() -> None:
    class OfBatch(nn.Module):
        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return batch["image"] * batch["scale"]

    network = TensorNetwork.of_module(OfBatch(), input_arg=input_parameter(OfBatch(), (), "batch.image"))
    x = torch.ones(2, 3)
    assert torch.equal(network(x, {"batch.scale": 4 * x}), 4 * x)
