"""`bench`: every method has its row, errors tell right from wrong, and seconds are those of the run."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jacli.methods.filling as filling
from jacli.choice.choose import Choice, choose
from jacli.choice.measure import load_rules
from jacli.commands import bench as benching
from jacli.commands import timed_batch as timed_block
from jacli.commands.bench import BenchResult, BenchRow, bench
from jacli.commands.timed_batch import _extrapolated
from jacli.errors import OutOfMemoryError
from jacli.linear_maps import Slab
from jacli.options.config import from_options
from jacli.options.methods import AUTOGRAD_METHODS, METHOD_NAMES, METHODS
from jacli.options.table import RunConfig
from tests.cases import CASES
from tests.toy_models import Constants, FixedBatch

SAMPLES = 6


class Kink(nn.Module):
    """The argument of ReLU is 0 in float32 and 1e-9 in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x) + torch.relu(x - x.detach() + 1.0 + 1e-9 - 1.0)


def config_of(folder: Path, model: str | nn.Module, options: dict[str, Any]) -> RunConfig:
    """Of a case by its name, or of a module of its own that takes nine numbers."""
    shape: tuple[int, ...] = (9,)
    if isinstance(model, str):
        source = f"from tests.cases import CASES\n\ndef make():\n    return CASES[{model!r}].make()\n"
        (folder / "arch.py").write_text(source)
        shape, select, path = CASES[model].shape, CASES[model].select, f"{folder / 'arch.py'}:make"
        options = {"select": select, **options}
    else:
        path = str(folder / "model.pt")
        torch.jit.save(model, path)
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((SAMPLES, *shape), np.float32))
    return from_options({"model": path, "inputs": str(folder / "x.npy"), "device": "cpu", **options})


@pytest.fixture(scope="module", autouse=True)
def rules_frozen() -> None:
    """Exempt from garbage collection what torch imports at the first batched pass (see `tests.conftest`)."""
    load_rules()
    gc.collect()
    gc.freeze()


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., BenchResult]:
    """`bench` on a model."""

    def run(model: str | nn.Module, limit: float = 20.0, **options: Any) -> BenchResult:
        return bench(config_of(tmp_path, model, options), limit=limit)

    return run


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BenchResult]:
    """`bench` on a case as it is, once for all tests that look at what it found."""
    found: dict[str, BenchResult] = {}

    def measured(name: str, **options: Any) -> BenchResult:
        key = repr((name, options))
        if key not in found:
            torch.manual_seed(0)
            found[key] = bench(config_of(tmp_path_factory.mktemp("bench"), name, options))
        return found[key]

    return measured


def by_method(found: BenchResult) -> dict[str, BenchRow]:
    """The rows in ``ieee``: one a method."""
    listed = [row for row in found.rows if row.precision == "ieee"]
    rows = {row.method: row for row in listed}
    assert sorted(rows) == sorted(METHOD_NAMES) and len(listed) == len(rows)
    return rows


@pytest.mark.parametrize("options", [{}, {"classes": "top:2", "dtype": "float64", "batch_size": 4}], ids=str)
@pytest.mark.parametrize("name", ["residual", "narrow_middle", "few_inputs", "stateful", "tuple_output"])
def test_every_method_serves_or_says_why_not(measured: Any, name: str, options: dict[str, Any]) -> None:
    found = measured(name, **options)
    rows, shapes = by_method(found), found.shapes
    n_in, n_out = shapes.n_in, shapes.n_selected
    assert n_out == (2 if "classes" in options else shapes.n_out)
    assert found.reference_dtype == "float64"
    for method, row in rows.items():
        if name == "stateful" and method not in AUTOGRAD_METHODS:
            assert row.refused and row.plan is None and row.seconds is None
            continue
        assert row.refused is None and row.plan and row.seconds and row.seconds_a_sample
        assert not row.estimated
        assert row.error_median is not None and row.error_worst is not None
        assert row.error_median <= row.error_worst < (1e-12 if "dtype" in options else 1e-5)
        assert row.peak_bytes and row.peak_bytes >= min(row.plan.batch_size, SAMPLES) * 4
        assert row.seconds == pytest.approx(SAMPLES * row.seconds_a_sample)
        blocks = math.ceil(SAMPLES / row.plan.batch_size)
        vectors = n_in if method in METHODS and METHODS[method].by_columns else n_out
        a_block = math.ceil(vectors / row.plan.chunk_size)
        passes = row.to_dict()["passes"]
        assert passes == row.plan.passes
        assert method == "factored" or passes == blocks * a_block
        if "batch_size" in options:
            assert row.plan.batch_size == 4


