"""Mistakes of a first hour: each message says what to do, with the right command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jacli.errors import UsageError
from jacli.inputs import scale_notes
from jacli.inputs.text_table import text_table
from jacli.options.config import from_options


class Further(nn.Module):
    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).sin() * weight


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 3)).eval()
    torch.jit.script(network).save(folder / "m.pt")
    x = np.random.default_rng(0).random((6, 3, 2, 2), np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "x255.npy", x * 255)
    holes = x.copy()
    holes[[0, 4, 5], 1] = np.nan
    np.save(folder / "holes.npy", holes)
    np.save(folder / "onehot.npy", np.eye(3)[[0, 1, 2, 0, 1, 2]])
    (folder / "table.csv").write_text("a,b,c\n1,2,3\n4,5,6.5\n")
    torch.jit.script(Further().eval()).save(folder / "further.pt")
    (folder / "nets.py").write_text(
        "import torch\n"
        "class Two(torch.nn.Module):\n"
        "    def forward(self, x, mask, sr, scale=1.0):\n"
        "        return x.flatten(1) * mask * sr\n"
        "class Optional(torch.nn.Module):\n"
        "    def forward(self, x, state=None, options=None):\n"
        "        return x.flatten(1) * state[0] * options['scale']\n"
        "class Mask(torch.nn.Module):\n"
        "    def forward(self, x, *, mask=None):\n"
        "        return x.flatten(1) * mask.sum()\n"
    )
    return folder


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("m.pt table.csv", 4, ["3 numbers per line", "loadtxt", "skiprows=1", "table.npy", "reshape"]),
        ("m.pt https://example.org/x.npy", 4, ["an address", "Download it first"]),
        ("s3://bucket/m.pt x.npy", 3, ["an address", "Download it first"]),
        ("m.pt scans/*.npy", 4, ["where files match", "one array"]),
        ("~/m.pt x.npy", 3, ["outside of quotes"]),
        ("m.pt holes.npy", 4, ["3 of 6 samples", "Samples 0, 4, 5.", "--samples 1:4"]),
        ("m.pt holes.npy --samples 1:6", 4, ["2 of 5 samples", "Samples 4, 5.", "--samples 1:4"]),
        ("m.pt x.npy --samples 20", 4, ["no sample 20", "6 samples", "0:20"]),
        ("m.pt x.npy --labels onehot.npy", 4, ["one-hot", "argmax(1)"]),
        ("m.pt x.npy --classes 3", 2, ["3 outputs per sample", "the first one is 0"]),
        ("further.pt x.npy", 3, ["--arg weight=@FILE.npy", "--constant weight=FILE.npy"]),
        ("nets.py:Two x.npy", 3, ["'mask' and 'sr'", "--arg mask=@FILE.npy", "--arg mask=VALUE"]),
        ("nets.py:Optional x.npy", 3, ["default value: state, options", "--arg state=@FILE.npy", "state.0="]),
        ("nets.py:Optional x.npy --arg state.0=2", 3, ["default value: options", "--arg options=VALUE"]),
        ("nets.py:Mask x.npy", 3, ["default value: mask", "--constant mask=FILE.npy"]),
        ("m.pt x.npy --device cuda:99", 2, ["CUDA device", "jacli doctor"]),
    ],
)
def test_the_message_has_the_remedy(
    jacli,
    material: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    code: int,
    words: list[str],
) -> None:
    monkeypatch.chdir(material)
    ran = jacli("compute", *line.split(), "-o", tmp_path / "out.h5")
    assert ran.code == code, ran.err
    assert ran.err.startswith("jacli: ") and "Traceback" not in ran.err
    for word in words:
        assert word in ran.err


@pytest.mark.parametrize(
    ("option", "value", "meant"),
    [
        ("classes", "1-3", "did you mean 1,2,3?"),
        ("classes", "2..4", "did you mean 2,3,4?"),
        ("classes", "1:4", "did you mean 1,2,3?"),
        ("classes", "[0, 7]", "did you mean 0,7?"),
        ("classes", "0-999", "did you mean $(seq -s, 0 999)?"),
        ("classes", "top5", "did you mean top:5?"),
        ("classes", "labels", "did you mean label?"),
        ("dtype", "double", "did you mean float64?"),
        ("dtype", "torch.float32", "did you mean float32?"),
        ("dtype", "fp16", "--precision bf16"),
        ("dtype", "bfloat16", "--save-dtype float16"),
    ],
)
def test_values_that_were_probably_meant(option: str, value: str, meant: str) -> None:
    with pytest.raises(UsageError) as refusal:
        from_options({"model": "m.pt", "inputs": "x.npy", option: value})
    assert meant in str(refusal.value)


@pytest.mark.parametrize("value", ["3-1", "a-b", "top:0", "-1", "4-4"])
def test_nothing_is_guessed_where_nothing_is_clear(value: str) -> None:
    with pytest.raises(UsageError) as refusal:
        from_options({"model": "m.pt", "inputs": "x.npy", "classes": value})
    assert "did you mean" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "1,2\n3,4\n"),
        ("a.csv", "\ufeffx;y\n1.5;2e-3\n\n"),
        ("it's.tsv", "1\t2\t3\n4\t5\t6\n"),
        ("my table.txt", "# 1 2\n0.5 -1\n"),
    ],
)
def test_the_command_for_a_table_makes_the_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    import shlex
    import subprocess
    import sys

    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    found = text_table(path)
    assert found is not None
    command = found[1].partition("array: ")[2].rpartition(" and give ")[0]
    words = shlex.split(command)
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], check=True)
    array = np.load(path.with_suffix(".npy"))
    rows = [line for line in text.splitlines() if line[:1].isdigit()]
    assert array.dtype == np.float32 and len(array) == len(rows)


@pytest.mark.parametrize("text", ["some words\n", "1\n2\n", "a,b\nc,d\n", "", "{\n  'a': 1\n}\n"])
def test_other_text_is_no_table(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert text_table(tmp_path / "a.txt") is None


@pytest.mark.parametrize(
    ("shape", "scale", "noted"),
    [
        ((4, 3, 2, 2), 255.0, True),
        ((4, 3, 2, 2), -200.0, True),
        ((4, 3, 2, 2), 20.0, False),
        ((4, 1, 5, 5), 4.0, False),
        ((4, 7), 1000.0, False),  # no images
        ((4, 7, 9), 1000.0, False),
    ],
)
def test_images_that_are_not_scaled_are_noted(shape: tuple[int, ...], scale: float, noted: bool) -> None:
    notes = scale_notes(np.ones(shape, np.float32) * scale)
    assert bool(notes) == noted
    if noted:
        assert f"reach {abs(scale):.4g}" in notes[0] and "scaled as in training?" in notes[0]


@pytest.mark.parametrize(("inputs", "noted"), [("x255.npy", True), ("x.npy", False)])
def test_the_note_is_told_and_stored(
    jacli, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: str, noted: bool
) -> None:
    import h5py

    monkeypatch.chdir(material)
    ran = jacli("compute", "m.pt", inputs, "-o", tmp_path / "out.h5", "--method", "loop")
    assert ran.code == 0
    assert ("scaled as in training?" in ran.err) == noted
    with h5py.File(tmp_path / "out.h5") as file:
        assert ("scaled as in training?" in str(file.attrs["notes"])) == noted
