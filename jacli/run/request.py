"""Makes the engine's request from the options of a run, or of a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from torch import Tensor

from jacli.options.config import parsed_options
from jacli.options.table import RunConfig
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


_Asked = TypeVar("_Asked", Request, WantedOutputs)


def request_of(config: RunConfig, *, must_follow: bool = False) -> Request:
    """The engine's request for these options.

    >>> request = request_of(RunConfig("net.pt", "x.npy", save="none", method="loop"))
    >>> request.method, request.keep
    ('loop', 'nothing')

    Args:
        config: The options.
        must_follow: Whether the run continues an unfinished file, whose plan must be followed.
    """
    return _filled(
        Request,
        vars(config),
        keep=_KEEP[config.save],
        written=True,
        earlier_plan=config.repeated_plan,
        must_follow=must_follow,
    )


def asked_of_call(
    *, labels: Tensor | None, classes: object, **options: object
) -> tuple[Request, WantedOutputs]:
    """The options of a call, checked as the command's are.

    >>> request, outputs = asked_of_call(labels=None, classes=[3, 7], method="loop")
    >>> request.method, outputs
    ('loop', WantedOutputs(select=None, of='logits', classes=Classes(kind='indices', indices=(3, 7), k=0)))

    Raises:
        UsageError: Naming every one that is wrong.
    """
    given = {**options, "classes": _plain(classes)}
    given |= {} if labels is None else {"labels": "given"}
    parsed = parsed_options(given)
    return _filled(Request, parsed), _filled(WantedOutputs, parsed)


def _filled(kind: type[_Asked], options: Mapping[str, Any], **others: Any) -> _Asked:
    """A dataclass whose fields take the options of the same names, and ``others``."""
    taken = {field.name for field in fields(kind)} & set(options)
    return kind(**{name: options[name] for name in taken}, **others)


def _plain(classes: object) -> object:
    """Classes as the option takes them: arrays, tensors and tuples as lists of integers."""
    if hasattr(classes, "tolist"):
        classes = classes.tolist()
    return list(classes) if isinstance(classes, (tuple, range)) else classes