def test_the_fastest_first_and_the_refused_last(measured: Any) -> None:
    found = measured("stateful")
    served = [row for row in found.rows if row.refused is None]
    refused = found.rows[len(served) :]
    seconds = [row.seconds for row in served]
    assert seconds == sorted(seconds)
    assert [row.relative for row in served] == pytest.approx([s / seconds[0] for s in seconds])
    assert "factored" in [row.method for row in refused]
    assert all(row.refused and row.relative is None and row.precision == "ieee" for row in refused)


def test_reduced_precisions_of_the_methods_that_have_them(measured: Any) -> None:
    found = measured("narrow_middle")
    rows = by_method(found)
    reduced = [row for row in found.rows if row.precision != "ieee"]
    pairs = sorted((row.method, row.precision) for row in reduced)
    assert pairs == sorted((name, "bf16") for name in set(METHOD_NAMES) - set(AUTOGRAD_METHODS))
    fastest = min(row.seconds for row in rows.values() if row.seconds)
    for row in reduced:
        assert row.seconds and row.relative == pytest.approx(row.seconds / fastest)
        assert row.error_median is not None and 1e-4 < row.error_median <= row.error_worst < 5e-2
        assert "auto" not in row.notes and not any("kink" in n or "wrong" in n for n in row.notes)


def test_tf32_where_the_device_has_it(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "precisions_of", lambda device, dtype: ("ieee", "tf32"))
    precisions = {row.precision for row in run("narrow_middle").rows}
    assert precisions == {"ieee", "tf32"}


def test_what_auto_takes_is_marked(measured: Any) -> None:
    found = measured("residual")
    assert found.auto and found.auto_seconds > 0
    assert [row.method for row in found.rows if "auto" in row.notes] == [found.auto.method]


@pytest.mark.parametrize(
    ("name", "words"), [("narrow_middle", "3 wide at "), ("few_inputs", "no useful cut: 6 wide at ")]
)
def test_where_it_is_cut_and_whether_that_is_of_use(measured: Any, name: str, words: str) -> None:
    (note,) = [note for note in by_method(measured(name))["factored"].notes if "wide" in note]
    assert note.startswith(words)


def test_a_block_is_stopped_at_the_limit(run: Any) -> None:
    """One chunk of each is computed; only what is there is compared."""
    found = run("few_inputs", limit=1e-9, chunk_size=1)
    rows = by_method(found)
    assert all(row.estimated and row.seconds for row in rows.values())
    for method in ("loop", "vmap", "forward", "replicate"):
        assert rows[method].error_worst is not None and rows[method].error_worst < 1e-5
    assert rows["factored"].error_worst is None and rows["factored"].peak_bytes is None
    assert "not computed" in rows["factored"].notes[-1]


def test_copies_are_few_where_one_call_takes_too_long(run: Any, measured: Any) -> None:
    assert by_method(measured("residual"))["replicate"].plan.chunk_size == 7
    row = by_method(run("residual", limit=1e-9))["replicate"]
    assert row.plan.chunk_size == 1
    assert any("several calls" in note for note in row.notes)


def test_seconds_of_what_was_not_computed() -> None:
    assert _extrapolated([(2.0, 10)], 100) == 20.0
    assert _extrapolated([(3.0, 10), (4.0, 20), (5.0, 30)], 100) == pytest.approx(12.0)  # 2 s of setup


@pytest.mark.parametrize(("fixed", "seconds"), [(None, 3.0), (4, 4.0)])
def test_a_last_block_that_is_not_full(measured: Any, fixed: int | None, seconds: float) -> None:
    """It takes its share; padded to a fixed batch, as long as the others."""
    found = measured("residual", batch_size=4)
    plan, shapes = by_method(found)["loop"].plan, replace(found.shapes, fixed_batch=fixed)
    assert (plan.n_batches, shapes.n_samples) == (2, 6)
    row = benching._row(plan, shapes, 2.0, [], estimated=False)
    assert (row.seconds, row.seconds_a_sample) == (seconds, seconds / 6)


def test_factors_of_fewer_samples_where_a_block_takes_too_long(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any, **options: Any) -> Choice:
        """Every batch is expected to take four seconds."""
        choice = choose(*arguments, **options)
        return replace(choice, plans=tuple(replace(p, seconds=4.0 * p.n_batches) for p in choice.plans))

    clock = count()
    monkeypatch.setattr(benching, "choose", slow)
    for place in (benching, timed_block):
        monkeypatch.setattr(place, "now", lambda device: float(next(clock)))  # a second from call to call
    row = by_method(run("narrow_middle", limit=2.0, batch_size=4))["factored"]
    assert row.plan.batch_size == 4 and row.estimated
    assert row.seconds == 1.5 * (4 / 2) * 1.0  # blocks, of four samples by two, in a second
    assert row.error_worst < 1e-5


