"""Work is tried again at half the size while memory runs out, and for no other reason."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from jacli.choice.halving import halving
from jacli.errors import MethodError, OutOfMemoryError
from jacli.options.methods import REFERENCE
from jacli.plans.plan import Plan, Shapes, whole_plan
from jacli.plans.request import Request


def plan_of(batch_size: int) -> Plan:
    shapes = Shapes(64, (3,), (2,), 2, None, 4)
    return whole_plan(REFERENCE, "", shapes, Request(), batch_size=batch_size, chunk_size=1)


def half(plan: Plan) -> Plan | None:
    return replace(plan, batch_size=plan.batch_size // 2) if plan.batch_size > 1 else None


def too_large(plan: Plan, said: str) -> OutOfMemoryError:
    return OutOfMemoryError(f"{plan.batch_size} do not fit.", why=said)


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("no room"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_sizes_are_halved_until_it_fits(failure: Exception) -> None:
    events: list[object] = []

    def work(plan: Plan) -> str:
        events.append(plan.batch_size)
        if plan.batch_size > 2:
            raise failure
        return "done"

    plan, result = halving(
        plan_of(8),
        work,
        smaller=half,
        release=lambda: events.append("release"),
        give_up=too_large,
        note=lambda large, small: events.append((large.batch_size, small.batch_size)),
    )
    assert (plan.batch_size, result) == (2, "done")
    assert events == [8, "release", (8, 4), 4, "release", (4, 2), 2]


def test_what_does_not_fit_at_all_says_so() -> None:
    def work(plan: Plan) -> None:
        raise MemoryError("1 TiB\nmore")

    with pytest.raises(OutOfMemoryError, match="1 do not fit") as caught:
        halving(plan_of(4), work, smaller=half, release=lambda: None, give_up=too_large)
    assert caught.value.why == "1 TiB"


@pytest.mark.parametrize("failure", [ValueError("no"), MethodError("no"), OutOfMemoryError("tried already")])
def test_other_errors_are_not_tried_again(failure: Exception) -> None:
    tries = []

    def work(plan: Plan) -> None:
        tries.append(plan)
        raise failure

    with pytest.raises(type(failure)):
        halving(plan_of(4), work, smaller=half, release=lambda: None, give_up=too_large)
    assert len(tries) == 1


def test_nothing_of_a_failed_try_is_held_when_memory_is_released() -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def work(plan: Plan) -> None:
        large = torch.ones(4)
        held.append(weakref.ref(large))
        if plan.batch_size > 1:
            raise MemoryError

    def release() -> None:
        gc.collect()
        alive.append(held[-1]() is not None)

    halving(plan_of(4), work, smaller=half, release=release, give_up=too_large)
    assert alive == [False, False]
