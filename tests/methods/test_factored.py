"""``factored``: every bracketing, every method of a link and every chunk give the same Jacobian."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import jacli
from jacli.errors import MethodError
from jacli.methods import chain as chain_room
from jacli.methods import factors_of
from jacli.network import (
    CutLinearized,
    CutNetwork,
    Linearized,
    TensorNetwork,
    exact_arithmetic,
    frozen_twin,
    trace_network,
    useful_cuts,
)
from jacli.options.methods import METHODS
from jacli.plans.bracketing import Product, Pull, Push, Seed
from jacli.plans.factorization import Factorization, LinkPlan
from tests.narrow import NARROW
from tests.reference import reference_jacobian

CHAIN_OF = {2: "a mask that crosses", 3: "hourglass of unequal waists", 4: "three waists"}
"""Number of links to a network of so many."""


@pytest.fixture(autouse=True)
def exact():
    with exact_arithmetic():
        yield


@cache
def chain(n_links, size=2):
    """A network cut into so many links, its points, and its Jacobians ``(batch, n_out, n_in)``."""
    module, shape, n_out, _ = NARROW[CHAIN_OF[n_links]]
    network = TensorNetwork.of_module(frozen_twin(copy.deepcopy(module).double()))
    x = torch.randn(size, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    traced = trace_network(network, x, {})
    cut_network = CutNetwork(traced, useful_cuts(traced, n_out=n_out))
    assert cut_network.n_links == n_links
    return network, x, cut_network, reference_jacobian(network.module, x).mT


def linearized(n_links, selected=None):
    network, x, cut_network, _ = chain(n_links)
    return CutLinearized(network, x, {}, selected, cut_network=cut_network)


def plan_of(linearization, tree, *, methods="vmap", chunks=(4, 4)):
    n = linearization.n_links
    names = methods if isinstance(methods, tuple) else (methods,) * n
    return Factorization(
        cuts=tuple(f"cut {i}" for i in range(1, n)),
        widths=linearization.widths,
        split=tree.upper.first,
        tree=tree,
        links=tuple(LinkPlan(name, *chunks, forward_of(name)) for name in names),
    )


def forward_of(reverse):
    """Programs with programs, autograd's passes with their like."""
    return "tangent" if reverse == "adjoint" else "forward"


def rows(first, last):
    return Seed(first, last, "reverse")


def columns(first, last):
    return Seed(first, last, "forward")


def _trees(first, last):
    """Every bracketing of a span, its kinds of root in turn, with no regard to cost."""
    yield rows(first, last)
    yield columns(first, last)
    for cut in range(first + 1, last):
        yield Pull(rows(cut, last), first, cut)
        yield Push(columns(first, cut), cut, last)
        yield Pull(columns(cut, last), first, cut)
        yield Push(rows(first, cut), cut, last)
        for upper in _trees(cut, last):
            for lower in _trees(first, cut):
                yield Product(upper, lower)


TREES = [
    (n, Product(upper, lower))
    for n in CHAIN_OF
    for split in range(1, n)
    for upper in _trees(split, n)
    for lower in _trees(0, split)
]


@pytest.mark.parametrize("method", ["vmap", "adjoint"])
@pytest.mark.parametrize("n_links", CHAIN_OF)
def test_every_bracketing(n_links, method):
    """All kinds of tree whose root is a product, at every cut."""
    expected = chain(n_links)[3]
    trees = [tree for n, tree in TREES if n == n_links]
    assert len(trees) == {2: 4, 3: 40, 4: 300}[n_links]
    cut = linearized(n_links)
    for tree in trees:
        found = factors_of(cut, plan_of(cut, tree, methods=method))
        assert found.left.shape == (2, cut.n_out, cut.widths[tree.upper.first])
        assert found.right.shape == (2, cut.widths[tree.upper.first], cut.n_in)
        torch.testing.assert_close(
            found.dense(), expected, rtol=1e-10, atol=1e-12, msg=lambda m, t=tree: f"{t}\n{m}"
        )


ONE_OF_EACH = Product(Pull(Push(columns(2, 3), 3, 4), 1, 2), rows(0, 1))
"""Links 1 to 3 above the first cut: a seed, pushed, pulled; the lowest by rows."""


@pytest.mark.parametrize("chunks", [(1, 1), (2, 3), (5, 2), (100, 100)])
@pytest.mark.parametrize("method", ["loop", "vmap", "replicate", "adjoint"])
def test_every_method_and_chunk(method, chunks):
    expected = chain(4)[3]
    cut = linearized(4)
    for tree in (ONE_OF_EACH, Product(rows(2, 4), rows(0, 2)), Product(columns(1, 4), columns(0, 1))):
        found = factors_of(cut, plan_of(cut, tree, methods=method, chunks=chunks))
        torch.testing.assert_close(found.dense(), expected, rtol=1e-10, atol=1e-12)


