"""The search by a measurement that is made up: which sizes, in which order, and when it stops."""

import math
from itertools import pairwise, product
from time import monotonic

import pytest

from jacli.options.config import RunConfig
from jacli.plans import search
from jacli.plans.plan import Measured, Shapes
from jacli.plans.search import FEW_SAMPLES, Budget, Candidate, climb, ladder, methods_in_order, sized

METHODS = ["loop", "replicate", "vmap", "forward"]
NOTHING_REFUSED = dict.fromkeys([*METHODS, "factored"])
NOT_TRACED = {**NOTHING_REFUSED, "adjoint": "not traced", "tangent": "not traced"}


def shapes(n_samples=100, n_in=300, n_out=50, fixed_batch=None):
    return Shapes(n_samples, (n_in,), (n_out,), n_out, fixed_batch, 4)


def config(**options):
    return RunConfig("model.pt", "x.npy", **options)


def sizes(method, shapes=shapes(), config=config(), *, most_samples=10**9, rows=None):  # noqa: B008
    found = ladder(method, shapes, config, most_samples=most_samples, rows=rows)
    return [(candidate.batch_size, candidate.chunk_size) for candidate in found]


# Sizes


def test_single_passes_take_more_and_more_samples():
    assert sizes("loop", shapes(n_samples=1000)) == [(32, 1), (128, 1), (512, 1), (1000, 1)]


def test_batched_passes_take_few_samples_until_their_vectors_are_used_up():
    assert sizes("vmap", shapes(n_samples=1000)) == [
        (8, 1),
        (8, 4),
        (8, 16),
        (10, 50),  # 512 rows are ten samples with all of their vectors
        (40, 50),
        (163, 50),
        (655, 50),
        (1000, 50),
    ]


def test_a_single_sample():
    assert sizes("loop", shapes(n_samples=1)) == [(1, 1)]
    assert sizes("vmap", shapes(n_samples=1)) == [(1, 8), (1, 32), (1, 50)]


def test_forward_counts_inputs():
    assert sizes("forward", shapes(n_samples=1, n_in=40)) == [(1, 16), (1, 40)]


ASKED = [{}, {"batch_size": 5}, {"chunk_size": 3}, {"batch_size": 64, "chunk_size": 2}]


@pytest.mark.parametrize("method", METHODS)
def test_every_ladder_climbs_and_keeps_what_was_asked(method):
    """Of runs of all sizes, with sizes that were asked for or fixed, and with little memory."""
    for run in product([1, 3, 8, 100, 5000], [1, 7, 1000], [None, 4], ASKED, [1, 6, 10**9]):
        n_samples, n_out, fixed, asked, most = run
        if fixed and "batch_size" in asked:
            asked = {**asked, "batch_size": fixed}  # another one is refused before
        of_run = shapes(n_samples=n_samples, n_out=n_out, fixed_batch=fixed)
        vectors = of_run.n_in if method == "forward" else n_out
        found = list(ladder(method, of_run, config(**asked), most_samples=most))
        assert found, run
        assert all(a.rows < b.rows for a, b in pairwise(found)), run
        for candidate in found:
            assert candidate.method == method, run
            assert 1 <= candidate.chunk_size <= vectors, run
            if fixed:
                assert candidate.batch_size == fixed, run
            elif "batch_size" in asked:
                assert candidate.batch_size == min(asked["batch_size"], n_samples), run
            else:
                assert 1 <= candidate.batch_size <= min(n_samples, most), run
            if method == "loop":
                assert candidate.chunk_size == 1, run
            elif "chunk_size" in asked:
                assert candidate.chunk_size == min(asked["chunk_size"], vectors), run
        whole = found[-1]
        if not asked and not fixed and most > n_samples:
            assert whole.batch_size == n_samples, run
            assert method == "loop" or whole.chunk_size == vectors, run


def test_sizes_asked_for_leave_one_candidate():
    assert sizes("vmap", config=config(batch_size=5, chunk_size=3)) == [(5, 3)]
    assert sizes("loop", config=config(batch_size=5)) == [(5, 1)]
    assert sizes("loop", shapes(fixed_batch=4)) == [(4, 1)]


