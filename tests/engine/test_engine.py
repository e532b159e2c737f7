"""Blocks under a plan: memory that runs out, methods that are wrong, limits that are kept."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

import jacli
from jacli.choice.choose import Choice
from jacli.choice.memory_limit import MemoryLimit
from jacli.choice.problem import Graph, Problem, cut_network, program_of
from jacli.engine import batch_checks, engine
from jacli.engine.engine import Engine
from jacli.engine.probed import padded
from jacli.errors import MethodError, ModelError, OutOfMemoryError
from jacli.linear_maps import FactoredMap
from jacli.network import CutNetwork, LinearProgram, TensorNetwork, exact_arithmetic, frozen_twin
from jacli.options.methods import METHODS
from jacli.plans.bracketing import Product, Seed
from jacli.plans.factorization import Factorization, LinkPlan
from jacli.plans.plan import ChainPlan, Plan, Shapes, chain_plan, whole_plan
from jacli.plans.request import Request
from jacli.verify import cotangent_error
from tests.reference import reference_jacobian
from tests.work import Figures, Work

CPU = torch.device("cpu")
N_SAMPLES, N_IN, N_OUT, WIDTH = 11, 9, 7, 3
SAMPLE_BYTES = N_IN * N_OUT * 8

OUT_OF_MEMORY = {
    "device": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore advice."),
    "host": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    "Python": lambda: MemoryError(),
}


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    with exact_arithmetic():
        yield


def narrow() -> nn.Module:
    return nn.Sequential(nn.Linear(N_IN, WIDTH), nn.Tanh(), nn.Linear(WIDTH, N_OUT)).double()


MODULE = narrow()
POINTS = torch.randn(N_SAMPLES, N_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Memory(MemoryLimit):
    """A limit, and blocks that hold what they are said to."""

    held: list[int] = field(default_factory=list)

    @contextmanager
    def peak(self) -> Iterator[list[int]]:
        found = [0]
        yield found
        found[0] = self.held.pop(0) if self.held else 0


def memory(limit: int = 2**40, *, asked: bool = True, held: tuple[int, ...] = ()) -> Memory:
    return Memory(CPU, limit, limit, asked, 0, held=list(held))


def work_on(
    module: nn.Module = MODULE, *, limit: MemoryLimit | None = None, fixed: int | None = None, **options
) -> Work:
    def points(start: int, size: int) -> tuple[Tensor, dict[str, Tensor], None]:
        x = POINTS[start : start + size]
        return (padded(x, size) if fixed else x), {}, None

    problem = Problem(
        TensorNetwork.of_module(frozen_twin(module)),
        Shapes(N_SAMPLES, (N_IN,), (N_OUT,), N_OUT, fixed, 8),
        points,
        limit or memory(),
    )
    return Work(Request(**options), problem)


def plan_of(work: Work, method: str, batch_size: int, chunk_size: int = 1) -> Plan:
    sizes = {"batch_size": batch_size, "chunk_size": chunk_size}
    return whole_plan(METHODS[method], "", work.shapes, work.request, **sizes)


def factored_plan(work: Work, batch_size: int, chunk_size: int) -> Plan:
    factorization = Factorization(
        ("tanh after 0",),
        (N_IN, WIDTH, N_OUT),
        1,
        Product(Seed(1, 2, "forward"), Seed(0, 1, "reverse")),
        (LinkPlan("vmap", chunk_size, chunk_size),) * 2,
    )
    return chain_plan(factorization, "", work.shapes, work.request, batch_size=batch_size)


def engine_of(work: Work, *plans: Plan, out_buffer=None, graphs_of: Work | None = None) -> Engine:
    """An engine that is given its plans: nothing is measured; ``graphs_of`` whose graphs they run."""
    graphs = [graph_for(graphs_of or work, plan) for plan in plans]
    choice = Choice(
        plans,
        program=next((g for g in graphs if isinstance(g, LinearProgram)), None),
        cut=next((g for g in graphs if isinstance(g, CutNetwork)), None),
    )
    return work.engine(choice, out_buffer=out_buffer)


def graph_for(work: Work, plan: Plan) -> Graph:
    """What a choice would have traced for the plan."""
    if isinstance(plan, ChainPlan):
        return cut_network(work.request, work.problem, work.problem.trace())
    return program_of(work.problem.trace()) if plan.filled_by.runs_program else None


def check(running: Engine, module: nn.Module = MODULE) -> list[int]:
    """Every sample once, in order, and right; samples of each block."""
    found, counts = [], []
    for block in running.batches():
        assert block.start == sum(counts)
        assert block.matrices.batch >= block.count
        found.append(block.matrices.take(slice(block.count)).dense().clone())
        counts.append(block.count)
    expected = reference_jacobian(module, POINTS).mT
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-10, atol=1e-12)
    return counts


def failing(monkeypatch, name: str, fits, error) -> list[tuple[int, int]]:
    """Let ``engine.fill`` or ``engine.factors_of`` run out of memory; sizes of all calls."""
    real, sizes = getattr(engine, name), []

    def run(*arguments, **options):
        linearization = arguments[1] if name == "fill" else arguments[0]
        chunk = options["chunk_size"] if name == "fill" else max(k.reverse_chunk for k in arguments[1].links)
        sizes.append((linearization.batch, chunk))
        if not fits(linearization.batch, chunk):
            raise error()
        return real(*arguments, **options)

    monkeypatch.setattr(engine, name, run)
    return sizes


# Memory that runs out


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_blocks_that_do_not_fit_are_halved(monkeypatch, error):
    sizes = failing(monkeypatch, "fill", lambda batch, chunk: batch <= 3, OUT_OF_MEMORY[error])
    work = work_on()
    running = engine_of(work, plan_of(work, "vmap", 11, 4))
    assert check(running) == [2, 2, 2, 2, 2, 1]
    assert sizes == [(11, 4), (5, 4), *[(2, 4)] * 5, (1, 4)]
    assert running.notes == [
        "out of memory: 11 samples per batch and 4 vectors per pass did not fit, "
        "going on with 5 samples per batch and 4 vectors per pass",
        "out of memory: 5 samples per batch and 4 vectors per pass did not fit, "
        "going on with 2 samples per batch and 4 vectors per pass",
    ]
    assert (running.chosen.plan.batch_size, running.chosen.plan.n_batches) == (2, 6)
    assert running.chosen.plan.passes == 6 * math.ceil(N_OUT / 4)


def test_then_the_vectors_of_a_pass_are_halved(monkeypatch):
    sizes = failing(monkeypatch, "fill", lambda batch, chunk: batch * chunk <= 2, OUT_OF_MEMORY["host"])
    work = work_on()
    running = engine_of(work, plan_of(work, "vmap", 2, 7))
    assert check(running) == [1] * 11
    assert sizes[:4] == [(2, 7), (1, 7), (1, 3), (1, 1)]
    assert running.notes[-1].endswith("going on with 1 sample per batch and 1 vector per pass")


def test_factors_that_do_not_fit_are_halved(monkeypatch):
    sizes = failing(
        monkeypatch, "factors_of", lambda batch, chunk: batch * chunk <= 2, OUT_OF_MEMORY["device"]
    )
    work = work_on()
    running = engine_of(work, factored_plan(work, 4, 4))
    assert check(running) == [1] * 11
    assert sizes[:5] == [(4, 4), (2, 4), (1, 4), (1, 2), (1, 2)]
    assert running.notes[-1].endswith("going on with 1 sample per batch and 2 vectors per pass")
    assert running.chosen.plan.factorization.links == (LinkPlan("vmap", 2, 2),) * 2


def test_memory_that_runs_out_later_on(monkeypatch):
    """Blocks that are done stay done."""
    calls = []

    def fits(batch, chunk):
        calls.append(batch)
        return len(calls) <= 2 or batch <= 2

    failing(monkeypatch, "fill", fits, OUT_OF_MEMORY["host"])
    work = work_on()
    running = engine_of(work, plan_of(work, "loop", 4))
    assert check(running) == [4, 4, 2, 1]
    assert len(running.notes) == 1
    assert running.chosen.plan.batch_size == 2


def test_a_fixed_batch_is_not_halved(monkeypatch):
    sizes = failing(monkeypatch, "fill", lambda batch, chunk: chunk <= 2, OUT_OF_MEMORY["host"])
    work = work_on(fixed=4)
    running = engine_of(work, plan_of(work, "vmap", 4, 7))
    assert check(running) == [4, 4, 3]
    assert sizes == [(4, 7), (4, 3), (4, 1), (4, 1), (4, 1)]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("method", ["loop", "vmap", "factored"])
def test_where_nothing_fits_the_figures_are_told(monkeypatch, error, method):
    name = "factors_of" if method == "factored" else "fill"
    failing(monkeypatch, name, lambda batch, chunk: False, OUT_OF_MEMORY[error])
    work = work_on(limit=memory(123_456))
    plan = factored_plan(work, 4, 1) if method == "factored" else plan_of(work, method, 4, 2)
    with pytest.raises(OutOfMemoryError, match="1 sample per batch") as stopped:
        check(engine_of(work, plan))
    assert stopped.value.exit_code == 5
    assert f"{SAMPLE_BYTES:,} bytes" in stopped.value.why
    assert "123,456 may be held on cpu" in stopped.value.why
    assert "\n" not in stopped.value.why
    assert "--memory" in stopped.value.hint and "--save factors" in stopped.value.hint


def test_another_error_is_not_tried_again(monkeypatch):
    sizes = failing(monkeypatch, "fill", lambda batch, chunk: False, lambda: ZeroDivisionError("boom"))
    work = work_on()
    with pytest.raises(ZeroDivisionError):
        check(engine_of(work, plan_of(work, "loop", 4)))
    assert len(sizes) == 1


@pytest.mark.parametrize("method", ["loop", "vmap", "forward", "replicate", "auto"])
def test_the_whole_way_from_python(monkeypatch, method):
    """A result that was begun in one piece goes on in several."""
    sizes = failing(monkeypatch, "fill", lambda batch, chunk: batch <= 3, OUT_OF_MEMORY["host"])
    options = {} if method == "auto" else {"method": method, "batch_size": 11}
    found = jacli.jacobian(copy.deepcopy(MODULE), POINTS, **options)
    torch.testing.assert_close(found, reference_jacobian(MODULE, POINTS), rtol=1e-10, atol=1e-12)
    assert method == "auto" or sizes[0][0] == 11


# Methods that are wrong


def doubled(monkeypatch, *wrong: str) -> None:
    """These methods give twice the Jacobian."""
    fill, factors_of = engine.fill, engine.factors_of

    def wrong_fill(method, linearization, **options):
        found = fill(method, linearization, **options)
        return found.mul_(2) if method.name in wrong else found

    def wrong_factors(linearization, plan):
        found = factors_of(linearization, plan)
        return FactoredMap(2 * found.left, found.right) if "factored" in wrong else found

    monkeypatch.setattr(engine, "fill", wrong_fill)
    monkeypatch.setattr(engine, "factors_of", wrong_factors)


def test_a_wrong_method_is_passed_over(monkeypatch):
    doubled(monkeypatch, "vmap", "factored")
    work = work_on()
    running = engine_of(
        work, plan_of(work, "vmap", 4, 4), factored_plan(work, 4, 4), plan_of(work, "forward", 5, 2)
    )
    assert check(running) == [5, 5, 1]
    assert running.chosen.plan.method == "forward"
    assert list(running.chosen.passed_over) == ["vmap", "factored"]
    for reason in running.chosen.passed_over.values():
        assert "differ from plain reverse passes by" in reason
    assert 0 < running.chosen.row_error < 1e-8
    assert running.chosen.graph is None


def test_a_wrong_method_writes_into_the_result_and_is_overwritten(monkeypatch):
    doubled(monkeypatch, "vmap")
    result = torch.full((N_SAMPLES, N_OUT, N_IN), math.nan, dtype=torch.float64)
    work = work_on()
    plans = plan_of(work, "vmap", 4, 4), plan_of(work, "loop", 3)
    running = engine_of(work, *plans, out_buffer=lambda plan, start, count: result[start : start + count])
    assert check(running) == [3, 3, 3, 2]
    torch.testing.assert_close(result, reference_jacobian(MODULE, POINTS).mT, rtol=1e-10, atol=1e-12)


def test_a_method_without_a_rule_is_passed_over(monkeypatch):
    def refuses(*arguments, **options):
        raise MethodError("The method factored does not work with this model.", why="torch says: no rule.")

    monkeypatch.setattr(engine, "factors_of", refuses)
    work = work_on()
    running = engine_of(work, factored_plan(work, 4, 4), plan_of(work, "loop", 4))
    check(running)
    assert running.chosen.to_dict()["passed_over"] == {
        "factored": "The method factored does not work with this model. torch says: no rule."
    }


def test_where_all_that_was_chosen_is_wrong_plain_passes_serve(monkeypatch):
    doubled(monkeypatch, "vmap", "factored")
    work = work_on()
    running = engine_of(work, plan_of(work, "vmap", 4, 4), factored_plan(work, 3, 4))
    assert check(running) == [4, 4, 3]
    assert (running.chosen.plan.method, running.chosen.plan.passes) == ("loop", 3 * N_OUT)
    assert list(running.chosen.passed_over) == ["vmap", "factored"]


@pytest.mark.parametrize(
    "asked", [{"method": "forward"}, {"precision": "bf16"}, {"keep": "factors"}], ids=str
)
def test_where_plain_passes_are_not_what_was_asked_for_the_last_is_told(monkeypatch, asked):
    doubled(monkeypatch, "vmap", "forward")
    work = work_on(**asked)
    with pytest.raises(MethodError, match="The method forward is wrong on this model") as wrong:
        check(engine_of(work, plan_of(work, "vmap", 4, 4), plan_of(work, "forward", 4, 4)))
    assert re.search(r"differ from plain reverse passes by \d\.\de[+-]0[01] \(relative\)", wrong.value.why)


def test_plain_passes_are_what_is_checked_with(monkeypatch):
    monkeypatch.setattr(batch_checks, "row_error", lambda *_, **__: pytest.fail("there is nothing to check"))
    work = work_on()
    running = engine_of(work, plan_of(work, "loop", 4))
    check(running)
    assert running.chosen.row_error == 0.0


def test_rows_are_checked_on_the_first_block_only(monkeypatch):
    checked = []
    monkeypatch.setattr(batch_checks, "row_error", lambda *_, **__: checked.append(True) or 0.0)
    work = work_on()
    check(engine_of(work, plan_of(work, "vmap", 2, 4)))
    assert checked == [True]


# Graphs that are wrong


class Bounded(nn.Module):
    """What `MODULE` is where no number is above 2; beyond, it forgets what the numbers do."""

    def __init__(self, forgets: str) -> None:
        super().__init__()
        self.module, self.forgets = MODULE, forgets

    def forward(self, x: Tensor) -> Tensor:
        below = x.clamp(max=2.0)
        return self.module(below + (x - below).detach() if self.forgets == "derivatives" else below)


class KinkAlone(nn.Module):
    """Where its numbers are zero, a lone sample falls to the other side of the ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Linear(N_IN, WIDTH, bias=False).double()
        self.above = nn.Linear(WIDTH, N_OUT).double()

    def forward(self, x: Tensor) -> Tensor:
        shift = 1e-12 if len(x) == 1 else -1e-12
        return self.above(torch.relu(self.below(x) + shift))


