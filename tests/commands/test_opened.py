"""`jacli.open`: what it shows, its columns, and what is told once it is closed."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import jacli
from jacli.commands.summarize import summarize
from jacli.errors import JacliError, ResultsError
from jacli.summary import COLUMNS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.jit.script(nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 6)).eval()).save(path)
    return path


def _file(model: Path, out: Path, **options: object) -> Path:
    jacli.compute(model, "random:7x8", out=out, **options)
    return out


@pytest.mark.parametrize(
    "options", [{}, {"save": "factors"}, {"singular_values": "none"}, {"save": "none"}], ids=str
)
def test_columns_are_those_of_the_summary(model: Path, tmp_path: Path, options: dict[str, str]) -> None:
    out = _file(model, tmp_path / "out.h5", **options)
    table = summarize([out], per_sample=True)
    rows = {name: [row[table.columns.index(name)] for row in table.rows] for name in COLUMNS}
    with jacli.open(out) as results:
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(results, name), np.array(rows[name], np.float64))
            assert name in dir(results)
        np.testing.assert_array_equal(results["stable_rank"], results.stable_rank)
        assert "stable_rank" not in results  # it holds no such dataset


def test_a_column_of_an_unfinished_file_is_nan_where_nothing_is_done(model: Path, tmp_path: Path) -> None:
    out = _file(model, tmp_path / "out.h5")
    with jacli.open(out) as results:
        whole = results.effective_rank
    with h5py.File(out, "a") as file:
        file["done"][3] = 0
        file.attrs["complete"] = False
    with jacli.open(out) as results:
        assert np.isnan(results.effective_rank).tolist() == [False] * 3 + [True] + [False] * 3
        np.testing.assert_array_equal(np.delete(results.effective_rank, 3), np.delete(whole, 3))
        assert "6 of 7 samples done, not complete" in repr(results)


def test_a_column_that_is_not_determined_says_so(model: Path, tmp_path: Path) -> None:
    out = _file(model, tmp_path / "out.h5", save="none", singular_values=2)
    with jacli.open(out) as results:
        assert results.stable_rank.shape == (7,)
        for name in ("effective_rank", "condition_number"):
            assert not hasattr(results, name)
            with pytest.raises(AttributeError, match=f"does not determine {name}"):
                getattr(results, name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {},
            ["7 of 7 samples done, complete", "model.pt, torchscript", "random:7x8", "float32, ieee"],
        ),
        (
            {"classes": "top:2", "of": "probs"},
            ["classes=top:2, of=probs", "(7, 8, 2)", "class_index"],
        ),
        (
            {"save": "factors", "dtype": "float64"},
            ["save=factors", "factors/left  ", "(7, 6, 3)", "float64"],
        ),
    ],
    ids=str,
)
def test_repr_shows_what_is_there(
    model: Path, tmp_path: Path, options: dict[str, str], words: list[str]
) -> None:
    out = _file(model, tmp_path / "out.h5", **options)
    with jacli.open(out) as results:
        shown = repr(results)
    for word in [out.name, *words]:
        assert word in shown
    assert "checksums" not in shown and "overwrite" not in shown
    assert repr(results) == f"<jacli results {out}, closed>"


def test_repr_of_a_damaged_file_shows_the_rest(model: Path, tmp_path: Path) -> None:
    out = _file(model, tmp_path / "out.h5")
    with h5py.File(out, "a") as file:
        file.attrs["config"] = "{"
        file.attrs["model_path"] = "a\x1b[2Jb\nc"
    with jacli.open(out) as results:
        shown = repr(results)
    assert "a\\x1b[2Jb\\nc" in shown and "singular_values" in shown and "\x1b" not in shown


@pytest.mark.parametrize(
    "read",
    [
        lambda results: results.jacobian,
        lambda results: results["singular_values"],
        lambda results: results.stable_rank,
        len,
        lambda results: results.datasets,
    ],
)
def test_after_close_the_error_says_so(model: Path, tmp_path: Path, read) -> None:
    with jacli.open(_file(model, tmp_path / "out.h5")) as results:
        jacobian, values = results.jacobian, results.singular_values
    with pytest.raises(ResultsError, match="was closed") as raised:
        read(results)
    assert "jacli.open" in raised.value.hint
    with pytest.raises(ResultsError, match="was closed"):
        jacobian[[1, 0]]
    assert values.shape == (7, 6)
    results.close()  # again: nothing happens


def test_an_index_reads_no_shard_after_close(model: Path, tmp_path: Path) -> None:
    from jacli.commands.merge import merge

    shards = []
    for i in (1, 2):
        jacli.compute(model, "random:7x8", out=tmp_path / "out.h5", shard=f"{i}/2")
        shards.append(next(tmp_path.glob(f"out.0000{i}*.h5")))
    merge(shards, out=tmp_path / "all.h5")
    with jacli.open(tmp_path / "all.h5") as results:
        jacobian = results.jacobian
        whole = jacobian[...]
        np.testing.assert_array_equal(jacobian[[6, 0, 0, 3], ..., ::-1], whole[[6, 0, 0, 3], ..., ::-1])
        np.testing.assert_array_equal(jacobian[::-3, 2], whole[::-3, 2])
        np.testing.assert_array_equal(
            jacobian[results.stable_rank > np.median(results.stable_rank)].shape[0], 3
        )
    with pytest.raises(ResultsError, match="was closed"):
        jacobian[0]


@pytest.mark.parametrize("given", [None, 3, nn.Linear(1, 1)])
def test_what_is_no_path_is_refused(given: object) -> None:
    with pytest.raises(JacliError, match="is not a result file"):
        jacli.open(given)
