"""A run that is called again when its file is complete: the same, which is left alone, or another."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import jacli
from jacli.commands.merge import merge
from jacli.errors import JacliError, ModelError, OutputError
from tests.run.shard_files import write_shards


class Roots(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).sqrt()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    for name, seed in (("m.pt", 0), ("other.pt", 1)):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
        torch.jit.script(model.eval()).save(str(folder / name))
    torch.jit.script(Roots().eval()).save(str(folder / "roots.pt"))
    x = np.random.default_rng(0).standard_normal((9, 2, 3), np.float32)
    np.save(folder / "x.npy", x)
    x[4, 1, 1] += 1
    np.save(folder / "changed.npy", x)
    x = np.abs(x)
    x[2, 0, 0] = 0
    np.save(folder / "zero.npy", x)
    np.save(folder / "y.npy", np.arange(9) % 4)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(model: str = "m.pt", inputs: str = "x.npy", **options: Any) -> Any:
    return jacli.compute(model, inputs, **{"method": "loop", "batch_size": 4, **options})


SAME: dict[str, dict[str, Any]] = {
    "plain": {},
    "none": {"save": "none"},
    "classes": {"classes": "top:2", "save_dtype": "float64"},
    "labels": {"classes": "label", "labels": "y.npy"},
    "shard": {"shard": "2/3"},
    "part of them": {"samples": "1:9:2", "save_inputs": False, "singular_values": "none"},
}


@pytest.mark.parametrize("options", SAME.values(), ids=SAME.keys())
def test_the_same_run_again_touches_nothing(place: Path, options: dict[str, Any]) -> None:
    first = run(**options)
    before = first.out.read_bytes(), first.out.stat().st_mtime_ns
    again = run(**options)
    assert again.already_complete and not first.already_complete
    assert (first.out.read_bytes(), first.out.stat().st_mtime_ns) == before
    told, then = again.to_dict(), first.to_dict()
    for name in ("out", "samples", "jacobian_shape", "not_finite", "overflowed", "rechecked"):
        assert told[name] == then[name], name
    assert told["plan"]["method"] == "loop" and again.continued == again.samples
    assert not [path for path in place.iterdir() if ".part" in path.name]


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"method": "auto"}, None),
        ({"batch_size": 3}, "--batch-size 4, not 3"),
        ({"verify": 5}, "jacli verify out.h5 -n 5"),
        ({"verify": 0, "memory": "1GiB"}, None),
        ({"model": "copy.pt"}, None),
    ],
)
def test_options_that_change_no_number_beyond_rounding(
    place: Path, options: dict[str, Any], note: str | None
) -> None:
    shutil.copy("m.pt", "copy.pt")
    run()
    again = run(**options)
    assert again.already_complete
    assert note is None or any(note in told for told in again.notes)


def test_a_method_that_auto_had_chosen_is_the_same_run(place: Path) -> None:
    chosen = run(method="auto").plan["method"]
    assert run(method=chosen).already_complete
    other = "vmap" if chosen != "vmap" else "loop"
    with pytest.raises(OutputError, match=f"--method was auto, is {other}"):
        run(method=other)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": "other.pt"}, ["the content of MODEL"]),
        ({"inputs": "changed.npy"}, ["the content of INPUTS"]),
        (
            {"classes": "1,2", "dtype": "float64"},
            ["--classes was all, is 1,2", "--dtype was float32, is float64"],
        ),
        ({"model": "other.pt", "save": "none"}, ["--save was full, is none", "the content of MODEL"]),
        ({"samples": "0:8"}, ["--samples was null, is 0:8", "the number of samples was 9, is 8"]),
        ({"samples": "8,1,2,3,4,5,6,7,0"}, ["--samples", "the content of INPUTS"]),
        ({"classes": "label", "labels": "y.npy"}, ["--classes was all, is label", "labels"]),
        ({"resume": False}, ["unless asked to"]),
    ],
)
def test_another_run_is_refused_by_all_that_differs(
    place: Path, options: dict[str, Any], named: list[str]
) -> None:
    before = run().out.read_bytes()
    with pytest.raises(OutputError, match="exists already") as raised:
        run(**options)
    assert [words for words in named if words not in raised.value.why] == []
    assert Path("out.h5").read_bytes() == before


def test_a_model_file_that_was_replaced_is_another(place: Path) -> None:
    run()
    os.replace("other.pt", "m.pt")
    with pytest.raises(OutputError, match="the content of MODEL"):
        run()


@pytest.mark.parametrize("options", [{}, {"save": "none"}])
def test_a_file_with_unsound_samples_is_so_again(place: Path, options: dict[str, Any]) -> None:
    first = run("roots.pt", "zero.npy", **options)
    again = run("roots.pt", "zero.npy", **options)
    assert first.not_finite == again.not_finite == (2,) and again.already_complete


@pytest.mark.parametrize("error", [0.5, np.nan])
def test_a_failed_recheck_is_so_again(place: Path, error: float) -> None:
    """As the file has it, by the tolerance of its own run: whatever is allowed now."""
    run(verify=3)
    with h5py.File("out.h5", "r+") as file:
        row = int(np.flatnonzero(file["near_kink"][:] >= 0)[1])
        file["verified_error"][row], file["near_kink"][row] = error, 0
    again = run(verify=3, tolerance=0.9)
    assert again.already_complete and again.rechecked.failed == (row,)
    assert again.rechecked.samples == 3 and again.rechecked.tolerance == 1e-4


def test_overflowed_values_are_so_again(place: Path) -> None:
    big = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)))
    with torch.no_grad():
        big[1].weight.mul_(1e6)
    big.save("big.pt")
    first, again = (run("big.pt", save_dtype="float16") for _ in range(2))
    assert first.overflowed == again.overflowed > 0 and again.already_complete


@pytest.mark.parametrize("what", ["text", "another result", "truncated"])
def test_what_is_there_hides_no_other_error(place: Path, what: str) -> None:
    out = Path("out.h5")
    if what == "text":
        out.write_text("mine")
    else:
        run(classes="0")
        if what == "truncated":
            out.write_bytes(out.read_bytes()[:3000])
    before = out.read_bytes()
    with pytest.raises(ModelError) as raised:
        run("nothing.pt")
    assert [error.what for error in raised.value.besides] == ["out.h5 exists already."]
    with pytest.raises(JacliError, match="exists already"):
        run()
    assert out.read_bytes() == before


def test_a_result_of_schema_1_is_of_the_same_run(place: Path) -> None:
    run()
    with h5py.File("out.h5", "r+") as file:
        file.attrs["schema"] = "jacli/1"
        config = json.loads(file.attrs["config"])
        del config["precision"], file.attrs["precision"], file.attrs["tolerance"]
        file.attrs["config"] = json.dumps(config)
        del file["batch_start"], file["checksums"]
    again = run()
    assert again.already_complete and again.rechecked.samples == 1


@pytest.mark.parametrize("virtual", [True, False])
def test_a_merged_file_is_that_of_the_whole_run(place: Path, virtual: bool) -> None:
    for index in (1, 2):
        run(shard=f"{index}/2")
    merge(["out.h5"], virtual=virtual)
    assert run().already_complete
    with pytest.raises(OutputError, match="the content of INPUTS"):
        run(inputs="changed.npy")
    again = merge(["out.h5"], virtual=virtual)
    assert again.already_complete
    with pytest.raises(OutputError, match="--copy" if not virtual else "--virtual"):
        merge(["out.h5"], virtual=not virtual)


def test_shards_computed_again_are_not_those_that_were_merged(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    paths = write_shards(out, 3)
    merge([out], virtual=False)
    for path in paths:
        path.unlink()
    write_shards(out, 3, precision="ieee")
    with pytest.raises(OutputError, match=r"00001-of-00003\.h5 was computed again"):
        merge([out], virtual=False)
    assert merge([out], virtual=False, overwrite=True).samples == merge([out], virtual=False).samples


def test_other_shards_are_not_those_that_were_merged(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    write_shards(tmp_path / "a.h5", 2)
    merge([tmp_path / "a.h5"], out)
    write_shards(tmp_path / "b.h5", 2)
    with pytest.raises(OutputError, match=r"b\.00001-of-00002\.h5 is not in it"):
        merge([tmp_path / "b.h5"], out)