def change_vmap(monkeypatch: pytest.MonkeyPatch, change: Callable[[Slab], Tensor]) -> None:
    """Let one method give other values."""
    right = filling.slabs

    def changed(method: Any, *arguments: Any, **sizes: Any) -> Any:
        for slab in right(method, *arguments, **sizes):
            yield replace(slab, values=change(slab)) if method.name == "vmap" else slab

    monkeypatch.setattr(filling, "slabs", changed)


def test_a_wrong_method_shows(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    change_vmap(monkeypatch, lambda slab: slab.values * 1.01)
    rows = by_method(run("residual"))
    assert rows["vmap"].error_median == pytest.approx(0.01, rel=1e-3)
    assert rows["vmap"].error_worst == pytest.approx(0.01, rel=1e-3)
    assert any(note.startswith("wrong on this model") for note in rows["vmap"].notes)
    for method in ("loop", "replicate", "forward"):
        assert rows[method].error_worst < 1e-5 and not any("wrong" in note for note in rows[method].notes)


def test_a_method_without_a_rule_is_refused_with_what_torch_says(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(slab: Slab) -> Tensor:
        raise RuntimeError("no batching rule for aten::fancy")

    change_vmap(monkeypatch, broken)
    rows = by_method(run("residual"))
    assert "no batching rule for aten::fancy" in rows["vmap"].refused
    assert rows["loop"].refused is None


def test_values_that_are_not_finite_are_an_infinite_error(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    change_vmap(monkeypatch, lambda slab: slab.values * torch.nan)
    row = by_method(run("residual"))["vmap"]
    assert row.error_worst == math.inf
    assert json.loads(json.dumps(row.to_dict(), allow_nan=False))["error_worst"] == "Infinity"


def test_a_kink_is_told_from_an_error(run: Any) -> None:
    rows = by_method(run(torch.jit.script(Kink())))
    for row in rows.values():
        if row.refused is None:
            assert row.error_worst > 0.1
            assert any("kink" in note for note in row.notes)
            assert not any("wrong" in note for note in row.notes)
    assert rows["loop"].refused is None and rows["vmap"].refused is None


def test_a_program_that_stays_in_float32(run: Any) -> None:
    found = run(torch.jit.trace(Constants(9, 5), torch.randn(2, 9)))
    assert found.reference_dtype == "float32"
    assert any("does not run in float64" in note for note in found.notes)
    assert by_method(found)["loop"].error_worst < 1e-5


def test_a_fixed_batch(run: Any) -> None:
    found = run(torch.jit.script(FixedBatch(9, 5)))
    rows = by_method(found)
    for method in ("replicate", "adjoint", "tangent", "factored"):
        assert "4 only" in rows[method].refused
    for method in ("loop", "vmap", "forward"):
        row = rows[method]
        assert row.plan.batch_size == 4 and row.plan.n_batches == 2
        assert row.seconds == pytest.approx(SAMPLES * row.seconds_a_sample)
        assert row.error_worst < 1e-5


def test_a_block_that_runs_out_of_memory_is_halved(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = benching.dense_batch

    def tight(request: Any, problem: Any, plan: Any, *others: Any) -> Any:
        if plan.batch_size > 2:
            raise MemoryError("DefaultCPUAllocator: can't allocate memory")
        return real(request, problem, plan, *others)

    monkeypatch.setattr(benching, "dense_batch", tight)
    row = by_method(run("residual", batch_size=4))["loop"]
    assert row.plan.batch_size == 2 and row.plan.n_batches == 3 and row.plan.passes == 21
    assert row.error_worst < 1e-5


def test_nothing_fits(run: Any) -> None:
    with pytest.raises(OutOfMemoryError, match="not even one sample"):
        run("residual", memory=1000)


def test_as_json(measured: Any) -> None:
    found = measured("stateful")
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [row["method"] for row in values["methods"]] == [row.method for row in found.rows]
    assert values["auto"]["method"] == found.auto.method
    assert values["methods"][-1]["samples"] is None and values["methods"][-1]["refused"]
    assert values["methods"][0]["relative"] == 1.0
    assert [row["precision"] for row in values["methods"]] == [row.precision for row in found.rows]
