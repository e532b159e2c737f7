"""Each file in configs/ starts with the command that uses it; the command runs and keeps its word."""

from __future__ import annotations

import json
import subprocess
import tomllib

import h5py
import numpy as np
import pytest

from tests.readme import ROOT, copy_samples

CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


def test_there_are_two_at_least():
    assert len(CONFIGS) >= 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_command_on_the_first_line_keeps_the_files_word(path, tmp_path, served_environment):
    text = path.read_text(encoding="utf-8")
    command = text.splitlines()[0].removeprefix("# ")
    assert command.startswith(f"jacli compute --config configs/{path.name} -o ")
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=copy_samples(tmp_path),
        env=served_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    asked = tomllib.loads(text)
    with h5py.File(tmp_path / command.split()[-1]) as result:
        check_recorded_options(asked, result)
        check_datasets(asked, result)
        check_outputs(asked, result)
        check_classes(asked, result)


def check_recorded_options(asked, result):
    recorded = json.loads(result.attrs["config"])
    for name, value in asked.items():
        if name in ("model", "inputs", "labels"):
            assert recorded[name].endswith(value)
        else:
            assert recorded[name] == value
    if "method" in asked:
        assert result.attrs["method"] == asked["method"]


def check_datasets(asked, result):
    inputs = np.load(ROOT / asked["inputs"], mmap_mode="r")
    n_samples, n_in = len(inputs), inputs[0].size
    kind, _, count = asked["classes"].partition(":")
    k = int(count) if kind == "top" else 1
    assert bool(result.attrs["complete"])
    assert result["done"][...].all()
    assert result["class_index"].shape == (n_samples, k)
    assert result["singular_values"].shape == (n_samples, min(k, n_in))
    assert np.isfinite(result["singular_values"][...]).all()
    assert ("inputs" in result) == asked.get("save_inputs", True)
    assert ("jacobian" in result) == (asked["save"] == "full")
    if "jacobian" in result:
        jacobian = result["jacobian"]
        assert jacobian.shape == (*inputs.shape, k)
        assert jacobian.dtype == asked["dtype"]
        assert jacobian.compression == asked["compress"]
        norms = np.linalg.norm(jacobian[...].reshape(n_samples, -1), axis=1)
        np.testing.assert_allclose(norms, result["frobenius_norm"])


def check_outputs(asked, result):
    outputs = result["outputs"][...].astype(np.float64)
    probabilities = {"probs": outputs, "log-probs": np.exp(outputs)}[asked["of"]]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def check_classes(asked, result):
    index = result["class_index"][...]
    if "labels" in asked:
        np.testing.assert_array_equal(index[:, 0], np.load(ROOT / asked["labels"]))
    else:
        largest = np.sort(result["outputs"][...], axis=1)[:, ::-1][:, : index.shape[1]]
        np.testing.assert_array_equal(np.take_along_axis(result["outputs"][...], index, axis=1), largest)