GRAPHS = ["adjoint", "tangent", "factored"]


def work_of(points: Tensor, module: nn.Module = MODULE, **options) -> Work:
    def at(start: int, size: int) -> tuple[Tensor, dict[str, Tensor], None]:
        return points[start : start + size], {}, None

    return work_on(module, **options).changed(points=at)


def misled(work: Work, method: str, batch_size: int, forgets: str, *others: Plan) -> Engine:
    """An engine whose plan's graph is that of another network."""
    sizes = (work, batch_size, 4)
    plan = factored_plan(*sizes) if method == "factored" else plan_of(work, method, *sizes[1:])
    other = work.changed(network=TensorNetwork.of_module(frozen_twin(Bounded(forgets))))
    return engine_of(work, plan, *others, graphs_of=other)


def computed(running: Engine) -> Tensor:
    return torch.cat([block.matrices.take(slice(block.count)).dense().clone() for block in running.batches()])


@pytest.mark.parametrize("forgets", ["derivatives", "values"])
@pytest.mark.parametrize("method", GRAPHS)
def test_a_graph_that_is_wrong_from_some_block_on_is_left_there(method, forgets):
    """The second block is looked at; so is the third, since there the graph was wrong."""
    points = POINTS.clamp(-2, 2)
    points[4:, 0] = 5.0
    running = misled(work_of(points), method, 4, forgets)
    expected = reference_jacobian(MODULE, points).mT
    torch.testing.assert_close(computed(running), expected, rtol=1e-10, atol=1e-12)
    assert running.chosen.plan.method == method  # later samples may be without what it forgets
    starts = [note.split(" to ")[0] for note in running.notes]
    assert starts == ["samples 4", "samples 8"]
    assert all(f"by loop, not {method}: " in note for note in running.notes)