def test_a_batch_size_asked_for_leaves_the_chunks():
    assert sizes("vmap", config=config(batch_size=2)) == [(2, 4), (2, 16), (2, 50)]


def test_a_chunk_size_asked_for_and_nothing_else_leaves_the_samples_at_a_few():
    assert sizes("vmap", config=config(chunk_size=3)) == [(8, 3)]


def test_replicate_by_name_climbs_in_samples():
    found = sizes("replicate", config=config(method="replicate"))
    assert found == [(8, 50), (10, 50), (40, 50), (100, 50)]


def test_a_whole_chunk_asked_for_leaves_the_samples():
    assert sizes("vmap", config=config(chunk_size=50)) == [(8, 50), (10, 50), (40, 50), (100, 50)]


def test_replicate_by_name_is_one_call():
    assert sizes("replicate", config=config(method="replicate"))[0] == (8, 50)
    assert all(chunk == 50 for _, chunk in sizes("replicate", config=config(method="replicate")))
    assert sizes("replicate")[0] == (8, 1)


def test_the_first_rows_can_be_given():
    assert sizes("vmap", rows=32)[0] == (8, 4)
    assert sizes("loop", rows=4)[0] == (4, 1)


def test_what_fits_in_memory_bounds_the_samples():
    assert max(samples for samples, _ in sizes("vmap", most_samples=20)) == 20
    assert sizes("loop", most_samples=0) == [(1, 1)]


def test_one_row_is_the_smallest_size():
    found = sized("vmap", 1, shapes(), config(), vectors=50, most_samples=100)
    assert (found.batch_size, found.chunk_size) == (1, 1)


# Order


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["loop", "vmap"]),
        ({"n_samples": FEW_SAMPLES}, ["loop", "vmap"]),
        ({"n_samples": FEW_SAMPLES - 1}, ["vmap", "replicate", "loop"]),
        ({"n_samples": 1}, ["vmap", "replicate", "loop"]),
        ({"n_samples": 1, "n_out": 1}, ["loop", "vmap"]),
        ({"n_in": 16}, ["forward", "loop", "vmap"]),
        ({"n_in": 50}, ["loop", "vmap"]),
        ({"fixed_batch": 4}, ["vmap", "replicate", "loop"]),
        ({"n_samples": 2, "fixed_batch": 64}, ["loop", "vmap"]),
    ],
)
def test_the_likeliest_first(changes, expected):
    assert methods_in_order(shapes(**changes), config(), NOT_TRACED) == expected


def test_programs_come_first_where_the_network_was_traced():
    assert methods_in_order(shapes(), config(), NOTHING_REFUSED)[:2] == ["adjoint", "loop"]
    few_inputs = shapes(n_in=2)
    assert methods_in_order(few_inputs, config(), NOTHING_REFUSED)[:3] == ["tangent", "forward", "adjoint"]


def test_only_programs_run_in_a_reduced_precision():
    few_inputs = shapes(n_in=2)
    assert methods_in_order(shapes(), config(precision="bf16"), NOTHING_REFUSED) == ["adjoint", "tangent"]
    assert methods_in_order(few_inputs, config(precision="bf16"), NOTHING_REFUSED) == ["tangent", "adjoint"]
    assert methods_in_order(shapes(), config(precision="bf16"), NOT_TRACED) == []


def test_a_small_batch_asked_for_is_few_samples():
    assert methods_in_order(shapes(), config(batch_size=2), NOT_TRACED)[0] == "vmap"


def test_what_cannot_serve_is_passed_over():
    refused = {**NOT_TRACED, "vmap": "no rule"}
    assert methods_in_order(shapes(n_samples=1), config(), refused) == ["replicate", "loop"]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_asked_for_is_the_only_one(method):
    assert methods_in_order(shapes(), config(method=method), NOTHING_REFUSED) == [method]


# The climb


N_VECTORS, N_SAMPLES = 64, 1024


