"""Batch scripts as text, compared with recorded ones, and read again by bash."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jacli.cluster import shard_path
from jacli.cluster.slurm import Job, Resources, compress, quote_directive, render_array, render_merge
from jacli.options.values import Shard
from tests.cluster.one_node_slurm import wait_until

RECORDED = Path(__file__).parent / "recorded"

PLAIN = Job(
    program=("/opt/jacli/bin/python", "-P", "-m", "jacli"),
    arguments=("model.pt", "inputs.npy", "--out", "/scratch/you/out.h5"),
    folder=Path("/home/you/project"),
    out=Path("/scratch/you/out.h5"),
    count=16,
    shards=tuple(range(1, 17)),
    logs=Path("/scratch/you/out.h5.slurm"),
    resources=Resources("jacli-out"),
)
FULL = replace(
    PLAIN,
    arguments=("model.pt", "inputs.npy", "--classes", "top:5", "--overwrite", "--out", "/scratch/you/out.h5"),
    shards=(1, 2, 3, 7, 16),
    resources=Resources(
        "night run",
        partition="gpu,preempt",
        account="lab-12",
        time="1-12:00:00",
        gpus="a100:1",
        cpus=8,
        memory="64G",
        further=(("qos", "long"), ("exclusive", ""), ("comment", 'say "hi" to C:\\ #1')),
    ),
    setup=("module purge", "module load 'cuda/12.4' || exit"),
    array_limit=4,
    notice=300,
    overwrite=True,
)
AWKWARD_OUT = Path('/data/it\'s $HOME/50% "größer" `x` #1/a {1,2}* [b]; -c.h5')
AWKWARD = replace(
    PLAIN,
    program=("/opt/my python/bin/python", "-P", "-m", "jacli"),
    arguments=(
        "./-model.pt",
        "$(touch here).npy",
        "--arg",
        'text=it\'s "so"',
        "--samples=-4:",
        "--out",
        str(AWKWARD_OUT),
    ),
    folder=AWKWARD_OUT.parent,
    out=AWKWARD_OUT,
    logs=AWKWARD_OUT.with_name(f"{AWKWARD_OUT.name}.slurm"),
    resources=Resources(f"jacli-{AWKWARD_OUT.stem}"),
)
SCRIPTS = {
    f"{name}_{kind}": render(job)
    for name, job in {"plain": PLAIN, "full": FULL, "awkward": AWKWARD}.items()
    for kind, render in {"array": render_array, "merge": render_merge}.items()
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_those_recorded(name: str) -> None:
    """`python -m tests.cluster.test_slurm` records them anew; then read the difference."""
    assert SCRIPTS[name] == (RECORDED / f"{name}.sh").read_text(encoding="utf-8")


def test_every_recorded_script_is_one_of_them() -> None:
    assert {path.stem for path in RECORDED.iterdir()} == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_them(name: str) -> None:
    done = subprocess.run(["bash", "-n"], input=SCRIPTS[name], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def words(script: str, job: Job, tmp_path: Path) -> list[str]:
    """The words of the command that a script starts: bash runs it with another program and folder."""
    program, folder = tmp_path / "say", tmp_path / "it's here"
    program.write_text('#!/bin/bash\nprintf "%s\\0" "$PWD" "$@" > "$SAID"\n')
    program.chmod(0o755)
    folder.mkdir()
    job = replace(job, program=(str(program),), folder=folder, setup=())
    subprocess.run(
        ["bash", "-c", (render_array if script == "array" else render_merge)(job)],
        env={"SAID": str(tmp_path / "said"), "SLURM_ARRAY_TASK_ID": "7", "PATH": "/usr/bin:/bin"},
        cwd=folder,
        check=True,
    )
    here, *said = (tmp_path / "said").read_text(encoding="utf-8").split("\0")[:-1]
    assert here == str(folder)
    assert list(folder.iterdir()) == []
    return said


@pytest.mark.parametrize("job", [PLAIN, FULL, AWKWARD], ids=["plain", "full", "awkward"])
def test_a_task_computes_its_shard(job: Job, tmp_path: Path) -> None:
    assert words("array", job, tmp_path) == ["compute", *job.arguments, "--shard", "7/16"]


STOPS_WHEN_TOLD = """\
#!/usr/bin/env python3
import os, pathlib, signal, sys, time
heard = []
for name in ("SIGUSR2", "SIGTERM"):
    signal.signal(getattr(signal, name), lambda number, frame: heard.append(signal.Signals(number).name))
