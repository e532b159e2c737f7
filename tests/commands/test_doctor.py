"""`jacli doctor`: what it finds here, and what it says about installations and folders that are broken."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from jacli.cli.doctor import doctor
from jacli.commands import doctor as examination
from jacli.commands.doctor import FOLDER, Finding, diagnose
from jacli.errors import OutputError
from jacli.models import torchvision_import


def named(findings: list[Finding], name: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Finding]]:
    folder = tmp_path_factory.mktemp("results")
    return folder, diagnose(folder)


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch):
    """Runs the command on given findings."""

    def run(findings: list[Finding], *arguments: str):
        monkeypatch.setattr(examination, "diagnose", lambda folder: findings)
        app = typer.Typer()
        app.command()(doctor)
        return CliRunner().invoke(app, arguments)

    return run


def test_it_looks_at_everything_once(here):
    names = [finding.name for finding in here[1]]
    assert len(names) == len(set(names))
    expected = {"Python", "jacli", "torch", "torchvision", "numpy", "h5py", "HDF5", "safetensors"}
    expected |= {"timm", "hdf5plugin"}
    expected |= {"torch/torchvision pairing", "torchvision import", "CPU", "memory"}
    expected |= {FOLDER, "free space", "HDF5 locking"}
    assert expected <= set(names)


def test_versions_are_those_installed(here):
    assert named(here[1], "torch").value == metadata.version("torch")
    assert named(here[1], "h5py").value == metadata.version("h5py")


def test_what_is_wrong_has_a_remedy(here):
    assert all(finding.todo for finding in here[1] if not finding.ok)


def test_a_good_folder_locks_and_is_left_as_it_was(here):
    folder, findings = here
    assert named(findings, FOLDER).ok
    assert named(findings, "HDF5 locking").ok
    assert list(folder.iterdir()) == []


def test_a_folder_without_locks_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    finding = named(examination._find_folder(tmp_path), "HDF5 locking")
    assert not finding.ok
    assert "HDF5_USE_FILE_LOCKING" in finding.todo


def test_an_attempt_that_fails_otherwise_is_not_taken_for_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(examination, "_OPEN_FOR_WRITING", "import no_such_module")
    finding = examination._find_locking(tmp_path)
    assert not finding.ok
    assert "no_such_module" in finding.value


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_folder_that_cannot_be_written(tmp_path, kind):
    path = tmp_path / kind
    if kind == "file":
        path.write_text("not a folder")
    (finding,) = examination._find_folder(path)
    assert finding.name == FOLDER
    assert not finding.ok
    assert str(path) in finding.value


@pytest.mark.parametrize(
    ("torch_version", "torchvision_version", "ok"),
    [
        ("2.13.0+cpu", "0.28.0", True),
        ("2.6.0", "0.21.0+cpu", True),
        ("2.6.0", "0.28.0", False),
        ("2.13.0", "1.28.0", False),
        ("3.0.0", "0.40.0", True),  # no rule is known for torch 3
    ],
)
def test_pairing(torch_version, torchvision_version, ok):
    assert examination._find_pairing(torch_version, torchvision_version).ok is ok


def test_a_mismatch_names_the_release_to_install():
    assert "torchvision==0.21.*" in examination._find_pairing("2.6.0", "0.28.0").todo


def test_torchvision_that_imports_by_itself(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert examination._find_torchvision_import() == Finding("torchvision import", "works by itself")


def test_torchvision_that_needs_the_repair(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    finding = examination._find_torchvision_import()
    assert finding.ok
    assert "repair" in finding.value


def test_torchvision_that_cannot_be_repaired(tmp_path, monkeypatch):
    def fail():
        raise ImportError("libc10.so: cannot open shared object file")

    (tmp_path / "torchvision.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(torchvision_import, "import_torchvision", fail)
    finding = examination._find_torchvision_import()
    assert not finding.ok
    assert "libc10.so" in finding.value


@pytest.mark.parametrize(("name", "ok"), [("timm", True), ("safetensors", False)])
def test_a_package_that_is_not_installed(monkeypatch, name, ok):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    finding = examination._find_package(name)
    assert finding.ok is ok
    assert "pip install" in finding.todo


ONE_OF_EACH = [Finding("torch", "2.13.0"), Finding("memory", "0.1 GiB", ok=False, todo="Close programs.")]


def test_the_table_has_every_finding_and_its_remedy(run_command):
    result = run_command(ONE_OF_EACH)
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["torch", "ok", "2.13.0"],
        ["memory", "!!", "0.1", "GiB"],
        [],
        ["memory:", "Close", "programs."],
    ]


def test_json(run_command):
    result = run_command(ONE_OF_EACH, "--json")
    assert json.loads(result.stdout) == {
        "ok": False,
        "findings": [
            {"name": "torch", "value": "2.13.0", "ok": True, "todo": ""},
            {"name": "memory", "value": "0.1 GiB", "ok": False, "todo": "Close programs."},
        ],
    }


def test_a_folder_that_cannot_be_written_is_an_error_after_the_table(run_command):
    result = run_command([Finding(FOLDER, "x: cannot be written", ok=False, todo="Name another.")], "x")
    assert isinstance(result.exception, OutputError)
    assert result.exception.exit_code == 4
    assert "cannot be written" in result.stdout
