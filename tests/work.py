"""A problem and what is asked of it, as the tests of the choice and of the engine put them together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import pytest
from torch import Tensor

from jacli.choice.choose import Choice, choose
from jacli.choice.problem import Points, Problem
from jacli.engine.engine import Engine
from jacli.engine.whole_result import WholeResult
from jacli.network import TensorNetwork, TracedNetwork
from jacli.options.methods import METHODS
from jacli.plans.plan import Measured, Shapes
from jacli.plans.request import Request
from jacli.plans.search import Candidate


@dataclass(frozen=True)
class TracedOnce(Problem):
    """A problem whose network is traced once, for all that is asked of it."""

    @classmethod
    def of(cls, problem: Problem) -> TracedOnce:
        return cls(**{each.name: getattr(problem, each.name) for each in fields(problem)})

    @cached_property
    def traced(self) -> TracedNetwork:
        return super().trace()

    def trace(self) -> TracedNetwork:
        return self.traced


@dataclass(frozen=True)
class Work:
    """A request and its problem."""

    request: Request
    problem: Problem

    @property
    def shapes(self) -> Shapes:
        return self.problem.shapes

    @property
    def network(self) -> TensorNetwork:
        return self.problem.network

    @property
    def points(self) -> Callable[[int, int], Points]:
        return self.problem.points

    def asked(self, **changes: Any) -> Work:
        """The same problem, of which something else is asked."""
        return replace(self, request=replace(self.request, **changes))

    def changed(self, **changes: Any) -> Work:
        """The same request for another problem."""
        return replace(self, problem=replace(self.problem, **changes))

    def choose(self, **options: Any) -> Choice:
        return choose(self.request, self.problem, **options)

    def engine(self, choice: Choice, **options: Any) -> Engine:
        return Engine(self.request, self.problem, choice, **options)

    def matrices(self) -> Tensor:
        """The Jacobians ``(n_samples, n_out, n_in)`` under the plan that is chosen."""
        result = WholeResult(self.request, self.problem)
        for batch in self.engine(self.choose(), out_buffer=result.out_buffer).batches():
            result.take(batch)
        return result.matrices


@dataclass
class Figures:
    """Measurements that are made up: so many seconds for a row of a sample, so many bytes for so many rows.

    Attributes:
        seconds: Of a method, or of one on a link (``link 0: vmap``).
        otherwise: Of those that are not named.
        held: Bytes, by rows in flight.
        linearizes: Whether programs are run, so that they tell what has no rule.
        tried: What was measured.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    otherwise: Callable[[int], float] = lambda rows: 10.0
    held: Callable[[int], int] = lambda rows: 0
    linearizes: bool = False
    tried: list[Measured] = field(default_factory=list)

    def __call__(
        self, candidate: Candidate, linearize: Any, memory: Any, *, patience: float, link: int | None = None
    ) -> Measured:
        method = candidate.method
        made = Measured(method.name, candidate.batch_size, candidate.chunk_size, link=link)
        if self.linearizes and method.runs_program:
            linearize(candidate.batch_size).program()
        each = self.seconds.get(made.name, self.otherwise(candidate.rows))
        made = replace(
            made,
            setup_seconds=0.0,
            vector_seconds=each * candidate.batch_size,
            bytes_held=self.held(candidate.rows),
        )
        self.tried.append(made)
        return made

    @property
    def names(self) -> list[str]:
        return [measured.name for measured in self.tried]

    @property
    def methods(self) -> set[str]:
        return {measured.method for measured in self.tried}


def not_measured(*arguments: object, **options: object) -> Measured:
    """In the place of a measurement where there must be none."""
    pytest.fail("something was measured")


def no_programs(methods: set[str]) -> bool:
    """Whether none of these methods runs the traced network."""
    return not any(METHODS[name].runs_program for name in methods)
