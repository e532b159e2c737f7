"""`summarize --by`: groups of samples by their labels; the accuracy where labels are stored."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from jacli.commands.summarize import summarize
from jacli.errors import ResultsError, UsageError
from jacli.run.labelled import accuracy_notes, correct_samples
from jacli.summary import COLUMNS

LABELS = np.array([0, 2, 2, 1, 0, 2, 7], np.int64)
LARGEST = np.array([0, 2, 1, 1, 2, 2, 0])
RIGHT = LABELS == LARGEST


def write(path: Path, *, seed: int = 0, **change: Any) -> np.ndarray:
    """A result of 7 samples and 3 outputs; the Jacobians as matrices (7, 3, 4)."""
    jacobian = np.random.default_rng(seed).standard_normal((7, 4, 3)).astype(np.float32)
    outputs = np.eye(3, dtype=np.float32)[LARGEST]
    datasets = {"jacobian": jacobian, "outputs": outputs, "labels": LABELS, "done": np.ones(7, np.uint8)}
    with h5py.File(path, "w") as file:
        file.attrs["schema"], file.attrs["complete"] = "jacli/2", True
        for name, values in (datasets | change).items():
            if values is not None:
                file[name] = values
    return jacobian.astype(np.float64).transpose(0, 2, 1)


def cells(table: Any, **where: Any) -> dict[str, Any]:
    """The only row with these cells."""
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    (row,) = [row for row in rows if all(row[name] == value for name, value in where.items())]
    return row


@pytest.mark.parametrize(("group", "members"), [("yes", RIGHT), ("no", ~RIGHT)])
@pytest.mark.parametrize("metric", ["frobenius_norm", "spectral_norm"])
def test_correct_and_wrong_samples_apart(
    tmp_path: Path, group: str, members: np.ndarray, metric: str
) -> None:
    matrices = write(tmp_path / "a.h5")
    norms = np.linalg.norm(matrices, "fro" if metric == "frobenius_norm" else 2, axis=(1, 2))[members]
    row = cells(summarize([tmp_path / "a.h5"], by="correct"), metric=metric, correct=group)
    assert row["count"] == members.sum() and row["not_finite"] == 0
    for name, value in (("mean", norms.mean()), ("median", np.median(norms)), ("max", norms.max())):
        assert row[name] == pytest.approx(value, rel=1e-5)


def test_a_group_per_label_with_its_accuracy(tmp_path: Path) -> None:
    matrices = write(tmp_path / "a.h5")
    table = summarize([tmp_path / "a.h5"], by="label")
    assert table.columns == ("metric", "label", "count", "mean", "median", "max", "not_finite")
    assert [row[1] for row in table.rows] == [0, 1, 2, 7] * (len(COLUMNS) + 1)
    for label in (0, 1, 2, 7):
        members = label == LABELS
        norms = np.linalg.norm(matrices[members], axis=(1, 2))
        row = cells(table, metric="frobenius_norm", label=label)
        assert (row["count"], row["mean"]) == (members.sum(), pytest.approx(norms.mean(), rel=1e-5))
        assert cells(table, metric="accuracy", label=label)["mean"] == RIGHT[members].mean()


def test_samples_that_are_not_finite_or_not_done(tmp_path: Path) -> None:
    matrices = write(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["jacobian"][1] = np.nan
        file["done"][6] = 0
    row = cells(summarize([tmp_path / "a.h5"], by="label"), metric="frobenius_norm", label=2)
    assert (row["count"], row["not_finite"]) == (3, 1)
    assert row["mean"] == pytest.approx(np.linalg.norm(matrices[[2, 5]], axis=(1, 2)).mean(), rel=1e-5)
    assert 7 not in [row[1] for row in summarize([tmp_path / "a.h5"], by="label").rows]
    assert cells(summarize([tmp_path / "a.h5"]), metric="accuracy")["mean"] == RIGHT[:6].mean()


def test_files_side_by_side_each_with_its_own_groups(tmp_path: Path) -> None:
    write(tmp_path / "a.h5")
    write(tmp_path / "b.h5", seed=1, labels=LARGEST)
    table = summarize([tmp_path / "a.h5", tmp_path / "b.h5"], by="label")
    assert [row[1:3] for row in table.rows[:7]] == [
        ("a.h5", 0), ("b.h5", 0), ("a.h5", 1), ("b.h5", 1), ("a.h5", 2), ("b.h5", 2), ("a.h5", 7),
    ]  # fmt: skip
    over = summarize([tmp_path / "a.h5", tmp_path / "b.h5"])
    assert cells(over, metric="accuracy", file="a.h5")["mean"] == RIGHT.mean()
    assert cells(over, metric="accuracy", file="b.h5")["mean"] == 1.0


@pytest.mark.parametrize("by", ["correct", "label"])
@pytest.mark.parametrize("format", ["csv", "json"])
def test_programs_read_the_groups(jacli, tmp_path: Path, by: str, format: str) -> None:
    write(tmp_path / "a.h5")
    ran = jacli("summarize", tmp_path / "a.h5", "--by", by, "--format", format)
    assert ran.code == 0
    rows = json.loads(ran.out) if format == "json" else list(csv.DictReader(ran.out.splitlines()))
    table = summarize([tmp_path / "a.h5"], by=by)
    assert [str(row[by]) for row in rows] == [str(row[1]) for row in table.rows]
    assert [float(row["mean"]) for row in rows] == [row[3] for row in table.rows]


def test_nan_is_no_right_answer() -> None:
    outputs = np.eye(3)
    outputs[1, 1] = np.nan  # argmax takes it for the largest
    outputs[2, 0] = np.nan
    found = correct_samples({"outputs": outputs, "labels": np.arange(3)})
    assert found is not None and found.tolist() == [True, False, False]
    assert (
        "1 of 3 samples (accuracy 33.3 %)" in accuracy_notes({"outputs": outputs, "labels": np.arange(3)})[0]
    )


@pytest.mark.parametrize(
    ("change", "by", "words"),
    [
        ({"labels": None}, "correct", ("no labels", "--labels FILE")),
        ({"labels": None}, "label", ("no labels", "--labels FILE")),
        ({"labels": np.zeros(7)}, "label", ("labels is not an array of whole numbers",)),
        ({"outputs": None}, "correct", ("no outputs", "--by label")),
        ({"outputs": np.zeros((7, 3, 1), np.float32)}, "correct", ("shape (3, 1)", "--by label")),
    ],
)
def test_what_the_groups_need(
    tmp_path: Path, change: dict[str, Any], by: str, words: tuple[str, ...]
) -> None:
    write(tmp_path / "a.h5", schema=None, **change)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file.attrs["schema"]  # its structure is not judged before
    with pytest.raises(ResultsError) as refusal:
        summarize([tmp_path / "a.h5"], by=by)
    for word in words:
        assert word in str(refusal.value)


def test_labels_alone_make_groups_without_accuracy(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", outputs=None)
    metrics = {row[0] for row in summarize([tmp_path / "a.h5"], by="label").rows}
    assert metrics == set(COLUMNS)


@pytest.mark.parametrize(
    "options",
    [
        {"by": "labels"},
        {"by": "correct", "per_sample": True},
        {"by": "label", "per_class": True},
        {"by": "label", "dataset": "jacobian"},
        {"by": "label", "sort": "p95"},
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        summarize([tmp_path / "never opened.h5"], **options)


@pytest.mark.parametrize(
    ("options", "samples"),
    [({}, [0, 1, 2]), ({"sort": "-frobenius_norm"}, None), ({"sort": "sample"}, [0, 1, 2])],
)
def test_a_limit_keeps_rows_of_each_file(tmp_path: Path, options: dict[str, Any], samples: Any) -> None:
    for seed, name in enumerate("ab"):
        write(tmp_path / f"{name}.h5", seed=seed)
    files = [tmp_path / "a.h5", tmp_path / "b.h5"]
    table = summarize(files, per_sample=True, limit=3, **options)
    for file in ("a.h5", "b.h5"):
        rows = [row for row in table.rows if row[0] == file]
        assert len(rows) == 3
        if samples is not None:
            assert [row[1] for row in rows] == samples
        else:
            whole = summarize([tmp_path / file], per_sample=True, **options)
            assert [row[1] for row in rows] == [row[0] for row in whole.rows[:3]]
