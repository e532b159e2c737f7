"""Known narrowest places: how wide, where, and that there is none where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from jacli.models.torchvision_import import import_torchvision
from jacli.network import (
    TensorNetwork,
    any_cut,
    exact_arithmetic,
    frozen_twin,
    trace_network,
    useful_cuts,
)
from jacli.network.cut import crossing_constants, differentiable_nodes, narrowest_of
from tests.cases import build


@pytest.fixture(autouse=True)
def exact():
    with exact_arithmetic():
        yield


def traced(module, *shape, dtype=torch.float32):
    network = TensorNetwork.of_module(frozen_twin(module))
    return trace_network(network, torch.randn(2, *shape, dtype=dtype), {})


def cuts_of(module, *shape, n_out):
    return useful_cuts(traced(module, *shape), n_out=n_out)


def widths(cuts):
    return [cut.width for cut in cuts]


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


def dense(**sizes):
    return {name: nn.Linear(*size) for name, size in sizes.items()}


NARROW = {
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
"""Module, shape of a sample, outputs, and every cut's width and name."""


@pytest.mark.parametrize("name", NARROW)
def test_the_narrow_places(name):
    module, shape, n_out, expected = NARROW[name]
    found = useful_cuts(traced(module, *shape), n_out=n_out)
    assert [(cut.width, cut.name) for cut in found] == expected


@pytest.mark.parametrize("name", NARROW)
def test_nothing_is_narrow_compared_with_fewer_outputs(name):
    """A cut as wide as the (selected) outputs saves nothing."""
    module, shape, _, expected = NARROW[name]
    narrowest = min(width for width, _ in expected)
    network = traced(module, *shape)
    assert useful_cuts(network, n_out=narrowest) == []
    assert min(widths(useful_cuts(network, n_out=narrowest + 1))) == narrowest
    # Without a limit the same width is found, or a narrower one that lies at the input's first layer.
    assert widths(any_cut(network)) == [narrowest]


def skip_past_everything(m: nn.Module, x: Tensor) -> Tensor:
    return m.top(torch.tanh(m.narrow(x))) + x


NOT_NARROW = {
    "one layer": (nn.Linear(9, 7), (9,), 7),
    "wider inside": (nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 7)), (9,), 7),
    "as wide inside": (nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 7)), (9,), 7),
    "a skip connection past everything": (
        Model(skip_past_everything, **dense(narrow=(9, 3), top=(3, 9))),
        (9,),
        9,
    ),
    "narrow only at the input": (nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 20)), (3,), 12),
    "a constant": (Model(lambda m, x: torch.ones(x.shape[0], 7)), (9,), 7),
    "detached": (
        Model(lambda m, x: m.top(m.narrow(x).detach()), **dense(narrow=(9, 3), top=(3, 7))),
        (9,),
        7,
    ),
}


@pytest.mark.parametrize("name", NOT_NARROW)
def test_no_place_narrower_than_the_outputs(name):
    module, shape, n_out = NOT_NARROW[name]
    assert useful_cuts(traced(module, *shape), n_out=n_out) == []


@pytest.mark.parametrize("name", ["one layer", "a constant", "detached"])
def test_no_place_at_all(name):
    module, shape, _ = NOT_NARROW[name]
    assert any_cut(traced(module, *shape)) == []


def test_forced_it_is_cut_where_it_is_wide():
    module, shape, _ = NOT_NARROW["wider inside"]
    assert [(cut.width, cut.name) for cut in any_cut(traced(module, *shape))] == [(12, "tanh after 0")]


def test_a_merged_batch_axis_is_not_cut():
    """The narrowest tensor has ``batch * 5`` rows: it is left alone, and the next one is taken."""

    def merged(m, x):
        y = m.first(x).reshape(-1, 6)
        return m.top(torch.tanh(m.narrow(y))).reshape(-1, 5 * 8)

    module = Model(merged, **dense(first=(4, 6), narrow=(6, 1), top=(1, 8)))
    network = traced(module, 5, 4)
    found = useful_cuts(network, n_out=40)
    assert [(cut.width, cut.name) for cut in found] == [(30, "first")]
    assert all(node in network.batch_axis for cut in found for node in cut.nodes)


def test_a_mask_without_a_batch_axis_forbids_the_cut():
    """It crosses with ``batch * 5`` rows, so no span could be given one row of it a sample."""

    def crossed(m, x):
        mask = (x > 0).reshape(-1, 12)  # (batch * 5, 12)
        y = torch.tanh(m.narrow(x.flatten(1)))
        return (m.top(y).reshape(-1, 12) * mask).reshape(-1, 60)

    module = Model(crossed, **dense(narrow=(60, 3), top=(3, 60)))
    assert useful_cuts(traced(module, 5, 12), n_out=60) == []


def test_what_crosses_a_cut_as_a_constant():
    network = traced(NARROW["a mask that crosses"][0], 9)
    (cut,) = useful_cuts(network, n_out=12)
    live = differentiable_nodes(network)
    (mask,) = crossing_constants(network, live, cut.nodes, (network.output,))
    assert mask.meta["val"].dtype == torch.bool
    assert mask not in live
    assert crossing_constants(network, live, (network.source,), cut.nodes) == []


def test_indices_and_detached_values_are_not_differentiable():
    for name in ("a detached value that crosses", "indices that cross"):
        network = traced(NARROW[name][0], 9)
        (cut,) = useful_cuts(network, n_out=12)
        live = differentiable_nodes(network)
        (constant,) = crossing_constants(network, live, cut.nodes, (network.output,))
        assert constant not in live and constant.meta["val"].shape == (2, 12)


def test_the_narrowest_of_several():
    cuts = useful_cuts(traced(*_parts("hourglass")), n_out=18)
    assert narrowest_of(cuts) is cuts[1]  # equally narrow: the last, whose upper part is the cheapest
    assert narrowest_of(useful_cuts(traced(*_parts("three waists")), n_out=30)).width == 4
    assert narrowest_of([]) is None


def _parts(name):
    module, shape, _, _ = NARROW[name]
    return (module, *shape)


@pytest.mark.parametrize("kind", ["eager", "scripted"])
def test_a_vision_transformer_is_cut_at_its_class_token(kind):
    import_torchvision()
    from torchvision.models import VisionTransformer

    model = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=20, num_classes=30
    ).eval()
    module = torch.jit.script(model) if kind == "scripted" else model
    found = useful_cuts(traced(module, 3, 16, 16), n_out=30)
    assert found[-1].width == 12
    assert "encoder" in found[-1].name
    assert min(widths(found)) == 12  # of 5 tokens with 12 numbers each


def test_a_resnet_is_cut_at_its_pooled_features():
    import_torchvision()
    from torchvision.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=700)
    (found,) = useful_cuts(traced(model, 3, 32, 32), n_out=700)
    assert (found.width, found.name) == (512, "flatten after layer4.0.bn2")


def test_cases_are_cut_where_they_are_narrow():
    module, x, _ = build("narrow_middle", torch.float32)
    assert widths(useful_cuts(traced(module, *x.shape[1:]), n_out=7)) == [3]
    module, x, _ = build("flash_attention", torch.float32)
    assert widths(useful_cuts(traced(module, *x.shape[1:]), n_out=35)) == [20]
