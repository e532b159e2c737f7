"""Options from files: what a result file may not decide, and what --out may not replace."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import jacli
from jacli.choice import measure as measuring
from jacli.commands.compute import run_compute
from jacli.commands.verify import verify
from jacli.errors import OutputError, ResultsError, UsageError
from jacli.run.config_file import resolve_options
from jacli.run.outcome import Outcome

ARCH = "from torch import nn\n\ndef make():\n    return nn.Linear(4, 3)\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arch.py").write_text(ARCH)
    torch.save(nn.Linear(4, 3).state_dict(), "weights.pt")
    np.save("x.npy", np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32))
    return tmp_path


def test_a_result_repeats_its_run(folder: Path) -> None:
    jacli.compute("weights.pt", "x.npy", arch="arch.py:make", method="vmap", out="a.h5")
    config = resolve_options({"config": "a.h5", "arch": "arch.py:make"})
    assert (config.model, config.method) == (str(folder / "weights.pt"), "vmap")
    assert config.out == "out.h5"  # where to write is not repeated
    assert resolve_options({"config": "a.h5", "arch": "arch.py:make", "method": "loop"}).method == "loop"


def test_a_changed_architecture_runs_when_it_is_given_again_and_that_is_told(folder: Path) -> None:
    jacli.compute("weights.pt", "x.npy", arch="arch.py:make", out="a.h5")
    told = "not the one of the run that is repeated"
    assert not any(told in note for note in repeat(arch="arch.py:make").notes)
    (folder / "arch.py").write_text(ARCH + "# another file\n")
    outcome = repeat(arch="arch.py:make", out="c.h5")
    assert any(told in note for note in outcome.notes)
    (folder / "other.py").write_text(ARCH)
    outcome = repeat(arch="other.py:make", out="d.h5")  # another one was wanted
    assert not any(told in note for note in outcome.notes)


RUNS = "from pathlib import Path\nPath('MARK').touch()\n"
NAMED = {
    "the recorded file": ("arch", "arch.py:make"),
    "a function of the standard library": ("arch", f"{os.__file__}:system"),
    "its module": ("arch", "os:system"),
    "as MODEL": ("model", f"{os.__file__}:system"),
    "its module as MODEL": ("model", "subprocess:run"),
    "beside a decoy of that name": ("arch", "evil.py:make"),
    "a file without the suffix": ("arch", "evil:make"),
    "a name below torchvision": ("arch", "torchvision.models:resnet18"),
    "a name that looks like a registry's": ("arch", "./torchvision:resnet18"),
    "a relative module": ("model", "evil:torchvision:make"),
}


@pytest.mark.parametrize("how", NAMED)
def test_a_result_cannot_name_code_to_run(folder: Path, how: str) -> None:
    """Whatever hash it brings along; and neither a plan nor a recheck runs it."""
    option, value = NAMED[how]
    for name in ("arch.py", "evil.py", "evil"):
        (folder / name).write_text(RUNS + ARCH)
    (folder / "evil.py:make").write_text("a decoy")
    jacli.compute("weights.pt", "x.npy", arch="arch.py:make", out="a.h5")
    (folder / "MARK").unlink()
    rewrite_options(**{option: value, "arch_arg": {"command": "touch MARK"}, "allow_pickle": True})
    with h5py.File("a.h5", "r+") as file:
        code = Path(value.rpartition(":")[0])
        digest = hashlib.sha256(code.read_bytes()).hexdigest() if code.is_file() else "0" * 64
        file.attrs["arch_sha256"] = digest
        del file.attrs["model_sha256"]
    given = {} if option == "arch" else {"arch": "arch.py:make"}
    with pytest.raises(UsageError, match="not taken from a result file"):
        resolve_options({"config": "a.h5", **given})
    with pytest.raises(UsageError, match="not taken from a result file"):
        verify("a.h5", **given)
    assert not (folder / "MARK").exists()


def test_what_a_result_may_name(folder: Path) -> None:
    """Registries run no foreign code; a file of data is a file, whatever its name."""
    jacli.compute("weights.pt", "x.npy", arch="arch.py:make", out="a.h5")
    (folder / "strange:name").write_bytes((folder / "weights.pt").read_bytes())
    for options in (
        {"arch": "torchvision:resnet18"},
        {"arch": "resnet18"},
        {"arch": "timm:resnet18"},
        {"arch": None, "model": "torchvision:resnet18"},
        {"arch": None, "model": "strange:name"},
    ):
        rewrite_options(**options, allow_pickle=True)
        config = resolve_options({"config": "a.h5"})
        assert config.arch == options["arch"] and not config.allow_pickle


def test_options_that_are_none_are_refused(folder: Path) -> None:
    jacli.compute("weights.pt", "x.npy", arch="arch.py:make", out="a.h5")
    rewrite_options(arch=["os:system"])
    with pytest.raises(UsageError, match="not text"):
        resolve_options({"config": "a.h5"})
    with h5py.File("a.h5", "r+") as file:
        file.attrs["config"] = "[1, 2]"
    for given in ({}, {"arch": "arch.py:make"}):
        with pytest.raises(ResultsError, match="no JSON object"):
            resolve_options({"config": "a.h5", **given})


@pytest.mark.parametrize("read", ["weights.pt", "x.npy", "arch.py", "labels.npy", "mask.npy", "run.toml"])
def test_a_file_that_is_read_is_never_replaced(folder: Path, read: str) -> None:
    for name in ("labels.npy", "mask.npy"):
        np.save(name, np.zeros(5, np.int64))
    (folder / "run.toml").write_text('labels = "labels.npy"\nclasses = "label"\narg = {mask = "@mask.npy"}\n')
    before = (folder / read).read_bytes()
    options = {"model": "weights.pt", "inputs": "x.npy", "arch": "arch.py:make", "config": "run.toml"}
    with pytest.raises(UsageError, match="both read and written"):
        resolve_options({**options, "out": read, "overwrite": True})
    assert (folder / read).read_bytes() == before


@pytest.mark.parametrize(
    "options", [{"model": "arch.py:make"}, {"constant": {"edges": "arch.py"}}, {"arg": {"mask": "@arch.py"}}]
)
def test_whatever_names_it(folder: Path, options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="both read and written"):
        resolve_options({"model": "weights.pt", "inputs": "x.npy", **options, "out": "arch.py"})


def test_a_pipe_is_not_replaced(folder: Path) -> None:
    os.mkfifo("pipe")
    with pytest.raises(OutputError, match="not a regular file"):
        jacli.compute("weights.pt", "x.npy", arch="arch.py:make", out="pipe", overwrite=True)
    assert (folder / "pipe").is_fifo()


@pytest.fixture
def measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A result ``a.h5`` of a network that can be cut; from then on, what is measured."""
    narrow = (
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3))\n"
    )
    (folder / "narrow.py").write_text(narrow)
    torch.save(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)).state_dict(), "narrow.pt")
    jacli.compute("narrow.pt", "x.npy", arch="narrow.py:make", method="factored", save="full", out="a.h5")
    found: list[str] = []
    real = measuring._Stopwatch.seconds

    def noting(stopwatch: Any, patience: float) -> tuple[float, float]:
        found.append(stopwatch._candidate.method.name)
        return real(stopwatch, patience)

    monkeypatch.setattr(measuring._Stopwatch, "seconds", noting)
    return found


