"""Measurements: what is the linearisation's and what is a vector's, by a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from jacli.choice import measure as measuring
from jacli.choice.measure import OUT_OF_MEMORY, measure, seconds_per_byte, seconds_per_multiply
from jacli.choice.memory_limit import MemoryLimit
from jacli.errors import MethodError
from jacli.linear_maps import Slab
from jacli.options.methods import METHODS
from jacli.plans.search import Candidate

N_IN, N_OUT, BATCH = 12, 20, 3
LIMIT = MemoryLimit(torch.device("cpu"), 2**40, 2**40, False, 0)


@dataclass
class Clock:
    """Seconds, and what they are spent on: linearising, and the passes of a block in turn."""

    linearizing: list[float] = field(default_factory=lambda: [0.0])
    passes: list[list[float]] = field(default_factory=lambda: [[0.0]])
    seconds: float = 0.0
    opened: int = 0
    closed: int = 0

    def linearize(self, size: int) -> Any:
        assert size == BATCH
        self.seconds += self.linearizing[min(self.opened, len(self.linearizing) - 1)]
        self.opened += 1
        return self

    def close(self) -> None:
        self.closed += 1

    def blocks(self, method: Any, linearization: Any, *, chunk_size: int) -> Iterator[Slab]:
        passes = self.passes[min(self.opened, len(self.passes)) - 1]
        columns = method.by_columns
        vectors = N_IN if columns else N_OUT
        for at, start in enumerate(range(0, vectors, chunk_size)):
            self.seconds += passes[min(at, len(passes) - 1)]
            some = range(start, min(start + chunk_size, vectors))
            everything = range(N_OUT if columns else N_IN)
            ends = (everything, some) if columns else (some, everything)
            yield Slab(*ends, torch.empty(0))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`measure` of a method, with so many vectors per pass, by a clock."""

    def run(clock: Clock, method: str = "adjoint", chunk: int = 4, patience: float = 0.0) -> Any:
        monkeypatch.setattr(measuring, "now", lambda device: clock.seconds)
        monkeypatch.setattr(measuring, "checked_slabs", clock.blocks)
        found = measure(Candidate(METHODS[method], BATCH, chunk), clock.linearize, LIMIT, patience=patience)
        assert clock.opened == clock.closed
        return found

    return run


@pytest.mark.parametrize("method", ["loop", "vmap", "adjoint", "forward", "tangent"])
def test_a_vector_is_a_row_or_a_column(timed: Any, method: str) -> None:
    found = timed(Clock([5.0], [[0.9, 0.4]]), method, patience=10.0)
    assert found.vector_seconds == pytest.approx(0.4 / 4)
    assert (found.method, found.batch_size, found.chunk_size) == (method, BATCH, 4)


def test_what_is_left_of_the_first_pass_is_the_linearisation(timed: Any) -> None:
    clock = Clock([0.1], [[0.4, 0.4]])
    found = timed(clock)
    assert found.setup_seconds == pytest.approx(0.1) and found.vector_seconds == pytest.approx(0.1)
    assert clock.opened == 1


def test_a_linearisation_that_takes_most_of_it_is_timed_again(timed: Any) -> None:
    """The first one fills caches."""
    clock = Clock([0.9, 0.5], [[0.06, 0.04]])
    found = timed(clock)
    assert clock.opened == 2
    assert found.vector_seconds == pytest.approx(0.01)
    assert found.setup_seconds == pytest.approx(0.5 + 0.06 - 0.04)


def test_of_short_passes_the_fastest_of_several_counts(timed: Any) -> None:
    found = timed(Clock([0.0], [[0.02, 0.006, 0.004, 0.008, 0.008]]))
    assert found.vector_seconds == pytest.approx(0.001)


def test_a_first_pass_that_took_long_is_believed(timed: Any) -> None:
    clock = Clock([1.0], [[7.0, 0.1]])
    found = timed(clock)
    assert (found.setup_seconds, found.vector_seconds) == (0.0, 8.0 / 4)
    assert clock.opened == 1


def test_all_in_one_pass_is_timed_as_a_whole_with_its_caches_warm(timed: Any) -> None:
    clock = Clock([0.5, 0.2], [[0.5], [0.2]])
    found = timed(clock, chunk=100)
    assert clock.opened == 2
    assert (found.setup_seconds, found.vector_seconds) == (0.0, pytest.approx(0.4 / N_OUT))


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (MethodError("It cannot.", why="No rule."), "It cannot. No rule."),
        (MemoryError("no more"), OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OUT_OF_MEMORY),
    ],
    ids=str,
)
@pytest.mark.parametrize("at_the_second_pass", [False, True])
def test_what_fails_is_closed_and_says_why(
    timed: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, failure: str, at_the_second_pass: bool
) -> None:
    clock = Clock()
    passes = clock.blocks

    def fails(*arguments: Any, **sizes: Any) -> Iterator[Slab]:
        if at_the_second_pass:
            yield next(passes(*arguments, **sizes))
        raise error

    monkeypatch.setattr(clock, "blocks", fails)
    found = timed(clock)
    assert found.failure == failure and found.vector_seconds == float("inf")


def test_another_error_is_not_taken_for_a_failure(timed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **sizes: Any) -> Iterator[Slab]:
        raise ZeroDivisionError
        yield

    clock = Clock()
    monkeypatch.setattr(clock, "blocks", fails)
    with pytest.raises(ZeroDivisionError):
        timed(clock)
    assert clock.closed == 1


def test_figures_of_the_machine_are_measured_once() -> None:
    cpu = torch.device("cpu")
    for figure in (
        seconds_per_byte,
        lambda *of, threads: seconds_per_multiply(torch.float32, *of, threads=threads),
    ):
        first = figure(cpu, threads=1)
        assert 0 < first < 1e-3
        assert figure(cpu, threads=1) == first
