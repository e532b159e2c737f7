"""Every option has its row, its field, its flag and its place in the manual; nothing else lists options."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jacli.cli.compute import compute
from jacli.options.config import FROM_THE_RESULT, RunConfig
from jacli.options.table import OPTIONS, TABLE, Changes, File, Option, names_of
from tests.readme import TEXT

ROOT = Path(__file__).parents[2]
LISTS = {
    "api.py": "the keywords of its functions, as it hands them on",
    "choice/recorded_plan.py": "keys of a plan",
    "cli/bench.py": "columns of its table",
    "cli/status.py": "columns of its table",
    "cli/usage.py": "the two arguments",
    "cli/verify.py": "options of verify",
    "commands/bench.py": "keys of its JSON",
    "commands/compute.py": "the arguments of jacli.compute",
    "commands/dry_run.py": "keys of its JSON",
    "commands/inspect.py": "options of inspect, keys of its JSON",
    "commands/merge.py": "keys of its JSON",
    "commands/status.py": "keys of its JSON",
    "commands/submit_options.py": "the two arguments and the result",
    "commands/verify.py": "keys of its JSON, and what goes with --classes",
    "models/loaded.py": "names for messages",
    "options/config.py": "the two arguments",
    "plans/plan.py": "keys of a plan",
    "run/outcome.py": "keys of its JSON",
    "run/provenance.py": "attributes of a result",
    "run/resume.py": "attributes of a result",
    "run/same_run.py": "attributes of a result",
    "store/describe_open.py": "attributes that have a line of their own",
}
"""Files with two or more names of options side by side, and why these are no list of options."""


def test_every_option_has_a_row_a_field_a_flag_and_a_line_in_the_manual():
    names = [option.name for option in TABLE]
    assert len(names) == len(OPTIONS)
    assert set(names) == {f.name for f in dataclasses.fields(RunConfig)} - set(FROM_THE_RESULT)
    assert set(names) == set(inspect.signature(compute).parameters) - {"config"}
    flags = [f"--{name.replace('_', '-')}" for name in names if name not in ("model", "inputs")]
    assert [flag for flag in flags if not re.search(rf"`{flag}(?![\w-])", TEXT)] == []


def names_side_by_side(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Tuple(elts=items) | ast.Set(elts=items) | ast.List(elts=items) | ast.Dict(keys=items):
                texts = [item.value for item in items if isinstance(item, ast.Constant)]
                names = [t for t in texts if isinstance(t, str) and t.strip("-").replace("-", "_") in OPTIONS]
                if len(names) > 1:
                    return True
    return False


def test_nothing_else_lists_options():
    """Derive the list from the table; or say here why it is another kind of list."""
    package = ROOT / "jacli"
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if path.name != "table.py" and names_side_by_side(path)
    }
    assert found == set(LISTS)


@pytest.mark.parametrize("option", TABLE, ids=lambda option: option.name)
def test_the_answers_of_a_row_fit_together(option: Option):
    if not option.repeated:
        assert option.changes is Changes.NOTHING  # else the repeated run would be another one
    if option.changes is Changes.NUMBERS:
        assert option.task == "task"
    if option.file is File.WRITTEN:
        assert option.changes is Changes.NOTHING and not option.repeated


WITH_A_NEW_OPTION = """
import dataclasses
import sys

from jacli.options import config, table
from jacli.options.values import whole

row = table.Option("depth", whole(1), table.Changes.NUMBERS, plan=True)
table.TABLE, table.OPTIONS["depth"] = (*table.TABLE, row), row


@dataclasses.dataclass(frozen=True)
class Deeper(config.RunConfig):
    depth: int = 3


config.RunConfig = Deeper

from jacli.commands.compute import run_compute
from jacli.errors import JacliError
from jacli.run.config_file import resolve_options
from jacli.store import open_results

model, inputs = sys.argv[1:]
with open("run.toml", "w") as file:
    file.write("depth = 4")
files = {"model": model, "inputs": inputs, "classes": "top:1"}
for name, given in {
    "usual": {},
    "given": {"depth": "5"},
    "by file": {"config": "run.toml"},
    "again": {"config": "out.h5"},
    "other": {"depth": "6"},
    "wrong": {"depth": "0"},
}.items():
    out = "out.h5" if name in ("given", "other") else name + ".h5"
    try:
        options = resolve_options({**files, **given, "out": out})
        run_compute(options, command="test")
        with open_results(out) as results:
            print(name, options.depth, results.json("config")["depth"])
    except JacliError as error:
        print(name, error.exit_code, " ".join(str(error).split()))
"""


def test_a_new_option_is_a_row_a_field_and_a_flag(tmp_path: Path):
    """A throw-away option is parsed, refused, written to a result, read back and compared with it."""
    files = [ROOT / "sample_models" / name for name in ("digits_cnn.pt", "digits.npy")]
    command = [sys.executable, "-c", WITH_A_NEW_OPTION, *map(str, files)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    usual, given, by_file, again, other, wrong = done.stdout.splitlines()
    assert [usual, given, by_file, again] == ["usual 3 3", "given 5 5", "by file 4 4", "again 5 5"]
    assert other.startswith("other 4 ") and "--depth was 5, is 6" in other
    assert wrong.startswith("wrong 2 --depth 0 is wrong")


def test_what_is_derived():
    """Three of the questions that other rooms ask, answered by hand."""
    assert names_of(lambda option: not option.in_python) == ("json", "debug", "dry_run")
    assert names_of(lambda option: option.changes is Changes.ROUNDING) == ("batch_size", "chunk_size")
    assert names_of(lambda o: o.file is File.WHOLE) == ("model", "inputs", "arch", "labels")
