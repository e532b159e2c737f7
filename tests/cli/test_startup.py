"""Before any work: help is fast and complete, and the options are the table's."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from jacli.cli import app
from jacli.cli.compute import compute
from jacli.options.table import OPTIONS, RunConfig

COMMANDS = ("compute", "summarize", "verify", "merge", "status", "bench", "inspect", "submit", "doctor")
HEAVY = {
    "torch",
    "torchvision",
    "h5py",
    "numpy",
    "safetensors",
    "rich.console",
    "rich.progress",
    "rich.table",
}

PROBE = """
import sys
from jacli.cli import main
sys.argv = ["jacli", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    print("code", stop.code or 0, file=sys.stderr)
print("modules", *sorted(sys.modules), file=sys.stderr)
"""


def _modules(*arguments: str) -> set[str]:
    ran = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True
    )
    code, modules = ran.stderr.splitlines()[-2:]
    assert code == "code 0", ran.stderr
    return set(modules.split()[1:])


@pytest.mark.parametrize("arguments", [("--help",), ("compute", "--help"), ("--version",)], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    loaded = _modules(*arguments)
    assert "jacli.cli.compute" in loaded
    assert not HEAVY & loaded
    assert not [name for name in loaded if name.startswith("jacli.run")]


def test_commands_are_those_listed() -> None:
    assert {c.name or c.callback.__name__ for c in app.registered_commands} == set(COMMANDS)


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(jacli, command: str, flag: str) -> None:
    ran = jacli(command, flag)
    assert (ran.code, ran.err) == (0, "")
    usage, first = [line.strip() for line in ran.out.splitlines() if line.strip()][:2]
    assert usage.startswith("Usage:") and command in usage
    assert first.startswith("Example: ") and f"jacli {command}" in first


def test_help_of_jacli_itself(jacli) -> None:
    ran = jacli("-h")
    assert ran.code == 0 and ran.out == jacli("--help").out
    assert "Example: " in ran.out and all(command in ran.out for command in COMMANDS)


def test_options_of_the_command_are_the_table_s() -> None:
    assert set(inspect.signature(compute).parameters) == {*OPTIONS, "config"}


def test_help_names_every_option(jacli) -> None:
    text = jacli("compute", "-h").out
    for name in {*OPTIONS, "config"} - {"model", "inputs"}:
        assert f"--{name.replace('_', '-')}" in text


def test_defaults_of_the_command_are_left_to_the_table() -> None:
    """None means not given, so that a configuration file's value can take the place."""
    assert {p.default for p in inspect.signature(compute).parameters.values()} == {None}
    assert RunConfig("m", "x").out == "out.h5"


def test_python_m_jacli() -> None:
    ran = subprocess.run([sys.executable, "-m", "jacli", "--version"], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith("jacli ")
