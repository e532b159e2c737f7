"""The choice where a traced network is at stake: when it is traced, what runs it, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jacli.choice import problem as problem_module
from jacli.choice.choose import Choice
from jacli.choice.memory_limit import MemoryLimit
from jacli.choice.problem import Problem
from jacli.errors import MethodError, OutputError
from jacli.linear_maps import DenseMap
from jacli.methods import factors_of, fill
from jacli.network import (
    CutNetwork,
    LinearProgram,
    NotTraceableError,
    TensorNetwork,
    exact_arithmetic,
    frozen_twin,
)
from jacli.options.methods import AUTOGRAD_METHODS
from jacli.plans.bracketing import Product, Seed
from jacli.plans.factorization import LinkPlan
from jacli.plans.plan import ChainPlan, Plan, Shapes
from jacli.plans.request import Request
from jacli.plans.search import Budget
from tests.reference import reference_jacobian
from tests.work import Figures, Work, no_programs, not_measured

CPU = torch.device("cpu")
LIMIT = MemoryLimit(CPU, 2**40, 2**40, False, 0)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    with exact_arithmetic():
        yield


class Branching(nn.Module):
    """Control flow that depends on values: no graph can be had."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x) if float(x.detach().sum()) > 0 else torch.cos(x)


class Cumulated(nn.Module):
    """With an operator that has no rule."""

    def __init__(self, n_in: int = 9, n_out: int = 7) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out).double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(torch.tanh(self.linear(x)), 1)


def wide() -> nn.Module:
    """Nowhere narrower than its output."""
    return nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 7)).double()


def narrow(n_in: int = 9, n_out: int = 7) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, 3), nn.Tanh(), nn.Linear(3, n_out)).double()


def cumulated() -> nn.Module:
    """Narrow, with an operator without a rule on either side of the cut."""
    return nn.Sequential(Cumulated(9, 3), Cumulated(3, 7))


