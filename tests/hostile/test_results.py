"""Results, unfinished ones and the small files beside them, with one value of another type: every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pytest

from .conftest import Worker

COMMANDS = (
    ("summarize", "FILE"),
    ("inspect", "FILE"),
    ("inspect", "FILE", "--json"),
    ("verify", "FILE"),
    ("status", "FILE"),
    ("compute", "--config", "FILE", "-o", "out.h5", "--quiet"),
    ("compute", "--config", "FILE", "-o", "out.h5", "--dry-run"),
    ("compute", "CORPUS/model.pt", "FILE", "-o", "out.h5", "--method", "loop", "--quiet"),
)
RESUME = ("compute", "CORPUS/model.pt", "CORPUS/x.npy", "-o", "out.h5", "--method", "loop", "--device", "cpu")
RESUMING = ((*RESUME, "--batch-size", "2", "--quiet"), ("status", "out.h5"), ("status", "out.h5", "--json"))
MERGING = (("merge", "FILE", "BESIDE/whole.00002-of-00002.h5", "-o", "out.h5"), ("status", "FILE"))

VALUES: tuple[Any, ...] = (
    "", "[", "null", "7", "NaN", '{"model": 3}', "[[1, {}]]", "x\n\x1b[31m",
    "[" * 100_000, "[" * 900 + "]" * 900,
    7, -1, float("nan"), float("inf"), True, 1j, np.zeros(3), np.zeros((1,) * 31), np.bytes_(b"\xff\0\x80"),
    h5py.Empty("f4"), np.array(["a", "b"], dtype=h5py.string_dtype()),
)  # fmt: skip
"""In the place of a root attribute."""

PARTS: tuple[Any, ...] = (
    None, True, 7, -1, 0.5, 1e400, float("nan"), "x", "\ud800", [], {}, [[1]], {"a": {"b": 1}}, 10**30,
)  # fmt: skip
"""In the place of a part of a JSON object."""


def _null(file: h5py.File, name: str) -> None:
    file[name] = h5py.Empty("f4")


def _circle(file: h5py.File, name: str) -> None:
    file[name] = h5py.SoftLink(f"/{name}")


def _to_nothing(file: h5py.File, name: str) -> None:
    file[name] = h5py.SoftLink("/none/none")


def _axes(file: h5py.File, name: str) -> None:
    file[name] = np.zeros((1,) * 32)


DATASETS: tuple[Callable[[h5py.File, str], object], ...] = (
    _null,
    _circle,
    _to_nothing,
    _axes,
    h5py.File.create_group,
    lambda file, name: file.__setitem__(name, 3.0),
    lambda file, name: file.__setitem__(name, np.full(2, np.nan)),
    lambda file, name: file.__setitem__(name, ["a", "b"]),
)
"""In the place of a dataset."""


def change_attribute(file: h5py.File, draw: Random) -> str:
    name, number = draw.choice(sorted(file.attrs)), draw.randrange(len(VALUES) + 1)
    del file.attrs[name]
    if number < len(VALUES):
        file.attrs[name] = VALUES[number]
    return f"{name}, {number}"


def change_json(file: h5py.File, draw: Random) -> str:
    name = draw.choice(("config", "plan"))
    values = json.loads(file.attrs[name])
    part, number = draw.choice(sorted(values)), draw.randrange(len(PARTS) + 1)
    if number < len(PARTS):
        values[part] = PARTS[number]
    else:
        del values[part]
    file.attrs[name] = json.dumps(values)
    return f"{name}, {part}, {number}"


def change_dataset(file: h5py.File, draw: Random) -> str:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    name, number = draw.choice(sorted(names)), draw.randrange(len(DATASETS))
    del file[name]
    DATASETS[number](file, name)
    return f"{name}, {number}"


CHANGES = (change_attribute, change_json, change_dataset)
OF_A_PART = ("done", "complete", "schema", "config", "plan", "notes")


def _changed(content: bytes, path: Path, change: Callable[[h5py.File], object]) -> bytes:
    path.write_bytes(content)
    with h5py.File(path, "r+") as file:
        change(file)
    return path.read_bytes()


def _check(found: dict[str, Any], what: str) -> None:
    assert not found["wrong"], f"{what}\n{found['wrong']}\n{found['stderr']}"
    text = found["stderr"].replace("\n", "")
    assert text.isprintable(), f"{what}\n{text}"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("specimen", ["result", "result of norms"])
def test_a_result_with_one_wrong_value(
    worker: Worker, tmp_path: Path, change: Callable[[h5py.File, Random], str], specimen: str
) -> None:
    for seed in range(8):
        draw, told = Random(f"{change.__name__} {specimen} {seed}"), []
        content = _changed(
            worker.sound(specimen), tmp_path / "file", lambda file, d=draw, t=told: t.append(change(file, d))
        )
        (tmp_path / "file").write_bytes(content)
        command = COMMANDS[seed % len(COMMANDS)]
        found = worker.ask(specimen=specimen, file=str(tmp_path / "file"), command=command)
        _check(found, f"{told}: {command}")


@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_with_one_wrong_value(
    worker: Worker, tmp_path: Path, change: Callable[[h5py.File, Random], str]
) -> None:
    name = "whole.00001-of-00002.h5"
    for seed in range(4):
        draw, told = Random(f"{change.__name__} {seed}"), []
        content = _changed(
            worker.sound("shard"), tmp_path / "file", lambda file, d=draw, t=told: t.append(change(file, d))
        )
        (tmp_path / "file").write_bytes(content)
        command = MERGING[seed % len(MERGING)]
        beside = ["whole.00002-of-00002.h5"]
        found = worker.ask(
            specimen="shard", file=str(tmp_path / "file"), command=command, name=name, beside=beside
        )
        _check(found, f"{told}: {command}")


@pytest.mark.parametrize("change", CHANGES)
def test_an_unfinished_result_with_one_wrong_value(
    worker: Worker, tmp_path: Path, change: Callable[[h5py.File, Random], str]
) -> None:
    def unfinish(file: h5py.File) -> None:
        file.attrs["complete"] = False
        file["done"][...] = 0

    sound = _changed(worker.sound("result"), tmp_path / "part", unfinish)
    for seed in range(5):
        draw, told = Random(f"part {change.__name__} {seed}"), []
        content = _changed(sound, tmp_path / "file", lambda file, d=draw, t=told: t.append(change(file, d)))
        (tmp_path / "file").write_bytes(content)
        found = worker.ask(
            specimen="result", file=str(tmp_path / "file"), command=RESUMING[0], name="../place/out.h5.part"
        )
        _check(found, f"{told}")


BESIDE = {
    "json": {
        "state": "failed", "samples": 9, "done": 3, "done_before": 0, "started": 1.0, "updated": 2.0,
        "command": ["jacli", "compute", "m.pt", "x.npy"], "folder": "/tmp", "shard": None, "reason": "why",
    },
    "lock": {
        "host": "another", "pid": 5, "began": 7, "space": "b", "job": None, "restarts": 0, "token": "a",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", BESIDE)
def test_the_small_files_beside_a_result(worker: Worker, tmp_path: Path, kind: str) -> None:
    cases = [json.dumps(BESIDE[kind] | {name: part}) for name in BESIDE[kind] for part in PARTS]
    texts = ["", "\x00", "7", "null", "[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 60 + "1" + "}" * 60]
    draw = Random(kind)
    for text in (*texts, *draw.sample(cases, 14)):
        (tmp_path / "file").write_text(text)
        command = draw.choice(RESUMING[1:])
        if kind == "json":
            command = draw.choice(RESUMING)
        found = worker.ask(
            specimen=kind, file=str(tmp_path / "file"), command=command, name=f"../place/out.h5.part.{kind}"
        )
        _check(found, f"{text[:200]}: {command}")
