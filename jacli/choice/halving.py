"""Work that runs out of memory, tried again under plans of half the size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from jacli.errors import OutOfMemoryError, allocation_failure, means_out_of_memory
from jacli.plans.plan import Plan

Result = TypeVar("Result")


def halving(
    plan: Plan,
    work: Callable[[Plan], Result],
    *,
    smaller: Callable[[Plan], Plan | None],
    release: Callable[[], None],
    give_up: Callable[[Plan, str], OutOfMemoryError],
    note: Callable[[Plan, Plan], None] = lambda plan, smaller: None,
) -> tuple[Plan, Result]:
    """Do some work under a plan; whenever memory runs out, again under one of half the size.

    >>> def work(size):
    ...     if size > 10:
    ...         raise MemoryError
    ...     return f"done by {size}"
    >>> no_plan = lambda size, said: OutOfMemoryError(f"{size} is too much")
    >>> halving(40, work, smaller=lambda size: size // 2, release=lambda: None, give_up=no_plan)
    (10, 'done by 10')

    Args:
        plan: The first plan.
        work: What is done; raises what means that an allocation failed (`means_out_of_memory`).
        smaller: The plan of half the size; None if there is none.
        release: Called before the next try, when nothing of the last one is referred to.
        give_up: The error if there is no smaller plan, from the last plan and what the allocator said.
        note: Called with the plan that did not fit and the next one.

    Returns:
        The plan that fitted, and what the work gave under it.

    Raises:
        OutOfMemoryError: That of ``give_up``.
    """
    while True:
        try:
            return plan, work(plan)
        except Exception as error:
            if not means_out_of_memory(error):
                raise
            said = allocation_failure(error)
        # Only here: the exception's traceback held the tensors of the try.
        half = smaller(plan)
        release()
        if half is None:
            raise give_up(plan, said)
        note(plan, half)
        plan = half
