"""JSON that nobody vouches for."""

from __future__ import annotations

import pytest

from jacli.untrusted.json_values import MAX_DEPTH, parse_json

DEEP = {
    "lists": "[" * 100_000 + "]" * 100_000,
    "objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "not closed": "[" * 100_000,
    "parsed, but deep": "[" * 900 + "]" * 900,
    "one too many": "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP.keys())
def test_deep_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="nested"):
        parse_json(text)


def test_json_is_read() -> None:
    assert parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(ValueError):
        parse_json("")
