"""Sizes for people, and numbers that JSON does not have."""

from __future__ import annotations

import json
import math

import pytest

from jacli.errors.numbers import format_size, json_ready


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (5 * 2**20, "5.0 MiB"),
        (2**30, "1.0 GiB"),
        (2**51, "2048.0 TiB"),
    ],
)
def test_sizes_have_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert format_size(count) == text


def test_numbers_that_are_not_finite_become_text_wherever_they_are() -> None:
    ready = json_ready({"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf}, "d": None, "e": 2})
    assert json.loads(json.dumps(ready, allow_nan=False)) == {
        "a": ["NaN", [1.5, "-Infinity"]],
        "b": {"c": "Infinity"},
        "d": None,
        "e": 2,
    }
