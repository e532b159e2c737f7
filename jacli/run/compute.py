"""``jacli compute``: from a model file and an inputs file to one result file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jacli.config import COMMAND_LINE_ONLY, RunConfig
from jacli.errors import UsageError
from jacli.network import exact_arithmetic
from jacli.plan import Plan
from jacli.run.blocks import Run
from jacli.run.choose import Choice
from jacli.run.config_file import resolve_options
from jacli.run.engine import Chosen, Engine
from jacli.run.memory import memory_errors
from jacli.run.prepare import prepare
from jacli.run.provenance import provenance
from jacli.run.recheck import choose_rows, recheck_samples, tolerance_of
from jacli.store import ResultWriter, bytes_on_disk, check_place, check_room, free_bytes

Progress = Callable[[int, int], None]
"""Called with samples done and samples in all."""


@dataclass(frozen=True)
class Recheck:
    """What the recheck of a run's samples found.

    Attributes:
        samples: How many were rechecked.
        worst_error: The largest relative error among those that are not at a kink; None of none.
        tolerance: What was allowed.
        dtype: Arithmetic of the reference.
        at_kinks: Positions in INPUTS of samples at a kink.
        failed: Positions in INPUTS of samples that are wrong.
    """

    samples: int
    worst_error: float | None
    tolerance: float
    dtype: str | None
    at_kinks: tuple[int, ...]
    failed: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        out: The result file.
        samples: Number of samples in it.
        shape: Of one sample's Jacobian as stored, ``(*input, *output)``.
        chosen: Method and plan.
        not_finite: Positions in INPUTS of samples whose Jacobian or outputs are not finite.
        overflowed: Values that became infinite in ``--save-dtype``.
        rechecked: What ``--verify`` found.
        notes: What the user must be told.
    """

    out: Path
    samples: int
    shape: tuple[int, ...]
    chosen: Chosen
    not_finite: tuple[int, ...]
    overflowed: int
    rechecked: Recheck
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "out": str(self.out),
            "samples": self.samples,
            "jacobian_shape": list(self.shape),
            "plan": self.chosen.to_dict(),
            "not_finite": list(self.not_finite),
            "overflowed": self.overflowed,
            "rechecked": asdict(self.rechecked),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class DryRun:
    """What a run would do: nothing was written, and only the first samples were tried.

    Attributes:
        shapes: Name to shape, in words.
        plan: The fastest plan, with the seconds of the whole run and what was measured.
        alternatives: Methods that come next should the first block refuse it, with the run's seconds.
        disk: Dataset to bytes, uncompressed.
        free: Bytes free where the file would go.
        memory: Bytes that may be held.
        notes: What the user must be told.
    """

    shapes: Mapping[str, Any]
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
            "plan": self.plan.to_dict(),
            "alternatives": dict(self.alternatives),
            "bytes_on_disk": dict(self.disk),
            "bytes_on_disk_total": sum(self.disk.values()),
            "bytes_free": self.free,
            "bytes_of_memory": self.memory,
            "notes": list(self.notes),
        }


def compute(model: str, inputs: str, out: str = "out.h5", **options: Any) -> Outcome:
    """Compute every sample's Jacobian and write it with its norms and singular values to ``out``.

    Args:
        model: As the command's MODEL.
        inputs: As the command's INPUTS.
        out: The result file.
        **options: The command's options with underscores (``method="vmap"``, ``classes="top:5"``).

    Raises:
        JacliError: As the command's exit codes; a result with values that are not finite is no
            error here, see `Outcome.not_finite`.
    """
    for name in COMMAND_LINE_ONLY:
        if name in options:
            raise UsageError(
                f"jacli.compute takes no {name}.",
                why="It is about what the command `jacli compute` prints.",
                todo="Leave it out.",
            )
    config = resolve_options({"model": str(model), "inputs": str(inputs), "out": str(out), **options})
    return run_compute(config, command="jacli.compute(...)")


