"""Which methods cannot serve a model, and what is said where one of them was asked for."""

from __future__ import annotations

from collections.abc import Mapping

from jacli.errors import MethodError
from jacli.errors.printable import capitalised
from jacli.options.methods import CHAIN, METHOD_NAMES, METHODS, trace_refusal
from jacli.plans.plan import Shapes, check_batch_size
from jacli.plans.request import Request


def refusals(fixed_batch: int | None) -> dict[str, str | None]:
    """Every method with the reason why it cannot serve a model with that only batch size, or None.

    >>> sorted(name for name, why in refusals(16).items() if why is None)
    ['forward', 'loop', 'vmap']
    """
    reasons = {name: method.refusal(fixed_batch=fixed_batch) for name, method in METHODS.items()}
    return reasons | {CHAIN: trace_refusal(fixed_batch=fixed_batch)}


def require_served(method: str, refused: Mapping[str, str | None]) -> None:
    """Refuse by name a method that was asked for and cannot serve the model.

    >>> require_served("replicate", refusals(16))
    Traceback (most recent call last):
        ...
    jacli.errors.MethodError: The method replicate does not work with this model.
    It repeats the batch, and the model runs in batches of 16 only.
    Leave --method out, or choose one of: loop, vmap, forward.

    Raises:
        MethodError: Always with the reason and the methods that remain.
    """
    reason = refused.get(method)
    if reason:
        others = ", ".join(name for name in METHOD_NAMES if refused[name] is None)
        raise MethodError(
            f"The method {method} does not work with this model.",
            why=f"{capitalised(reason)}.",
            hint=f"Leave --method out, or choose one of: {others}.",
        )


def check_asked(request: Request, shapes: Shapes) -> dict[str, str | None]:
    """Refuse a batch size or method that cannot serve the model; gives every method's reason, see `refusals`.

    >>> from jacli.plans.plan import Shapes
    >>> shapes = Shapes(100, (3,), (2,), n_selected=2, fixed_batch=None, itemsize=4)
    >>> any(check_asked(Request(), shapes).values())
    False

    Raises:
        MethodError: The method asked for cannot serve.
        UsageError: The batch size asked for is not possible.
    """
    check_batch_size(shapes, request)
    refused = refusals(shapes.fixed_batch)
    require_served(request.method, refused)
    return refused