def test_every_link_by_its_own_method_and_chunk(monkeypatch):
    """The methods named are the ones that run, with their chunks; those of a span are its first link's."""
    ran = []
    real = chain_room.slabs

    def noting(method, link, *, chunk_size):
        ran.append((method.name, link.n_in, link.n_out, chunk_size))
        return real(method, link, chunk_size=chunk_size)

    monkeypatch.setattr(chain_room, "slabs", noting)
    cut = linearized(4)
    tree = Product(rows(3, 4), Product(columns(2, 3), rows(0, 2)))
    plan = plan_of(cut, tree, methods=("replicate", "vmap", "adjoint", "loop"))
    links = tuple(
        replace(link, reverse_chunk=i + 1, forward_chunk=i + 5) for i, link in enumerate(plan.links)
    )
    factors_of(cut, replace(plan, links=links))
    w = cut.widths
    assert ran == [("loop", w[3], w[4], 1), ("tangent", w[2], w[3], 7), ("replicate", w[0], w[2], 1)]


class Noted:
    """A linear map that notes what goes through it."""

    def __init__(self, linear_map, primitive, ran):
        self._map, self._primitive, self._ran = linear_map, primitive, ran

    def __getattr__(self, name):
        return getattr(self._map, name)

    def vjp(self, cotangents):
        return self._noted("vjp", cotangents)

    def jvp(self, tangents):
        return self._noted("jvp", tangents)

    def _noted(self, product, vectors):
        self._ran.append((f"{self._primitive}.{product}", self.n_in, self.n_out, len(vectors)))
        return getattr(self._map, product)(vectors)


@pytest.mark.parametrize("reverse", ["adjoint", "vmap"])
@pytest.mark.parametrize("forward", ["tangent", "forward"])
def test_what_a_span_is_pulled_and_pushed_by(monkeypatch, reverse, forward):
    """The methods of its first link, in chunks of their size; the other direction's have no part in it."""
    ran = []
    for primitive in ("batched", "program"):
        real = getattr(Linearized, primitive)

        def noting(link, primitive=primitive, real=real):
            return Noted(real(link), primitive, ran)

        monkeypatch.setattr(Linearized, primitive, noting)
    cut = linearized(4)
    plan = plan_of(cut, ONE_OF_EACH)
    links = tuple(LinkPlan(reverse, 3, 5, forward) for _ in plan.links)
    factors_of(cut, replace(plan, links=links))
    w = cut.widths
    rows_by = f"{METHODS[reverse].primitive}.vjp"
    columns_by = f"{METHODS[forward].primitive}.jvp"

    def chunks(total, most):
        return [min(most, total - start) for start in range(0, total, most)]

    assert ran == [
        *((columns_by, w[2], w[3], k) for k in chunks(w[2], 5)),
        *((columns_by, w[3], w[4], k) for k in chunks(w[2], 5)),
        *((rows_by, w[1], w[2], k) for k in chunks(w[4], 3)),
        *((rows_by, w[0], w[1], k) for k in chunks(w[1], 3)),
    ]


@pytest.mark.parametrize("method", ["vmap", "adjoint"])
def test_selected_outputs(method):
    selected = torch.tensor([[4, 0], [7, 29]])
    expected = chain(4)[3][torch.arange(2)[:, None], selected]
    cut = linearized(4, selected)
    for tree in (ONE_OF_EACH, Product(rows(1, 4), rows(0, 1))):
        found = factors_of(cut, plan_of(cut, tree, methods=method))
        torch.testing.assert_close(found.dense(), expected, rtol=1e-10, atol=1e-12)


def test_each_link_is_closed_before_the_next_is_linearised(monkeypatch):
    """Else the activations of the whole network would be held at once."""
    cut = linearized(4)
    opened, closed = [], []
    span = cut.span

    def noting(first, last):
        assert len(opened) == len(closed)
        made = span(first, last)
        opened.append((first, last))
        close = made.close
        monkeypatch.setattr(made, "close", lambda: (closed.append((first, last)), close()))
        return made

    monkeypatch.setattr(cut, "span", noting)
    factors_of(cut, plan_of(cut, ONE_OF_EACH))
    assert opened == closed == [(2, 3), (3, 4), (1, 2), (0, 1)]


