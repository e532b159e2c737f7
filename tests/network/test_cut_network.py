"""Pieces of a cut network: their product is the whole, at every batch size; a wrong graph is noticed."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from jacli.errors import MethodError
from jacli.linear_maps import Chain
from jacli.methods import fill
from jacli.network import (
    CutLinearized,
    CutNetwork,
    Linearized,
    TensorNetwork,
    any_cut,
    exact_arithmetic,
    frozen_twin,
    trace_network,
    useful_cuts,
)
from jacli.options.methods import REFERENCE
from tests.cases import CASES, build
from tests.narrow import NARROW, Model, dense
from tests.reference import reference_jacobian

CUT_CASES = [name for name in CASES if name != "linear" and not name.startswith("stateful")]
"""A network of one layer has no place to cut it; one that keeps state cannot be traced."""

SEVERAL_CUTS = [name for name, (_, _, _, cuts) in NARROW.items() if len(cuts) > 1]


@pytest.fixture(autouse=True)
def exact():
    with exact_arithmetic():
        yield


def points(size, *shape):
    return torch.randn(size, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(10 + size))


def narrow(name):
    """A registered network in float64: wrapped, cut where it is narrow, and its shape of a sample."""
    module, shape, n_out, _ = NARROW[name]
    network = TensorNetwork.of_module(frozen_twin(copy.deepcopy(module).double()))
    traced = trace_network(network, points(2, *shape), {})
    return network, CutNetwork(traced, useful_cuts(traced, n_out=n_out)), shape


def matrix(linearization):
    """By plain reverse passes, ``(batch, n_out, n_in)``."""
    with linearization:
        return fill(REFERENCE, linearization, chunk_size=1)


def product(cut, splits):
    """The product of the Jacobians of the spans between these numbers of cuts."""
    whole = None
    for first, last in pairwise(splits):
        piece = matrix(cut.span(first, last))
        assert piece.shape[1:] == (cut.widths[last], cut.widths[first])
        whole = piece if whole is None else piece @ whole
    return whole


def check(cut, expected):
    """Every way of putting the links together, and the spans as a chain of linear maps."""
    n = cut.n_links
    for inner in {(), (1,), (n - 1,), tuple(range(1, n))}:
        torch.testing.assert_close(product(cut, (0, *inner, n)), expected, rtol=1e-10, atol=1e-12)
    chain = Chain(tuple(cut.span(i, i + 1).batched() for i in range(n)))
    u, v = (
        torch.randn(3, *expected.shape[:2]).double(),
        torch.randn(3, len(expected), expected.shape[2]).double(),
    )
    pulled, pushed = torch.einsum("kbo,boi->kbi", u, expected), torch.einsum("boi,kbi->kbo", expected, v)
    torch.testing.assert_close(chain.vjp(u), pulled, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(chain.jvp(v), pushed, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("name", NARROW)
def test_the_product_of_the_spans_is_the_jacobian(name, size):
    network, cut_network, shape = narrow(name)
    x = points(size, *shape)
    cut = CutLinearized(network, x, {}, cut_network=cut_network)
    assert cut.n_links == len(NARROW[name][3]) + 1
    assert cut.widths == (x[0].numel(), *(width for width, _ in NARROW[name][3]), NARROW[name][2])
    check(cut, reference_jacobian(network.module, x).mT)


@pytest.mark.parametrize("name", CUT_CASES)
def test_every_case_cut_at_its_narrowest_place(name):
    module, x, case = build(name, torch.float64)
    network = TensorNetwork.of_module(
        frozen_twin(module), select=case.select, squeezes_batch_of_one=name == "squeezed"
    )
    traced = trace_network(network, x, {})
    cut = CutLinearized(network, x, {}, cut_network=CutNetwork(traced, any_cut(traced)))
    check(cut, matrix(Linearized(network, x, {})))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_lone_sample_that_loses_its_batch_axis(size):
    """``squeeze()``: such a sample runs in company, in the whole and in every span."""
    module, _, _ = build("squeezed", torch.float64)
    network = TensorNetwork.of_module(frozen_twin(module), squeezes_batch_of_one=True)
    x = points(size, 5)
    traced = trace_network(network, x, {})
    cut_network = CutNetwork(traced, any_cut(traced), squeezes_batch_of_one=True)
    cut = CutLinearized(network, x, {}, cut_network=cut_network)
    check(cut, matrix(Linearized(network, x, {})))


@pytest.mark.parametrize("name", ["hourglass", "a mask that crosses", "indices that cross"])
def test_selected_outputs(name):
    network, cut_network, shape = narrow(name)
    x = points(3, *shape)
    selected = torch.tensor([[4, 0], [1, 7], [11, 11]])
    cut = CutLinearized(network, x, {}, selected, cut_network=cut_network)
    assert cut.widths[-1] == cut.n_out == 2
    expected = reference_jacobian(network.module, x).mT
    check(cut, expected[torch.arange(3)[:, None], selected])


class Conditioned(nn.Module):
    """Narrow, with an argument a sample below the cut, one above it, and one that both use."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(9, 3)
        self.top = nn.Linear(3, 7)

    def forward(self, x: Tensor, below: Tensor, above: Tensor, both: Tensor) -> Tensor:
        y = torch.tanh(self.first(x * below)) * both[:, :1]
        return torch.where(above, self.top(y), torch.sin(self.top(y))) * both