pathlib.Path("started").touch()
while not heard and "wait" in sys.argv:
    time.sleep(0.01)
time.sleep(0.2)  # what a run needs to save
pathlib.Path("heard").write_text(" ".join(heard))
sys.exit(int(os.environ["CODE"]))
"""


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts the array's script as Slurm would, with a program that stops when told, beside a mock queue."""
    for name, text in {
        "run": STOPS_WHEN_TOLD,
        "squeue": '#!/bin/bash\necho "$STATE"\n',
        "scontrol": '#!/bin/bash\necho "$@" > requeued\n',
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def start(code: int, *arguments: str, state: str = "RUNNING") -> subprocess.Popen[bytes]:
        job = replace(PLAIN, program=(str(tmp_path / "run"),), arguments=arguments, folder=tmp_path)
        (tmp_path / "script").write_text(render_array(job))
        environment = {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "CODE": str(code),
            "STATE": state,
            "SLURM_ARRAY_JOB_ID": "12",
            "SLURM_ARRAY_TASK_ID": "3",
        }
        return subprocess.Popen(["bash", str(tmp_path / "script")], env=environment)

    return start


@pytest.mark.parametrize("told", [signal.SIGUSR2, signal.SIGTERM], ids=lambda told: told.name)
def test_a_task_that_is_told_to_stop_is_queued_again(task, tmp_path: Path, told: signal.Signals) -> None:
    process = task(75, "wait")
    wait_until((tmp_path / "started").exists, "the run's start")
    process.send_signal(told)
    assert process.wait(10) == 75
    assert (tmp_path / "heard").read_text() == told.name
    assert (tmp_path / "requeued").read_text() == "requeue 12_3\n"


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", ""])
def test_a_task_that_was_cancelled_is_not_queued_again(task, tmp_path: Path, state: str) -> None:
    assert task(75, state=state).wait(10) == 75
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("code", [0, 2, 6, 130, 137])
def test_other_exit_codes_are_passed_on(task, tmp_path: Path, code: int) -> None:
    assert task(code).wait(10) == code
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("count", [1, 16, 1000])
@pytest.mark.parametrize("job", [PLAIN, AWKWARD], ids=["plain", "awkward"])
def test_the_merge_names_every_shard(job: Job, count: int, tmp_path: Path) -> None:
    shards = [str(shard_path(job.out, Shard(index, count))) for index in range(1, count + 1)]
    assert words("merge", replace(job, count=count), tmp_path) == ["merge", *shards, "--out", str(job.out)]


def test_the_merge_overwrites_where_the_run_does(tmp_path: Path) -> None:
    assert words("merge", FULL, tmp_path)[-1] == "--overwrite"


def test_the_merge_asks_for_no_gpu() -> None:
    directives = re.findall(r"^#SBATCH --([\w-]+)", SCRIPTS["full_merge"], flags=re.M)
    assert directives == ["job-name", "output", "open-mode", "partition", "account", "time", "qos", "comment"]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((1,), "1"), ((1, 2), "1-2"), ((7, 3, 2, 1, 9, 10), "1-3,7,9-10"), (range(1, 1001), "1-1000")],
)
def test_ranges_of_an_array(numbers: tuple[int, ...], text: str) -> None:
    assert compress(numbers) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("gpu:a100:1", "gpu:a100:1"),
        ("1-16%4", "1-16%4"),
        ("two words", '"two words"'),
        ("$HOME", '"$HOME"'),
        ('"', '"\\""'),
        ("\\", '"\\\\"'),
        ("#1", '"#1"'),
        ("é", '"é"'),
    ],
)
def test_values_of_directives_are_quoted_as_sbatch_reads_them(value: str, text: str) -> None:
    assert quote_directive(value) == text


if __name__ == "__main__":
    RECORDED.mkdir(exist_ok=True)
    for recorded, script in SCRIPTS.items():
        (RECORDED / f"{recorded}.sh").write_text(script, encoding="utf-8")
