"""`jacli verify`: what it prints, its exit codes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import jacli as package
from tests.store.signing import as_schema_1, sign_again
from tests.toy_models import Confident

ARCH = "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Linear(4, 3), nn.Tanh())\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    torch.jit.save(torch.jit.script(model), "model.pt")
    torch.save(model.state_dict(), "weights.pt")
    torch.save(model, "pickled.pt")
    (tmp_path / "arch.py").write_text(ARCH)
    np.save("x.npy", np.random.default_rng(0).standard_normal((9, 4), dtype=np.float32))
    package.compute("model.pt", "x.npy", out="out.h5", samples="2:9")
    return tmp_path


def spoil(path: str, *rows: int) -> None:
    with h5py.File(path, "r+") as file:
        for row in rows:
            file["jacobian"][row] *= 1.01
        sign_again(file)


def test_a_right_result(files: Path, jacli: Any) -> None:
    before = Path("out.h5").read_bytes()
    ran = jacli("verify", "out.h5")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0].split() == ["sample", "error", "near_kink", "verdict"]
    assert len(lines) == 2 + 4 + 1
    assert all(line.endswith("ok") for line in lines[2:6])
    assert lines[-1].startswith("worst error ")
    assert lines[-1].endswith("tolerance 1.0e-04, against reverse passes in float64")
    assert Path("out.h5").read_bytes() == before


def test_wrong_samples_are_named(files: Path, jacli: Any) -> None:
    spoil("out.h5", 1, 4)
    ran = jacli("verify", "out.h5", "--samples", "all")
    assert ran.code == 6
    assert "2 of 7 rechecked samples of out.h5 are wrong: 3, 6." in ran.err  # positions in INPUTS
    assert ran.out.count("wrong: jacobian") == 2
    assert jacli("verify", "out.h5", "-n", "all", "--tolerance", "0.5").code == 0


@pytest.mark.parametrize(
    ("count", "wrong", "listed", "summary"),
    [
        (30, (), 0, "30 of 30 samples ok"),
        (30, (4, 20), 2, "28 of 30 samples ok; the other 2 are listed"),
        (20, (3,), 20, None),
    ],
)
def test_of_many_samples_only_exceptions_are_listed(
    files: Path, jacli: Any, count: int, wrong: tuple[int, ...], listed: int, summary: str | None
) -> None:
    package.compute("model.pt", f"random:{count}x4", out="many.h5", method="loop")
    spoil("many.h5", *wrong)
    ran = jacli("verify", "many.h5", "--samples", "all")
    assert ran.code == (6 if wrong else 0)
    lines = ran.out.splitlines()
    rows = [line.split() for line in lines if line.endswith("ok") and line.strip()[0].isdigit()]
    rows = [row for row in rows if row[1] != "of"]
    wrong_rows = [line.split()[0] for line in lines if "wrong: jacobian" in line]
    assert wrong_rows == list(map(str, wrong))
    assert len(rows) + len(wrong_rows) == listed
    assert (summary in lines) if summary else not any("samples ok" in line for line in lines)
    assert lines[-1].startswith("worst error ")
    as_json = json.loads(jacli("verify", "many.h5", "-n", "all", "--json").out)
    assert len(as_json["samples"]) == count  # programs get every one


def recorded_as(precision: str) -> None:
    with h5py.File("out.h5", "r+") as file:
        options = json.loads(file.attrs["config"])
        file.attrs["config"] = json.dumps(options | {"precision": precision})
        file.attrs["precision"] = precision


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", "5.0e-02"), ("tf32", "1.0e-02")])
def test_a_reduced_precision_is_allowed_its_rounding(
    files: Path, jacli: Any, precision: str, tolerance: str
) -> None:
    recorded_as(precision)
    for _ in range(4 if precision == "bf16" else 1):
        ran = jacli("verify", "out.h5", "-n", "all")
        assert ran.code == 0, ran.err
        assert (
            f"computed with linear passes in {precision}: most of the error is their rounding"
            in ran.out + ran.err
        )
        assert f"tolerance {tolerance}, against reverse passes in float64" in ran.out
        spoil("out.h5", 3)  # by 1 % more
    spoil("out.h5", 3)
    ran = jacli("verify", "out.h5", "-n", "all")
    assert ran.code == 6 and "are wrong: 5." in ran.err
    assert jacli("verify", "out.h5", "-n", "all", "--tolerance", "0.5").code == 0


def test_a_precision_that_is_none_is_refused(files: Path, jacli: Any) -> None:
    recorded_as("fp8")
    ran = jacli("verify", "out.h5")
    assert ran.code == 2 and "--precision fp8" in ran.err


def test_as_json(files: Path, jacli: Any) -> None:
    spoil("out.h5", 0)
    ran = jacli("verify", "out.h5", "-n", "all", "--json")
    assert ran.code == 6
    found = json.loads(ran.out)
    assert found["failed"] == [2]
    assert (found["tolerance"], found["verified_dtype"]) == (1e-4, "float64")
    assert found["worst_error"] == pytest.approx(0.01, rel=0.02)
    assert [s["sample_index"] for s in found["samples"]] == list(range(2, 9))
    assert set(found["samples"][0]) == {"sample_index", "error", "near_kink", "cross_sample", "verdict"}


def test_numbers_that_are_not_finite_are_json_too(files: Path, jacli: Any) -> None:
    with h5py.File("out.h5", "r+") as file:
        file["jacobian"][...] = np.nan
    ran = jacli("verify", "out.h5", "--json")
    assert json.loads(ran.out, parse_constant=pytest.fail)["worst_error"] == "Infinity"


def test_seeds_choose_other_samples(files: Path, jacli: Any) -> None:
    chosen = {
        tuple(s["sample_index"] for s in json.loads(ran.out)["samples"])
        for ran in (jacli("verify", "out.h5", "--json", "--seed", n) for n in range(5))
    }
    assert len(chosen) > 1
    assert all(len(set(rows)) == 4 for rows in chosen)


def test_moved_files_are_named_and_can_be_given(files: Path, jacli: Any) -> None:
    Path("model.pt").rename("elsewhere.pt")
    ran = jacli("verify", "out.h5")
    assert ran.code == 3
    assert "model.pt: no such file" in ran.err and "--model PATH" in ran.err
    Path("x.npy").rename("y.npy")
    ran = jacli("verify", "out.h5", "--model", "elsewhere.pt")
    assert ran.code == 4
    assert "x.npy: no such file" in ran.err and "--inputs PATH" in ran.err
    assert jacli("verify", "out.h5", "--model", "elsewhere.pt", "--inputs", "y.npy").code == 0


def test_another_model_is_refused(files: Path, jacli: Any) -> None:
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.Tanh())), "model.pt")
    ran = jacli("verify", "out.h5")
    assert ran.code == 3
    assert "is not the model of out.h5" in ran.err


@pytest.mark.parametrize("rows", [9, 11])
def test_other_inputs_are_refused(files: Path, jacli: Any, rows: int) -> None:
    np.save("x.npy", np.random.default_rng(1).standard_normal((rows, 4), dtype=np.float32))
    ran = jacli("verify", "out.h5")
    assert ran.code == 4
    assert "are not the inputs of out.h5" in ran.err


def test_code_is_not_taken_from_a_result(files: Path, jacli: Any) -> None:
    package.compute("weights.pt", "x.npy", arch="arch.py:make", out="arch.h5")
    ran = jacli("verify", "arch.h5")
    assert ran.code == 2
    assert "--config" not in ran.err
    assert "give it again by hand: --arch " in ran.err
    ran = jacli("verify", "arch.h5", "--arch", "arch.py:make")
    assert (ran.code, "not the recorded one" in ran.err) == (0, False)
    Path("arch.py").write_text(ARCH + "# changed\n")
    ran = jacli("verify", "arch.h5", "--arch", "arch.py:make")
    assert ran.code == 0
    assert "not the recorded one" in ran.err


def test_a_pickled_module_is_run_only_when_asked(files: Path, jacli: Any) -> None:
    package.compute("pickled.pt", "x.npy", allow_pickle=True, out="pickled.h5")
    ran = jacli("verify", "pickled.h5")
    assert ran.code == 3
    assert "--allow-pickle" in ran.err
    assert jacli("verify", "pickled.h5", "--allow-pickle").code == 0


def test_labels_need_not_be_there_any_more(files: Path, jacli: Any) -> None:
    np.save("labels.npy", np.arange(9) % 3)
    package.compute("model.pt", "x.npy", classes="label", labels="labels.npy", out="labels.h5")
    Path("labels.npy").unlink()
    assert jacli("verify", "labels.h5", "-n", "all").code == 0


def test_an_old_file_has_no_checksums_and_is_rechecked(files: Path, jacli: Any) -> None:
    as_schema_1("out.h5")
    ran = jacli("verify", "out.h5", "-n", "all")
    assert ran.code == 0
    assert "schema jacli/1 has no checksums" in ran.err
    as_schema_1("out.h5")
    with h5py.File("out.h5", "r+") as file:
        file["jacobian"][2] *= 1.01
    assert jacli("verify", "out.h5", "-n", "all").code == 6


@pytest.mark.parametrize("name", ["outputs", "inputs", "singular_values", "sample_index"])
def test_a_number_that_is_not_what_was_written(files: Path, jacli: Any, name: str) -> None:
    """Whatever the dataset, and whether or not the sample is among those rechecked."""
    with h5py.File("out.h5", "r+") as file:
        stored = file[name][6]
        file[name][6] = np.nextafter(stored, np.inf).astype(stored.dtype) if name != "sample_index" else 9
    ran = jacli("verify", "out.h5", "-n", "1")
    assert ran.code == 6
    assert "out.h5 was damaged after it was written" in ran.err
    assert f"rows 0 to 6 of {name}" in ran.err
    assert json.loads(jacli("verify", "out.h5", "--json").out)["damaged"] == [f"rows 0 to 6 of {name}"]


def test_an_unfinished_file(files: Path, jacli: Any) -> None:
    with h5py.File("out.h5", "r+") as file:
        del file.attrs["inputs_sha256"]
        file.attrs["complete"] = False
        file["done"][3:] = 0
        file["jacobian"][3:] = np.nan
        sign_again(file)
    Path("out.h5").rename("out.h5.part")
    ran = jacli("verify", "out.h5.part")
    assert ran.code == 0
    assert "only the 3 of 7 samples that are done" in ran.err
    with h5py.File("out.h5.part", "r+") as file:
        file["inputs"][...] = 1
        sign_again(file)
    assert jacli("verify", "out.h5.part").code == 4
    with h5py.File("out.h5.part", "r+") as file:
        file["done"][...] = 0
    ran = jacli("verify", "out.h5.part")
    assert ran.code == 4
    assert "no finished sample" in ran.err


WRONG = {
    "no number": (("-n", "few"), "--samples few", 2),
    "none": (("-n", "0"), "--samples 0", 2),
    "tolerance": (("--tolerance", "2"), "--tolerance 2", 2),
    "seed": (("--seed", "-1"), "--seed -1", 2),
    "device": (("--device", "abacus"), "--device abacus", 2),
    "model": (("--model", "none.pt"), "none.pt", 3),
    "inputs": (("--inputs", "none.npy"), "none.npy", 4),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options(files: Path, jacli: Any, name: str) -> None:
    arguments, words, code = WRONG[name]
    ran = jacli("verify", "out.h5", *arguments)
    assert ran.code == code
    assert words in ran.err
    assert ran.out == ""


def test_all_wrong_options_are_said_at_once(files: Path, jacli: Any) -> None:
    ran = jacli("verify", "out.h5", "-n", "x", "--tolerance", "2")
    assert ran.code == 2
    assert "--samples x" in ran.err and "--tolerance 2" in ran.err
    assert "jacli verify --help" in ran.err


@pytest.mark.parametrize("name", ["none.h5", "x.npy"])
def test_what_is_no_result_is_refused(files: Path, jacli: Any, name: str) -> None:
    ran = jacli("verify", name)
    assert ran.code == 4
    assert name in ran.err


@pytest.mark.parametrize("scale", [40.0, 60.0])
def test_rounding_of_float32_is_called_that(files: Path, jacli: Any, scale: float) -> None:
    """By the run and by `verify`, with what helps; and it does help."""
    torch.manual_seed(0)
    torch.jit.script(Confident(4, scale=scale).eval()).save("confident.pt")
    run = ("compute", "confident.pt", "random:24x4", "--method", "loop", "--verify", "24")
    ran = jacli(*run, "-o", "coarse.h5")
    assert ran.code == 6 and "take --dtype float64" in ran.err and "report" not in ran.err
    ran = jacli("verify", "coarse.h5", "-n", "all")
    assert ran.code == 6 and "differ as much" in ran.err and "--dtype float64" in ran.err
    assert jacli(*run, "-o", "fine.h5", "--dtype", "float64").code == 0
    assert jacli("verify", "fine.h5", "-n", "all").code == 0
