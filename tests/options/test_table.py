"""Every option has its row, its flag and its place in the manual; nothing else lists options."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jacli.cli.compute import compute
from jacli.options.table import (
    OPTIONS,
    POSITIONAL,
    Changes,
    File,
    RunConfig,
    flag_of,
    names_of,
    usual_options,
)
from tests.readme import TEXT

ROOT = Path(__file__).parents[2]
JSON = "keys of what its command prints as JSON, or of a part of a result file"
COLUMNS = "columns of the table that it prints"
LISTS = {
    ("choice/recorded_plan.py", ("method", "batch_size", "chunk_size")): JSON,
    ("cli/bench.py", ("method", "precision", "samples", "memory")): COLUMNS,
    ("cli/status.py", ("shard", "of")): COLUMNS,
    ("cli/verify.py", ("samples", "tolerance", "seed", "device")): "options of verify, of other kinds",
    ("commands/bench.py", ("method", "precision")): JSON,
    ("commands/bench.py", ("samples", "device", "dtype")): JSON,
    ("commands/compute.py", ("model", "inputs", "out")): "arguments of jacli.compute, as it hands them on",
    ("commands/dry_run.py", ("dtype", "precision")): JSON,
    ("commands/inspect.py", ("model", "inputs", "inputs_key")): "its arguments, as it hands them on",
    ("commands/inspect.py", ("samples", "dtype")): JSON,
    ("commands/inspect.py", ("arch", "samples")): JSON,
    ("commands/merge.py", ("out", "samples")): JSON,
    ("commands/merge.py", ("shard", "out")): JSON,
    ("commands/status.py", ("out", "samples")): JSON,
    ("commands/status.py", ("shard", "samples")): JSON,
    ("commands/verify.py", ("classes", "labels")): "a result says otherwise which outputs it is of",
    ("commands/verify.py", ("tolerance", "samples")): JSON,
    ("plans/plan.py", ("method", "batch_size", "chunk_size", "singular_values")): JSON,
    ("run/outcome.py", ("out", "samples")): JSON,
    ("run/provenance.py", ("arch", "shard", "device", "dtype", "precision", "method")): JSON,
    ("run/resume.py", ("dtype", "precision")): "attributes that follow from the options, which are compared",
    ("run/same_run.py", ("dtype", "precision")): "attributes that older files have without the options",
    ("store/describe_open.py", ("method", "dtype", "precision")): "attributes on one line",
    ("store/describe_open.py", ("model", "inputs", "method")): "what its lines begin with",
}
"""Names of options side by side: in which file, and why these are no list of options."""


def test_every_option_has_a_flag_and_a_line_in_the_manual():
    assert set(OPTIONS) == set(inspect.signature(compute).parameters) - {"config"}
    flags = [flag_of(name) for name in OPTIONS if name not in POSITIONAL]
    assert [flag for flag in flags if not re.search(rf"`{flag}(?![\w-])", TEXT)] == []


def test_every_field_is_a_row_or_comes_from_a_result():
    """A field without a row would be parsed by nobody, and be missing from every list."""
    assert {f.name for f in dataclasses.fields(RunConfig)} - set(OPTIONS) == {
        "repeated_plan",
        "repeated_arch_sha256",
    }


@pytest.mark.parametrize("name", OPTIONS)
def test_the_help_says_the_default_of_the_table(name: str):
    """``[auto]`` at the end of a help text; a switch's is in words, where it is said."""
    default = usual_options().get(name)
    if isinstance(default, str | int | float) and not isinstance(default, bool) and name not in POSITIONAL:
        shown = inspect.signature(compute, eval_str=True).parameters[name].annotation.__metadata__[0].help
        assert f"[{default:g}]" in shown if isinstance(default, float) else f"[{default}]" in shown


def names_side_by_side(path: Path) -> Iterator[tuple[str, ...]]:
    """Of each display of a module, the names of options in it, where there are several."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Tuple(elts=items) | ast.Set(elts=items) | ast.List(elts=items) | ast.Dict(keys=items):
                texts = [item.value for item in items if isinstance(item, ast.Constant)]
                names = [t for t in texts if isinstance(t, str) and t.strip("-").replace("-", "_") in OPTIONS]
                if len(names) > 1:
                    yield tuple(names)


def test_nothing_else_lists_options():
    """Derive the list from the table; or say here why it is another kind of list."""
    package = ROOT / "jacli"
    found = {
        (str(path.relative_to(package)), names)
        for path in package.rglob("*.py")
        for names in names_side_by_side(path)
    }
    assert found == set(LISTS)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_answers_of_a_row_fit_together(name: str):
    option = OPTIONS[name]
    if not option.repeated:
        assert option.changes is Changes.NOTHING  # else the repeated run would be another one
    if option.changes is Changes.NUMBERS:
        assert option.task == "task"
    if option.file is File.WRITTEN:
        assert option.changes is Changes.NOTHING and not option.repeated


def test_what_is_derived():
    """Three of the questions that other rooms ask, answered by hand."""
    assert names_of(lambda option: not option.in_python) == ("json", "debug", "dry_run")
    assert names_of(lambda option: option.changes is Changes.ROUNDING) == ("batch_size", "chunk_size")
    assert names_of(lambda o: o.file is File.WHOLE) == ("model", "inputs", "arch", "labels")
