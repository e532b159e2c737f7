"""``jacli compute``: from a model file and an inputs file to one result file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jacli.config import COMMAND_LINE_ONLY, RunConfig
from jacli.errors import UsageError
from jacli.network import exact_arithmetic
from jacli.plan import Plan
from jacli.run.blocks import Run
from jacli.run.config_file import resolve_options
from jacli.run.first_block import Chosen, memory_errors
from jacli.run.prepare import prepare
from jacli.run.provenance import provenance
from jacli.store import ResultWriter, bytes_on_disk, check_place, check_room, free_bytes

Progress = Callable[[int, int], None]
"""Called with samples done and samples in all."""


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
        notes: What the user must be told.
    """

    out: Path
    samples: int
    shape: tuple[int, ...]
    chosen: Chosen
    not_finite: tuple[int, ...]
    overflowed: int
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
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class DryRun:
    """What a run would do: nothing was written and no Jacobian computed.

    Attributes:
        shapes: Name to shape, in words.
        plan: The first candidate's plan.
        alternatives: Methods that come next should the first block refuse it.
        disk: Dataset to bytes, uncompressed.
        free: Bytes free where the file would go.
        notes: What the user must be told.
    """

    shapes: Mapping[str, Any]
    plan: Plan
    alternatives: tuple[str, ...]
    disk: Mapping[str, int]
    free: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "shapes": dict(self.shapes),
            "plan": self.plan.to_dict(),
            "alternatives": list(self.alternatives),
            "bytes_on_disk": dict(self.disk),
            "bytes_on_disk_total": sum(self.disk.values()),
            "bytes_free": self.free,
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
        check_room(out, run.layout(next(plan for _, plan in run.plans())))
        with memory_errors("computing the first block"):
            chosen, first = run.first_block()
        layout = run.layout(chosen.plan)
        attributes = provenance(config, prepared, chosen, command)
        with ResultWriter.create(out, layout, attributes, overwrite=config.overwrite) as writer:
            if config.classes.kind == "indices":
                writer.write_static("class_index", np.array(config.classes.indices, dtype=np.int64))
            total = prepared.shapes.n_samples
            for start, arrays in run.blocks(chosen, first):
                writer.write_block(start, arrays)
                progress(start + len(arrays["sample_index"]), total)
            writer.set_attributes({"inputs_sha256": run.inputs_sha256.hexdigest()})
            writer.finish()
        return Outcome(
            out=out,
            samples=prepared.shapes.n_samples,
            shape=run.jacobian_shape,
            chosen=chosen,
            not_finite=tuple(run.not_finite),
            overflowed=writer.overflowed,
            notes=(*prepared.notes, *run.notes(chosen.plan)),
        )


def dry_run(config: RunConfig) -> DryRun:
    """The plan of a run: shapes, method, passes, bytes.

    Raises:
        JacliError: As the run itself would, up to its first block.
    """
    with exact_arithmetic(), ExitStack() as stack:
        check_place(Path(config.out), overwrite=config.overwrite)
        prepared = prepare(config)
        stack.enter_context(prepared.source)
        run = Run(config, prepared)
        plans = [plan for _, plan in run.plans()]
        layout = run.layout(plans[0])
        shapes = {
            "samples": prepared.shapes.n_samples,
            "input": list(prepared.shapes.input_shape),
            "output": list(prepared.shapes.output_shape),
            "jacobian_of_a_sample": list(run.jacobian_shape),
        }
        return DryRun(
            shapes=shapes,
            plan=plans[0],
            alternatives=tuple(plan.method for plan in plans[1:]),
            disk=bytes_on_disk(layout),
            free=free_bytes(Path(config.out)),
            notes=(*prepared.notes, *run.notes(plans[0])),
        )
