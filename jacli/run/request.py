"""From the options of a run to what is asked of the engine."""

from __future__ import annotations

from typing import Literal

from jacli.options.config import RunConfig
from jacli.plans.request import Request

_KEEP: dict[str, Literal["dense", "factors", "nothing"]] = {
    "full": "dense",
    "factors": "factors",
    "none": "nothing",
}
"""``--save`` to what the engine keeps of each batch."""


def request_of(config: RunConfig, *, must_follow: bool = False) -> Request:
    """What the options ask of the engine.

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
