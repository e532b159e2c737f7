"""`jacli summarize` on files as `compute` writes them, on foreign ones, and on wrong ones."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from jacli.cli.summarize import summarize as command
from jacli.commands.summarize import summarize
from jacli.errors import JacliError, OutputError, ResultsError, UsageError
from jacli.summary import COLUMNS

B, INPUT, N = 6, (3, 5, 4), 7


def write(
    path: Path,
    *,
    jacobian: bool = True,
    stored: bool = False,
    values: int | None = None,
    change: Callable[[h5py.File], None] | None = None,
) -> np.ndarray:
    """A file of schema jacli/1; the Jacobians as matrices (B, n_in, n_out) in float64."""
    array = np.random.default_rng(0).standard_normal((B, *INPUT, N)).astype(np.float32)
    matrices = array.reshape(B, -1, N).astype(np.float64)
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "jacli/1"
        file.attrs["complete"] = True
        file["outputs"] = np.zeros((B, N), np.float32)
        file["sample_index"] = np.arange(B) + 100
        file["done"] = np.ones(B, np.uint8)
        if jacobian:
            file["jacobian"] = array
        if stored:
            sigma = np.linalg.svd(matrices, compute_uv=False)
            file["frobenius_norm"] = np.linalg.norm(matrices, axis=(1, 2))
            file["class_norms"] = np.linalg.norm(matrices, axis=1)
            file["spectral_norm"] = sigma[:, 0]
            file["singular_values"] = sigma[:, :values]
            file["singular_value_error"] = np.full_like(sigma[:, :values], 1e-12)
            if values is None:
                file["nuclear_norm"] = sigma.sum(1)
        if change:
            change(file)
    return matrices


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def by_metric(path: Path, **options: object) -> dict[str, tuple[object, ...]]:
    return {str(row[0]): row[1:] for row in summarize([path], **options).rows}  # type: ignore[arg-type]


@pytest.mark.parametrize(("stored", "jacobian"), [(True, True), (True, False), (False, True)])
def test_stored_or_computed_the_numbers_are_the_same(tmp_path: Path, stored: bool, jacobian: bool) -> None:
    sigma = np.linalg.svd(write(tmp_path / "a.h5", stored=stored, jacobian=jacobian), compute_uv=False)
    found = by_metric(tmp_path / "a.h5")
    assert found["spectral_norm"][0] == pytest.approx(sigma[:, 0].mean(), rel=1e-9)
    assert found["nuclear_norm"][1] == pytest.approx(np.median(sigma.sum(1)), rel=1e-9)
    assert found["condition_number"][3] == pytest.approx((sigma[:, 0] / sigma[:, -1]).max(), rel=1e-9)
    assert all(row[-1] == 0 for row in found.values())


def test_only_the_largest_values_known(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", jacobian=False, stored=True, values=2)
    found = by_metric(tmp_path / "a.h5")
    assert found["nuclear_norm"][0] is found["effective_rank"][0] is found["condition_number"][0] is None
    assert found["stable_rank"][0] is not None
    write(tmp_path / "b.h5", stored=True, values=2)  # with the Jacobian the rest is computed
    assert None not in by_metric(tmp_path / "b.h5")["condition_number"]


def test_side_too_large_for_a_gram_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jacli.commands.summarize.MAX_GRAM_SIDE", 6)
    write(tmp_path / "a.h5")
    table = summarize([tmp_path / "a.h5"])
    assert table.rows[1] == ("spectral_norm", *[None] * 7) and table.rows[0][1] is not None
    assert "min(n_out, n_in) = 7" in "".join(table.notes)


def test_samples_that_are_not_done_are_left_out(tmp_path: Path) -> None:
    def half(file: h5py.File) -> None:
        file["done"][3:] = 0
        file["jacobian"][3:] = np.nan
        file.attrs["complete"] = False

    write(tmp_path / "a.h5", change=half)
    table = summarize([tmp_path / "a.h5"], per_sample=True)
    assert [row[0] for row in table.rows] == [100, 101, 102]
    assert "3 of 6 samples" in table.notes[0]


def test_not_finite_samples_are_counted(tmp_path: Path) -> None:
    def spoil(file: h5py.File) -> None:
        file["jacobian"][2, 0, 0, 0, 0] = np.nan
        file["jacobian"][3, ..., 1] = 0

    write(tmp_path / "a.h5", change=spoil)
    table = summarize([tmp_path / "a.h5"])
    counts = {row[0]: row[-1] for row in table.rows}
    assert counts["frobenius_norm"] == 1 and counts["condition_number"] == 2
    assert any("1 of 6 samples have a Jacobian that is not finite" in note for note in table.notes)
    assert any("1 of 6 samples are singular" in note for note in table.notes)


@pytest.mark.parametrize("rechecked", [True, False])
def test_a_reduced_precision_is_said_with_its_error(tmp_path: Path, rechecked: bool) -> None:
    def change(file: h5py.File) -> None:
        file.attrs["precision"] = "bf16"
        file["verified_error"] = np.full(B, np.nan)
        if rechecked:
            file["verified_error"][1:3] = 9.1e-3, 4e-3

    write(tmp_path / "out.h5", stored=True, change=change)
    (note,) = summarize([tmp_path / "out.h5"]).notes
    said = "out.h5: linear passes in bf16: norms and singular values carry its error"
    assert note == said + ": 9.1e-03 (relative) where rechecked" * rechecked


@pytest.mark.parametrize("precision", ["ieee", "fp8", np.arange(3)])
def test_no_other_precision_is_spoken_of(tmp_path: Path, precision: object) -> None:
    def change(file: h5py.File) -> None:
        file.attrs["precision"] = precision

    write(tmp_path / "out.h5", stored=True, change=change)
    assert summarize([tmp_path / "out.h5"]).notes == ()


@pytest.mark.parametrize("own", [False, True])
def test_classes_by_their_ids(tmp_path: Path, own: bool) -> None:
    ids = np.array([9, 2, 5])

    def select(file: h5py.File) -> None:
        values = file["jacobian"][..., :3]
        del file["jacobian"]
        file["jacobian"] = values
        file["class_index"] = np.tile(ids, (B, 1)) if own else ids

    write(tmp_path / "a.h5", change=select)
    table = summarize([tmp_path / "a.h5"], per_class=True)
    assert [row[:2] for row in table.rows] == [(2, B), (5, B), (9, B)]


def test_foreign_file(tmp_path: Path) -> None:
    array = np.random.default_rng(1).standard_normal((3, 5, 2, 4))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["group/J"] = array
        file["labels"] = np.arange(3)
    with pytest.raises(ResultsError, match="--dataset group/J"):
        summarize([tmp_path / "f.h5"])
    with pytest.raises(ResultsError, match=r"group/J \(3, 5, 2, 4\)"):
        summarize([tmp_path / "f.h5"], dataset="K")
    with pytest.raises(ResultsError, match="with 2 output axes"):
        summarize([tmp_path / "f.h5"], dataset="labels", output_axes=2)
    found = by_metric(tmp_path / "f.h5", dataset="group/J", output_axes=2)
    sigma = np.linalg.svd(array.reshape(3, 5, 8), compute_uv=False)
    assert found["nuclear_norm"][0] == pytest.approx(sigma.sum(1).mean())


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("not this")
    write(tmp_path / "whole.h5")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "whole.h5").read_bytes()[:2000])
    (tmp_path / "late.h5.part").touch()
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    messages = {
        "text.h5": "not an HDF5 file",
        "cut.h5": "cannot be read",
        "none.h5": "does not exist",
        "late.h5": "wait for it",
        ".": "is a folder",
        "empty.h5": "holds no Jacobian",
    }
    for name, message in messages.items():
        with pytest.raises(ResultsError, match=message):
            summarize([tmp_path / name])


def test_options_that_exclude_each_other_or_mean_nothing(tmp_path: Path) -> None:
    for options in (
        {"per_sample": True, "per_class": True},
        {"sort": "nope"},
        {"limit": 0},
        {"output_axes": 0},
    ):
        with pytest.raises(UsageError):
            summarize([tmp_path / "never opened.h5"], **options)  # type: ignore[arg-type]


def test_table_is_whole_on_a_narrow_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.h5")
    monkeypatch.setenv("COLUMNS", "20")
    result = run(tmp_path / "a.h5")
    assert result.exit_code == 0
    assert "…" not in result.stdout and "\x1b" not in result.stdout and "note" not in result.stdout
    assert "largest_class_norm" in result.stdout and "note: a.h5" in result.stderr


def test_formats_hold_the_same_numbers(tmp_path: Path) -> None:
    def deficient(file: h5py.File) -> None:
        file["jacobian"][1, ..., 1] = 0
        file["jacobian"][2, 0, 0, 0, 0] = np.nan

    write(tmp_path / "a.h5", change=deficient)
    expected = summarize([tmp_path / "a.h5"], per_sample=True)
    texts = {
        form: run(tmp_path / "a.h5", "--per-sample", "--format", form).stdout
        for form in ("csv", "json", "jsonl", "markdown")
    }
    rows = list(csv.reader(texts["csv"].splitlines()))
    assert tuple(rows[0]) == expected.columns
    objects = json.loads(texts["json"])
    assert objects == [json.loads(line) for line in texts["jsonl"].splitlines()]
    assert objects[1]["condition_number"] == "Infinity" and objects[2]["frobenius_norm"] == "NaN"
    for row, record, wanted in zip(rows[1:], objects, expected.rows, strict=True):
        numbers = [float(cell) for cell in row]
        assert np.array_equal(numbers, np.array(wanted, float), equal_nan=True)
        assert np.array_equal([float(cell) for cell in record.values()], numbers, equal_nan=True)
    assert texts["markdown"].splitlines()[1].startswith("| ---: |")


def test_several_files_with_the_same_name(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.h5")
    table = summarize([tmp_path / "x/a.h5", tmp_path / "y/a.h5"])
    assert len(table.rows) == 2 * len(COLUMNS)
    assert table.rows[0][1] == str(tmp_path / "x/a.h5")


def test_out(tmp_path: Path) -> None:
    write(tmp_path / "a.h5")
    out = tmp_path / "t.json"
    assert run(tmp_path / "a.h5", "-o", out).stdout == ""
    assert json.loads(out.read_text())[0]["metric"] == "frobenius_norm"
    assert isinstance(run(tmp_path / "a.h5", "-o", out).exception, OutputError)
    assert run(tmp_path / "a.h5", "-o", out, "--overwrite", "--format", "csv").exit_code == 0
    assert out.read_text().startswith("metric,mean")
    wrong: list[tuple[Path, type[JacliError]]] = [
        (tmp_path / "a.h5", UsageError),
        (tmp_path, OutputError),
        (tmp_path / "no" / "t.csv", OutputError),
    ]
    for place, error in wrong:
        assert isinstance(run(tmp_path / "a.h5", "-o", place, "--overwrite").exception, error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "t.json"]


@pytest.mark.parametrize(
    ("option", "value", "must"),
    [
        ("--format", "xml", "markdown"),
        ("--limit", "0", "at least 1"),
        ("--output-axes", "two", "whole number"),
    ],
)
def test_bad_values_are_usage(jacli, tmp_path: Path, option: str, value: str, must: str) -> None:
    ran = jacli("summarize", tmp_path / "a.h5", "--dataset", "J", option, value)
    assert ran.code == 2 and f"{option} {value} is wrong" in ran.err and must in ran.err


PEAK = r"""
import re, sys
from jacli.commands.summarize import summarize
table = summarize([sys.argv[1]])
assert table.rows[1][1] is not None
# Not getrusage: on Linux its maximum includes the process that started this one (pytest, with torch).
peak = re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())
print("torch" in sys.modules, int(peak[1]) / 1024)
"""


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")


def peak_megabytes(path: Path) -> tuple[bool, float]:
    """Whether torch was imported, and the largest resident memory of a process of its own."""
    ran = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    torch, megabytes = ran.stdout.split()
    return torch == "True", float(megabytes)


def write_large(
    path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], *, deficient: bool = False
) -> None:
    """Random Jacobians, the same along the chunks' first axes; ``deficient``: two equal classes."""
    box = tuple(n if axis > 1 else 1 for axis, n in enumerate(shape))
    values = np.random.default_rng(0).standard_normal(box, dtype=np.float32)
    if deficient:
        values[..., 0] = values[..., 1]
    with h5py.File(path, "w") as file:
        jacobian = file.create_dataset("jacobian", shape, np.float32, chunks=chunks)
        for sample in range(0, shape[0], chunks[0]):
            for channel in range(shape[1]):
                jacobian[sample : sample + chunks[0], channel] = values[:, 0] * (1 + channel)


