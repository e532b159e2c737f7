"""Columns by their definitions, tables by their rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jacli.errors import UsageError
from jacli.summary import (
    COLUMNS,
    FileSummary,
    Statistics,
    Table,
    arranged,
    columns_over_file,
    table_over_file,
    table_per_class,
    table_per_sample,
)

VALUES = np.array([[4.0, 3, 0.5], [1, 1, 1], [2, 0, 0]])
KNOWN = Statistics(
    frobenius_norm=np.linalg.norm(VALUES, axis=1),
    spectral_norm=VALUES[:, 0],
    nuclear_norm=VALUES.sum(1),
    class_norms=np.array([[1.0, 5], [3, 2], [0, 0]]),
    singular_values=VALUES,
    singular_value_error=np.full((3, 3), 1e-9),
)


def test_columns_by_definition() -> None:
    column = {name: column.function(KNOWN) for name, column in COLUMNS.items()}
    assert column["stable_rank"] == pytest.approx([25.25 / 16, 3, 1])
    share = VALUES[0] / 7.5
    assert column["effective_rank"] == pytest.approx([math.exp(-(share * np.log(share)).sum()), 3, 1])
    assert column["condition_number"] == pytest.approx([8, 1, math.inf])
    assert column["largest_class_norm"] == pytest.approx([5, 3, 0])


def test_a_value_within_its_error_of_zero_is_zero() -> None:
    known = Statistics(singular_values=np.array([[1.0, 1e-15]]), singular_value_error=np.full((1, 2), 1e-14))
    assert COLUMNS["condition_number"].function(known) == pytest.approx([math.inf])


@pytest.mark.parametrize("name", COLUMNS)
def test_what_is_not_determined_is_none(name: str) -> None:
    assert COLUMNS[name].function(Statistics()) is None


def test_zero_jacobian_has_undefined_ranks_without_a_warning() -> None:
    zero = Statistics(frobenius_norm=np.zeros(1), spectral_norm=np.zeros(1), singular_values=np.zeros((1, 2)))
    for name in ("stable_rank", "effective_rank", "condition_number"):
        assert np.isnan(COLUMNS[name].function(zero)).all()


def file(name: str = "a.h5", *, frobenius: list[float] | None = None) -> FileSummary:
    columns = {key: column.function(KNOWN) for key, column in COLUMNS.items()}
    if frobenius:
        columns["frobenius_norm"] = np.array(frobenius)
    return FileSummary(name, np.array([7, 3, 5]), columns, np.array([4, 2]), KNOWN.class_norms)


def test_over_file_counts_what_is_not_finite_apart() -> None:
    table = table_over_file([file(frobenius=[1.0, math.nan, 3.0])])
    assert table.columns == ("metric", "mean", "median", "min", "max", "p5", "p95", "not_finite")
    assert [row[0] for row in table.rows] == list(COLUMNS)
    assert table.rows[0] == ("frobenius_norm", 2.0, 2.0, 1.0, 3.0, pytest.approx(1.1), pytest.approx(2.9), 1)


def test_over_file_without_numbers() -> None:
    empty = FileSummary("a.h5", np.arange(0), dict.fromkeys(COLUMNS))
    assert table_over_file([empty]).rows[0] == ("frobenius_norm", *[None] * 7)
    assert table_over_file([file(frobenius=[math.nan] * 3)]).rows[0] == ("frobenius_norm", *[None] * 6, 3)


def test_several_files_stand_together_by_metric() -> None:
    table = table_over_file([file("a.h5"), file("b.h5")])
    assert table.columns == columns_over_file(several=True)
    assert [row[:2] for row in table.rows[:3]] == [
        ("frobenius_norm", "a.h5"),
        ("frobenius_norm", "b.h5"),
        ("spectral_norm", "a.h5"),
    ]


def test_per_sample() -> None:
    table = table_per_sample([file("a.h5"), file("b.h5")])
    assert table.columns == ("file", "sample", *COLUMNS)
    assert [row[:2] for row in table.rows] == [(f, s) for f in ("a.h5", "b.h5") for s in (7, 3, 5)]
    assert table.rows[0][3] == 4.0


def test_per_class_with_common_and_with_own_classes() -> None:
    common = table_per_class([file()])
    assert common.columns == ("class", "count", "mean", "median", "min", "max", "std", "not_finite")
    assert [row[:2] for row in common.rows] == [(2, 3), (4, 3)]
    assert common.rows[1][2:6] == pytest.approx((4 / 3, 1, 0, 3))
    own = FileSummary("a.h5", np.arange(2), {}, np.array([[9, 1], [1, 4]]), np.array([[1.0, 2], [4, np.nan]]))
    rows = table_per_class([own]).rows
    assert [(row[0], row[1], row[2], row[7]) for row in rows] == [
        (1, 2, 3.0, 0),
        (4, 1, None, 1),
        (9, 1, 1.0, 0),
    ]
    assert [row[:2] for row in table_per_class([file("b.h5"), file("a.h5")]).rows] == [
        (2, "b.h5"), (2, "a.h5"), (4, "b.h5"), (4, "a.h5"),
    ]  # fmt: skip


def test_sort_and_limit() -> None:
    table = Table(("name", "x"), (("a", 2.0), ("b", None), ("c", math.nan), ("d", 3.0), ("e", math.inf)))
    assert [row[0] for row in arranged(table, sort="x").rows] == ["a", "d", "e", "b", "c"]
    assert [row[0] for row in arranged(table, sort="-x", limit=2).rows] == ["e", "d"]
    assert [row[0] for row in arranged(table, sort="-name").rows] == list("edcba")
    with pytest.raises(UsageError, match="name, x"):
        arranged(table, sort="y")
    with pytest.raises(UsageError, match="--limit 0"):
        arranged(table, limit=0)