@pytest.mark.parametrize("size", [1, 2, 5])
def test_further_arguments_of_each_sample(size):
    module = Conditioned().double()
    network = TensorNetwork.of_module(frozen_twin(module))

    def extra(n):
        return {"below": points(n, 9), "above": points(n, 7) > 0, "both": points(n, 7)}

    traced = trace_network(network, points(2, 9), extra(2))
    cuts = useful_cuts(traced, n_out=7)
    assert [cut.width for cut in cuts] == [3]
    x, given = points(size, 9), extra(size)
    cut = CutLinearized(network, x, given, cut_network=CutNetwork(traced, cuts))
    check(cut, matrix(Linearized(network, x, given)))


def test_constants_cross_with_a_row_a_sample():
    network, cut_network, shape = narrow("a mask that crosses")
    x = points(5, *shape)
    values = cut_network.values(x, {})
    (mask,) = cut_network.constants(1, 2, values).values()
    assert mask.dtype == torch.bool
    assert torch.equal(mask, network.module.first(x) > 0)
    assert cut_network.constants(0, 1, values) == {}
    assert cut_network.span(0, 1).constants == ()
    assert len(cut_network.span(1, 2).constants) == 1


def test_a_span_at_some_of_its_samples():
    """``replicate`` repeats points, and their constants with them."""
    network, cut_network, shape = narrow("a mask that crosses")
    x = points(4, *shape)
    span = CutLinearized(network, x, {}, cut_network=cut_network).span(1, 2)
    index = torch.tensor([3, 0, 0])
    torch.testing.assert_close(matrix(span.at(index)), matrix(span)[index], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", SEVERAL_CUTS)
def test_points_of_the_cuts_are_what_the_network_has_there(name):
    """A span takes the numbers of its lower cut to those of its upper one."""
    network, cut_network, shape = narrow(name)
    x = points(5, *shape)
    values = cut_network.values(x, {})
    n = cut_network.n_links
    for first in range(n):
        for last in range(first + 1, n + 1):
            span = cut_network.span(first, last)
            constants = cut_network.constants(first, last, values)
            found = span(cut_network.point(first, x, values), constants)
            expected = network(x, {}) if last == n else cut_network.point(last, x, values)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_span_is_built_once():
    _, cut_network, _ = narrow("hourglass")
    assert cut_network.span(0, 2) is cut_network.span(0, 2)
    assert cut_network.span(0, 2) is not cut_network.span(0, 1)


def test_a_network_without_cuts_is_not_cut():
    _, cut_network, _ = narrow("hourglass")
    with pytest.raises(ValueError, match="without cuts"):
        CutNetwork(cut_network.traced, [])


def test_the_whole_stays_the_network_itself():
    """As a linear map a cut linearisation is the original's, not the graph's."""
    network, cut_network, shape = narrow("hourglass")
    x = points(3, *shape)
    cut = CutLinearized(network, x, {}, cut_network=cut_network)
    assert torch.equal(matrix(cut), matrix(Linearized(network, x, {})))
    assert torch.equal(cut.outputs, network(x, {}))


class Switched(nn.Module):
    """Does something else once told to, without any parameter's changing."""

    def __init__(self, relative: float) -> None:
        super().__init__()
        self.first, self.top = nn.Linear(9, 3), nn.Linear(3, 7)
        self.relative = relative
        self.on = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.top(torch.tanh(self.first(x)))
        return y * (1 + self.relative) if self.on else y


@pytest.mark.parametrize(("relative", "noticed"), [(1e-3, True), (1e-6, False)])
def test_outputs_that_are_not_the_models_are_noticed(relative, noticed):
    """Relative to the largest output; other kernels' rounding passes."""
    module = Switched(relative).double()
    network = TensorNetwork.of_module(module)
    traced = trace_network(network, points(2, 9), {})
    cut_network = CutNetwork(traced, useful_cuts(traced, n_out=7))
    x = points(3, 9)
    CutLinearized(network, x, {}, cut_network=cut_network).span(0, 1)
    module.on = True
    cut = CutLinearized(network, x, {}, cut_network=cut_network)
    if not noticed:
        cut.span(0, 1)
        return
    with pytest.raises(MethodError, match="cannot be cut") as refused:
        cut.span(0, 1)
    assert "not those of the model on this batch" in refused.value.why


def test_a_network_that_was_replaced_since_the_trace_is_noticed():
    _, cut_network, shape = narrow("hourglass")
    other = TensorNetwork.of_module(frozen_twin(copy.deepcopy(NARROW["hourglass"][0]).double()))
    with torch.no_grad():
        other.module[0].bias += 0.1
    cut = CutLinearized(other, points(3, *shape), {}, cut_network=cut_network)
    with pytest.raises(MethodError, match="cannot be cut"):
        cut.span(1, 2)


def test_values_that_are_not_finite_are_told_elsewhere():
    """A sample with infinite outputs does not make the graph a wrong one."""
    module = Model(lambda m, x: m.top(torch.log(torch.relu(m.first(x)))), **dense(first=(9, 3), top=(3, 7)))
    network = TensorNetwork.of_module(frozen_twin(module.double()))
    traced = trace_network(network, points(2, 9), {})
    cut_network = CutNetwork(traced, useful_cuts(traced, n_out=7))
    x = points(6, 9)
    assert not network(x, {}).isfinite().all()
    cut = CutLinearized(network, x, {}, cut_network=cut_network)
    cut.span(1, 2)


def test_closing_frees_what_is_kept():
    network, cut_network, shape = narrow("hourglass")
    cut = CutLinearized(network, points(3, *shape), {}, cut_network=cut_network)
    cut.span(0, 1)
    assert cut._values is not None
    cut.close()
    assert cut._values is None
    cut.span(0, 1)  # and can be had again
