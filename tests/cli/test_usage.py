"""Wrong words on the command line: each is named, all at once, in jacli's own style."""

from __future__ import annotations

from pathlib import Path

import pytest

from jacli.errors.printable import count_of

CALLS = [
    # options
    ("compute m.pt x.npy --batchsize 4", ["There is no option --batchsize.", "Did you mean --batch-size?"]),
    ("bench m.pt x.npy --dtpe float64", ["There is no option --dtpe.", "Did you mean --dtype?"]),
    ("compute m.pt x.npy --output a.h5", ["There is no option --output.", "Did you mean --out?"]),
    ("summarize a.h5 --per_sample", ["There is no option --per_sample.", "Did you mean --per-sample"]),
    ("verify a.h5 -samples 3", ["There is no option -samples.", "two hyphens", "Did you mean --samples?"]),
    ("compute m.pt x.npy -out a.h5", ["There is no option -out.", "two hyphens", "Did you mean --out?"]),
    ("doctor --zzz", ["There is no option --zzz.", "jacli doctor has --json", "`jacli doctor --help`"]),
    ("merge a.h5 -z", ["There is no option -z.", "`jacli merge --help`"]),
    # values
    ("compute m.pt x.npy --classes", ["--classes needs a value.", "Write --classes SPEC."]),
    ("submit m.pt x.npy --time --print", ["--time needs a value.", "What follows is --print."]),
    ("compute m.pt x.npy --overwrite=yes", ["--overwrite takes no value.", "'yes'", "Write --overwrite."]),
    ("summarize a.h5 --per-class=1", ["--per-class takes no value.", "Write --per-class."]),
    ("compute m.pt x.npy --overwrite yes", ["3 arguments came", "--overwrite", "leave yes out"]),
    ("bench m.pt x.npy --json true", ["3 arguments came", "--json", "leave true out"]),
    # arguments
    ("verify", ["No FILE given.", "jacli verify needs FILE.", "jacli verify out.h5"]),
    ("status", ["No FILES given.", "jacli status"]),
    ("verify a.h5 b.h5", ["takes FILE", "2 arguments came", "it came b.h5"]),
    ("compute m.pt a.npy b.npy c.npy", ["MODEL and INPUTS", "4 arguments", "b.npy, c.npy", "concatenate("]),
    ("inspect a b c d e f", ["6 arguments", "b, c, d, ..."]),
    # commands
    ("sumarise a.h5", ["There is no command sumarise.", "Did you mean summarize?"]),
    ("mrege a.h5", ["There is no command mrege.", "Did you mean merge?"]),
    ("nothing", ["There is no command nothing.", "compute, summarize", "`jacli --help`"]),
    ("--quiet compute m.pt x.npy", ["no option --quiet before the command", "follow its name"]),
    ("--versoin", ["no option --versoin", "Did you mean --version?"]),
]  # fmt: skip


@pytest.mark.parametrize(("line", "words"), CALLS, ids=[line for line, _ in CALLS])
def test_what_is_wrong_is_said_with_what_was_meant(jacli, line: str, words: list[str]) -> None:
    ran = jacli(*line.split())
    assert ran.code == 2 and ran.out == ""
    assert ran.err.startswith("jacli: ") and "Usage:" not in ran.err and "Error:" not in ran.err
    assert len(ran.err.splitlines()) == 3, "what, why, what to do"
    assert "--help`" in ran.err
    for word in words:
        assert word in ran.err


@pytest.mark.parametrize(
    ("line", "count", "words"),
    [
        (
            "compute m.pt x.npy --foo 3 --dtype half --method fast",
            3,
            ["no option --foo", "--dtype half is wrong", "--method fast is wrong"],
        ),
        (
            "compute m.pt --quite --seed x --classes",
            4,
            ["Did you mean --quiet?", "--classes needs", "No INPUTS given", "--seed x is wrong"],
        ),
        (
            "bench m.pt x.npy y.npy --of odds --jsno",
            3,
            ["3 arguments came", "--of odds is wrong", "Did you mean --json?"],
        ),
        ("verify --foo --sample=3", 3, ["--foo", "Did you mean --samples?", "No FILE given."]),
    ],
)
def test_all_that_is_wrong_is_said_at_once(jacli, line: str, count: int, words: list[str]) -> None:
    ran = jacli(*line.split())
    assert ran.code == 2
    first, *problems, last = ran.err.splitlines()
    assert first == f"jacli: {count} options are wrong:"
    assert len(problems) == count
    command = line.split()[0]
    assert last.strip() == f"Correct them together; `jacli {command} --help` lists every option."
    for word in words:
        assert word in ran.err


def test_images_that_the_shell_spread_are_recognised_by_content(jacli, tmp_path: Path) -> None:
    names = []
    for number in range(3):
        name = tmp_path / f"scan{number}"  # no suffix
        name.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
        names.append(name)
    ran = jacli("compute", "model.pt", *names)
    assert ran.code == 2
    assert "3 files came as INPUTS" in ran.err and "np.stack" in ran.err
    assert "jacli compute model.pt inputs.npy" in ran.err


def test_a_file_in_place_of_a_command(jacli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my model.pt").write_bytes(b"")
    assert "Did you mean: jacli compute 'my model.pt' x.npy" in jacli("my model.pt", "x.npy").err
    assert "Did you mean: jacli inspect 'my model.pt'" in jacli("my model.pt").err


@pytest.mark.parametrize(
    "line", ["compute --foo --help", "verify a b c -h", "--help", "summarize -h --limit"]
)
def test_help_is_shown_whatever_else_is_wrong(jacli, line: str) -> None:
    ran = jacli(*line.split())
    assert ran.code == 0 and ran.out.startswith("Usage: jacli") and ran.err == ""


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("summarize --sort -mean missing.h5", "missing.h5"),
        ("summarize --sort=-mean --limit=2 --per-class -- -missing.h5", "-missing.h5"),
        ("verify missing.h5 -n8 --seed 3", "missing.h5"),
    ],
)
def test_values_that_begin_with_a_hyphen_and_names_after_two_of_them(jacli, line: str, told: str) -> None:
    ran = jacli(*line.split())
    assert ran.code == 4 and told in ran.err  # the words are right, the file is not there


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "pass", "1 pass"),
        (2, "pass", "2 passes"),
        (0, "file", "0 files"),
        (1500, "batch", "1500 batches"),
    ],
)
def test_a_count_has_its_plural(number: int, noun: str, text: str) -> None:
    assert count_of(number, noun) == text
