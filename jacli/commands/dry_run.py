"""``jacli compute --dry-run``: what a run would do and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jacli.choice.choose import choose
from jacli.choice.memory_limit import memory_errors
from jacli.errors.printable import count_of
from jacli.network import exact_arithmetic
from jacli.options.table import RunConfig
from jacli.plans.plan import Plan
from jacli.run.batches import Run
from jacli.run.config_file import result_path
from jacli.run.prepare import prepare
from jacli.store import bytes_on_disk, check_place, free_bytes, part_path, read_progress


@dataclass(frozen=True)
class DryRun:
    """Plan of a run: nothing was written, and only the first samples were tried.

    Attributes:
        shapes: Name to shape, in words.
        dtype: The run's arithmetic.
        precision: That of its linear passes.
        plan: The fastest plan, with the seconds of the whole run and what was measured.
        alternatives: Methods that come next should the first batch refuse it, with the run's seconds.
        disk: Dataset to bytes, uncompressed.
        free: Bytes free where the file would go.
        memory: Bytes that may be held.
        notes: What the user must be told.
    """

    shapes: Mapping[str, Any]
    dtype: str
    precision: str
    plan: Plan
    alternatives: tuple[tuple[str, float], ...]
    disk: Mapping[str, int]
    free: int
    memory: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "shapes": dict(self.shapes),
            "dtype": self.dtype,
            "precision": self.precision,
            "plan": self.plan.to_dict(),
            "alternatives": dict(self.alternatives),
            "bytes_on_disk": dict(self.disk),
            "bytes_on_disk_total": sum(self.disk.values()),
            "bytes_free": self.free,
            "bytes_of_memory": self.memory,
            "notes": list(self.notes),
        }


def dry_run(config: RunConfig) -> DryRun:
    """The plan of a run: shapes, method, passes, seconds, bytes.

    >>> plan = dry_run(RunConfig("sample_models/digits_cnn.pt", "sample_models/digits.npy", method="loop"))
    >>> plan.plan.method, plan.plan.passes
    ('loop', 20)

    Raises:
        JacliError: As the run itself would, up to its first batch.
    """
    with exact_arithmetic(), ExitStack() as stack:
        out = result_path(config)
        check_place(out, overwrite=config.overwrite)
        prepared = prepare(config)
        stack.enter_context(prepared.source)
        run = Run(config, prepared)
        with memory_errors("trying the model on the first samples"):
            choice = choose(run.request, run.problem, timed=True)
        plan = choice.plans[0]
        shapes = {
            "samples": prepared.shapes.n_samples,
            "input": list(prepared.shapes.input_shape),
            "output": list(prepared.shapes.output_shape),
            "jacobian_of_a_sample": list(run.jacobian_shape),
        }
        return DryRun(
            shapes=shapes,
            dtype=config.dtype,
            precision=config.precision,
            plan=plan,
            alternatives=tuple(
                (other.method, other.seconds) for other in choice.plans[1:] if other.seconds is not None
            ),
            disk=bytes_on_disk(run.layout(plan)),
            free=free_bytes(out),
            memory=run.memory.limit,
            notes=(*_unfinished(out), *prepared.notes, *choice.notes, *plan.notes, *run.notes(plan)),
        )


def _unfinished(out: Path) -> Iterator[str]:
    if part_path(out).exists():
        progress = read_progress(out)
        done = f", {progress.done} of {count_of(progress.samples, 'sample')} done" if progress else ""
        yield f"{part_path(out)} is unfinished{done}: the command that began it resumes it, with its own plan"
