"""Whether a module still is what a copy of it was made of."""

from __future__ import annotations

from collections import OrderedDict, deque
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from jacli.engine.same_module import equals_copy
from jacli.network import frozen_twin


class Holder(nn.Module):
    """A module that holds one thing, and itself by a method."""

    def __init__(self, held: object) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.held = held
        self.how = self.forward

    def forward(self, x):
        return self.layer(x)


class Plain:
    def __init__(self, number):
        self.number = number
        self.itself = self


class Slotted:
    __slots__ = ("number",)

    def __init__(self, number):
        self.number = number


def numbers(of):
    """What holds a number, and another one of it."""
    return of(2.0), of(3.0)


SEEN = {
    "number": numbers(float),
    "not a number": (float("nan"), 1.0),
    "text": ("a", "b"),
    "list": numbers(lambda n: [1, [n]]),
    "dictionary": numbers(lambda n: OrderedDict(a={"b": n})),
    "set": numbers(lambda n: {n}),
    "tensor": numbers(torch.tensor),
    "parameter in a tuple": numbers(lambda n: (nn.Parameter(torch.tensor(n)),)),
    "array": numbers(np.array),
    "scalar of numpy": numbers(np.float32),
    "object": numbers(Plain),
    "namespace": numbers(lambda n: SimpleNamespace(number=n)),
    "partial function": numbers(lambda n: partial(torch.add, alpha=n)),
    "function": (torch.sin, torch.cos),
    "type of number": (torch.float32, torch.float64),
    "one tensor, another": (torch.ones(2), torch.ones(2, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", SEEN)
def test_what_is_held_is_compared(name):
    held, other = SEEN[name]
    module = Holder(held).train()
    twin = frozen_twin(module)
    assert equals_copy(module, twin)
    module.held = other
    assert not equals_copy(module, twin)


def test_parameters_and_buffers_are_compared():
    module = nn.BatchNorm1d(3)
    twin = frozen_twin(module)
    module.running_mean.data[0] = 1
    assert not equals_copy(module, twin)


@pytest.mark.parametrize(
    "held",
    [
        Slotted(2.0),
        deque([2.0]),
        np.array([Plain(2.0)], dtype=object),
        torch.ones(2).to_sparse(),
    ],
    ids=lambda held: type(held).__name__,
)
def test_what_cannot_be_looked_into_is_not_taken_for_the_same(held):
    module = Holder(held)
    assert not equals_copy(module, frozen_twin(module))


def test_recurrent_layers_are_like_their_copies():
    module = nn.LSTM(3, 4, 2)
    assert equals_copy(module, frozen_twin(module))