@pytest.mark.parametrize("forgets", ["derivatives", "values"])
@pytest.mark.parametrize("method", GRAPHS)
def test_one_that_is_wrong_at_once_is_passed_over(method, forgets):
    points = POINTS.clamp(-2, 2)
    points[:, 0] = 5.0
    work = work_of(points)
    running = misled(work, method, 4, forgets, plan_of(work, "loop", 3))
    torch.testing.assert_close(
        computed(running), reference_jacobian(MODULE, points).mT, rtol=1e-10, atol=1e-12
    )
    assert list(running.chosen.passed_over) == [method] and running.chosen.plan.method == "loop"
    assert running.chosen.graph is None


@pytest.mark.parametrize("method", GRAPHS)
def test_a_graph_that_was_asked_for_and_is_wrong_is_refused(method):
    points = POINTS.clamp(-2, 2)
    points[4:, 0] = 5.0
    with pytest.raises(MethodError, match=f"The method {method} is wrong"):
        computed(misled(work_of(points, method=method), method, 4, "derivatives"))


@pytest.mark.parametrize("method", ["adjoint", "tangent", "replicate", "vmap"])
def test_a_kink_of_fewer_samples_is_not_held_against_the_block(monkeypatch, method):
    """In the block, as the model runs it, the derivative is the method's own: that decides."""
    compared = []

    def noting(linearization, *arguments, **options):
        compared.append(linearization.batch)
        return cotangent_error(linearization, *arguments, **options)

    monkeypatch.setattr(batch_checks, "cotangent_error", noting)
    monkeypatch.setattr(batch_checks, "_FEW_SAMPLES", 1)
    module, points = KinkAlone(), POINTS.clone()
    points[6] = 0.0  # of the third batch, which is not checked as a whole, the sample that the seed picks
    work = work_of(points, module)
    running = engine_of(work, plan_of(work, method, 3, 4))
    expected = reference_jacobian(module, points).mT
    assert expected[6].any()  # on its own
    expected[6] = 0.0
    torch.testing.assert_close(computed(running), expected, rtol=1e-10, atol=1e-12)
    assert running.notes == []
    assert compared == [1, 3]


