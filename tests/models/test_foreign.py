"""Healthy files of other programs are named, with what to do; never called damaged."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import torch

from jacli.errors import ModelError
from jacli.models import describe_model, load_model
from jacli.untrusted.content import Content, recognise_content, recognise_model


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def hdf5(attribute: str) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs[attribute] = "2.4.0"
        file["dense/kernel"] = np.ones((3, 2))
    return buffer.getvalue()


def delimited(text: bytes) -> bytes:
    return bytes([len(text)]) + text


FILES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "onnx of pytorch": (
        lambda: b"\x08\x08\x12" + delimited(b"pytorch") + b"\x1a\x052.0.1:",
        "ONNX",
        "--arch",
    ),
    "onnx of tf2onnx": (lambda: b"\x08\x07\x12" + delimited(b"tf2o") + b"\xff" * 9, "ONNX", "--arch"),
    "onnx without a producer": (lambda: b"\x08\x0a\x3a\xff\x01\x0a" + b"\xff" * 9, "ONNX", "--arch"),
    "gguf": (lambda: b"GGUF\x03\0\0\0" + bytes(64), "GGUF", "safetensors"),
    "saved_model.pb": (lambda: b"\x08\x01\x12\x84\x9a\x03\x0a" + b"\xff" * 9, "TensorFlow", "PyTorch"),
    "frozen graph": (lambda: b"\x0a\x1e\x0a\x01x\x12\x0bPlaceholder" + b"\xff" * 9, "TensorFlow", "PyTorch"),
    "keras h5": (lambda: hdf5("keras_version"), "Keras model in HDF5", "PyTorch"),
    "keras weights h5": (lambda: hdf5("layer_names"), "Keras model in HDF5", "PyTorch"),
    ".keras": (lambda: zipped("metadata.json", "config.json", "model.weights.h5"), "Keras", "PyTorch"),
    "stable-baselines3": (
        lambda: zipped("data", "policy.pth", "pytorch_variables.pth", "_stable_baselines3_version"),
        "stable-baselines3",
        "policy.pth",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(tmp_path: Path, kind: str) -> None:
    content, name, hint = FILES[kind]
    path = tmp_path / "model.pt"
    path.write_bytes(content())
    for load in (load_model, describe_model):
        with pytest.raises(ModelError, match=name) as caught:
            load(str(path))
        assert "damaged" not in str(caught.value) and hint in caught.value.hint


@pytest.mark.parametrize(
    ("inside", "name", "hint"),
    [
        ("saved_model.pb", "SavedModel", "PyTorch"),
        ("config.json", "config.json", "model.safetensors"),
        ("something.else", "folder", "formats"),
    ],
)
def test_folders(tmp_path: Path, inside: str, name: str, hint: str) -> None:
    (tmp_path / inside).write_bytes(b"{}")
    with pytest.raises(ModelError, match=name) as caught:
        load_model(str(tmp_path))
    assert hint in caught.value.hint


def pickled(module: str, monkeypatch: pytest.MonkeyPatch) -> object:
    made = ModuleType(module)
    exec("class Thing:\n    def __init__(self):\n        self.weights = [1.5, 2.5]\n", made.__dict__)
    package = module.partition(".")[0]
    monkeypatch.setitem(sys.modules, package, ModuleType(package))
    monkeypatch.setitem(sys.modules, module, made)
    return made.__dict__["Thing"]()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(("module", "name"), [("sklearn.pipes", "scikit-learn"), ("xgboost.core", "XGBoost")])
def test_plain_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, protocol: int
) -> None:
    content = pickle.dumps(pickled(module, monkeypatch), protocol=protocol)
    # joblib puts arrays between the instructions, so that nothing after them can be followed.
    for written in (content, content[:-1] + b"\xff" * 64):
        (tmp_path / "model.pkl").write_bytes(written)
        with pytest.raises(ModelError, match=name) as caught:
            load_model(str(tmp_path / "model.pkl"))
        assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("module", "name"), [("fastai.learner", "fastai Learner"), ("sklearn.svm", "scikit")]
)
def test_objects_in_files_of_torch_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, legacy: bool
) -> None:
    thing = pickled(module, monkeypatch)
    torch.save(thing, tmp_path / "export.pkl", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match=name):
        load_model(str(tmp_path / "export.pkl"))


def test_inputs_in_hdf5_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(hdf5("keras_version"))
    assert recognise_content(tmp_path / "a.h5") is Content.HDF5
    (tmp_path / "b.h5").write_bytes(hdf5("title"))
    assert recognise_model(tmp_path / "b.h5") is Content.HDF5