class Machine:
    """A measurement by formula, in seconds of a vector of a block; keeps what was tried."""

    def __init__(
        self, vector_seconds, *, setup=0.0, held=lambda rows: 0, failure=lambda candidate: None
    ) -> None:
        self.vector_seconds = vector_seconds
        self.setup, self.held, self.failure = setup, held, failure
        self.tried: list[Candidate] = []

    def __call__(self, candidate, patience):
        self.tried.append(candidate)
        failure = self.failure(candidate)
        if failure:
            return Measured("m", candidate.batch_size, candidate.chunk_size, failure=failure)
        return Measured(
            "m",
            candidate.batch_size,
            candidate.chunk_size,
            setup_seconds=self.setup,
            vector_seconds=self.vector_seconds(candidate),
            bytes_held=self.held(candidate.rows),
        )


def seconds(measured):
    return N_SAMPLES / measured.batch_size * measured.block_seconds(N_VECTORS)


def climbed(machine, *, best=math.inf, fits=lambda measured, growth: True, budget=None):
    candidates = [Candidate("vmap", 8, chunk) for chunk in (1, 4, 16, 64)]
    endless = Budget(share=1.0, most=math.inf)
    return climb(iter(candidates), machine, seconds, budget or endless, fits=fits, best=best)


def chunks(measured):
    return [m.chunk_size for m in measured]


def per_pass(slope, offset):
    """A pass takes ``offset + slope * chunk`` seconds."""
    return lambda candidate: offset / candidate.chunk_size + slope


def test_climbs_while_larger_passes_pay():
    assert chunks(climbed(Machine(per_pass(1e-9, 1e-3)))) == [1, 4, 16, 64]


def test_stops_where_they_no_longer_pay():
    """Saturated at four vectors: the next size is tried, the one after is not."""
    machine = Machine(lambda c: 0.1 / min(c.chunk_size, 4))
    assert chunks(climbed(machine)) == [1, 4, 16]


def test_a_gain_of_less_than_three_percent_does_not_pay():
    assert chunks(climbed(Machine(lambda c: {1: 0.1, 4: 0.098}[c.chunk_size]))) == [1, 4]
    assert chunks(climbed(Machine(lambda c: {1: 0.1, 4: 0.096, 16: 0.1}[c.chunk_size]))) == [1, 4, 16]


def test_between_short_passes_a_small_loss_may_be_noise():
    """A fifth at most, of passes of less than 10 ms."""
    assert chunks(climbed(Machine(lambda c: {1: 1e-4, 4: 1.1e-4}.get(c.chunk_size, 5e-5)))) == [1, 4, 16, 64]
    assert chunks(climbed(Machine(lambda c: {1: 1e-4, 4: 1.3e-4}[c.chunk_size]))) == [1, 4]
    assert chunks(climbed(Machine(lambda c: {1: 4e-3, 4: 4.1e-3}[c.chunk_size]))) == [1, 4]


@pytest.mark.parametrize(("best", "expected"), [(1.0, [1]), (1e9, [1, 4])])
def test_left_where_another_method_is_far_ahead(best, expected):
    """Passes of 20 ms: calls cost nothing there."""
    assert chunks(climbed(Machine(lambda c: 0.02), best=best)) == expected


def test_short_passes_are_climbed_although_another_method_is_ahead():
    """Then it is calls that cost, and larger passes save them."""
    machine = Machine(per_pass(1e-9, 1e-3))
    assert chunks(climbed(machine, best=1e-6)) == [1, 4, 16, 64]


def test_a_failure_ends_the_climb():
    machine = Machine(per_pass(0, 1e-3), failure=lambda c: "out of memory" if c.chunk_size == 4 else None)
    found = climbed(machine)
    assert chunks(found) == [1, 4]
    assert found[-1].failure == "out of memory"


def test_what_would_not_fit_is_not_tried():
    """By the bytes that the size before held, times the rows of the next."""
    machine = Machine(per_pass(0, 1e-3), held=lambda rows: 1000 * rows)
    found = climbed(machine, fits=lambda measured, growth: growth * measured.bytes_held <= 200_000)
    assert chunks(found) == [1, 4, 16]  # 8,000, 32,000 and 128,000 bytes; then 512,000