def work_of(module: nn.Module, n_samples: int = 11, **options: Any) -> Work:
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    n_in, n_out = (layers[0].in_features, layers[-1].out_features) if layers else (9, 9)
    x = torch.randn(n_samples, n_in, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    problem = Problem(
        TensorNetwork.of_module(frozen_twin(module)),
        Shapes(n_samples, (n_in,), (n_out,), n_out, None, 8),
        lambda start, size: (x[start : start + size], {}, None),
        LIMIT,
    )
    return Work(Request(**{"search_share": 1e9, **options}), problem)


def pretended(seconds: dict[str, float] | None = None, otherwise: float = 10.0) -> Figures:
    """Measurements that take so many seconds a row."""
    return Figures(seconds or {}, lambda rows: otherwise, linearizes=True)


def forbid_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        pytest.fail("the network was traced")

    monkeypatch.setattr(problem_module, "trace_network", fail)


# Whether it is traced


def test_a_program_is_measured_where_tracing_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = pretended({"adjoint": 1.0, "loop": 3.0, "vmap": 2.0})
    choice = work_of(wide()).choose(measure=figures)
    best = choice.plans[0]
    assert (best.method, best.why) == ("adjoint", "the fastest measured")
    assert isinstance(choice.graph_of(best), LinearProgram)
    assert figures.names[0] == "loop"  # before anything is traced, one plain size says whether that pays
    assert choice.not_traced is None
    assert {measured.method for measured in best.measured} == {"adjoint", "loop", "vmap"}
    for plan in choice.plans:
        assert (choice.graph_of(plan) is None) == (plan.method in AUTOGRAD_METHODS)


def test_a_run_that_is_too_short_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_tracing(monkeypatch)
    figures = pretended({}, otherwise=1e-5)
    choice = work_of(wide(), search_share=0.25).choose(measure=figures)
    assert no_programs(figures.methods)
    assert choice.plans[0].notes == ("not traced: the run is too short to pay for it",)
    assert choice.graph_of(choice.plans[0]) is None


@pytest.mark.parametrize(("n_in", "n_out"), [(9, 2), (2, 9), (9, 1)])
def test_a_few_plain_passes_are_all_there_is_to_do(
    monkeypatch: pytest.MonkeyPatch, n_in: int, n_out: int
) -> None:
    forbid_tracing(monkeypatch)
    figures = pretended({})
    assert work_of(narrow(n_in, n_out)).choose(measure=figures).plans[0].notes == ()


def test_columns_by_the_program_where_there_are_fewer_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = pretended({"tangent": 1.0})
    best = work_of(nn.Linear(4, 30).double()).choose(measure=figures).plans[0]
    assert (best.method, best.why) == ("tangent", "4 inputs, 30 outputs")
    assert best.passes == best.n_batches * -(-4 // best.chunk_size)


def test_what_cannot_be_traced_is_said_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = pretended({"loop": 1.0})
    choice = work_of(Branching()).choose(measure=figures)
    (note,) = choice.plans[0].notes
    assert note.startswith("not traced: it cannot be traced: ")
    assert no_programs(figures.methods) and choice.plans[0].method == "loop"


def test_a_slow_program_is_measured_and_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = pretended({"adjoint": 30.0, "loop": 1.0})
    choice = work_of(wide()).choose(measure=figures)
    assert choice.plans[0].method == "loop" and choice.graph_of(choice.plans[0]) is None
    assert "adjoint" in {measured.method for measured in choice.plans[0].measured}


@pytest.mark.parametrize("time_is_up", [False, True])
def test_what_runs_the_graph_is_never_all_there_is(monkeypatch: pytest.MonkeyPatch, time_is_up: bool) -> None:
    """The graph may be wrong, and with it whatever runs it: something that does not is in line too."""
    links = {f"link {i}: {method}": 0.01 for i in (0, 1) for method in ("adjoint", "tangent")}
    figures = pretended({"adjoint": 1.0, "loop": 3.0, **links})
    work = work_of(narrow())
    if time_is_up:
        work = work_of(wide())
        monkeypatch.setattr(Budget, "allowed", 0.0)
    choice = work.choose(measure=figures)
    methods = [plan.method for plan in choice.plans]
    assert methods == (["adjoint", "loop"] if time_is_up else ["factored", "adjoint", "loop"])
    assert {m.method for m in choice.plans[0].measured} >= {"adjoint", "loop"}


# When nothing but a program serves


@pytest.mark.parametrize(
    ("n_in", "n_out", "order"), [(9, 7, ["adjoint", "tangent"]), (4, 30, ["tangent", "adjoint"])]
)
def test_a_precision_is_served_by_programs_alone(
    monkeypatch: pytest.MonkeyPatch, n_in: int, n_out: int, order: list[str]
) -> None:
    figures = pretended({})
    choice = work_of(nn.Linear(n_in, n_out).double(), precision="bf16").choose(measure=figures)
    assert list(dict.fromkeys(figures.names)) == order
    assert {plan.method for plan in choice.plans} == set(order)


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
@pytest.mark.parametrize("rules", ["all", "some"])
def test_the_links_of_a_cut_network(monkeypatch: pytest.MonkeyPatch, rules: str, precision: str) -> None:
    """Autograd is tried only where it is asked for some operator anyway, and never in a precision."""
    figures = pretended({})
    module = narrow() if rules == "all" else cumulated()
    (plan,) = work_of(module, method="factored", precision=precision).choose(measure=figures).plans
    found = figures.methods
    others = {"loop", "vmap", "forward"} if (rules, precision) == ("some", "ieee") else set()
    assert found == {"adjoint", "tangent"} | others
    for link in plan.factorization.links:
        assert link.reverse_method in {"adjoint", *others} and link.forward_method in {"tangent", *others}


def test_a_link_takes_the_fastest_of_each_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = pretended(
        {
            **{"link 0: adjoint": 1.0, "link 0: loop": 2.0, "link 0: forward": 1.0, "link 0: tangent": 2.0},
            **{"link 1: adjoint": 2.0, "link 1: vmap": 1.0, "link 1: tangent": 1.0, "link 1: forward": 2.0},
        },
    )
    (plan,) = work_of(cumulated(), method="factored").choose(measure=figures).plans
    links = [(link.reverse_method, link.forward_method) for link in plan.factorization.links]
    assert links == [("adjoint", "forward"), ("vmap", "tangent")]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"precision": "bf16"}, "Leave --precision out"),
        ({"method": "adjoint"}, "Leave --method adjoint out"),
        ({"method": "tangent", "precision": "bf16"}, "Leave --method tangent out"),
    ],
    ids=str,
)
def test_where_there_is_no_program_it_is_said_why(options: dict[str, str], hint: str) -> None:
    with pytest.raises(MethodError, match="has no linear program") as refused:
        work_of(Branching(), **options).choose()
    assert "it cannot be traced" in refused.value.why and hint in refused.value.hint


