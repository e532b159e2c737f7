"""JSON that nobody vouches for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jacli.json_values import MAX_BYTES, MAX_DEPTH, parse_json, read_json

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


def test_small_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("[1]")
    assert read_json(tmp_path / "a") == [1]


def test_what_is_no_small_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: a plain open would wait for ever
    (tmp_path / "large").write_bytes(b"[" + b" " * MAX_BYTES + b"]")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    for name in ("pipe", "large", "bytes"):
        with pytest.raises(ValueError):
            read_json(tmp_path / name)
    with pytest.raises(OSError):
        read_json(tmp_path)
    with pytest.raises(ValueError):
        read_json(Path("/dev/zero"))
