"""The search by a measurement that is made up: which sizes, in which order, and when it stops."""

import math
from itertools import pairwise, product
from time import monotonic

import pytest

from jacli.options.methods import METHODS as TABLE
from jacli.plans.plan import Measured, Shapes
from jacli.plans.request import Request
from jacli.plans.search import FEW_SAMPLES, Budget, Candidate, climb, ladder, methods_in_order, with_rows

METHODS = ["loop", "replicate", "vmap", "forward"]
NOTHING_REFUSED = dict.fromkeys([*METHODS, "factored"])
NOT_TRACED = {**NOTHING_REFUSED, "adjoint": "not traced", "tangent": "not traced"}


def shapes(n_samples=100, n_in=300, n_out=50, fixed_batch=None):
    return Shapes(n_samples, (n_in,), (n_out,), n_out, fixed_batch, 4)


def sizes(method, shapes=shapes(), request=Request(), *, most_samples=10**9, rows=None):  # noqa: B008
    found = ladder(TABLE[method], shapes, request, most_samples=most_samples, rows=rows)
    return [(candidate.batch_size, candidate.chunk_size) for candidate in found]


class Clock:
    """Stands still but where a test moves it."""

    now = 100.0

    def __call__(self):
        return self.now


def in_order(*arguments):
    return [method.name for method in methods_in_order(*arguments)]


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
        found = list(ladder(TABLE[method], of_run, Request(**asked), most_samples=most))
        assert found, run
        assert all(a.rows < b.rows for a, b in pairwise(found)), run
        for candidate in found:
            assert candidate.method is TABLE[method], run
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
    assert sizes("vmap", request=Request(batch_size=5, chunk_size=3)) == [(5, 3)]
    assert sizes("loop", request=Request(batch_size=5)) == [(5, 1)]
    assert sizes("loop", shapes(fixed_batch=4)) == [(4, 1)]


def test_a_batch_size_asked_for_leaves_the_chunks():
    assert sizes("vmap", request=Request(batch_size=2)) == [(2, 4), (2, 16), (2, 50)]


def test_a_chunk_size_asked_for_and_nothing_else_leaves_the_samples_at_a_few():
    assert sizes("vmap", request=Request(chunk_size=3)) == [(8, 3)]


def test_replicate_by_name_climbs_in_samples():
    found = sizes("replicate", request=Request(method="replicate"))
    assert found == [(8, 50), (10, 50), (40, 50), (100, 50)]


def test_a_whole_chunk_asked_for_leaves_the_samples():
    assert sizes("vmap", request=Request(chunk_size=50)) == [(8, 50), (10, 50), (40, 50), (100, 50)]


def test_replicate_by_name_is_one_call():
    assert sizes("replicate", request=Request(method="replicate"))[0] == (8, 50)
    assert all(chunk == 50 for _, chunk in sizes("replicate", request=Request(method="replicate")))
    assert sizes("replicate")[0] == (8, 1)


def test_the_first_rows_can_be_given():
    assert sizes("vmap", rows=32)[0] == (8, 4)
    assert sizes("loop", rows=4)[0] == (4, 1)


def test_what_fits_in_memory_bounds_the_samples():
    assert max(samples for samples, _ in sizes("vmap", most_samples=20)) == 20
    assert sizes("loop", most_samples=0) == [(1, 1)]


def test_one_row_is_the_smallest_size():
    found = with_rows(1, TABLE["vmap"], shapes(), Request(), most_samples=100)
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
    assert in_order(shapes(**changes), Request(), NOT_TRACED) == expected


def test_programs_come_first_where_the_network_was_traced():
    assert in_order(shapes(), Request(), NOTHING_REFUSED)[:2] == ["adjoint", "loop"]
    few_inputs = shapes(n_in=2)
    assert in_order(few_inputs, Request(), NOTHING_REFUSED)[:3] == ["tangent", "forward", "adjoint"]


def test_only_programs_run_in_a_reduced_precision():
    few_inputs = shapes(n_in=2)
    assert in_order(shapes(), Request(precision="bf16"), NOTHING_REFUSED) == ["adjoint", "tangent"]
    assert in_order(few_inputs, Request(precision="bf16"), NOTHING_REFUSED) == ["tangent", "adjoint"]
    assert in_order(shapes(), Request(precision="bf16"), NOT_TRACED) == []


