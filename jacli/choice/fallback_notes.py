"""What of a traced network has no rule of its own, and runs as torch differentiates it: said in the plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from jacli.choice.problem import Graph
from jacli.network import CutNetwork, Program
from jacli.options.config import PROGRAM_METHODS
from jacli.plans.bracketing import Bracketing, Product, Pull, Push, Seed
from jacli.plans.plan import FactoredPlan, Plan


def as_traced(plan: Plan, graph: Graph) -> tuple[str, ...]:
    """Operators without a rule in the programs that a plan runs, in words; empty if there are none.

    A program knows them once it was linearised: in a first block, or as it was measured.
    """
    if isinstance(graph, CutNetwork) and plan.factored:
        programs = [graph.span(*ends).program for ends in sorted(_spans(plan.factored.tree, plan.factored))]
    else:
        programs = [graph] if isinstance(graph, Program) and plan.method in PROGRAM_METHODS else []
    found = sum((Counter(program.without_rule) for program in programs), Counter[str]())
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(found.items()))
    return (f"differentiated by torch within the program: {listed}",) if listed else ()


def _spans(tree: Bracketing, plan: FactoredPlan) -> Iterator[tuple[int, int]]:
    """First and last link of the spans that programs fill in, or pull or push through."""
    if isinstance(tree, Product):
        yield from _spans(tree.upper, plan)
        yield from _spans(tree.lower, plan)
        return
    if isinstance(tree, Seed):
        first, last, reverse = tree.first, tree.last, tree.direction == "reverse"
    else:
        first, last, reverse = tree.through_first, tree.through_last, isinstance(tree, Pull)
        yield from _spans(tree.lower if isinstance(tree, Push) else tree.upper, plan)
    how = plan.links[first]
    if (how.reverse_method if reverse else how.forward_method) in PROGRAM_METHODS:
        yield first, last
