"""README and manual as data: fenced blocks, run for real, and shown output compared with real output."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

from jacli.options.methods import METHOD_NAMES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
"""The front page and the manual."""

TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)

_END = "=== end of this output ==="
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Command:
    """A line after ``$ `` and the lines shown below it."""

    text: str
    output: str


def blocks(language: str, text: str = TEXT) -> list[str]:
    """The fenced blocks of a language, in order, the front page's first."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def commands(block: str) -> list[Command]:
    """The commands of a ``console`` block, each with the output that is shown."""
    assert block.startswith("$ "), block
    parts = re.split(r"^\$ ", block, flags=re.M)[1:]
    return [Command(*part.split("\n", 1)) for part in parts]


def copy_samples(folder: Path) -> Path:
    """Make ``folder`` look like a clone to the commands: the folders that they read."""
    for name in ("sample_models", "configs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run_commands(texts: list[str], folder: Path, environ: dict[str, str] | None = None) -> list[str]:
    """What each command prints, both streams as on a terminal; one shell, so that ``$?`` is the last code."""
    script = "\n".join(f"{text}\n(code=$?; echo; echo '{_END}'; exit $code)" for text in texts)
    done = subprocess.run(
        ["bash", "-c", f"exec 2>&1\n{script}"],
        cwd=folder,
        env=environ or environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.stdout.split(f"\n{_END}\n")[:-1]


def environment() -> dict[str, str]:
    """The environment's own jacli first, a terminal of 80 columns, the CPU, one thread as in `make test`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    fixed = {
        "PATH": path,
        "COLUMNS": "80",
        "NO_COLOR": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **fixed}


def difference(command: str, shown: str, real: str) -> str:
    """Where the two outputs differ in what is stable; empty if they agree."""
    shown_lines, real_lines = (_stable_lines(command, text) for text in (shown, real))
    if len(shown_lines) == len(real_lines) and all(map(_same, shown_lines, real_lines)):
        return ""
    return f"$ {command}\n--- shown\n{textwrap.indent(shown, '  ')}\n--- real\n{textwrap.indent(real, '  ')}"


def _stable_lines(command: str, text: str) -> list[str]:
    """Without what depends on the machine: seconds, free bytes, paths, rounding, what `doctor` found."""
    lines = text.strip("\n").splitlines()
    if command.startswith("jacli doctor"):  # names and verdicts
        found = (re.match(r"(\S.*?) +(ok|!!) ", line) for line in lines)
        return [f"{match[1]} {match[2]}" for match in found if match]
    if command.startswith("jacli bench"):  # methods, in the order of this machine, and what is said of them
        found = (
            re.match(rf" (({'|'.join(METHOD_NAMES)}) +\w+) .*?((refused|no useful cut): .*)?$", x)
            for x in lines
        )
        header = next((x for x in lines if x.startswith(" method ")), "")
        return [" ".join(header.split()), *sorted(f"{match[1]} {match[3]}" for match in found if match)]
    text = "\n".join(lines)
    if command.startswith("jacli verify"):
        text = re.sub(r"\d\.\de-\d\d(?=  )|(?<=worst error )\S+(?=,)", "E", text)
    if command.startswith("jacli compute"):
        text = _without_choice(text)
    if command.startswith("jacli submit"):  # the folder, and where Python is
        text = re.sub(r"^cd -- .*", "cd", text, flags=re.M)
        text = re.sub(r"(?<![\w.])/(?:[^\s/]+/)+", "", text)
    text = re.sub(r"\b\d+(?= finished samples kept| finished samples)", "N", text)
    text = re.sub(r"\d+\.\d s$", "S s", text, flags=re.M)
    text = re.sub(r"^(free there).*", r"\1", text, flags=re.M)
    text = re.sub(r"(?<![\w/])/(?:[^\s/]+/)*(?=sample_models/)", "", text)
    return [re.sub(r"─+", "─", " ".join(line.split())) for line in text.splitlines()]


_CHOSEN = ("method", "cut at", "in this order", "next in line", "batches", "passes", "time", "memory")


def _without_choice(text: str) -> str:
    """Without what is chosen by measurement, on this machine and at this moment."""
    text = re.sub(r"method: \w+ \((?!asked for).*?\)(?=, \d)", "method: M", text)
    text = re.sub(r"relative error \S+(?=,)", "relative error E", text)
    text = re.sub(r"^note: (not cut|not traced|passed over).*\n?", "", text, flags=re.M)
    text = re.sub(rf"^({'|'.join(_CHOSEN)})  .*\n?", "", text, flags=re.M)
    return re.sub(r"^(measured) .*(\n  .*)*", r"\1", text, flags=re.M).rstrip()


def _same(a: str, b: str) -> bool:
    """The same words and whole numbers; other numbers to one in a thousand."""
    if _NUMBER.sub("#", a) != _NUMBER.sub("#", b):
        return False
    return all(
        x == y if x.lstrip("+-").isdigit() and y.lstrip("+-").isdigit() else _close(float(x), float(y))
        for x, y in zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True)
    )


def _close(x: float, y: float) -> bool:
    return math.isclose(x, y, rel_tol=1e-3, abs_tol=1e-9)


def same_text(shown: str, real: str) -> bool:
    """The same, to the tolerance of numbers."""
    return _same(" ".join(shown.split()), " ".join(real.split()))


def refresh(text: str) -> str:
    """A page with the real output of the commands whose shown output is stale."""
    with tempfile.TemporaryDirectory() as name:
        folder = copy_samples(Path(name))
        made_by = [command.text for command in commands(blocks("console")[0])]
        run_commands(made_by, folder)  # the result that other sessions look at
        for block in blocks("console", text):
            shown = commands(block)
            printed = run_commands([command.text for command in shown], folder)
            fresh = ""
            for command, real in zip(shown, printed, strict=True):
                stale = difference(command.text, command.output, real)
                lines = "".join(f"{line.rstrip()}\n" for line in real.strip("\n").splitlines())
                fresh += (
                    f"$ {command.text}\n{lines.replace(name, '/home/you/jacli') if stale else command.output}"
                )
            text = text.replace(block, fresh)
    return text.replace(str(ROOT), "/home/you/jacli")


if __name__ == "__main__":  # python -m tests.readme, then read the difference
    for page in PAGES:
        page.write_text(refresh(page.read_text(encoding="utf-8")), encoding="utf-8")