def repeat(**flags: object) -> Outcome:
    """Run ``a.h5`` again; its own code must be given again."""
    return run_compute(resolve_options({"config": "a.h5", "out": "b.h5", **flags}), command="")


def rewrite_options(**options: object) -> None:
    """Change the options that stand in the result."""
    with h5py.File("a.h5", "r+") as file:
        file.attrs["config"] = json.dumps({**json.loads(file.attrs["config"]), **options})


def plan_in(path: str) -> dict[str, Any]:
    with h5py.File(path) as file:
        return json.loads(file.attrs["plan"])


def jacobians_in(path: str) -> np.ndarray:
    with h5py.File(path) as file:
        return file["jacobian"][...]


def test_a_result_repeats_its_plan(measured: list[str]) -> None:
    first = plan_in("a.h5")
    repeat(arch="narrow.py:make")
    assert measured == []
    second = plan_in("b.h5")
    names = ("method", "batch_size", "chunk_size", "n_blocks", "passes", "factored")
    assert [second[name] for name in names] == [first[name] for name in names]
    assert np.array_equal(jacobians_in("a.h5"), jacobians_in("b.h5"))


def test_a_result_repeats_its_precision(folder: Path) -> None:
    options = {"arch": "arch.py:make", "precision": "bf16"}
    jacli.compute("weights.pt", "x.npy", out="reduced.h5", **options)
    config = resolve_options({"config": "reduced.h5", "arch": "arch.py:make", "out": "again.h5"})
    assert config.precision == "bf16"
    run_compute(config, command="")
    assert np.array_equal(jacobians_in("reduced.h5"), jacobians_in("again.h5"))
    resolved = resolve_options({"config": "reduced.h5", "arch": "arch.py:make", "precision": "ieee"})
    assert resolved.precision == "ieee" and resolved.repeated_plan is None