@pytest.mark.parametrize(
    "options", [{"precision": "bf16"}, {"method": "adjoint"}, {"method": "tangent"}], ids=str
)
def test_nor_is_there_one_at_a_single_batch_size(options: dict[str, str]) -> None:
    work = work_of(wide(), **options)
    with pytest.raises(MethodError) as refused:
        work.changed(shapes=replace(work.shapes, fixed_batch=4)).choose()
    assert "accepts 4 only" in refused.value.why
    (asked,) = options
    assert refused.value.hint.startswith(f"Leave --{asked} out")


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.Linear(12, 12).double(), nn.Linear(7, 30).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(torch.fft.rfft(self.before(x)).abs())


def test_nor_is_there_one_through_complex_numbers() -> None:
    """Its narrowest cut has a part that is served: that is no want of memory."""
    with pytest.raises(MethodError, match="The network has no linear program") as refused:
        work_of(Spectrum(), precision="bf16").choose()
    assert "complex" in refused.value.why and refused.value.hint == "Leave --precision out."


# What of a program torch differentiates


@pytest.mark.parametrize("method", ["adjoint", "tangent"])
def test_operators_without_a_rule_are_named(method: str) -> None:
    best = work_of(Cumulated(), method=method).choose().plans[0]
    assert best.notes == ("differentiated by torch within the program: cumsum (1)",)


