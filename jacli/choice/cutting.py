"""A cut network's plan: its links measured in both directions, then bracketed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jacli.choice.measure import OUT_OF_MEMORY, measure, seconds_per_multiply
from jacli.choice.memory_limit import spectrum_bytes
from jacli.choice.problem import Task
from jacli.choice.sizes import least_rows
from jacli.errors import MethodError, OutOfMemoryError
from jacli.errors.printable import count_of
from jacli.network import CutLinearized, CutNetwork
from jacli.options.config import COLUMN_METHODS, PROGRAM_METHODS
from jacli.plans import bracketing
from jacli.plans.bracketing import Bracketing
from jacli.plans.plan import FactoredPlan, LinkPlan, Measured, Plan
from jacli.plans.search import FEW_SAMPLES, Budget, Candidate, climb, ladder

_AS_FAST = 1.03
"""Of plans within this factor of the fastest the one with the largest batches is taken: each is checked."""

MAX_TRIAL_SHARE_OF_RUN = 0.01
"""A trial that takes at most this part of the run is made even where the budget is spent: a link of a few
layers is measured after all others, and one vector per pass would cost far more than finding that out."""

_WIDER = 4
"""A link is not tried in reverse where that takes this many times more vectors."""


class Cutting:
    """Measures the links of a cut network and brackets them."""

    def __init__(self, task: Task, cut: CutNetwork, budget: Budget, measured: list[Measured]) -> None:
        self._task = task
        self._cut = cut
        self._budget = budget
        self._all = measured
        # Where the whole network was the fastest is where to begin with its parts.
        batched = [m for m in measured if m.failure is None and m.method in ("adjoint", "vmap", "replicate")]
        fastest = min(batched, key=lambda m: m.vector_seconds / m.batch_size, default=None)
        self._rows = max(FEW_SAMPLES, fastest.batch_size * fastest.chunk_size // 4 if fastest else 0)

    def plan(self, make: Callable[..., Plan]) -> Plan:
        """The cheapest bracketing at the best block size.

        Raises:
            MethodError: A link can be filled in by no method.
            OutOfMemoryError: One sample with one vector a pass is too large.
        """
        plans: list[Plan] = []
        sizes = self._block_sizes()
        while sizes and (not plans or self._budget.left_for(0.2 * self._budget.run_seconds / sizes[0])):
            size = sizes.pop(0)
            try:
                plans.append(self._plan_of(size, make))
            except OutOfMemoryError:
                if size == 1 and not plans:
                    raise
                # What is larger does not fit either; what is smaller may.
                sizes = [] if plans else [size // 2]
                continue
            self._budget.run_seconds = min(self._budget.run_seconds, plans[-1].seconds or math.inf)
        fastest = min(plan.seconds or 0.0 for plan in plans)
        as_fast = [plan for plan in plans if (plan.seconds or 0.0) <= _AS_FAST * fastest]
        return max(as_fast, key=lambda plan: plan.batch_size)

    def _plan_of(self, size: int, make: Callable[..., Plan]) -> Plan:
        """The plan at one block size, with the seconds of the run."""
        task = self._task
        factored, seconds = self._bracketed(size)
        why = f"{factored.cuts[factored.split - 1]} is {factored.width} wide"
        if task.config.method == "factored":
            why = f"asked for; {why}"
        plan = make("factored", why, size, max(link.reverse_chunk for link in factored.links), factored)
        return replace(plan, seconds=math.ceil(task.shapes.n_samples / size) * seconds)

    def _block_sizes(self) -> list[int]:
        task = self._task
        if task.config.batch_size:
            return [min(task.config.batch_size, task.shapes.n_samples)]
        most = task.shapes.n_samples
        while most > 1 and self._beside(most) > task.memory.limit // 2:
            most //= 2
        return sorted({min(most, FEW_SAMPLES), min(most, 4 * FEW_SAMPLES), min(most, 8 * FEW_SAMPLES)})

    def _bracketed(self, size: int) -> tuple[FactoredPlan, float]:
        """The cheapest plan at one block size and its seconds a block."""
        task, cut = self._task, self._cut
        whole = task.linearize(task.points(0, size), cut)
        assert isinstance(whole, CutLinearized)
        links = [self._link(whole, at, size) for at in range(cut.n_links)]
        spm = seconds_per_multiply(whole.dtype, whole.device) * size
        priced = [link.priced for link in links]
        splits = [cut.narrowest] if task.config.save == "factors" else range(1, cut.n_links)
        best: tuple[float, int, Bracketing] | None = None
        for split in splits:
            tree = bracketing.cheapest(priced, seconds_per_multiply=spm, split=split)
            seconds = bracketing.cost(tree, priced, seconds_per_multiply=spm)
            if not task.keeps_dense:
                width = whole.widths[split]
                seconds -= spm * whole.n_out * width * whole.n_in
            if best is None or seconds < best[0]:
                best = (seconds, split, tree)
        whole.close()
        assert best is not None  # a cut network has a cut
        seconds, split, tree = best
        if math.isinf(seconds):
            failures = [link.failure for link in links if link.failure]
            if OUT_OF_MEMORY in failures:
                raise self._too_large(size, 0)
            raise MethodError("", why=failures[0])
        plan = FactoredPlan(
            cuts=tuple(c.name for c in cut.cuts),
            widths=whole.widths,
            split=split,
            tree=tree,
            links=tuple(link.plan for link in links),
        )
        return plan, seconds + sum(link.setup_seconds for link in links)

    def _link(self, whole: CutLinearized, at: int, size: int) -> _PricedLink:
        """Measure one link in the directions worth trying."""
        width_in, width_out = whole.widths[at], whole.widths[at + 1]
        rows, columns = self._reverse_methods(size), self._forward_methods()
        reverse = [] if width_out > _WIDER * width_in else self._tried(whole, at, size, rows)
        forward = [] if width_in > _WIDER * width_out else self._tried(whole, at, size, columns)
        if not any(m.failure is None for m in (*reverse, *forward)):
            reverse += self._tried(whole, at, size, rows) if not reverse else []
            forward += self._tried(whole, at, size, columns) if not forward else []
        return _PricedLink(width_in, width_out, reverse, forward)

    def _reverse_methods(self, size: int) -> list[str]:
        if self._task.config.precision != "ieee":
            return ["adjoint"]
        return ["adjoint", "loop", "vmap"] if size >= FEW_SAMPLES else ["adjoint", "vmap", "replicate"]

    def _forward_methods(self) -> list[str]:
        return ["tangent"] if self._task.config.precision != "ieee" else ["tangent", "forward"]

    def _tried(self, whole: CutLinearized, at: int, size: int, methods: Sequence[str]) -> list[Measured]:
        """Sizes of the methods on a link, each climbed."""
        width_in, width_out = whole.widths[at], whole.widths[at + 1]
        shapes = replace(
            self._task.shapes,
            n_samples=size,
            domain_shape=(width_in,),
            n_selected=width_out,
            fixed_batch=size,
        )
        config = replace(self._task.config, method="auto", batch_size=None)
        blocks = math.ceil(self._task.shapes.n_samples / size)
        found: list[Measured] = []

        def seconds(measured: Measured) -> float:
            vectors = width_in if measured.method.rpartition(" ")[2] in COLUMN_METHODS else width_out
            return blocks * measured.block_seconds(vectors)

        def try_one(candidate: Candidate, patience: float) -> Measured:
            name = f"link {at}: {candidate.method}"
            return measure(
                candidate,
                lambda _: whole.span(at, at + 1),
                self._task.memory,
                patience=patience,
                name=name,
            )

        room = self._task.memory.limit - self._beside(size)

        def fits(measured: Measured, growth: float) -> bool:
            return growth * measured.bytes_held <= room

        for method in methods:
            if (
                method not in PROGRAM_METHODS
                and self._has_rules(at)
                and any(m.failure is None for m in found)
            ):
                break  # no operator of the link is left to torch: plain passes would run the same work slower
            best = min(map(seconds, found), default=math.inf)
            sizes = ladder(
                method,
                shapes,
                config,
                most_samples=size,
                rows=max(size, self._rows),
                least_rows=least_rows(self._task.memory.device),
            )
            # Its own budget: the estimate of a link is not that of the run.
            budget = replace(self._budget)
            found += climb(
                sizes, try_one, seconds, budget, fits=fits, best=best, trifle=MAX_TRIAL_SHARE_OF_RUN
            )
        if not any(m.failure is None and fits(m, 1) for m in found):
            for rows in (2, 1):  # what is smaller holds less
                sizes = ladder(methods[0], shapes, config, most_samples=size, rows=rows * size)
                found.append(try_one(next(sizes), 0.0))
        self._all += found
        fitting = [m for m in found if m.failure is not None or fits(m, 1)]
        if not fitting and self._task.memory.asked:
            raise self._too_large(size, found[-1].bytes_held)
        return fitting or found[-1:]

    def _has_rules(self, at: int) -> bool:
        return not self._cut.span(at, at + 1).program.without_rule

    def _beside(self, size: int) -> int:
        """Bytes held beside the passes: the factors of a block, and what norms and values take."""
        task = self._task
        width = min(cut.width for cut in self._cut.cuts)
        factors = width * (task.shapes.n_in + task.shapes.n_selected) * task.shapes.itemsize
        return size * factors + spectrum_bytes(task.shapes, rank=width)

    def _too_large(self, size: int, held: int) -> OutOfMemoryError:
        task = self._task
        return OutOfMemoryError(
            f"Out of memory: the cut network does not fit with {count_of(size, 'sample')} per batch "
            "and one vector per pass.",
            why=f"It holds {held:,} bytes beside {self._beside(size):,} of its factors and their norms; "
            f"{task.memory.limit:,} may be held on {task.memory.device}.",
            todo="Give more --memory, or differentiate fewer outputs (--classes).",
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
        return bracketing.Link(
            self.width_in,
            self.width_out,
            _best(self.reverse).vector_seconds,
            _best(self.forward).vector_seconds,
        )

    @property
    def plan(self) -> LinkPlan:
        reverse, forward = _best(self.reverse), _best(self.forward)
        backwards = reverse.method.rpartition(" ")[2] or "adjoint"
        forwards = forward.method.rpartition(" ")[2] or "tangent"
        return LinkPlan(backwards, max(1, reverse.chunk_size), max(1, forward.chunk_size), forwards)

    @property
    def setup_seconds(self) -> float:
        found = [m.setup_seconds for m in (*self.reverse, *self.forward) if m.failure is None]
        return min(found, default=0.0)

    @property
    def failure(self) -> str:
        return next((m.failure for m in (*self.reverse, *self.forward) if m.failure), "")


def _best(tried: Sequence[Measured]) -> Measured:
    """The fastest; one of infinite cost where none served."""
    served = [m for m in tried if m.failure is None]
    return min(served, key=lambda m: m.vector_seconds, default=Measured("", 1, 1))
