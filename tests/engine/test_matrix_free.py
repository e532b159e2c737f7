"""Singular triples without the matrix: when they are chosen, and what happens where they fail."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jacli.choice.memory_limit import MemoryLimit
from jacli.choice.problem import Problem
from jacli.engine.computed_batch import ComputedBatch
from jacli.network import TensorNetwork, exact_arithmetic, frozen_twin
from jacli.options.methods import KRYLOV
from jacli.plans.plan import MatrixFreePlan, Measured, Shapes
from jacli.plans.request import Request
from tests.reference import reference_jacobian
from tests.work import Figures, Work

N = 60
"""Outputs, and inputs: more than the products that one value is expected to take."""

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    with exact_arithmetic():
        yield


def decaying(n_in: int = N) -> nn.Module:
    module = nn.Sequential(nn.Linear(n_in, N), nn.Tanh(), nn.Linear(N, N)).double()
    u, _, v = torch.linalg.svd(module[2].weight.detach())
    module[2].weight.data = u * torch.logspace(0, -3, N, dtype=torch.float64) @ v
    return module


def work_of(
    module: nn.Module,
    n_samples: int = 16,
    *,
    points: Tensor | None = None,
    limit: int = 2**40,
    fixed: int | None = None,
    **options: Any,
) -> Work:
    x = torch.randn(n_samples, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x if points is None else points
    problem = Problem(
        TensorNetwork.of_module(frozen_twin(module)),
        Shapes(len(x), (N,), (N,), N, fixed, 8),
        lambda start, size: (x[start : start + size], {}, None),
        MemoryLimit(CPU, limit, limit, False, 0),
    )
    asked = {"search_share": 1e9, "singular_values": 1, "keep": "nothing", "spectrum": "auto"}
    return Work(Request(**{**asked, **options}), problem)


def products(seconds: float, *, failing: tuple[str, ...] = ()) -> Any:
    """Measurements of products that take so many seconds per vector and sample."""

    def measured(primitive: str, batch_size: int, chunk_size: int, *arguments: object) -> Measured:
        made = Measured(KRYLOV, batch_size, chunk_size)
        if primitive in failing:
            return replace(made, failure=f"no {primitive}")
        return replace(made, setup_seconds=0.0, vector_seconds=seconds * batch_size)

    return measured


ROWS = Figures({"adjoint": 1.0}, lambda rows: 10.0, linearizes=True)
"""A row takes a second at best."""


def chosen(work: Work, seconds: float = 1.0, **options: Any) -> Any:
    return work.choose(measure=ROWS, measure_products=products(seconds, **options))


def computed(work: Work, choice: Any) -> list[ComputedBatch]:
    return list(work.engine(choice).batches())


def test_chosen_where_products_take_less_than_rows() -> None:
    plan, *others = chosen(work_of(decaying())).plans
    assert isinstance(plan, MatrixFreePlan) and plan.primitive == "program" and others
    assert plan.seconds == pytest.approx(1.1 * 24 * 16)
    assert plan.max_matvecs == math.floor(24 * 60 / (1.1 * 24))  # as long as 60 rows
    assert plan.why == "fewer products than rows, by measurement"
    assert plan.to_dict()["method"] == KRYLOV


@pytest.mark.parametrize(
    ("seconds", "options"),
    [
        (3.0, {}),
        (1.0, {"singular_values": 5}),
        (1e-9, {"precision": "bf16"}),
        (1e-9, {"singular_values": "all"}),
    ],
    ids=["products take longer", "too many values", "reduced passes", "all values"],
)
def test_matrices_are_formed_elsewhere(seconds: float, options: dict[str, Any]) -> None:
    choice = chosen(work_of(decaying(), **options), seconds)
    assert not any(isinstance(plan, MatrixFreePlan) for plan in choice.plans)


@pytest.mark.parametrize(
    ("failing", "primitive"), [((), "program"), (("program",), "batched"), (("program", "batched"), "tape")]
)
def test_the_first_primitive_that_serves(failing: tuple[str, ...], primitive: str) -> None:
    plan = chosen(work_of(decaying()), failing=failing).plans[0]
    assert plan.primitive == primitive
    assert [m.failure for m in plan.measured if m.method == KRYLOV and m.failure] == [
        f"no {p}" for p in failing
    ]


@pytest.mark.parametrize("primitive", ["program", "batched", "tape"])
@pytest.mark.parametrize("k", [1, 2])
def test_values_and_bounds(k: int, primitive: str) -> None:
    module = decaying()
    work = work_of(module, singular_values=k, rtol=1e-6, batch_size=5)
    order = ("program", "batched", "tape")
    choice = chosen(work, 0.1, failing=order[: order.index(primitive)])
    x, _, _ = work.points(0, 16)
    expected = torch.linalg.svdvals(reference_jacobian(module, x).mT)[:, :k]
    batches = computed(work, choice)
    assert [batch.count for batch in batches] == [5, 5, 5, 1]
    for batch in batches:
        assert batch.triples is not None
        error = (batch.triples.values - expected[batch.start : batch.start + batch.count]).abs()
        assert (error <= batch.triples.errors).all()


class Switched(nn.Module):
    """Diagonal; its values decay where the first input is positive, and are nearly equal elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("decaying", torch.logspace(0, -6, N, dtype=torch.float64))
        self.register_buffer("flat", torch.linspace(1, 0.999, N, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0, self.decaying, self.flat) * x


@pytest.mark.parametrize("hard_from", [0, 4])
def test_what_does_not_converge_in_the_time_of_the_matrix_is_formed(hard_from: int) -> None:
    points = torch.ones(12, N, dtype=torch.float64)
    points[hard_from:, 0] = -1.0
    work = work_of(Switched(), points=points, rtol=1e-9, batch_size=4)
    choice = chosen(work)
    choice = replace(choice, plans=(replace(choice.plans[0], max_matvecs=30), *choice.plans[1:]))
    engine = work.engine(choice)
    batches = list(engine.batches())
    assert [batch.triples is None for batch in batches] == [batch.start >= hard_from for batch in batches]
    for batch in batches:
        if batch.triples is None:
            largest = torch.linalg.matrix_norm(batch.matrices.dense(), ord=2)
            torch.testing.assert_close(largest, torch.ones(4, dtype=torch.float64))
    if hard_from:
        assert any(note.startswith("from sample 4 on with matrices: ") for note in engine.notes)
    else:
        assert "have not converged after 30 products" in engine.chosen.passed_over[KRYLOV]


class DoubledTangent(torch.autograd.Function):
    """The identity with a wrong rule for forward mode, which does not raise."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return cotangent

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * tangent


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(N, N).double()

    def forward(self, x: Tensor) -> Tensor:
        return DoubledTangent.apply(self.linear(x))


def test_wrong_products_are_not_used() -> None:
    work = work_of(Doubling(), batch_size=4)
    engine = work.engine(chosen(work, failing=("program",)))
    assert all(batch.triples is None for batch in engine.batches())
    assert "differ from plain reverse passes" in engine.chosen.passed_over[KRYLOV]


def test_a_fixed_batch_size_stays_whole() -> None:
    """The last batch is padded, and samples that have converged stay in the passes."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = decaying()

        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 4:
                raise ValueError("batches of 4 only")
            return self.inner(x)

    module = Fixed()
    x = torch.randn(10, N, dtype=torch.float64)
    work = work_of(module, points=x, fixed=4, rtol=1e-6)
    padded = torch.cat([x, x[-1:].expand(2, -1)])
    work = work.changed(points=lambda start, size: (padded[start : start + 4], {}, None))
    batches = computed(work, chosen(work, 1e-3))
    assert [batch.count for batch in batches] == [4, 4, 2]
    values = torch.cat([batch.triples.values for batch in batches if batch.triples is not None])
    expected = torch.linalg.svdvals(reference_jacobian(module.inner, x).mT)[:, :1]
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=0)


def test_forced_where_the_matrix_would_be_faster() -> None:
    work = work_of(decaying(), spectrum="krylov")
    (plan,) = chosen(work, 100.0).plans
    assert isinstance(plan, MatrixFreePlan) and plan.max_matvecs is None and plan.why == "asked for"


def test_the_basis_is_limited_by_memory() -> None:
    roomy, tight = (chosen(work_of(decaying(), limit=limit)).plans[0].max_basis for limit in (2**40, 2**18))
    assert tight == (2**18 // (2 * 8)) // (3 * 8 * N) < roomy


def test_half_the_vectors_or_samples_where_memory_runs_out() -> None:
    work = work_of(decaying(), singular_values=2, batch_size=8)
    plan = chosen(work, 0.1).plans[0]
    halves = [plan.smaller(work.shapes)]
    while (half := halves[-1].smaller(work.shapes)) is not None:
        halves.append(half)
    assert [(one.batch_size, one.chunk_size) for one in halves] == [(4, 2), (2, 2), (1, 2), (1, 1)]
