"""The README and the manual say what is: every command and option, and every session with its real output."""

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
    all_blocks,
    commands,
    copy_samples,
    difference,
    environment,
    run_commands,
    same_text,
    session_folder,
)

MANUAL = "\n\n".join(PAGES.values())
"""The text of all pages: what is documented on any of them is documented."""
CONSOLE = [block for _, block in all_blocks("console")]
PYTHON = all_blocks("python")
COMMANDS = get_command(app).commands
TORCHS_OWN = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
"""Forward mode raises it when torch loads its decompositions."""


@pytest.fixture(scope="session")
def first_session(tmp_path_factory):
    """The folder after the first session of the README, and what its commands printed."""
    folder = copy_samples(tmp_path_factory.mktemp("readme"))
    return folder, run_commands([command.text for command in commands(CONSOLE[0])], folder)


@pytest.fixture
def folder(request, tmp_path):
    """A folder of its own, with the result of the first session for `block` if that reads it."""
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


@pytest.mark.parametrize("block", [block for _, block in PYTHON], ids=[page for page, _ in PYTHON])
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


@pytest.mark.parametrize("language", sorted(set(re.findall(r"^```(\w+)$", MANUAL, flags=re.M))))
def test_every_block_is_of_a_kind_that_is_checked(language):
    assert language in ("console", "python", "sh")


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    named = set(re.findall(r"(?:^|`)make ([\w-]+)", MANUAL, flags=re.M))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_make_demo_is_the_first_session():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    demo = re.findall(r"\$\(VENV\)/bin/(jacli (?:compute|summarize).*)", makefile)
    shown = [command.text.replace("out.h5", "demo.h5") for command in commands(CONSOLE[0])]
    assert [line.removesuffix(" --overwrite") for line in demo] == shown


def test_sh_blocks_name_extras_and_files_that_exist():
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    shell = "\n".join(block for _, block in all_blocks("sh"))
    for extras in re.findall(r"\.\[([\w,]+)\]", MANUAL):
        assert all(re.search(rf"^{name} = \[", pyproject, flags=re.M) for name in extras.split(","))
    for name in re.findall(r"-c (\S+)", shell):
        assert (ROOT / name).is_file()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_its_section_and_a_session(name):
    assert re.search(rf"^##? (?:Options of )?jacli {name}\b", MANUAL, flags=re.M)
    assert any(command.text.startswith(f"jacli {name}") for block in CONSOLE for command in commands(block))


def test_no_command_is_shown_that_is_not_there():
    assert set(re.findall(r"\bjacli ([a-z]+) [-A-Z\[]", MANUAL)) <= set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_in_the_manual(name):
    options = {
        text for p in COMMANDS[name].params for text in (*p.opts, *p.secondary_opts) if text.startswith("-")
    }
    assert [option for option in sorted(options) if not is_named(option)] == []


def test_no_option_is_named_that_is_not_there():
    known = {o for c in COMMANDS.values() for p in c.params for o in (*p.opts, *p.secondary_opts)}
    prose = re.sub(r"^(```sh|#!/bin/bash)\n.*?^```$", "", MANUAL, flags=re.M | re.S)  # others' programs
    shell = "\n".join(block for _, block in all_blocks("sh"))
    prose += "\n".join(re.findall(r"^jacli .*", shell, flags=re.M))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", prose)) <= known


def is_named(option: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", MANUAL) is not None


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
    table = PAGES["docs/result-file.md"].split("| dataset | shape |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([\w/]+)` \|", table, flags=re.M)) == schema


def headings(page):
    """The anchors of a page, as GitHub makes them of its headings."""
    text = re.sub(r"^```\w+\n.*?^```$", "", PAGES[page], flags=re.M | re.S)
    found = re.findall(r"^#+ (.*)", text, flags=re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in headings(path.resolve().relative_to(ROOT).as_posix()), target


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(PAGES["README.md"].splitlines()) <= 150
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", PAGES["README.md"]))
    assert linked == set(PAGES) - {"README.md"}


def test_security_is_said_once():
    assert len(re.findall(r"^#+ Security$", MANUAL, flags=re.M)) == 1
    assert Path(ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT")