def test_a_model_that_mixes_samples_is_not_taken_for_a_wrong_graph():
    """Its program gives in a block what the model gives there: a sample on its own gives something else."""

    class Mixing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (torch.tanh(x) - 0.1 * x.detach().mean(0))[:, :N_OUT]

    work = work_of(POINTS, Mixing())
    with pytest.raises(ModelError, match="mixes samples"):
        computed(engine_of(work, plan_of(work, "adjoint", 4, 4)))


# Where results go, and what is held


def test_blocks_are_computed_into_their_place():
    asked = []
    result = torch.empty(N_SAMPLES, N_OUT, N_IN, dtype=torch.float64)

    def place(plan, start, count):
        asked.append((plan.batch_size, start, count))
        return result[start : start + count]

    work = work_on(fixed=4)
    for block in engine_of(work, plan_of(work, "vmap", 4, 3), out_buffer=place).batches():
        assert block.linearization.batch == 4
        assert block.matrices.matrices.data_ptr() == result[block.start].data_ptr()
    assert asked == [(4, 0, 4), (4, 4, 4), (4, 8, 3)]
    torch.testing.assert_close(result, reference_jacobian(MODULE, POINTS).mT, rtol=1e-10, atol=1e-12)


def test_a_block_is_closed_before_the_next():
    work = work_on()
    last = None
    for block in engine_of(work, plan_of(work, "loop", 4)).batches():
        if last is not None:
            assert last._tape is None
        assert block.linearization._tape is None  # nor is it held while the block is stored
        last = block.linearization
    assert last._tape is None


