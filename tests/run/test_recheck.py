"""The recheck through files: right results pass whatever the options, planted errors are found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import jacli
from jacli.commands.verify import verify
from jacli.engine.replicated_passes import SpreadOverCopies, as_run, ways
from jacli.linear_maps import DenseMap
from jacli.network import Linearized, TensorNetwork, exact_arithmetic, frozen_twin
from jacli.options.config import from_options
from jacli.run import recheck
from jacli.run import stored_matrices as stored
from jacli.run.prepare import prepare
from jacli.run.recheck import choose_rows, recheck_samples, tolerance_of
from jacli.store import ResultLayout, ResultWriter, open_results
from tests.store.layouts import random_batch
from tests.toy_models import Constants, FixedBatch, Stateful

B, INPUT, N = 6, (3, 5, 4), 13


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.top = nn.Conv2d(3, 6, 3), nn.Linear(36, N)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.relu(self.conv(x)).flatten(1))


class Further(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(60, N)

    def forward(self, x: Tensor, scale: float, offset: Tensor) -> Tensor:
        return torch.sin(self.linear(x.flatten(1)) + offset) * scale


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.top = nn.Linear(4, N)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.layer(x.flatten(1, 2)).mean(1))


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(self.conv(x))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolution": Convolution,
    "fixed": lambda: FixedBatch(60, N),
    "stateful": lambda: Stateful(60, N),
    "further": Further,
    "attention": Attention,
    "maps": Maps,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models and inputs."""
    folder = tmp_path_factory.mktemp("made")
    for name, make in MODELS.items():
        torch.manual_seed(1)
        torch.jit.save(torch.jit.script(make().eval()), folder / f"{name}.pt")
    torch.jit.save(torch.jit.trace(Constants(7, N), torch.randn(2, *INPUT)), folder / "constants.pt")
    draw = np.random.default_rng(0)
    np.save(folder / "x.npy", draw.standard_normal((B, *INPUT), dtype=np.float32))
    np.save(folder / "offset.npy", draw.standard_normal((B, N), dtype=np.float32))
    np.save(folder / "labels.npy", draw.integers(0, N, B))
    return folder


@pytest.fixture
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


