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
from tests.narrow import NARROW, Model, dense


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

    module = Model(merged, **dense(first=(7, 6), narrow=(6, 1), top=(1, 8)))
    network = traced(module, 5, 7)
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
    assert found.width == 512
    assert found.name.startswith("view after layer4.0")


def test_cases_are_cut_where_they_are_narrow():
    module, x, _ = build("narrow_middle", torch.float32)
    assert widths(useful_cuts(traced(module, *x.shape[1:]), n_out=7)) == [3]
    module, x, _ = build("attention", torch.float32)
    assert useful_cuts(traced(module, *x.shape[1:]), n_out=7)[-1].width == 4


def test_no_cut_at_the_input_where_that_is_the_narrowest():
    module = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 20))
    assert useful_cuts(traced(module, 3), n_out=12) == []
    assert all("input" not in cut.name for cut in useful_cuts(traced(module, 3), n_out=20))


def test_no_further_cut_at_the_input():
    """20 numbers in, 20 after the attention, 35 out."""
    module, x, _ = build("flash_attention", torch.float32)
    found = useful_cuts(traced(module, *x.shape[1:]), n_out=35)
    assert [(cut.width, cut.name) for cut in found] == [(20, "squeeze after project")]