def test_the_first_candidate_is_always_tried():
    assert chunks(climbed(Machine(lambda c: 1e-3), fits=lambda measured, growth: False)) == [1]
    spent = Budget(share=1.0, most=0.0, started=-math.inf)
    assert chunks(climbed(Machine(lambda c: 1e-3), budget=spent)) == [1]


def test_the_estimate_of_the_run_is_kept_up_to_date():
    budget = Budget(share=1.0, most=math.inf)
    found = climbed(Machine(per_pass(1e-9, 1e-3)), budget=budget)
    assert budget.run_seconds == min(map(seconds, found))
    climbed(Machine(lambda c: 1.0), budget=budget)
    assert budget.run_seconds == min(map(seconds, found))


# The budget


@pytest.fixture
def clock(monkeypatch):
    """The time in ``clock[0]``."""
    now = [100.0]
    monkeypatch.setattr(search, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("run_seconds", "allowed"),
    [
        (2.0, 0.5),  # a quarter of a short run
        (6.0, 1.5),
        (20.0, 1.5),  # but at most that
        (37.5, 1.5),
        (100.0, 4.0),  # 4 % of a long one
    ],
)
def test_how_much_measuring_may_take(run_seconds, allowed):
    assert Budget(share=0.25, most=1.5, run_seconds=run_seconds).allowed == pytest.approx(allowed)


def test_the_first_call_of_many_may_take_as_long_as_the_run():
    assert Budget(share=3.0, most=1.5, run_seconds=0.25).allowed == 0.75
    assert Budget(share=3.0, most=1.5, run_seconds=10.0).allowed == 1.5


def test_time_that_is_spent_is_gone(clock):
    budget = Budget(run_seconds=100.0, started=search.monotonic())
    assert budget.spent == 0.0
    assert budget.left_for(4.0) and not budget.left_for(4.01)
    assert budget.patience == 1.0
    clock[0] += 3.0
    assert budget.spent == 3.0
    assert budget.left_for(1.0) and not budget.left_for(1.01)
    assert budget.patience == 0.25
    clock[0] += 3.0
    assert not budget.left_for(0.0)
    assert budget.patience == 0.0


def test_before_anything_is_known_all_is_allowed(clock):
    budget = Budget(started=search.monotonic())
    assert budget.left_for(1e9)
    assert budget.patience == 0.3


def test_the_clock_starts_with_the_search():
    before = monotonic()
    budget = Budget()
    assert before <= budget.started <= monotonic()
    assert budget.spent >= 0.0


def test_a_climb_ends_with_the_budget(clock):
    """The next size is expected to take twice its share of the growth."""

    def slow(candidate):
        clock[0] += 0.5
        return 0.5 / candidate.chunk_size  # a run of 1024 / 8 blocks of 64 vectors: 4096 s, then 1024 s

    budget = Budget(share=1.0, most=10.0, started=search.monotonic())
    # After the first: 163.8 s allowed, 0.5 spent, 4 s expected.  All may be tried.
    assert chunks(climbed(Machine(slow), budget=budget)) == [1, 4, 16, 64]
    # 512 s for the run leave 20.5; 20 of them are gone.
    budget = Budget(share=1.0, most=10.0, run_seconds=512.0, started=search.monotonic() - 20.0)
    assert chunks(climbed(Machine(slow), budget=budget)) == [1]


def test_setup_counts_in_what_the_next_size_is_expected_to_take(clock):
    budget = Budget(share=1.0, most=1.0, run_seconds=25.0, started=search.monotonic())  # 1 s in all
    quick = Machine(lambda c: 1e-6 / c.chunk_size)
    assert chunks(climbed(quick, budget=budget)) == [1, 4, 16, 64]
    budget = Budget(share=1.0, most=1.0, run_seconds=25.0, started=search.monotonic())
    linearising = Machine(lambda c: 1e-6 / c.chunk_size, setup=1.2)  # again, for the same batch
    assert chunks(climbed(linearising, budget=budget)) == [1]