@needs_proc
def test_memory_and_no_torch_where_all_is_stored(tmp_path: Path) -> None:
    write(tmp_path / "a.h5", stored=True)
    torch, megabytes = peak_megabytes(tmp_path / "a.h5")
    assert not torch and megabytes < 300


@needs_proc
@pytest.mark.parametrize(
    ("shape", "chunks"),
    [((2000, 1, 28, 28, 10), (64, 1, 28, 28, 10)), ((1, 3, 100, 200, 400), (1, 1, 10, 200, 400))],
    ids=["many samples", "one huge sample, rank-deficient"],
)
def test_memory(tmp_path: Path, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    write_large(tmp_path / "a.h5", shape, chunks, deficient=shape[0] == 1)
    assert peak_megabytes(tmp_path / "a.h5")[1] < 600


@needs_proc
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("deficient", [False, True])
@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((65000, 1, 28, 28, 10), (64, 1, 28, 28, 10)),
        ((1, 3, 400, 400, 1000), (1, 1, 2, 400, 1000)),
    ],
    ids=["many samples", "one huge sample"],
)
def test_memory_on_two_gigabytes(
    tmp_path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], deficient: bool
) -> None:
    assert math.prod(shape) * 4 > 1.9e9
    write_large(tmp_path / "a.h5", shape, chunks, deficient=deficient)
    assert peak_megabytes(tmp_path / "a.h5")[1] < 600
    (tmp_path / "a.h5").unlink()