@pytest.mark.parametrize("method", ["adjoint", "tangent", "factored"])
def test_they_are_named_too_where_nothing_was_measured(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The first block tells."""
    module = nn.Sequential(nn.Linear(9, 3).double(), Cumulated(3, 7))
    work = work_of(module, method=method, precision="bf16")
    plan = replace(work.choose().plans[0], notes=())
    running = work.engine(again(work, plan))
    for _ in running.batches():
        assert running.chosen.plan.notes == ("differentiated by torch within the program: cumsum (1)",)
    assert running.chosen.to_dict()["notes"] == list(running.chosen.plan.notes)


def test_of_a_cut_network_those_of_the_links_that_programs_fill_in(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = {"link 0: adjoint": 0.1, "link 1: loop": 0.1}
    work = work_of(cumulated(), method="factored")
    figures = pretended(fast)
    running = work.engine(work.choose(measure=figures))
    next(running.batches())
    links = running.chosen.plan.factorization.links
    assert (links[0].reverse_method, links[1].reverse_method) == ("adjoint", "loop")
    assert running.chosen.plan.factorization.tree == Product(Seed(1, 2, "reverse"), Seed(0, 1, "reverse"))
    assert running.chosen.plan.notes == ("differentiated by torch within the program: cumsum (1)",)


def test_they_are_of_no_interest_where_the_program_is_not_run() -> None:
    assert work_of(Cumulated(), method="loop").choose().plans[0].notes == ()


# Plans of earlier runs


def again(work: Work, plan: Plan, *, continued: bool = False, measure: Any = not_measured) -> Choice:
    """The choice of a run that repeats a plan as a result file has it."""
    recorded = json.loads(json.dumps(plan.to_dict()))
    return work.asked(earlier_plan=recorded, must_follow=continued).choose(measure=measure)


def jacobians(work: Work, choice: Choice) -> Tensor:
    plan, points = choice.plans[0], work.points(0, 11)
    graph = choice.graph_of(plan)
    if isinstance(plan, ChainPlan):
        return factors_of(work.problem.cut(points, graph), plan.factorization).dense()
    linearization = work.problem.linearize(points, graph)
    return DenseMap(fill(plan.filled_by, linearization, chunk_size=plan.chunk_size)).dense()


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("method", ["adjoint", "tangent", "factored"])
def test_a_plan_of_a_result_file_is_taken_over(
    monkeypatch: pytest.MonkeyPatch, method: str, continued: bool
) -> None:
    module = narrow()
    work = work_of(module, method=method)
    first = work.choose().plans[0]
    choice = again(work, first, continued=continued)
    (plan,) = choice.plans
    assert choice.taken_over and choice.notes == ()
    assert plan.to_dict()["factored"] == first.to_dict()["factored"] and plan.measured == first.measured
    assert (plan.method, plan.batch_size, plan.chunk_size) == (method, first.batch_size, first.chunk_size)
    assert isinstance(choice.graph_of(plan), CutNetwork if method == "factored" else LinearProgram)
    expected = reference_jacobian(module, work.points(0, 11)[0]).mT
    torch.testing.assert_close(jacobians(work, choice), expected, rtol=1e-10, atol=1e-12)


def test_links_of_files_from_before_there_were_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(narrow(), method="factored")
    plan = work.choose().plans[0]
    recorded = json.loads(json.dumps(plan.to_dict()))
    for link in recorded["factored"]["links"]:
        link.update(reverse_method="vmap")
        del link["forward_method"]
    choice = work.asked(earlier_plan=recorded).choose(measure=not_measured)
    assert choice.taken_over
    assert {(k.reverse_method, k.forward_method) for k in choice.plans[0].factorization.links} == {
        ("vmap", "forward")
    }


@pytest.mark.parametrize("method", ["adjoint", "factored"])
def test_a_plan_whose_graph_cannot_be_had_again(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Nothing else will do for an unfinished file; a run that is merely repeated chooses anew and says so."""
    work = work_of(narrow())
    plan = work.asked(method=method).choose().plans[0]

    def refuse(*arguments: object) -> None:
        raise NotTraceableError("this torch cannot")

    monkeypatch.setattr(problem_module, "trace_network", refuse)
    with pytest.raises(OutputError, match="does not work here") as refused:
        again(work, plan, continued=True)
    assert "this torch cannot" in refused.value.why
    choice = again(work, plan, measure=pretended())
    assert not choice.taken_over and choice.plans[0].method in AUTOGRAD_METHODS
    assert choice.notes == ("the plan of the run that is repeated was not taken over: this torch cannot",)


@pytest.mark.parametrize(("name", "value"), [("why", None), ("method", "os.system"), ("method", "none")])
def test_what_a_recorded_plan_lacks_is_named(name: str, value: str | None) -> None:
    work = work_of(narrow(), method="loop")
    recorded = {**work.choose().plans[0].to_dict(), name: value}
    recorded = {key: found for key, found in recorded.items() if found is not None}
    repeated = work.asked(earlier_plan=json.loads(json.dumps(recorded)), must_follow=True)
    with pytest.raises(OutputError, match="does not work here") as refused:
        repeated.choose()
    assert refused.value.why == f"There is no '{value or name}'."


@pytest.mark.parametrize("method", ["adjoint", "tangent", "factored"])
def test_a_plan_that_was_kept_comes_with_its_graph(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    work = work_of(narrow(), method=method)
    before = work.choose()
    graph = before.graph_of(before.plans[0])
    forbid_tracing(monkeypatch)
    choice = work.choose(kept=(before.plans[0], graph), measure=not_measured)
    (plan,) = choice.plans
    assert choice.taken_over and choice.graph_of(plan) is graph
    assert (plan.method, plan.seconds, plan.notes) == (method, None, ())


def test_a_plan_by_plain_passes_needs_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    work = work_of(narrow())
    plan = work.asked(method="vmap").choose().plans[0]
    forbid_tracing(monkeypatch)
    assert again(work, plan).plans[0].method == "vmap"


def test_links_survive_json_with_both_their_methods() -> None:
    plan = work_of(narrow(), method="factored", precision="bf16").choose().plans[0]
    assert {(k.reverse_method, k.forward_method) for k in plan.factorization.links} == {
        ("adjoint", "tangent")
    }
    recorded = json.loads(json.dumps(plan.to_dict()))["factored"]["links"]
    assert [LinkPlan(**link) for link in recorded] == list(plan.factorization.links)


@pytest.mark.parametrize("make", [wide, narrow])
def test_where_the_graph_is_wrong_the_run_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], nn.Module]
) -> None:
    """Of a choice by measurement: whatever runs the graph is passed over, and that is told."""
    module = make()

    class Forgetful(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return module(0.9 * x + (0.1 * x).detach())

    real, other = problem_module.trace_network, TensorNetwork.of_module(frozen_twin(Forgetful()))
    monkeypatch.setattr(problem_module, "trace_network", lambda network, x, extra: real(other, x, extra))
    figures = pretended({name: 0.1 for i in (0, 1) for name in (f"link {i}: adjoint", f"link {i}: tangent")})
    work = work_of(module)
    choice = work.choose(measure=figures)
    running = work.engine(choice)
    found = torch.cat([batch.matrices.take(slice(batch.count)).dense() for batch in running.batches()])
    expected = reference_jacobian(module, work.points(0, 11)[0]).mT
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert running.chosen.plan.method in AUTOGRAD_METHODS and running.chosen.graph is None
    expected_methods = ["adjoint"] if make is wide else ["factored", "adjoint"]
    assert list(running.chosen.passed_over) == expected_methods
    for reason in running.chosen.passed_over.values():
        assert "differ from plain reverse passes by 1.0e-01" in reason