def test_a_link_that_fails_is_closed(monkeypatch):
    cut = linearized(2)
    made, closed = cut.span(0, 1), []

    def fails(cotangents):
        raise RuntimeError("no rule")

    monkeypatch.setattr(made, "_batched_vjp", fails)
    monkeypatch.setattr(made, "close", lambda: closed.append(True))
    monkeypatch.setattr(cut, "span", lambda first, last: made)
    with pytest.raises(MethodError, match="factored does not work") as refused:
        factors_of(cut, plan_of(cut, Product(rows(1, 2), rows(0, 1))))
    assert "no rule" in refused.value.why
    assert closed == [True]


def test_running_out_of_memory_is_passed_on(monkeypatch):
    cut = linearized(2)

    def fails(first, last):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(cut, "span", fails)
    with pytest.raises(MemoryError):
        factors_of(cut, plan_of(cut, Product(rows(1, 2), rows(0, 1))))


@pytest.mark.parametrize("tree", [Product(rows(1, 2), rows(0, 1)), Product(columns(1, 2), rows(0, 1))])
def test_a_plan_survives_json(tree):
    plan = plan_of(linearized(2), tree, methods=("loop", "adjoint"), chunks=(7, 2))
    assert Factorization.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_large_plan_survives_json():
    plan = plan_of(linearized(4), ONE_OF_EACH)
    again = Factorization.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert (
        again.order
        == plan.order
        == (
            "(((forward cut 2..cut 3) pushed through cut 3..output) pulled through cut 1..cut 2)"
            " x (reverse input..cut 1)"
        )
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": 2},
        {"tree": rows(0, 2)},
        {"tree": Pull(rows(1, 2), 0, 1)},
        {"widths": (9, 3)},
        {"cuts": ()},
        {"cuts": ("a", "b")},
        {"links": (LinkPlan("vmap", 1, 1),)},
    ],
    ids=str,
)
def test_a_plan_that_is_none(wrong):
    plan = plan_of(linearized(2), Product(rows(1, 2), rows(0, 1)))
    with pytest.raises(ValueError, match="a product at one of its cuts"):
        replace(plan, **wrong)


@pytest.mark.parametrize("tree", [Product(rows(1, 2), rows(0, 1)), Product(rows(2, 4), rows(1, 2))])
def test_a_plan_for_a_part_of_the_chain_is_none(tree):
    with pytest.raises(ValueError):
        plan_of(linearized(4), tree)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d.pop("tree"), KeyError),
        (lambda d: d.pop("links"), KeyError),
        (lambda d: d.update(tree={"kind": "seed"}), ValueError),
        (lambda d: d.update(split="two"), ValueError),
        (lambda d: d.update(widths=None), TypeError),
        (lambda d: d["links"][0].update(colour="red"), TypeError),
        (lambda d: d["tree"]["upper"].update(first=0), ValueError),
    ],
)
def test_json_that_is_no_plan(change, error):
    values = json.loads(json.dumps(plan_of(linearized(2), Product(rows(1, 2), rows(0, 1))).to_dict()))
    change(values)
    with pytest.raises(error):
        Factorization.from_dict(values)


def test_float32_stays_float32():
    module, shape, n_out, _ = NARROW["hourglass"]
    network = TensorNetwork.of_module(frozen_twin(module))
    x = torch.randn(2, *shape)
    traced = trace_network(network, x, {})
    cut = CutLinearized(network, x, {}, cut_network=CutNetwork(traced, useful_cuts(traced, n_out=n_out)))
    n = cut.n_links
    found = factors_of(cut, plan_of(cut, Product(rows(1, n), rows(0, 1))))
    assert found.left.dtype == found.right.dtype == torch.float32
    expected = reference_jacobian(copy.deepcopy(network.module).double(), x.double()).mT
    torch.testing.assert_close(found.dense().double(), expected, rtol=1e-4, atol=1e-5)


class _Views(nn.Module):
    """Batch sizes are read again behind the narrow place."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b, self.d = nn.Linear(40, 4), nn.Linear(4, 36), nn.Linear(32, 30)
        self.c = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.b(torch.tanh(self.a(x))))
        h = self.c(h.view(h.size(0), 1, 6, 6)).relu()
        if self.how == "expanded":
            return self.d(h.reshape(len(x), -1) + torch.ones(1, 32).to(x).expand(x.shape[0], 32))
        return self.d(h.view(x.shape[0] if self.how == "of the input" else len(h), -1))


@pytest.mark.parametrize("how", ["of the input", "of a feature", "expanded"])
def test_a_link_that_reads_the_batch_size(how: str) -> None:
    torch.manual_seed(0)
    model, x = _Views(how).double(), torch.randn(3, 40, dtype=torch.float64)
    found = jacli.jacobian(model, x, method="factored")
    torch.testing.assert_close(found, jacli.jacobian(model, x, method="loop"), rtol=1e-9, atol=1e-12)