def test_blocks_shrink_where_more_is_held_than_may_be():
    limit = memory(1000, held=(1500, 1200, 900))
    work = work_on(limit=limit)
    running = engine_of(work, plan_of(work, "vmap", 4, 4))
    assert check(running) == [4, 2, 1, 1, 1, 1, 1]
    assert running.notes == [
        "1,500 bytes were held, 1,000 are allowed: going on with 2 samples per batch and 4 vectors per pass",
        "1,200 bytes were held, 1,000 are allowed: going on with 1 sample per batch and 4 vectors per pass",
    ]


def test_what_the_last_block_held_is_no_longer_of_interest():
    work = work_on(limit=memory(1000, held=(900, 900, 1500)))
    running = engine_of(work, plan_of(work, "loop", 4))
    assert check(running) == [4, 4, 3]
    assert running.notes == []


def test_a_run_at_its_smallest_goes_on():
    """More is held than may be, but nothing smaller exists: what was promised is a bound, not an end."""
    work = work_on(limit=memory(1000, held=(5000,) * 11))
    running = engine_of(work, plan_of(work, "loop", 1))
    assert check(running) == [1] * 11
    assert running.notes == []


# The plan within a limit


def figures(held: int = 1000) -> Figures:
    """The larger the faster, and so many bytes for each row in flight."""
    return Figures(otherwise=lambda rows: 1e-3 / rows, held=lambda rows: held * rows)


