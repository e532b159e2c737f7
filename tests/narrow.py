"""A registry of small networks that are narrow somewhere, and where.

An entry is a module, the shape of a sample, the number of outputs, and width and name of every cut.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Model(nn.Module):
    """Layers by name and a function of them and the points."""

    def __init__(self, function, **layers) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def residual_around_a_narrow_middle(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    z = torch.tanh(m.narrow(y + torch.tanh(m.wide(y))))
    return m.top(z + torch.sin(m.side(z)))


def two_branches(m: nn.Module, x: Tensor) -> Tensor:
    y = m.stem(x)
    return m.top(torch.cat([torch.sin(m.left(y)), torch.tanh(m.right(y))], 1))


def two_branches_that_join_wide(m: nn.Module, x: Tensor) -> Tensor:
    """Wide again before they meet: the only narrow place is of two tensors side by side."""
    return m.top(torch.sin(m.up_left(m.left(x))) + torch.tanh(m.up_right(m.right(x))))


def masked_by_what_lies_above_the_cut(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    return torch.where(y > 0, m.top(torch.tanh(m.narrow(y))), torch.zeros(()))


def scaled_by_a_detached_value(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    return m.top(torch.tanh(m.narrow(y))) * y.detach()


def ordered_by_an_index(m: nn.Module, x: Tensor) -> Tensor:
    y = m.first(x)
    return torch.gather(m.top(torch.tanh(m.narrow(y))), 1, y.argsort(1))


LAYERS_9_12_3_12 = {"first": (9, 12), "narrow": (12, 3), "top": (3, 12)}


def dense(**sizes: tuple[int, int]) -> dict[str, nn.Linear]:
    return {name: nn.Linear(*size) for name, size in sizes.items()}


_random_state = torch.get_rng_state()
torch.manual_seed(0)


NARROW: dict[str, tuple[nn.Module, tuple[int, ...], int, list[tuple[int, str]]]] = {
    "linear 9-3-7": (nn.Sequential(nn.Linear(9, 3), nn.Linear(3, 7)), (9,), 7, [(3, "0")]),
    "the last of equally narrow ones": (
        nn.Sequential(nn.Linear(9, 3), nn.Tanh(), nn.Linear(3, 7)),
        (9,),
        7,
        [(3, "tanh after 0")],
    ),
    "autoencoder": (
        nn.Sequential(
            nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 4), nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 20)
        ),
        (20,),
        20,
        [(4, "2")],
    ),
    "residual blocks around a narrow middle": (
        Model(
            residual_around_a_narrow_middle,
            **dense(first=(9, 8), wide=(8, 8), narrow=(8, 3), side=(3, 3), top=(3, 7)),
        ),
        (9,),
        7,
        [(3, "narrow"), (3, "add after side")],  # with a layer between them, both are worth having
    ),
    "global pooling": (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 40)),
        (3, 8, 8),
        40,
        [(6, "flatten after 0")],
    ),
    "elements a sample, not channels": (
        nn.Sequential(nn.Conv2d(3, 2, 3, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 40)),
        (3, 9, 9),
        40,
        [(18, "flatten after 0")],
    ),
    "branches into a concatenation": (
        Model(two_branches, **dense(stem=(20, 15), left=(15, 3), right=(15, 4), top=(7, 30))),
        (20,),
        30,
        [(7, "cat after right")],
    ),
    "branches that join where they are wide": (
        Model(
            two_branches_that_join_wide,
            **dense(left=(20, 3), up_left=(3, 25), right=(20, 4), up_right=(4, 25), top=(25, 30)),
        ),
        (20,),
        30,
        [(7, "left + right")],
    ),
    "hourglass": (
        nn.Sequential(
            nn.Linear(20, 4),
            nn.Linear(4, 15),
            nn.Tanh(),
            nn.Linear(15, 16),
            nn.Linear(16, 4),
            nn.Linear(4, 18),
        ),
        (20,),
        18,
        [(4, "0"), (4, "4")],
    ),
    "hourglass of unequal waists": (
        nn.Sequential(nn.Linear(20, 5), nn.Linear(5, 15), nn.Tanh(), nn.Linear(15, 4), nn.Linear(4, 18)),
        (20,),
        18,
        [(5, "0"), (4, "3")],
    ),
    "three waists": (
        nn.Sequential(
            *(nn.Linear(20, 5), nn.Linear(5, 15), nn.Linear(15, 4), nn.Linear(4, 15)),
            *(nn.Linear(15, 6), nn.Linear(6, 30)),
        ),
        (20,),
        30,
        [(5, "0"), (4, "2"), (6, "4")],
    ),
    "a second waist that is too wide to help": (
        nn.Sequential(nn.Linear(20, 9), nn.Linear(9, 15), nn.Tanh(), nn.Linear(15, 4), nn.Linear(4, 18)),
        (20,),
        18,
        [(4, "3")],
    ),
    "a mask that crosses": (
        Model(masked_by_what_lies_above_the_cut, **dense(**LAYERS_9_12_3_12)),
        (9,),
        12,
        [(3, "tanh after narrow")],
    ),
    "a detached value that crosses": (
        Model(scaled_by_a_detached_value, **dense(**LAYERS_9_12_3_12)),
        (9,),
        12,
        [(3, "tanh after narrow")],
    ),
    "indices that cross": (
        Model(ordered_by_an_index, **dense(**LAYERS_9_12_3_12)),
        (9,),
        12,
        [(3, "tanh after narrow")],
    ),
    "batch axis moved": (
        Model(
            lambda m, x: m.top(torch.sin(m.narrow(x).transpose(0, 1)).transpose(0, 1).flatten(1)),
            **dense(narrow=(4, 1), top=(5, 30)),
        ),
        (5, 4),
        30,
        [(5, "flatten after narrow")],
    ),
}

torch.set_rng_state(_random_state)