def run_compute(config: RunConfig, *, command: str, progress: Progress = lambda done, total: None) -> Outcome:
    """Run from checked options to the finished file.

    Raises:
        JacliError: See `compute`.
    """
    with exact_arithmetic(), ExitStack() as stack:
        out = Path(config.out)
        check_place(out, overwrite=config.overwrite)
        prepared = prepare(config)
        stack.enter_context(prepared.source)
        run = Run(config, prepared)
        task = run.task()
        with memory_errors("trying the model on the first samples"):
            choice = Choice(task)
        engine = Engine(task, choice)
        check_room(out, run.layout(choice.plans[0]))
        total = prepared.shapes.n_samples
        writer: ResultWriter | None = None
        for block in engine.blocks():
            chosen = engine.chosen
            assert chosen is not None  # a block was computed
            if writer is None:
                attributes = provenance(config, prepared, chosen, command)
                created = ResultWriter.create(
                    out, run.layout(chosen.plan), attributes, overwrite=config.overwrite
                )
                writer = stack.enter_context(created)
                if config.classes.kind == "indices":
                    writer.write_static("class_index", np.array(config.classes.indices, dtype=np.int64))
            with memory_errors(f"storing samples {block.start} to {block.start + block.count - 1}"):
                writer.write_block(block.start, run.arrays(block, chosen.plan))
            progress(block.start + block.count, total)
            del block  # or it would be held while the next one is computed
        assert writer is not None and engine.chosen is not None  # there is a sample at least
        rechecked = _recheck(run, writer, engine.chosen)
        writer.set_attributes(
            {
                "inputs_sha256": run.inputs_sha256.hexdigest(),
                "plan": engine.chosen.to_dict(),
                "notes": [*prepared.notes, *choice.notes, *engine.notes],
                "verified_dtype": rechecked.dtype,
            }
        )
        writer.finish()
        return Outcome(
            out=out,
            samples=total,
            shape=run.jacobian_shape,
            chosen=engine.chosen,
            not_finite=tuple(run.not_finite),
            overflowed=writer.overflowed,
            rechecked=rechecked,
            notes=(*prepared.notes, *choice.notes, *engine.notes, *run.notes(engine.chosen.plan)),
        )


def _recheck(run: Run, writer: ResultWriter, chosen: Chosen) -> Recheck:
    """Hold some samples, as they stand in the file, against the original model; write down what is found."""
    config, prepared = run.config, run.prepared
    wrong = set(run.not_finite)
    errors: list[float] = []
    at_kinks, failed = [], []
    dtype: str | None = None
    rows = choose_rows(prepared.shapes.n_samples, config.verify, config.seed)
    with memory_errors("rechecking samples"):
        for row, found in recheck_samples(prepared, writer.datasets, chosen.plan, config, rows):
            writer.write_recheck(row, found.error, found.near_kink)
            position, dtype = int(prepared.source.index[row]), found.dtype
            if found.near_kink:
                at_kinks.append(position)
            else:
                errors.append(found.error)
            if found.failed and position not in wrong:
                failed.append(position)
    worst = max(errors, default=None)
    return Recheck(len(rows), worst, tolerance_of(config), dtype, tuple(at_kinks), tuple(failed))


def dry_run(config: RunConfig) -> DryRun:
    """The plan of a run: shapes, method, passes, seconds, bytes.

    Raises:
        JacliError: As the run itself would, up to its first block.
    """
    with exact_arithmetic(), ExitStack() as stack:
        check_place(Path(config.out), overwrite=config.overwrite)
        prepared = prepare(config)
        stack.enter_context(prepared.source)
        run = Run(config, prepared)
        task = run.task()
        with memory_errors("trying the model on the first samples"):
            choice = Choice(task, timed=True)
        plan = choice.plans[0]
        shapes = {
            "samples": prepared.shapes.n_samples,
            "input": list(prepared.shapes.input_shape),
            "output": list(prepared.shapes.output_shape),
            "jacobian_of_a_sample": list(run.jacobian_shape),
        }
        return DryRun(
            shapes=shapes,
            plan=plan,
            alternatives=tuple(
                (other.method, other.seconds) for other in choice.plans[1:] if other.seconds is not None
            ),
            disk=bytes_on_disk(run.layout(plan)),
            free=free_bytes(Path(config.out)),
            memory=task.memory.limit,
            notes=(*prepared.notes, *choice.notes, *plan.notes, *run.notes(plan)),
        )