def measured_work(limit: MemoryLimit, **options) -> Work:
    """All methods apply but ``factored``: one layer; measuring may take its time."""
    return work_on(nn.Linear(N_IN, N_OUT).double(), limit=limit, search_share=1e9, **options)


@pytest.mark.parametrize(
    ("limit", "plans"),
    [
        (10**9, {"adjoint": (11, 7), "vmap": (11, 7), "loop": (11, 1)}),
        # 32,000 bytes, and the Jacobians of eight samples
        (50_000, {"adjoint": (11, 2), "vmap": (8, 4), "loop": (11, 1)}),
        (20_000, {"loop": (11, 1), "vmap": (8, 1), "adjoint": (5, 1)}),
        (12_000, {"adjoint": (5, 1), "loop": (2, 1), "vmap": (2, 1)}),  # smaller than where ladders begin
        (2_000, {"adjoint": (1, 1), "loop": (1, 1), "vmap": (1, 1)}),
    ],
)
def test_the_plan_fits_in_what_was_asked(limit, plans):
    """Of all that is tried, the fastest first."""
    choice = measured_work(memory(limit)).choose(measure=figures())
    assert list(plans.items()) == [(plan.method, (plan.batch_size, plan.chunk_size)) for plan in choice.plans]
    for plan in choice.plans:
        assert plan.batch_size * (1000 * plan.chunk_size + SAMPLE_BYTES) <= limit