ARG = {"scale": 0.7, "offset": "@offset.npy"}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("convolution", {}),
    "blocks": ("convolution", {"batch_size": 4}),
    "float64": ("convolution", {"dtype": "float64"}),
    "float64 as float32": ("convolution", {"dtype": "float64", "save_dtype": "float32"}),
    "float16": ("convolution", {"save_dtype": "float16"}),
    "gzip": ("convolution", {"compress": "gzip"}),
    "norms only": ("convolution", {"save": "none"}),
    "indices": ("convolution", {"classes": "0,3,12"}),
    "top": ("convolution", {"classes": "top:2"}),
    "label": ("convolution", {"classes": "label", "labels": "labels.npy"}),
    "probs": ("convolution", {"of": "probs"}),
    "part of the samples": ("convolution", {"samples": "1,5,2"}),
    "one sample": ("convolution", {"samples": "3"}),
    "replicate": ("convolution", {"method": "replicate"}),
    "vmap": ("attention", {"method": "vmap"}),
    "forward": ("attention", {"method": "forward"}),
    "fixed batch": ("fixed", {}),
    "state": ("stateful", {}),
    "arguments": ("further", {"arg": ARG}),
    "output maps": ("maps", {"batch_size": 4}),
    "float32 constants": ("constants", {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_right_results_pass(folder: Path, tmp_path: Path, name: str) -> None:
    model, options = RUNS[name]
    out = tmp_path / "out.h5"
    jacli.compute(f"{model}.pt", "x.npy", out=str(out), **options)
    before = out.read_bytes()
    found = verify(out, samples=None)
    chosen = options.get("samples", "0,1,2,3,4,5").split(",")
    assert [sample.sample_index for sample in found.samples] == [int(i) for i in chosen]
    assert not found.failed
    assert not any(sample.found.near_kink for sample in found.samples)
    assert found.worst_error < found.tolerance / (2 if "save_dtype" in options else 10)
    assert all(sample.found.cross_sample == 0 for sample in found.samples)
    assert found.dtype == ("float32" if name == "float32 constants" else "float64")
    assert out.read_bytes() == before


def _roll(file: h5py.File) -> None:
    file["jacobian"][...] = np.roll(file["jacobian"][...], 1, axis=0)


def _swap_axes(file: h5py.File) -> None:
    values = file["jacobian"][...]
    file["jacobian"][...] = values.swapaxes(2, 3).reshape(values.shape)


def _scale(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][...] = file[name][...] * (1 + 2e-3)

    return change


def _entry(file: h5py.File) -> None:
    values = file["jacobian"][...]
    norms = np.linalg.norm(values.reshape(B, -1), axis=1)
    values[np.arange(B), 1, 2, 3, np.arange(B)] += 10.5e-4 * norms
    file["jacobian"][...] = values


def _exchange_classes(file: h5py.File) -> None:
    values = file["jacobian"][...]
    values[..., [2, 11]] = values[..., [11, 2]]
    file["jacobian"][...] = values


def _one_nan(file: h5py.File) -> None:
    file["jacobian"][:, 2, 4, 1, 6] = np.nan


def _not_written(file: h5py.File) -> None:
    file["jacobian"][...] = 0


PLANTED = {
    "a shifted sample": _roll,
    "a swapped axis": _swap_axes,
    "a wrong scale": _scale("jacobian"),
    "one entry": _entry,
    "classes exchanged": _exchange_classes,
    "NaN": _one_nan,
    "zeros": _not_written,
    "outputs": _scale("outputs"),
    "class norms": _scale("class_norms"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_an_error_planted_in_a_file_is_found(folder: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out.h5"
    jacli.compute("convolution.pt", "x.npy", out=str(out), batch_size=4)
    with h5py.File(out, "r+") as file:
        PLANTED[name](file)
    for seed in range(3):
        found = verify(out, samples=None, seed=seed)
        assert found.failed == tuple(range(B))
        assert json.dumps(found.to_dict())


def test_with_norms_only_the_norms_are_checked(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    jacli.compute("convolution.pt", "x.npy", out=str(out), save="none")
    for name in ("class_norms", "outputs"):
        shutil.copy(out, changed := tmp_path / f"{name}.h5")
        with h5py.File(changed, "r+") as file:
            _scale(name)(file)
        assert verify(changed, samples=None).failed == tuple(range(B))


def _factored(source: Path, out: Path) -> None:
    """The file with factors in place of the Jacobian, by the SVD."""
    with open_results(source) as results:
        matrices = results.jacobian[...].astype(np.float64).reshape(B, -1, N).swapaxes(1, 2)
        layout = ResultLayout(B, INPUT, (N,), save_jacobian=False, factor_width=N, save_inputs=False)
        left, values, right = np.linalg.svd(matrices, full_matrices=False)
        arrays = {
            name: results[name] for name in ("sample_index", "outputs", "frobenius_norm", "class_norms")
        }
        arrays["factors/left"] = left * values[:, None, :]
        arrays["factors/right"] = right.reshape(B, N, *INPUT)
        with ResultWriter.create(out, layout, results.attrs, overwrite=False) as writer:
            writer.write_batch(0, arrays)
            writer.finish()


def test_factors(folder: Path, tmp_path: Path) -> None:
    jacli.compute("convolution.pt", "x.npy", out=str(tmp_path / "full.h5"))
    _factored(tmp_path / "full.h5", out := tmp_path / "out.h5")
    assert not verify(out, samples=None).failed
    for name in ("factors/left", "factors/right"):
        shutil.copy(out, changed := tmp_path / "changed.h5")
        with h5py.File(changed, "r+") as file:
            file[name][...] = np.roll(file[name][...], 1, axis=1)
        assert verify(changed, samples=None).failed == tuple(range(B))


@pytest.mark.parametrize("pieces", [16, 1000, 2**21])
@pytest.mark.parametrize("output_shape", [(7,), (), (2, 3)])
def test_products_of_what_is_stored(
    tmp_path: Path, monkeypatch, pieces: int, output_shape: tuple[int, ...]
) -> None:
    """Rows, products and norms are those of the array, whatever the pieces it is read in."""
    monkeypatch.setattr(stored, "PIECE_NUMBERS", pieces)
    layout = ResultLayout(3, INPUT, output_shape, factor_width=2, batch_size=2, compress="gzip")
    blocks = random_batch(layout, 0, 3)
    with ResultWriter.create(tmp_path / "out.h5", layout, {}, overwrite=False) as writer:
        writer.write_batch(0, blocks)
        datasets = writer.datasets
        n_out = int(np.prod(output_shape))
        matrix = blocks["jacobian"][1].reshape(60, n_out).T.astype(np.float64)
        product = blocks["factors/left"][1].reshape(n_out, 2).astype(np.float64) @ blocks["factors/right"][
            1
        ].reshape(2, 60)
        index, u = torch.randperm(n_out)[:4], torch.randn(3, n_out, dtype=torch.float64)
        full = stored.stored_sample(datasets, 1).products(index, u)
        np.testing.assert_allclose(full.rows, matrix[index.numpy()])
        np.testing.assert_allclose(full.pulled, u.numpy() @ matrix)
        np.testing.assert_allclose(full.row_norms, np.linalg.norm(matrix, axis=1))
        factors = {name: values for name, values in datasets.items() if name != "jacobian"}
        narrow = stored.stored_sample(factors, 1).products(index, u)
        np.testing.assert_allclose(narrow.rows, product[index.numpy()])
        np.testing.assert_allclose(narrow.pulled, u.numpy() @ product)


def test_a_large_sample_is_read_once_and_in_pieces() -> None:
    class Recorded:
        shape, chunks = (2, 3, 224, 224, 50), (1, 1, 32, 224, 50)

        def __init__(self) -> None:
            self.read: list[int] = []

        def __getitem__(self, index: tuple[Any, ...]) -> np.ndarray:
            row, *box = index
            assert row == 1
            shape = tuple(s.stop - s.start for s in box)
            assert all(s.start % chunk == 0 for s, chunk in zip(box, self.chunks[1:], strict=True))
            self.read.append(int(np.prod(shape)))
            return np.ones(shape, np.float32)

    jacobian = Recorded()
    datasets = {"jacobian": jacobian, "outputs": np.ones((2, 50)), "class_norms": np.ones((2, 50))}
    found = stored.stored_sample(datasets, 1).products(torch.arange(4), torch.ones(4, 50).double())
    assert sum(jacobian.read) == 3 * 224 * 224 * 50
    assert max(jacobian.read) <= stored.PIECE_NUMBERS
    assert (found.pulled == 50).all() and (found.rows == 1).all()


class Tie(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.top = nn.Linear(40, 9), nn.Linear(9, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.relu(self.first(x)))


@pytest.mark.parametrize("method", ["loop", "vmap", "replicate", "forward"])
def test_a_kink_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """At one of five samples a unit's sum is rounding noise, on the other side in float64."""
    monkeypatch.chdir(tmp_path)
    for seed in range(50):
        torch.manual_seed(seed)
        module, x = Tie(), torch.randn(5, 40)
        with torch.no_grad():
            module.first.bias -= module.first(x)[3]
            torch.jit.save(torch.jit.script(module), "model.pt")
        np.save("x.npy", x)
        jacli.compute("model.pt", "x.npy", out="out.h5", method=method, batch_size=5, overwrite=True)
        found = verify("out.h5", samples=None)
        assert not found.failed
        if found.samples[3].found.near_kink:
            break
    assert [s.verdict for s in found.samples] == ["ok"] * 3 + ["at a kink", "ok"]
    assert found.samples[3].found.error > 1e-3 > found.worst_error
    assert found.at_kinks == (3,) and found.worst_at_kinks == found.samples[3].found.error
    assert json.loads(json.dumps(found.to_dict()))["at_kinks"] == [3]
    with h5py.File("out.h5", "r+") as file:
        _scale("jacobian")(file)
    assert verify("out.h5", samples=None).failed == (0, 1, 2, 3, 4)


def test_before_the_file_is_published(folder: Path, tmp_path: Path) -> None:
    """As a run does: from the writer's datasets, what is found goes into the file."""
    jacli.compute("convolution.pt", "x.npy", out=str(tmp_path / "a.h5"), batch_size=4)
    config = from_options({"model": "convolution.pt", "inputs": "x.npy", "batch_size": 4})
    plan = {"method": "loop", "batch_size": 4, "chunk_size": 1}

    layout = ResultLayout(B, INPUT, (N,), save_inputs=False, batch_size=4)
    with open_results(tmp_path / "a.h5") as results:
        names = ("jacobian", "sample_index", "outputs", "frobenius_norm", "class_norms")
        arrays = {name: results[name][...] for name in names}
    with (
        exact_arithmetic(),
        ResultWriter.create(tmp_path / "b.h5", layout, {}, overwrite=False) as writer,
        (prepared := prepare(config)).source,
    ):
        writer.write_batch(0, arrays)
        for row, found in recheck_samples(prepared, writer.datasets, plan, config, choose_rows(B, 2, 0)):
            assert not found.failed
            writer.write_recheck(row, found.error, found.near_kink)
        writer.finish()
    with open_results(tmp_path / "b.h5") as results:
        assert np.flatnonzero(np.isfinite(results.verified_error)).tolist() == choose_rows(B, 2, 0)
        assert np.nanmax(results.verified_error) < 1e-5


def test_the_batch_of_a_sample_is_the_one_that_ran(tmp_path: Path) -> None:
    """Batches that were halved, or ended where a run was interrupted, are no multiples of the plan's size."""
    layout = ResultLayout(11, INPUT, (N,), batch_size=4)
    with ResultWriter.create(tmp_path / "out.h5", layout, {}, overwrite=False) as writer:
        for start, stop in ((0, 4), (4, 5), (5, 7), (7, 11)):
            writer.write_batch(start, random_batch(layout, start, stop))
        plan = {"batch_size": 2}
        batches = [recheck._own_batch(writer.datasets, plan, row) for row in (0, 3, 4, 5, 6, 7, 10)]
        assert batches == [(0, 4), (0, 4), (4, 5), (5, 7), (5, 7), (7, 11), (7, 11)]
        without = {name: found for name, found in writer.datasets.items() if name != "batch_start"}
        assert recheck._own_batch(without, plan, 10) == (10, 11)  # as schema jacli/1 told it
        writer.finish()


def test_choice_of_rows() -> None:
    assert choose_rows(5, 9, 0) == [0, 1, 2, 3, 4]
    chosen = [choose_rows(1000, 3, seed) for seed in range(50)]
    assert all(rows == sorted(set(rows)) and len(rows) == 3 for rows in chosen)
    assert chosen == [choose_rows(1000, 3, seed) for seed in range(50)]
    assert max(map(max, chosen)) > 900 and min(map(min, chosen)) < 100


def test_tolerance_follows_the_options() -> None:
    base = {"model": "m", "inputs": "x"}
    assert tolerance_of(from_options(base)) == 1e-4
    assert tolerance_of(from_options({**base, "dtype": "float64"})) == 1e-9
    assert tolerance_of(from_options({**base, "save_dtype": "float16"})) == pytest.approx(1.1e-3)
    assert tolerance_of(from_options({**base, "precision": "bf16"})) == pytest.approx(5.01e-2)
    assert tolerance_of(from_options({**base, "precision": "tf32"})) == pytest.approx(1.01e-2)
    assert tolerance_of(from_options({**base, "precision": "bf16", "tolerance": 0.5})) == 0.5


@pytest.mark.parametrize("copies", [1, 3, 5, 13, 40])
def test_copies_of_a_block_pull_back_as_the_block(copies: int) -> None:
    torch.manual_seed(0)
    network = TensorNetwork.of_module(frozen_twin(Convolution()))
    block = Linearized(network, torch.randn(2, *INPUT), {})
    u = torch.randn(2, N)
    plan = {"method": "replicate", "chunk_size": copies} if copies <= 3 else {"method": "vmap"}
    for passes in as_run(block, plan, recurrent=False):
        torch.testing.assert_close(passes.pull(u), block.tape().vjp(u[None])[0])
        torch.testing.assert_close(passes.outputs, block.outputs)


def test_rows_spread_over_copies_are_a_linear_map() -> None:
    """Of the batch itself, whatever the number of copies; and of some of its samples."""
    matrices = torch.randn(2, N, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for copies in (1, 2, 5):
        spread = SpreadOverCopies(DenseMap(matrices.repeat(copies, 1, 1)), copies, nullcontext)
        u, v = torch.randn(3, 2, N).double(), torch.randn(3, 2, 6).double()
        assert (spread.batch, spread.n_out, spread.n_in) == (2, N, 6)
        torch.testing.assert_close(spread.vjp(u), DenseMap(matrices).vjp(u))
        torch.testing.assert_close(spread.jvp(v), DenseMap(matrices).jvp(v))
        second = spread.take(slice(1, 2))
        torch.testing.assert_close(second.vjp(u[:, 1:]), DenseMap(matrices[1:]).vjp(u[:, 1:]))


def test_ways_in_which_a_run_may_have_rounded() -> None:
    plain, batched = (False, 1), (True, 1)
    assert ways({"method": "loop", "chunk_size": 1}) == [plain]
    assert ways({"method": "vmap", "chunk_size": 8}) == [batched, plain]
    assert ways({"method": "replicate", "chunk_size": 8}) == [(False, 8), plain]
    links = [{"reverse_method": name, "reverse_chunk": 4} for name in ("replicate", "vmap", "replicate")]
    factored = {"method": "factored", "chunk_size": 8, "factored": {"links": links}}
    assert ways(factored) == [(False, 4), batched, plain]
