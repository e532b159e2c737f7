"""README and manual say what is: every command and option, and every session with its real output."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from jacli.cli import app
from jacli.store.schema import ResultLayout
from tests.readme import (
    PAGES,
    ROOT,
    TEXT,
    blocks,
    commands,
    copy_samples,
    difference,
    environment,
    run_commands,
    same_text,
    session_folder,
)

CONSOLE = blocks("console")
PYTHON = blocks("python")
COMMANDS = get_command(app).commands
TORCHS_OWN = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
"""Forward mode raises it when torch loads its decompositions."""


@pytest.fixture(scope="session")
def first_session(tmp_path_factory):
    """The folder after the first block of the README, and what its commands printed."""
    folder = copy_samples(tmp_path_factory.mktemp("readme"))
    return folder, run_commands([command.text for command in commands(CONSOLE[0])], folder)


@pytest.fixture
def folder(request, tmp_path):
    """A folder of its own, with the result of the first block for `block` if that reads it."""
    result = request.getfixturevalue("first_session")[0] / "out.h5"
    return session_folder(request.getfixturevalue("block"), tmp_path, result)


def check_block(block, printed):
    shown = commands(block)
    assert len(printed) == len(shown)
    wrong = [difference(c.text, c.output, real) for c, real in zip(shown, printed, strict=True)]
    assert not any(wrong), "\n".join(filter(None, wrong))


def test_the_first_session_is_what_happens(first_session):
    check_block(CONSOLE[0], first_session[1])


@pytest.mark.parametrize("block", CONSOLE[1:], ids=lambda block: block.splitlines()[0][2:40])
def test_sessions_are_what_happens(block, folder, served_environment):
    """`jacli` is served by a fork server; the first session starts its console script."""
    check_block(
        block, run_commands([command.text for command in commands(block)], folder, served_environment)
    )


@pytest.mark.parametrize("block", PYTHON, ids=["reading", "api", "spectra"])
def test_python_blocks_print_what_their_comments_say(block, folder):
    """A ``# comment`` behind a ``print(...)`` is what it prints; warnings are errors here too."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", TORCHS_OWN, "-c", block],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = re.findall(r"^\s*print\(.*\)  # (.*)$", block, flags=re.M)
    printed = done.stdout.splitlines()
    assert len(expected) == len(printed)
    assert all(map(same_text, expected, printed)), f"{expected}\n{printed}"


@pytest.mark.parametrize("language", sorted(set(re.findall(r"^```(\w+)$", TEXT, flags=re.M))))
def test_every_block_is_of_a_kind_that_is_checked(language):
    assert language in ("console", "python", "sh")


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    named = set(re.findall(r"(?:^|`)make ([\w-]+)", TEXT, flags=re.M))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_make_demo_is_the_first_session():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    demo = re.findall(r"\$\(VENV\)/bin/(jacli (?:compute|summarize).*)", makefile)
    shown = [command.text.replace("out.h5", "demo.h5") for command in commands(CONSOLE[0])]
    assert [line.removesuffix(" --overwrite") for line in demo] == shown


def test_sh_blocks_name_extras_and_files_that_exist():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    shell = "\n".join(blocks("sh"))
    for extras in re.findall(r"\.\[([\w,]+)\]", TEXT):
        assert all(re.search(rf"^{name} = \[", pyproject, flags=re.M) for name in extras.split(","))
    for name in re.findall(r"-c (\S+)", shell):
        assert (ROOT / name).is_file()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_its_section_and_a_session(name):
    assert re.search(rf"^## jacli {name}\b", TEXT, flags=re.M)
    assert any(command.text.startswith(f"jacli {name}") for block in CONSOLE for command in commands(block))


def test_no_command_is_shown_that_is_not_there():
    assert set(re.findall(r"\bjacli ([a-z]+) [-A-Z\[]", TEXT)) <= set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_in_the_readme(name):
    options = {
        text for p in COMMANDS[name].params for text in (*p.opts, *p.secondary_opts) if text.startswith("-")
    }
    assert [option for option in sorted(options) if not is_named(option)] == []


def test_no_option_is_named_that_is_not_there():
    known = {o for c in COMMANDS.values() for p in c.params for o in (*p.opts, *p.secondary_opts)}
    known.add("--help")  # of every command
    prose = re.sub(r"^(```sh|#!/bin/bash)\n.*?^```$", "", TEXT, flags=re.M | re.S)  # others' programs
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", prose)) <= known


def is_named(option: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", TEXT) is not None


def test_the_dataset_table_is_the_schema():
    layouts = [
        ResultLayout(n_samples=2, input_shape=(1, 2, 2), output_shape=(3,), n_singular_values=3, **more)
        for more in (
            {"nuclear_norm": True, "save_labels": True},
            {"selected": 2, "per_sample_classes": True},
            {"factor_width": 2},
        )
    ]
    schema = {name for layout in layouts for name in layout.datasets()}
    checksums = {name for name in schema if name.startswith("checksums/")}
    schema = schema - checksums | {"checksums/NAME"}
    table = TEXT.split("| dataset | shape |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([\w/]+)` \|", table, flags=re.M)) == schema


def headings(page: Path) -> set[str]:
    """Anchors of a page, as they are linked to."""
    found = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_the_front_page_is_short_and_leads_to_every_page():
    front = PAGES[0].read_text(encoding="utf-8")
    assert len(front.splitlines()) <= 150
    for page in PAGES[1:]:
        assert f"docs/{page.name}" in front


def test_security_is_said_once():
    assert TEXT.count("# Security\n") == 1
    assert Path(ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT")