def test_a_small_batch_asked_for_is_few_samples():
    assert in_order(shapes(), Request(batch_size=2), NOT_TRACED)[0] == "vmap"


def test_what_cannot_serve_is_passed_over():
    refused = {**NOT_TRACED, "vmap": "no rule"}
    assert in_order(shapes(n_samples=1), Request(), refused) == ["replicate", "loop"]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_asked_for_is_the_only_one(method):
    assert in_order(shapes(), Request(method=method), NOTHING_REFUSED) == [method]


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
    return N_SAMPLES / measured.batch_size * measured.batch_seconds(N_VECTORS)


def climbed(machine, *, best=math.inf, fits=lambda measured, growth: True, budget=None):
    candidates = [Candidate(TABLE["vmap"], 8, chunk) for chunk in (1, 4, 16, 64)]
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
    spent = Budget(share=1.0, most=0.0, clock=Clock())
    spent.clock.now += 1e9
    assert chunks(climbed(Machine(lambda c: 1e-3), budget=spent)) == [1]


def test_the_estimate_of_the_run_is_kept_up_to_date():
    budget = Budget(share=1.0, most=math.inf)
    found = climbed(Machine(per_pass(1e-9, 1e-3)), budget=budget)
    assert budget.run_seconds == min(map(seconds, found))
    climbed(Machine(lambda c: 1.0), budget=budget)
    assert budget.run_seconds == min(map(seconds, found))


# The budget


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


def test_time_that_is_spent_is_gone():
    clock = Clock()
    budget = Budget(run_seconds=100.0, clock=clock)
    assert budget.spent == 0.0
    assert budget.left_for(4.0) and not budget.left_for(4.01)
    assert budget.patience == 1.0
    clock.now += 3.0
    assert budget.spent == 3.0
    assert budget.left_for(1.0) and not budget.left_for(1.01)
    assert budget.patience == 0.25
    clock.now += 3.0
    assert not budget.left_for(0.0)
    assert budget.patience == 0.0


def test_time_that_is_not_charged_is_not_spent():
    clock = Clock()
    budget = Budget(run_seconds=100.0, clock=clock)
    with pytest.raises(ZeroDivisionError), budget.not_charged():
        clock.now += 50.0
        raise ZeroDivisionError
    clock.now += 1.0
    assert budget.spent == 1.0
    assert budget.for_a_part().spent == 1.0


def test_what_a_part_learns_is_not_of_the_run():
    budget = Budget(run_seconds=100.0)
    budget.for_a_part().learn(1.0)
    assert budget.run_seconds == 100.0
    budget.learn(7.0)
    budget.learn(9.0)
    assert budget.run_seconds == 7.0


def test_before_anything_is_known_all_is_allowed():
    budget = Budget(clock=Clock())
    assert budget.left_for(1e9)
    assert budget.patience == 0.3


def test_the_clock_starts_with_the_search():
    began = monotonic()
    budget = Budget()
    assert 0.0 <= budget.spent <= monotonic() - began


def test_a_climb_ends_with_the_budget():
    """The next size is expected to take twice its share of the growth."""
    clock = Clock()

    def slow(candidate):
        clock.now += 0.5
        return 0.5 / candidate.chunk_size  # a run of 1024 / 8 blocks of 64 vectors: 4096 s, then 1024 s

    budget = Budget(share=1.0, most=10.0, clock=clock)
    # After the first: 163.8 s allowed, 0.5 spent, 4 s expected.  All may be tried.
    assert chunks(climbed(Machine(slow), budget=budget)) == [1, 4, 16, 64]
    # 512 s for the run leave 20.5; 20 of them are gone.
    budget = Budget(share=1.0, most=10.0, run_seconds=512.0, clock=clock)
    clock.now += 20.0
    assert chunks(climbed(Machine(slow), budget=budget)) == [1]


def test_setup_counts_in_what_the_next_size_is_expected_to_take():
    budget = Budget(share=1.0, most=1.0, run_seconds=25.0, clock=Clock())  # 1 s in all
    quick = Machine(lambda c: 1e-6 / c.chunk_size)
    assert chunks(climbed(quick, budget=budget)) == [1, 4, 16, 64]
    budget = Budget(share=1.0, most=1.0, run_seconds=25.0, clock=Clock())
    linearising = Machine(lambda c: 1e-6 / c.chunk_size, setup=1.2)  # again, for the same batch
    assert chunks(climbed(linearising, budget=budget)) == [1]
