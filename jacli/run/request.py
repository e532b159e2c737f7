"""Makes the engine's request from the options of a run, or of a call."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from torch import Tensor

from jacli.options.config import RunConfig, parsed_options
from jacli.options.values import Classes
from jacli.plans.request import Request

_KEEP: dict[str, Literal["dense", "factors", "nothing"]] = {
    "full": "dense",
    "factors": "factors",
    "none": "nothing",
}
"""``--save`` to what the engine keeps of each batch."""


@dataclass(frozen=True)
class WantedOutputs:
    """Which outputs are differentiated.

    Attributes:
        select: Path to the output where the model returns several.
        of: ``logits``, ``probs`` or ``log-probs``.
        classes: Which of its numbers.
    """

    select: str | None = None
    of: str = "logits"
    classes: Classes = field(default_factory=Classes)


def request_of(config: RunConfig, *, must_follow: bool = False) -> Request:
    """The engine's request for these options.

    Args:
        config: The options.
        must_follow: Whether the run continues an unfinished file, whose plan must be followed.
    """
    return Request(
        method=config.method,
        precision=config.precision,
        batch_size=config.batch_size,
        chunk_size=config.chunk_size,
        memory=config.memory,
        keep=_KEEP[config.save],
        written=True,
        singular_values=config.singular_values,
        seed=config.seed,
        earlier_plan=config.repeated_plan,
        must_follow=must_follow,
    )


def asked_of_call(
    *, labels: Tensor | None, classes: object, **options: object
) -> tuple[Request, WantedOutputs]:
    """The options of a call, checked as the command's are.

    Raises:
        UsageError: Naming every one that is wrong.
    """
    given = {**options, "classes": _plain(classes)}
    given |= {} if labels is None else {"labels": "given"}
    parsed = parsed_options(given)
    of_request, of_outputs = ({f.name for f in fields(kind)} for kind in (Request, WantedOutputs))
    return (
        Request(**{name: value for name, value in parsed.items() if name in of_request}),
        WantedOutputs(**{name: value for name, value in parsed.items() if name in of_outputs}),
    )


def _plain(classes: object) -> object:
    """Classes as the option takes them: arrays, tensors and tuples as lists of integers."""
    if hasattr(classes, "tolist"):
        classes = classes.tolist()
    return list(classes) if isinstance(classes, (tuple, range)) else classes
