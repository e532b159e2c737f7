"""What CONTRIBUTING says has to be touched to add something is all that has to be touched.

A copy of the package gets a throw-away method, rule, column, format of models and of inputs, launcher and
option, each as lines in the files that CONTRIBUTING names; one process then runs `jacli` of that copy.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

PACKAGE = Path(__file__).parents[1] / "jacli"

LINES = {
    # file: pairs of a text that it has once and the lines that are put before it
    "options/methods.py": [
        (
            ")\n\nMETHODS: Mapping",
            '    Method("pushed", "batched", by_columns=True, reruns_network=True, first_rows=16),\n',
        )
    ],
    "summary/columns.py": [
        (
            "COLUMNS: dict[str, Column] = {",
            "def halved_norm(known: Statistics) -> Array | None:\n"
            "    return None if known.frobenius_norm is None else known.frobenius_norm / 2\n\n\n",
        ),
        (
            '        Column("stable_rank"',
            '        Column("halved_norm", "output/input", "nobody", halved_norm),\n',
        ),
    ],
    "untrusted/content.py": [
        ('    SAFETENSORS = "safetensors file"', '    SCALE = "scale"\n    ROWS = "rows"\n'),
        (
            '    (b"\\x93NUMPY", Content.NPY),',
            '    (b"SCALE ", Content.SCALE),\n    (b"ROWS ", Content.ROWS),\n',
        ),
    ],
    "models/__init__.py": [
        ("    Content.TORCHSCRIPT: (", '    Content.SCALE: ("scale_file", "load_scale", "describe_scale"),\n')
    ],
    "inputs/__init__.py": [
        ("    Content.NPY: ", '    Content.ROWS: "jacli.inputs.rows_file:load_rows",\n'),
    ],
    "cluster/launchers.py": [
        (
            '    "slurm": ',
            '    "shell": SHELL,\n',
        ),
        (
            "LAUNCHERS = {",
            "from jacli.cluster.shell import render_loop\n"
            "SHELL = Launcher(render_loop, render_merge, require_sbatch, sbatch, queued_tasks, cancel)\n",
        ),
    ],
    "options/table.py": [
        (
            "    repeated_plan: Mapping",
            "    depth: Annotated[int, Option(whole(1), _NUMBERS, plan=True)] = 3\n",
        )
    ],
    "cli/compute.py": [
        (
            "    debug: Debug = None,\n) -> None:",
            '    depth: Annotated[str | None, option("--depth", panel=RUN, help="How deep [3].")] = None,\n',
        )
    ],
}
FILES = {
    "linear_program/rules/inverse_error.py": """\
from jacli.linear_program.rule import elementwise
from jacli.linear_program.rules.pointwise import autograd_slope

elementwise("erfinv", slope=autograd_slope)
""",
    "models/scale_file.py": """\
from torch import nn

from jacli.models.loaded import LoadedModel, freeze, sha256_of


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return (self.factor * x).flatten(1)


def load_scale(path, request):
    return LoadedModel(freeze(Scale(float(path.read_text().split()[1]))), "scale", str(path), sha256_of(path))


def describe_scale(path):
    return {"format": "scale", "factor": float(path.read_text().split()[1])}
""",
    "inputs/rows_file.py": """\
import numpy as np

from jacli.inputs.source import StoredArray, refuse_key


def load_rows(path, wanted):
    refuse_key(path, wanted, why="Such a file has no names.")
    rows = np.array([[float(number) for number in line.split()[1:]] for line in path.open()], np.float32)
    return StoredArray(None, rows.shape, rows.dtype, lambda start, stop: rows[start:stop])
""",
    "cluster/shell.py": """\
from jacli.errors.printable import join_words


def render_loop(job):
    command = join_words([*job.program, "compute", *job.arguments])
    return f'for i in {" ".join(map(str, job.shards))}; do {command} --shard $i/{job.count}; done'
""",
}

NETWORK = """\
from torch import nn