def test_what_was_asked_and_is_too_little_is_refused():
    with pytest.raises(OutOfMemoryError, match="one sample with one vector") as refused:
        measured_work(memory(1_200)).choose(measure=figures())
    assert refused.value.exit_code == 5
    assert f"1,000 bytes and the Jacobian of a sample {SAMPLE_BYTES:,}" in refused.value.why
    assert "1,200 may be held" in refused.value.why


def test_a_share_of_what_is_free_is_a_guess_that_one_may_exceed():
    choice = measured_work(memory(1_200, asked=False)).choose(measure=figures())
    assert {(plan.batch_size, plan.chunk_size) for plan in choice.plans} == {(1, 1)}


@pytest.mark.parametrize(("limit", "sizes"), [(50_000, (8, 4)), (6_000, (1, 1))])
def test_so_does_the_plan_of_a_method_that_was_asked_for(limit, sizes):
    (plan,) = measured_work(memory(limit), method="vmap").choose(measure=figures()).plans
    assert (plan.batch_size, plan.chunk_size) == sizes


def test_even_where_its_ladder_has_one_step():
    """Room for one sample: seven vectors per pass are the first candidate and the last."""
    (plan,) = measured_work(memory(2_000), method="vmap").choose(measure=figures()).plans
    assert (plan.batch_size, plan.chunk_size) == (1, 1)


def test_results_of_a_block_take_at_most_half():
    shapes = Shapes(100, (N_IN,), (N_OUT,), N_OUT, None, 8)
    limit = memory(12 * SAMPLE_BYTES)
    assert limit.samples(shapes, singular_values=False, written=False) == 6
    assert limit.samples(shapes, singular_values=False, written=True) == 4  # another block waits
    assert limit.samples(shapes, singular_values=True, written=False) == 3  # beside their Gram matrices
    assert memory(0).samples(shapes, singular_values=False, written=True) == 1


def test_the_fastest_plan_is_the_first():
    """And the others follow, for the case that it is wrong."""
    links = {f"link {i}: {method}": 0.1 for i in (0, 1) for method in ("adjoint", "vmap")}
    seconds = {"loop": 3.0, "adjoint": 2.0, "vmap": 1.0, **links}

    choice = work_on(search_share=1e9).choose(measure=Figures(seconds))
    # So clearly that no more are tried; one that runs no graph comes last, should the graph be wrong.
    assert [plan.method for plan in choice.plans] == ["factored", "adjoint", "loop"]
    assert [plan.seconds for plan in choice.plans] == sorted(plan.seconds for plan in choice.plans)
    assert choice.plans[0].factorization.width == WIDTH


def test_a_plan_taken_over_is_counted_for_this_run():
    work = work_on()
    other = replace(plan_of(work, "vmap", 2, 4), n_batches=1000, passes=1000, notes=("of then",), seconds=1.0)
    (plan,) = work.choose(kept=(other, None)).plans
    assert (plan.n_batches, plan.passes) == (6, 12)
    assert plan.notes == () and plan.seconds is None
