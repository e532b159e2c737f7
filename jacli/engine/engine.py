"""From a network and its points to Jacobians, block by block: what files and the Python API share."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from torch import Tensor

from jacli.choice.choose import Choice
from jacli.choice.fallback_notes import as_traced
from jacli.choice.halving import halving
from jacli.choice.problem import ComputedBlock, Graph, Task
from jacli.device.hardware import is_gpu
from jacli.device.memory import release_cached_memory
from jacli.engine.batch_checks import BatchChecks, CheckHistory
from jacli.engine.batch_graph import batch_graphs
from jacli.errors import MethodError, OutOfMemoryError
from jacli.errors.printable import count_of
from jacli.linear_map import DenseMap
from jacli.methods import Method, factors_of, fill, load_method
from jacli.network import CutLinearized, Program
from jacli.plans.plan import Plan, with_counts


@dataclass(frozen=True)
class Chosen:
    """A method that has proved itself on the first block.

    Attributes:
        method: The method.
        plan: Its plan.
        row_error: Worst relative error of its checked rows; 0 for plain passes, which they are checked with.
        passed_over: Methods tried before, with what was wrong with each.
        graph: The traced network, where the method runs it.
    """

    method: Method
    plan: Plan
    row_error: float = 0.0
    passed_over: Mapping[str, str] = field(default_factory=dict)
    graph: Graph = None

    def to_dict(self) -> dict[str, object]:
        """For the result file's ``plan``."""
        return {
            **self.plan.to_dict(),
            "row_check_error": self.row_error,
            "passed_over": dict(self.passed_over),
        }


Place = Callable[[Plan, int, int], Tensor | None]
"""Where the dense matrices of some samples go, ``(count, n_out, n_in)``: plan, first sample, count."""