class Inverse(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.last(self.first(x).tanh().mul(0.9).erfinv())
"""

RUNNER = """\
import contextlib, io, json, sys
from jacli.cli import main

ran = {}
for name, words in json.loads(sys.argv[1]).items():
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["jacli", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            ran[name] = [int(stop.code or 0), out.getvalue(), err.getvalue()]
print(json.dumps(ran))
"""

INVERSE = "compute net.py:Inverse x.npy"
CALLS = {
    "loop": f"{INVERSE} --method loop -o loop.h5",
    "method": f"{INVERSE} --method pushed -o method.h5",
    "methods in the help": "compute --help",
    "methods of a model": "inspect net.py:Inverse --inputs x.npy --json",
    "rule": f"{INVERSE} --method adjoint -o rule.h5",
    "column": "summarize loop.h5 --format csv",
    "formats": "compute three.scale two.rows -o formats.h5",
    "model inspected": "inspect three.scale --json",
    "inputs inspected": "inspect two.rows --json",
    "model as inputs": "compute three.scale three.scale -o wrong.h5",
    "launcher": f"submit {INVERSE.removeprefix('compute ')} --shards 2 --for shell --print",
    "option": "compute three.scale two.rows -o option.h5 --depth 5",
    "option again": "compute three.scale two.rows -o option.h5 --depth 6",
    "option repeated": "compute --config option.h5 -o repeated.h5",
    "option of a file": "compute three.scale two.rows --config run.toml -o of_file.h5",
    "option wrong": "compute three.scale two.rows --depth 0",
    "option of a task": "submit three.scale two.rows --shards 2 --depth 5 --print",
}


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Extended:
    """What the calls did, and the folder of their files."""

    folder: Path
    ran: dict[str, Ran]

    def __call__(self, name: str, *, code: int = 0) -> Ran:
        ran = self.ran[name]
        assert ran.code == code, ran.err
        return ran

    def stored(self, name: str, dataset: str = "jacobian") -> np.ndarray:
        with h5py.File(self.folder / f"{name}.h5") as file:
            return file[dataset][:]

    def recorded(self, name: str, attribute: str = "config") -> dict[str, object]:
        with h5py.File(self.folder / f"{name}.h5") as file:
            return json.loads(file.attrs[attribute])


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Extended:
    folder = tmp_path_factory.mktemp("extended")
    copy = folder / "jacli"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, additions in LINES.items():
        text = (copy / name).read_text(encoding="utf-8")
        for before, lines in additions:
            assert text.count(before) == 1, f"{name} has not once: {before}"
            text = text.replace(before, lines + before)
        (copy / name).write_text(text, encoding="utf-8")
    for name, text in FILES.items():
        (copy / name).write_text(text, encoding="utf-8")
    (folder / "net.py").write_text(NETWORK)
    (folder / "three.scale").write_text("SCALE 3\n")
    (folder / "two.rows").write_text("ROWS 1 2 3\nROWS 4 5 6\n")
    (folder / "run.toml").write_text("depth = 4\n")
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32))
    calls = json.dumps({name: line.split() for name, line in CALLS.items()})
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, calls],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ran = json.loads(done.stdout.splitlines()[-1])
    return Extended(folder, {name: Ran(*what) for name, what in ran.items()})


def test_a_method_is_a_row(extended: Extended) -> None:
    assert "method: pushed (asked for)" in extended("method").err
    np.testing.assert_allclose(extended.stored("method"), extended.stored("loop"), rtol=1e-4, atol=1e-6)
    assert "pushed" in extended("methods in the help").out
    assert json.loads(extended("methods of a model").out)["methods"]["pushed"] == "serves"


def test_a_rule_is_a_file_or_a_line(extended: Extended) -> None:
    """Without it the plan notes that torch differentiates the operator within the program."""
    assert "method: adjoint" in extended("rule").err
    assert extended.recorded("rule", "plan")["notes"] == []
    np.testing.assert_allclose(extended.stored("rule"), extended.stored("loop"), rtol=1e-4, atol=1e-6)


def test_a_column_is_a_function_and_a_line(extended: Extended) -> None:
    rows = {row.split(",")[0]: row.split(",")[1:] for row in extended("column").out.splitlines()}
    halved = float(rows["halved_norm"][0])
    assert halved == pytest.approx(float(rows["frobenius_norm"][0]) / 2, rel=1e-4)


def test_a_format_is_a_kind_a_file_and_a_line(extended: Extended) -> None:
    extended("formats")
    np.testing.assert_array_equal(extended.stored("formats"), np.tile(3 * np.eye(3), (2, 1, 1)))
    np.testing.assert_array_equal(extended.stored("formats", "inputs"), [[1, 2, 3], [4, 5, 6]])
    assert json.loads(extended("model inspected").out)["factor"] == 3
    assert json.loads(extended("inputs inspected").out)["shape"] == [3]
    assert "It is: scale." in extended("model as inputs", code=4).err


def test_a_launcher_is_a_function_and_a_line(extended: Extended) -> None:
    script = extended("launcher").out
    assert script.startswith("for i in 1 2; do") and "--shard $i/2; done" in script


def test_an_option_is_a_row_and_a_flag(extended: Extended) -> None:
    """It is parsed, refused, written to a result, read back and compared with it, and passed on to tasks."""
    for name, depth in (("formats", 3), ("option", 5), ("repeated", 5), ("of_file", 4)):
        assert extended.recorded(name)["depth"] == depth
    assert "--depth was 5, is 6" in extended("option again", code=4).err
    assert "--depth 0 is wrong" in extended("option wrong", code=2).err
    assert "--depth 5" in extended("option of a task").out
