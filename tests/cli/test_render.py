"""Tables on a terminal: too wide a table is folded, none of it is lost, no line is longer than the screen."""

from __future__ import annotations

import io
import re
import sys

import pytest

from jacli.cli.render import folded, print_table, render_table
from jacli.summary import COLUMNS, Cell, Table

PER_SAMPLE = Table(
    ("file", "sample", *COLUMNS),
    tuple((f"run_{name}.h5", i, *[1.23456 * i + 1 for _ in COLUMNS]) for name in "ab" for i in range(3)),
    keys=2,
)
BENCH = Table(
    ("method", "precision", "samples", "seconds", "memory", "note"),
    (
        ("loop", "ieee", 32, 0.123, "1.0 GiB", None),
        ("forward", "ieee", None, None, None, "refused: forward mode has no rule for " + "an operator " * 12),
    ),
    keys=2,
)
NARROW = Table(("sample", "error"), ((1, 0.5), (2, 0.25)))


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def shown(table: Table, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines on a terminal of this width, without their styles."""
    monkeypatch.setenv("COLUMNS", str(width))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    print_table(table)
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("table", [PER_SAMPLE, BENCH, NARROW], ids=["per sample", "bench", "narrow"])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_longer_than_the_terminal(
    table: Table, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(table, width, monkeypatch)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for name in table.columns:
        assert name in words
    for row in table.rows:
        for cell in row:
            for word in str(cell if not isinstance(cell, float) else f"{cell:.5g}").split():
                assert word in words or cell is None


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_every_part_says_what_its_rows_are(width: int) -> None:
    parts = folded(PER_SAMPLE, width)
    assert all(columns[:2] == [0, 1] for columns, _ in parts)
    others = [at for columns, _ in parts for at in columns[2:]]
    assert others == list(range(2, len(PER_SAMPLE.columns)))
    assert (len(parts) == 1) == (width == 200)


def test_a_long_text_is_wrapped_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(BENCH, 80, monkeypatch)
    assert sum("an operator" in line for line in lines) > 1
    assert "refused: forward mode has no rule for" in " ".join(lines)


def test_what_fits_is_not_folded_and_a_pipe_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert folded(NARROW, 80) == [([0, 1], None)]
    monkeypatch.setenv("COLUMNS", "40")
    for table in (PER_SAMPLE, BENCH):
        lines = render_table(table).splitlines()
        assert len(lines) == 2 + len(table.rows) and max(map(len, lines)) > 80


def test_no_column_but_the_first() -> None:
    rows: tuple[tuple[Cell, ...], ...] = (("a",),)
    assert folded(Table(("file",), rows), 80) == [([0], None)]
