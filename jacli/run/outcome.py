"""Outcome of a run, or of the earlier one that finished the same file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jacli.engine.engine import Chosen


@dataclass(frozen=True)
class Recheck:
    """Result of the recheck of a run's samples.

    Attributes:
        samples: How many were rechecked.
        worst_error: The largest relative error among those that are not at a kink; None of none.
        tolerance: What was allowed.
        dtype: Arithmetic of the reference.
        at_kinks: Positions in INPUTS of samples at a kink.
        failed: Positions in INPUTS of samples that are wrong.
        notes: What the user must be told of the reference.
        only_rounding: Whether plain reverse passes in the run's dtype are as far off at all of ``failed``.
    """

    samples: int
    worst_error: float | None
    tolerance: float
    dtype: str | None
    at_kinks: tuple[int, ...]
    failed: tuple[int, ...]
    notes: tuple[str, ...] = ()
    only_rounding: bool = False


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run.

    Attributes:
        out: The result file.
        samples: Number of samples in it.
        continued: How many of them an earlier process had done.
        shape: Of one sample's Jacobian as stored, ``(*input, *output)``.
        plan: Method, sizes and measurements, as the file records them (JSON).
        chosen: Method and plan; None where the file was complete already and nothing was computed.
        not_finite: Positions in INPUTS of samples whose Jacobian or outputs are not finite.
        overflowed: Values that became infinite in ``--save-dtype``.
        rechecked: What ``--verify`` found.
        notes: What the user must be told.
    """

    out: Path
    samples: int
    continued: int
    shape: tuple[int, ...]
    plan: Mapping[str, Any]
    chosen: Chosen | None
    not_finite: tuple[int, ...]
    overflowed: int
    rechecked: Recheck
    notes: tuple[str, ...]

    @property
    def already_complete(self) -> bool:
        """Whether an earlier run of the same model, inputs and options had finished the file."""
        return self.chosen is None

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "out": str(self.out),
            "already_complete": self.already_complete,
            "samples": self.samples,
            "continued": self.continued,
            "jacobian_shape": list(self.shape),
            "plan": dict(self.plan),
            "not_finite": list(self.not_finite),
            "overflowed": self.overflowed,
            "rechecked": asdict(self.rechecked),
            "notes": list(self.notes),
        }
