"""The plan of a cut network: its links measured in both directions, then bracketed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from jacli.choice.measure import OUT_OF_MEMORY, Measuring, seconds_per_multiply
from jacli.choice.memory_limit import spectrum_bytes
from jacli.choice.problem import Problem
from jacli.choice.sizes import least_rows
from jacli.errors import OutOfMemoryError
from jacli.errors.printable import count_of
from jacli.network import CutLinearized, CutNetwork
from jacli.options.methods import CHAIN, METHODS, Method
from jacli.plans import bracketing
from jacli.plans.bracketing import Bracketing
from jacli.plans.factorization import Factorization, LinkPlan
from jacli.plans.plan import ChainPlan, Measured, chain_plan
from jacli.plans.request import Request
from jacli.plans.search import FEW_SAMPLES, Budget, Candidate, climb, ladder

MAX_SLOWDOWN_FOR_LARGER_BATCHES = 1.03
"""Of plans within this factor of the fastest the one with the largest batches is taken: each is checked."""

MAX_TRIAL_SHARE_OF_RUN = 0.01
"""A trial that takes at most this part of the run is made even where the budget is spent: a link of a few
layers is measured after all others, and one vector per pass would cost far more than finding that out."""

MAX_VECTOR_RATIO = 4
"""A link is not tried in the direction that takes more than this many times the vectors of the other."""


class NotServedError(Exception):
    """No method fills in a link of the cut network; the text says why."""


class Cutting:
    """Measures the links of a cut network and brackets them."""

    def __init__(
        self,
        request: Request,
        problem: Problem,
        cut: CutNetwork,
        budget: Budget,
        measured: list[Measured],
        measure: Measuring,
    ) -> None:
        self._request = request
        self._problem = problem
        self._cut = cut
        self._budget = budget
        self._all = measured
        self._measure = measure
        # Where the whole network was the fastest is where to begin with its parts.
        served = [m for m in measured if m.failure is None and _pulls_chunks(METHODS[m.method])]
        fastest = min(served, key=lambda m: m.vector_seconds / m.batch_size, default=None)
        self._rows = max(FEW_SAMPLES, fastest.batch_size * fastest.chunk_size // 4 if fastest else 0)

    def plan(self) -> ChainPlan:
        """The cheapest bracketing at the best batch size.

        Raises:
            NotServedError: A link can be filled in by no method.
            OutOfMemoryError: One sample with one vector per pass is too large.
        """
        plans: list[ChainPlan] = []
        sizes = self._batch_sizes()
        while sizes and (not plans or self._budget.left_for(0.2 * self._budget.run_seconds / sizes[0])):
            size = sizes.pop(0)
            try:
                plans.append(self._plan_of(size))
            except OutOfMemoryError:
                if size == 1 and not plans:
                    raise
                # What is larger does not fit either; what is smaller may.
                sizes = [] if plans else [size // 2]
                continue
            self._budget.learn(plans[-1].seconds or math.inf)
        fastest = min(plan.seconds or 0.0 for plan in plans)
        limit = MAX_SLOWDOWN_FOR_LARGER_BATCHES * fastest
        return max((plan for plan in plans if (plan.seconds or 0.0) <= limit), key=lambda p: p.batch_size)

    def _plan_of(self, size: int) -> ChainPlan:
        """The plan at one batch size, with the seconds of the run."""
        request, shapes = self._request, self._problem.shapes
        factorization, seconds = self._bracketed(size)
        why = f"{factorization.cuts[factorization.split - 1]} is {factorization.width} wide"
        if request.method == CHAIN:
            why = f"asked for; {why}"
        plan = chain_plan(factorization, why, shapes, request, batch_size=size)
        return replace(plan, seconds=math.ceil(shapes.n_samples / size) * seconds)

    def _batch_sizes(self) -> list[int]:
        problem, most = self._problem, self._problem.shapes.n_samples
        if self._request.batch_size:
            return [min(self._request.batch_size, most)]
        while most > 1 and self._beside(most) > problem.memory.limit // 2:
            most //= 2
        return sorted({min(most, FEW_SAMPLES), min(most, 4 * FEW_SAMPLES), min(most, 8 * FEW_SAMPLES)})

    def _bracketed(self, size: int) -> tuple[Factorization, float]:
        """The cheapest order at one batch size and its seconds per batch."""
        problem, request = self._problem, self._request
        with problem.cut(problem.points(0, size), self._cut, precision=request.precision) as whole:
            return self._cheapest(whole, size)

    def _cheapest(self, of_whole: CutLinearized, size: int) -> tuple[Factorization, float]:
        cut, request = self._cut, self._request
        links = [self._link(of_whole, at, size) for at in range(cut.n_links)]
        spm = size * seconds_per_multiply(of_whole.dtype, of_whole.device, threads=torch.get_num_threads())
        priced = [link.priced for link in links]
        splits = [cut.narrowest] if request.keep == "factors" else range(1, cut.n_links)
        best: tuple[float, int, Bracketing] | None = None
        for split in splits:
            tree = bracketing.cheapest(priced, seconds_per_multiply=spm, split=split)
            seconds = bracketing.cost(tree, priced, seconds_per_multiply=spm)
            if request.keep != "dense":
                width = of_whole.widths[split]
                seconds -= spm * of_whole.n_out * width * of_whole.n_in
            if best is None or seconds < best[0]:
                best = (seconds, split, tree)
        assert best is not None  # a cut network has a cut
        seconds, split, tree = best
        if math.isinf(seconds):
            failures = [link.failure for link in links if link.failure]
            if OUT_OF_MEMORY in failures:
                raise self._too_large(size, 0)
            raise NotServedError(failures[0].rstrip("."))
        factorization = Factorization(
            cuts=tuple(c.name for c in cut.cuts),
            widths=of_whole.widths,
            split=split,
            tree=tree,
            links=tuple(link.plan for link in links),
        )
        return factorization, seconds + sum(link.setup_seconds for link in links)

    def _link(self, of_whole: CutLinearized, at: int, size: int) -> _PricedLink:
        """Measure one link in the directions worth trying."""
        width_in, width_out = of_whole.widths[at], of_whole.widths[at + 1]
        rows, columns = (self._methods(size, by_columns=which) for which in (False, True))
        reverse = [] if width_out > MAX_VECTOR_RATIO * width_in else self._tried(of_whole, at, size, rows)
        forward = [] if width_in > MAX_VECTOR_RATIO * width_out else self._tried(of_whole, at, size, columns)
        if not any(m.failure is None for m in (*reverse, *forward)):
            reverse += self._tried(of_whole, at, size, rows) if not reverse else []
            forward += self._tried(of_whole, at, size, columns) if not forward else []
        return _PricedLink(width_in, width_out, reverse, forward)

    def _methods(self, size: int, *, by_columns: bool) -> list[Method]:
        """Those of one direction, the likeliest first; plain passes as they suit this batch size."""
        few = size < FEW_SAMPLES
        order = ("program", "batched", "tape") if few else ("program", "tape", "batched")
        methods = [m for m in METHODS.values() if m.by_columns == by_columns]
        if not self._request.is_exact:
            methods = [m for m in methods if m.runs_program]
        methods = [m for m in methods if not m.is_plain or m.repeats_batch == few]
        return sorted(methods, key=lambda method: order.index(method.primitive))

    def _tried(
        self, of_whole: CutLinearized, at: int, size: int, methods: Sequence[Method]
    ) -> list[Measured]:
        """Sizes of the methods on a link, each climbed."""
        width_in, width_out = of_whole.widths[at], of_whole.widths[at + 1]
        memory = self._problem.memory
        shapes = replace(
            self._problem.shapes,
            n_samples=size,
            domain_shape=(width_in,),
            n_selected=width_out,
            fixed_batch=size,
        )
        request = replace(self._request, method="auto", batch_size=None)
        batches = math.ceil(self._problem.shapes.n_samples / size)
        tried: list[Measured] = []

        def seconds(measured: Measured) -> float:
            return batches * measured.batch_seconds(shapes.vectors(METHODS[measured.method]))

        def try_one(candidate: Candidate, patience: float) -> Measured:
            return self._measure(
                candidate, lambda _: of_whole.span(at, at + 1), memory, patience=patience, link=at
            )

        room = memory.limit - self._beside(size)

        def fits(measured: Measured, growth: float) -> bool:
            return growth * measured.bytes_held <= room

        for method in methods:
            served = any(m.failure is None for m in tried)
            if not method.runs_program and self._has_rules(at) and served:
                break  # no operator of the link is left to torch: plain passes would run the same work slower
            best = min(map(seconds, tried), default=math.inf)
            sizes = ladder(
                method,
                shapes,
                request,
                most_samples=size,
                rows=max(size, self._rows),
                least_rows=least_rows(memory.device),
            )
            budget = self._budget.for_a_part()
            tried += climb(
                sizes, try_one, seconds, budget, fits=fits, best=best, trifle=MAX_TRIAL_SHARE_OF_RUN
            )
        if not any(m.failure is None and fits(m, 1) for m in tried):
            for rows in (2, 1):  # what is smaller holds less
                sizes = ladder(methods[0], shapes, request, most_samples=size, rows=rows * size)
                tried.append(try_one(next(sizes), 0.0))
        self._all += tried
        fitting = [m for m in tried if m.failure is not None or fits(m, 1)]
        if not fitting and memory.asked:
            raise self._too_large(size, tried[-1].bytes_held)
        return fitting or tried[-1:]

    def _has_rules(self, at: int) -> bool:
        return not self._cut.span(at, at + 1).program.without_rule

    def _beside(self, size: int) -> int:
        """Bytes held beside the passes: the factors of a batch, and what norms and values take."""
        shapes = self._problem.shapes
        width = min(cut.width for cut in self._cut.cuts)
        factors = width * (shapes.n_in + shapes.n_selected) * shapes.itemsize
        return size * factors + spectrum_bytes(shapes, rank=width)

    def _too_large(self, size: int, held: int) -> OutOfMemoryError:
        memory = self._problem.memory
        return OutOfMemoryError(
            f"Out of memory: the cut network does not fit with {count_of(size, 'sample')} per batch "
            "and one vector per pass.",
            why=f"It holds {held:,} bytes beside {self._beside(size):,} of its factors and their norms; "
            f"{memory.limit:,} may be held on {memory.device}.",
            hint="Give more --memory, or differentiate fewer outputs (--classes).",
        )


@dataclass(frozen=True)
class _PricedLink:
    """What the measurements of a link come to."""

    width_in: int
    width_out: int
    reverse: list[Measured]
    forward: list[Measured]

    @property
    def priced(self) -> bracketing.Link:
        rows, columns = self._best(by_columns=False), self._best(by_columns=True)
        return bracketing.Link(self.width_in, self.width_out, rows.vector_seconds, columns.vector_seconds)

    @property
    def plan(self) -> LinkPlan:
        rows, columns = self._best(by_columns=False), self._best(by_columns=True)
        return LinkPlan(rows.method, max(1, rows.chunk_size), max(1, columns.chunk_size), columns.method)

    @property
    def setup_seconds(self) -> float:
        return min((m.setup_seconds for m in self._tried if m.failure is None), default=0.0)

    @property
    def failure(self) -> str:
        return next((m.failure for m in self._tried if m.failure), "")

    @property
    def _tried(self) -> list[Measured]:
        return [*self.reverse, *self.forward]

    def _best(self, *, by_columns: bool) -> Measured:
        """The fastest of a direction; one of infinite cost where none served."""
        served = [m for m in (self.forward if by_columns else self.reverse) if m.failure is None]
        likeliest = next(m for m in METHODS.values() if m.runs_program and m.by_columns == by_columns)
        return min(served, key=lambda m: m.vector_seconds, default=Measured(likeliest.name, 1, 1))


def _pulls_chunks(method: Method) -> bool:
    return not (method.by_columns or method.single_vector)
