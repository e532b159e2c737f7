"""Notes for the plan: operators without a rule, which a linear program leaves to autograd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from jacli.choice.problem import Graph
from jacli.network import CutNetwork, LinearProgram
from jacli.plans.bracketing import Bracketing, Product, Pull, Push, Seed
from jacli.plans.factorization import Factorization
from jacli.plans.plan import ChainPlan, MatrixFreePlan, Plan, WholePlan


def fallback_notes(plan: Plan, graph: Graph) -> tuple[str, ...]:
    """Operators without a rule in the programs that a plan runs, in words; empty if there are none.

    A program knows them once it was linearised: in a first batch, or as it was measured.
    """
    programs: list[LinearProgram] = []
    match plan, graph:
        case ChainPlan(factorization=factorization), CutNetwork():
            spans = sorted(_spans(factorization.tree, factorization))
            programs = [graph.span(first, last).program for first, last in spans]
        case MatrixFreePlan(primitive="program"), LinearProgram():
            programs = [graph]
        case WholePlan(filled_by=method), LinearProgram() if method.runs_program:
            programs = [graph]
    counts = sum((Counter(program.without_rule) for program in programs), Counter[str]())
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    return (f"differentiated by torch within the program: {listed}",) if listed else ()


def _spans(tree: Bracketing, factorization: Factorization) -> Iterator[tuple[int, int]]:
    """First and last link of the spans that programs fill in, or pull or push through."""
    match tree:
        case Product(upper=upper, lower=lower):
            yield from _spans(upper, factorization)
            yield from _spans(lower, factorization)
            return
        case Seed(first=first, last=last, direction=direction):
            by_columns = direction == "forward"
        case Pull(upper=carried, through_first=first, through_last=last):
            by_columns = False
            yield from _spans(carried, factorization)
        case Push(lower=carried, through_first=first, through_last=last):
            by_columns = True
            yield from _spans(carried, factorization)
    if factorization.links[first].method(by_columns=by_columns).runs_program:
        yield first, last
