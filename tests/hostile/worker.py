"""Runs jacli on hostile files: one process that has imported everything, and a forked child a command.

``python -m tests.hostile.worker FOLDER`` reads jobs from stdin and answers each, both as lines of JSON.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import torch
import typer

from jacli.cli import app
from jacli.cli import main as jacli_main
from tests.hostile.corpus import Specimen, make_corpus
from tests.hostile.mutations import mutators_of

SECONDS = 30.0
ADDRESS_SPACE = 6 * 2**30
"""Beyond the worker's own: a net below the check of memory, so that a bomb spares the machine."""


def chosen(specimens: dict[str, Specimen], seed: int) -> tuple[str, str, Random]:
    """The specimen and the mutation of a seed; the generator goes on in the mutation."""
    random = Random(seed)
    name = random.choice(sorted(specimens))
    return name, random.choice(sorted(mutators_of(specimens[name].content))), random


def main() -> None:
    """Answer jobs.

    ``{"seed": n}``: a mutation.  ``{"specimen", "file", "command"}``: a file made by hand,
    with ``name`` and ``beside`` as a `Specimen` has them.
    ``{"sound": name}``: where a specimen lies as it is.  ``{"read": name}``: what its commands make of it.
    """
    folder = Path(sys.argv[1]).resolve()
    torch.set_num_threads(1)
    specimens = make_corpus(folder / "corpus")
    _import_everything()
    print(json.dumps({"specimens": sorted(specimens)}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "sound" in job:
            (folder / "sound").write_bytes(specimens[job["sound"]].content)
            print(json.dumps({"file": str(folder / "sound")}), flush=True)
            continue
        if "read" in job:
            specimen = specimens[job["read"]]
            ran = [_run(folder, specimen, specimen.content, c) | {"command": c} for c in specimen.commands]
            print(json.dumps(ran), flush=True)
            continue
        if "seed" in job:
            name, mutator, random = chosen(specimens, job["seed"])
            content = mutators_of(specimens[name].content)[mutator](specimens[name].content, random)
            specimen = specimens[name]
            command = random.choice(specimen.commands)
        else:
            name, mutator, content = job["specimen"], "by hand", Path(job["file"]).read_bytes()
            command = tuple(job["command"])
            specimen = Specimen(content, (), job.get("name", "file"), tuple(job.get("beside", ())))
        found = _run(folder, specimen, content, command)
        found |= {"specimen": name, "mutator": mutator, "command": command, "size": len(content)}
        if found["wrong"]:
            kept = folder / f"kept-{job.get('seed', 'by-hand')}"
            kept.write_bytes(content)
            found["kept"] = str(kept)
        print(json.dumps(found), flush=True)


def _import_everything() -> None:
    """What a command would import in its child, each time anew."""
    import sympy  # noqa: F401
    import torch._dynamo
    import torch.export.pt2_archive._package

    from jacli.models.registry import matching_architectures

    matching_architectures({"x": torch.zeros(1)})
    # Reading the arguments of a command imports pydantic.
    typer.main.get_command(app).commands["inspect"].make_context("inspect", ["file"])
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, all of the worker's memory


def _run(folder: Path, specimen: Specimen, content: bytes, command: tuple[str, ...]) -> dict[str, Any]:
    """Run a command on a file in a child, and look at what became of both and of the folder."""
    base = folder / "case"
    shutil.rmtree(base, ignore_errors=True)
    work = base / "a" / "b" / "place"
    for made in (work, base / "home", base / "tmp", base / "a" / "b" / "files"):
        made.mkdir(parents=True)
    file = base / "a" / "b" / "files" / specimen.name
    file.write_bytes(content)
    for name in specimen.beside:
        shutil.copy2(folder / "corpus" / name, file.with_name(name))
    before = _snapshot(base) | _snapshot(folder / "corpus")
    places = {"FILE": file, "CORPUS": folder / "corpus", "BESIDE": file.parent}
    arguments = list(command)
    for word, place in places.items():
        arguments = [part.replace(word, str(place)) for part in arguments]
    started = time.monotonic()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _be_the_child(base, work, arguments)
    status, usage = _wait(pid, started)
    seconds = time.monotonic() - started
    err = (base / "stderr").read_text(errors="replace")
    after = _snapshot(base) | _snapshot(folder / "corpus")
    ours = {str(base / name) for name in ("stderr", "stdout", "resident")}
    touched = {path for path in {*before, *after} - ours if before.get(path) != after.get(path)}
    outside = sorted(p for p in touched if not p.startswith(str(work / "out.h5")))
    wrong = []
    if status is None:
        wrong.append(f"still running after {SECONDS:.0f} s")
    elif os.WIFSIGNALED(status):
        wrong.append(f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
    elif os.WEXITSTATUS(status) not in (0, 2, 3, 4, 5, 6):
        wrong.append(f"exit code {os.WEXITSTATUS(status)}")
    if "Traceback" in err:
        wrong.append("a traceback")
    memory = usage.ru_maxrss * 1024 - int((base / "resident").read_text())
    if memory > 2 * 2**30 + len(content):
        wrong.append(f"{memory / 2**30:.1f} GiB of memory")
    if outside:
        wrong.append(f"files written or changed: {outside}")
    code = None if status is None or os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return {"wrong": wrong, "code": code, "seconds": seconds, "memory": memory, "stderr": err[-3000:]}


def _be_the_child(base: Path, work: Path, arguments: list[str]) -> NoReturn:
    """The console script's `main`, in an empty folder, with limits; never returns."""
    code: Any = 1
    try:
        os.setpgid(0, 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(base / name, os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        limit = _pages(0) * resource.getpagesize() + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        (base / "resident").write_text(str(_pages(1) * resource.getpagesize()))
        os.chdir(work)
        os.environ.update(HOME=str(base / "home"), TMPDIR=str(base / "tmp"))
        sys.argv = ["jacli", *arguments]
        jacli_main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def _wait(pid: int, started: float) -> tuple[int | None, resource.struct_rusage]:
    while time.monotonic() - started < SECONDS:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return status, usage
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    _, _, usage = os.wait4(pid, 0)
    return None, usage


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _pages(field: int) -> int:
    """Of this process: 0 its address space, 1 what of it is in memory."""
    return int(Path("/proc/self/statm").read_text().split()[field])


if __name__ == "__main__":
    main()