@pytest.mark.parametrize(
    "flags", [{"seed": 3}, {"verify": 2}, {"save_dtype": "float16"}, {"compress": "gzip"}], ids=str
)
def test_a_flag_that_changes_no_plan_keeps_it(measured: list[str], flags: dict[str, object]) -> None:
    repeat(arch="narrow.py:make", **flags)
    assert measured == []


@pytest.mark.parametrize(
    "flags",
    [
        {"batch_size": 2},
        {"chunk_size": 2},
        {"memory": "1GiB"},
        {"samples": "0:3"},
        {"classes": "0,1,2"},
        {"of": "probs"},
        {"dtype": "float64"},
        {"precision": "bf16"},
        {"device": "cpu"},
        {"singular_values": "none"},
        {"save": "none"},
        {"method": "factored"},
        {"inputs": "x.npy"},
    ],
    ids=str,
)
def test_a_flag_that_changes_it_has_it_measured_anew(measured: list[str], flags: dict[str, object]) -> None:
    assert resolve_options({"config": "a.h5", "arch": "narrow.py:make", **flags}).repeated_plan is None
    repeat(arch="narrow.py:make", **flags)
    assert measured


def test_toml_holds_no_plan(measured: list[str]) -> None:
    Path("run.toml").write_text('model = "narrow.pt"\ninputs = "x.npy"\narch = "narrow.py:make"\n')
    assert resolve_options({"config": "run.toml"}).repeated_plan is None


def rewrite(change: Any) -> None:
    """Change the plan that stands in the result."""
    with h5py.File("a.h5", "r+") as file:
        plan = json.loads(file.attrs["plan"])
        changed = change(plan)
        file.attrs["plan"] = json.dumps(plan if changed is None else changed)


def without(plan: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in plan.items() if key != name}


WRONG_PLANS = {
    "another cut": lambda plan: plan["factored"].update(cuts=["elsewhere"]),
    "more links than cuts": lambda plan: plan["factored"].update(cuts=[]),
    "no tree": lambda plan: plan | {"factored": without(plan["factored"], "tree")},
    "no sizes": lambda plan: without(plan, "batch_size"),
    "no samples per batch": lambda plan: plan.update(batch_size=0),
    "no such method": lambda plan: plan.update(method="magic", factored=None),
    "factors without a plan": lambda plan: plan.update(factored=None),
}


@pytest.mark.parametrize("name", WRONG_PLANS)
def test_a_plan_that_does_not_fit_is_measured_anew_and_that_is_told(measured: list[str], name: str) -> None:
    expected = jacobians_in("a.h5")
    rewrite(WRONG_PLANS[name])
    outcome = repeat(arch="narrow.py:make")
    assert measured
    assert any("was not taken over" in note for note in outcome.notes), outcome.notes
    np.testing.assert_allclose(jacobians_in("b.h5"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plan", ["[]", "no JSON", "3"])
def test_a_plan_that_is_none_is_measured_anew(measured: list[str], plan: str) -> None:
    with h5py.File("a.h5", "r+") as file:
        file.attrs["plan"] = plan
    repeat(arch="narrow.py:make")
    assert measured
