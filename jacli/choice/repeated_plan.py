"""A plan that a result file records, taken up again for a problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jacli.choice.lazy_trace import LazyTrace
from jacli.choice.recorded_plan import check_plan
from jacli.errors import OutputError
from jacli.network import NotTraceableError
from jacli.options.methods import CHAIN, METHODS
from jacli.plans.factorization import Factorization
from jacli.plans.plan import Measured, Plan, Shapes, chain_plan, whole_plan
from jacli.plans.request import Request


def repeated_plan(request: Request, shapes: Shapes, trace: LazyTrace) -> Plan | str:
    """The earlier plan of a request, or why it cannot be followed here.

    Raises:
        OutputError: It must be followed, and cannot be.
    """
    recorded = request.earlier_plan
    assert recorded is not None  # there is one to repeat
    try:
        check_plan(recorded)
        plan = _plan(recorded, request, shapes, trace)
        measured = tuple(Measured.from_dict(tried) for tried in recorded.get("measured", ()))
        notes = tuple(map(str, recorded.get("notes", ()))) if request.must_follow else ()
        return replace(plan, seconds=recorded.get("seconds"), measured=measured, notes=notes)
    except (KeyError, TypeError, ValueError, NotTraceableError) as failure:
        if request.must_follow:
            lacking = isinstance(failure, KeyError)
            raise OutputError(
                "The plan of the unfinished run does not work here.",
                why=f"There is no {failure}." if lacking else f"{failure}.",
                hint="Resume it where it began (with the same versions), or start over with --no-resume.",
            ) from failure
        return str(failure)


def _plan(recorded: Mapping[str, Any], request: Request, shapes: Shapes, trace: LazyTrace) -> Plan:
    why = str(recorded["why"]) if request.must_follow else "as in the run that is repeated"
    batch_size, chunk_size = int(recorded["batch_size"]), int(recorded["chunk_size"])
    is_chain = recorded["method"] == CHAIN
    if min(batch_size, chunk_size) < 1 or is_chain != bool(recorded.get("factored")):
        raise ValueError("its sizes are no sizes")
    if is_chain:
        factorization = Factorization.from_dict(recorded["factored"])
        cuts = tuple((cut.name, cut.width) for cut in trace.cut().cuts)
        if cuts != tuple(zip(factorization.cuts, factorization.widths[1:-1], strict=True)):
            raise ValueError("the network is cut elsewhere")
        return chain_plan(factorization, why, shapes, request, batch_size=batch_size)
    method = METHODS[str(recorded["method"])]
    if method.runs_program:
        trace.trace()
    return whole_plan(method, why, shapes, request, batch_size=batch_size, chunk_size=chunk_size)