class Engine:
    """Computes the blocks of a task under the plans of a choice.

    Args:
        task: What is to be computed.
        choice: Its plans.
        place: Memory that dense matrices are written into; a block has its own where it is None.
        start: First sample; those before it are done.
        proven: The method and plan they were done with, which is gone on with.
        history: What an earlier call with the same module, graph and plan has checked.

    Attributes:
        notes: What happened that the user must be told.
        held: Most that was held by the first block, in bytes, beside results that are kept.
        chosen: The method and plan in force, once the first block is done.
        accepted: Those that the first block was computed with.
    """

    def __init__(
        self,
        task: Task,
        choice: Choice,
        place: Place | None = None,
        *,
        start: int = 0,
        proven: Chosen | None = None,
        history: CheckHistory | None = None,
    ) -> None:
        self._task = task
        self._choice = choice
        self._place = place
        self._start = start
        self._number = 0
        self._checks = BatchChecks(task, history)
        self.notes: list[str] = []
        self.held = 0
        self.chosen = self.accepted = proven

    def blocks(self) -> Iterator[ComputedBlock]:
        """All blocks, in order; what does not fit in memory is tried again in halves.

        A block is to be let go before the next one is asked for, or both are held.

        Raises:
            MethodError: No plan serves the first block, or none serves a later one.
            ModelError: Samples are not independent of one another, or of their place in the batch.
            OutOfMemoryError: One sample with one vector a pass does not fit.
        """
        n_samples = self._task.shapes.n_samples
        start = self._start
        while start < n_samples:
            # What a block holds does not change from one to the next: it is looked at now and then.
            self._number += 1
            watch = self._task.memory.peak() if self._now_and_then else nullcontext([0])
            with watch as held:
                block = self._first() if self.chosen is None else self._next(start)
            block.linearization.close()
            start += block.count
            beside = held[0] - self._placed(start)
            self.held = self.held or beside  # of the first block, when none waits to be written yet
            yield block
            del block
            self._stay_within(beside, start < n_samples)

    @property
    def _now_and_then(self) -> bool:
        """At the first block, the second, the fourth, the eighth ..."""
        return self._number & (self._number - 1) == 0

    def _placed(self, count: int) -> int:
        """Bytes of the result of the first samples, where it is kept: it does not count as held."""
        return count * self._task.shapes.sample_bytes if self._place else 0

    def _first(self) -> ComputedBlock:
        """The first block by the first plan that serves it and whose rows are those of plain passes."""
        passed_over: dict[str, str] = {}
        last: MethodError | None = None
        for plan in self._choice.plans:
            try:
                plan, block, error = self._fitting(plan, 0)
            except MethodError as failure:
                passed_over[plan.method] = f"{failure.what} {failure.why}"
                last = failure
                continue
            graph = self._choice.graph_of(plan)
            notes = dict.fromkeys((*plan.notes, *as_traced(plan, graph)))
            plan = replace(plan, notes=tuple(notes))
            self.chosen = Chosen(load_method(plan.method), plan, error, passed_over, graph)
            self.accepted = self.chosen
            return block
        if self._choice.taken_over:
            # The plan of an earlier run or call no longer serves: choose as if there had been none.
            self.notes += [f"an earlier plan did not serve: {why}" for why in passed_over.values()]
            self._choice = Choice(replace(self._task, config=replace(self._task.config, repeated_plan=None)))
            return self._first()
        assert last is not None  # there is a plan at least
        config = self._task.config
        free = config.method == "auto" and config.precision == "ieee" and config.save != "factors"
        if not free or "loop" in passed_over:
            raise last
        return self._first_by_loop(passed_over)

    def _first_by_loop(self, passed_over: dict[str, str]) -> ComputedBlock:
        """The first block by plain passes, where the choice is free and all that was chosen is wrong."""
        loop = load_method("loop")
        plan = replace(
            self._choice.plans[0], method="loop", chunk_size=1, factored=None, notes=(), seconds=None
        )
        plan = replace(with_counts(plan, self._task.shapes, loop.passes), why="all others tried were wrong")
        plan, block, error = self._fitting(plan, 0)
        self.chosen = self.accepted = Chosen(loop, plan, error, passed_over, None)
        return block

    def _next(self, start: int) -> ComputedBlock:
        """A later block; by another plan where the one in force does not serve there."""
        assert self.chosen is not None
        try:
            plan, block, _ = self._fitting(self.chosen.plan, start)
        except MethodError as failure:
            return self._instead(start, failure)
        self._continue_with(plan)
        return block

    def _instead(self, start: int, failure: MethodError) -> ComputedBlock:
        """One block by plain passes, which are right wherever the network has a derivative."""
        assert self.chosen is not None
        config, method = self._task.config, self.chosen.plan.method
        if method == "loop" or config.method not in ("auto", "loop") or config.save == "factors":
            raise self._stopped(start, failure)
        self._checks.doubt()
        plan = self.chosen.plan
        loop = replace(plan, method="loop", chunk_size=1, factored=None)
        _, block, _ = self._fitting(loop, start)
        stop = start + block.count - 1
        self.notes.append(f"samples {start} to {stop} by loop, not {plan.method}: {failure.why}")
        return block

    def _stopped(self, start: int, failure: MethodError) -> MethodError:
        """The method in force fails at a later batch, and no other may take its place."""
        assert self.chosen is not None
        method, config = self.chosen.plan.method, self._task.config
        if not self._task.written:
            todo = "Leave method out: what it cannot do is then computed by loop."
        elif config.save == "factors":
            todo = "Start anew with --no-resume, and with --save full or none: other methods give no factors."
        elif method == "loop":
            todo = "Leave those samples out with --samples; what is done cannot be finished with them."
        else:
            todo = (
                "Run the same command with --method auto: it keeps what is done, and computes by loop what "
            )
            todo += f"{method} cannot."
        return MethodError(
            f"The method {method} serves up to sample {start - 1}, and not from there on.",
            why=f"{failure.what} {failure.why}",
            todo=todo,
        )

    def _continue_with(self, plan: Plan) -> None:
        assert self.chosen is not None
        if plan is not self.chosen.plan:
            chosen = self.chosen
            self.chosen = Chosen(chosen.method, plan, chosen.row_error, chosen.passed_over, chosen.graph)

    def _fitting(self, plan: Plan, start: int) -> tuple[Plan, ComputedBlock, float]:
        """The block by the plan, or by one with half the sizes, and so on, if memory runs out.

        And the worst error that its checks found (`BatchChecks`).
        """

        def checked(plan: Plan) -> tuple[ComputedBlock, float]:
            block = self._block(plan, start)
            return block, self._checks.error(plan, block, taken_over=self._choice.taken_over)

        def note(plan: Plan, smaller: Plan) -> None:
            self.notes.append(f"out of memory: {_sizes(plan)} did not fit, going on with {_sizes(smaller)}")

        plan, (block, error) = halving(
            plan,
            checked,
            smaller=self._smaller,
            release=self._release,
            give_up=self._out_of_memory,
            note=note,
        )
        return plan, block, error

    def _smaller(self, plan: Plan) -> Plan | None:
        return plan.smaller(self._task.shapes, load_method(plan.method).passes)

    def _block(self, plan: Plan, start: int) -> ComputedBlock:
        count = min(plan.batch_size, self._task.shapes.n_samples - start)
        points, graph = self._task.points(start, plan.batch_size), self._choice.graph_of(plan)
        if plan.factored:
            cut = self._task.linearize(points, graph)
            assert isinstance(cut, CutLinearized)
            return ComputedBlock(start, count, cut, factors_of(cut, plan.factored))
        method = load_method(plan.method)
        out = self._place(plan, start, count) if self._place else None
        if isinstance(graph, Program) and is_gpu(points[0].device):
            linearization, dense = batch_graphs(graph).fill(
                lambda points, outputs: self._task.linearize(points, graph, outputs),
                points,
                method,
                plan.chunk_size,
                out,
            )
        else:
            linearization = self._task.linearize(points, graph)
            dense = fill(method, linearization, chunk_size=plan.chunk_size, out=out)
        return ComputedBlock(start, count, linearization, DenseMap(dense))

    def _stay_within(self, held: int, more: bool) -> None:
        """Halve the blocks to come if this one held more than it may."""
        chosen, memory = self.chosen, self._task.memory
        assert chosen is not None
        if not more or held <= memory.limit:
            return
        smaller = self._smaller(chosen.plan)
        self._release()
        if smaller is not None:
            self.notes.append(
                f"{held:,} bytes were held, {memory.limit:,} are allowed: going on with {_sizes(smaller)}"
            )
            self._continue_with(smaller)

    def _release(self) -> None:
        if self.chosen is not None and isinstance(self.chosen.graph, Program):
            batch_graphs(self.chosen.graph).clear()
        gc.collect()
        release_cached_memory(self._task.memory.device)

    def _out_of_memory(self, plan: Plan, said: str) -> OutOfMemoryError:
        shapes, memory = self._task.shapes, self._task.memory
        return OutOfMemoryError(
            f"Out of memory with {_sizes(plan)}: not even that fits.",
            why=f"The Jacobian of a sample takes {shapes.sample_bytes:,} bytes, "
            f"{memory.limit:,} may be held on {memory.device}; {said}.",
            todo="Take fewer outputs (--classes), more --memory, or another device; or --save factors.",
        )


def _sizes(plan: Plan) -> str:
    samples = count_of(plan.batch_size, "sample")
    if plan.factored:
        chunk = max(max(link.reverse_chunk, link.forward_chunk) for link in plan.factored.links)
        return f"{samples} a block and {count_of(chunk, 'vector')} a pass"
    return f"{samples} a block and {count_of(plan.chunk_size, 'vector')} a pass"
