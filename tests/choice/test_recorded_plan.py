"""The plan in a result file, with one value of another type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jacli.choice.recorded_plan import check_plan, recorded_plan
from jacli.errors import ResultsError
from jacli.store.attributes import Attributes

LINK = {"reverse_method": "vmap", "reverse_chunk": 2, "forward_chunk": 1, "forward_method": "forward"}
FACTORED = {
    "cuts": ["relu"],
    "widths": [12, 3, 7],
    "split": 1,
    "tree": {"kind": "product"},
    "links": [LINK, LINK],
}
MEASURED = {"method": 1, "batch_size": 4, "chunk_size": 1}
PLAN = {
    "method": "vmap",
    "why": "asked for",
    "batch_size": 4,
    "chunk_size": 7,
    "factored": None,
    "seconds": 0.5,
    "measured": [{"method": "vmap", "batch_size": 4, "chunk_size": 7, "vector_seconds": 1e-3}],
    "notes": ["a note"],
    "row_check_error": 1e-7,
    "passed_over": {"loop": "slower"},
}


def _of(plan: object) -> Attributes:
    return Attributes(Path("r.h5"), {"plan": json.dumps(plan)})


def test_a_sound_plan() -> None:
    assert recorded_plan(_of(PLAN)) == PLAN
    least = {name: PLAN[name] for name in ("method", "batch_size", "chunk_size")}
    assert recorded_plan(_of(least)) == least
    check_plan(PLAN | {"seconds": None, "measured": []})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("method", value) for value in (None, 7, ["vmap"])),
        *(("batch_size", value) for value in (None, 0, -1, 2.5, True, "4", 10**30)),
        *(("chunk_size", value) for value in (None, 0, -1, 2.5, True, "4", 10**30)),
        *(("why", value) for value in (7, ["a"])),
        *(("seconds", value) for value in ("1", [1], True)),
        *(("row_check_error", value) for value in ("0", [], {})),
        *(("passed_over", value) for value in ("loop", ["loop"], {"loop": 1})),
        *(("notes", value) for value in ("a", [1], {"a": "b"})),
        *(("measured", value) for value in (7, ["a"], [{}], [{"method": 1}], [MEASURED])),
        *(("factored", value) for value in (7, [], {}, FACTORED | {"links": 3}, FACTORED | {"links": [{}]})),
        ("factored", FACTORED | {"links": [LINK | {"reverse_chunk": "2"}]}),
    ],
)  # fmt: skip
def test_a_value_of_another_type(name: str, value: object) -> None:
    with pytest.raises(ResultsError, match=f"`plan` is damaged: its {name} cannot be"):
        recorded_plan(_of(PLAN | {name: value}))


@pytest.mark.parametrize("plan", [None, 7, [], "x"])
def test_no_plan(plan: object) -> None:
    with pytest.raises(ResultsError, match="no JSON object"):
        recorded_plan(_of(plan))
