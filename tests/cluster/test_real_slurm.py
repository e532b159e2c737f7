"""A real Slurm of one node: tasks are killed, requeued, told to stop; nothing is lost, nothing is wrong."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import pytest

from jacli.cluster import shard_path
from jacli.options.values import Shard
from jacli.store import read_holder, read_progress
from tests.cluster.one_node_slurm import wait_until
from tests.cluster.same_results import assert_same_datasets

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ["--method", "loop", "--batch-size", "1", "--device", "cpu", "--verify", "0"]
RUN = [str(ROOT / "sample_models/digits_cnn.pt"), "random:1000x1x8x8", *OPTIONS]
"""A task of 250 blocks takes seconds on any machine: time to kill it in."""
SHORT_RUN = [RUN[0], "random:34x1x8x8", *OPTIONS]
THREADS = {"OMP_NUM_THREADS": "1"}
"""The same number everywhere: the order of a sum depends on it."""


@dataclass(frozen=True)
class Cluster:
    """Commands in a folder, in the environment of the Slurm."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def jacli(self, *arguments: str) -> str:
        return self(sys.executable, "-m", "jacli", *arguments)

    def submit(self, *arguments: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.jacli("submit", *RUN, "--json", *arguments))
        return told

    def queued(self, job: str) -> set[str]:
        return set(self("squeue", "--noheader", "--array", "--format=%i", f"--jobs={job}").split())


@pytest.fixture
def cluster(slurm: dict[str, str], tmp_path: Path) -> Cluster:
    folder = tmp_path / 'it\'s $HOME, 50% "größer" #1'
    folder.mkdir()
    return Cluster(folder, slurm | THREADS | {"PWD": str(folder)})


def single_run(folder: Path, run: list[str]) -> Path:
    """The same in one process."""
    out = folder / "single.h5"
    command = [sys.executable, "-m", "jacli", "compute", *run, "--quiet", "-o", str(out)]
    subprocess.run(command, env=os.environ | THREADS, check=True)
    return out


def shard(cluster: Cluster, index: int, count: int = 4) -> Path:
    return shard_path(cluster.folder / "out.h5", Shard(index, count))


def under_way(path: Path) -> Callable[[], bool]:
    def holds() -> bool:
        progress = read_progress(path)
        assert not path.exists(), "the task was too quick to be disturbed"
        return progress is not None and progress.done > 0 and read_holder(path) is not None

    return holds


def log(cluster: Cluster, job: str, task: int) -> str:
    return (cluster.folder / f"out.h5.slurm/{job}_{task}.log").read_text(encoding="utf-8")


def test_an_array_disturbed_in_every_way_ends_as_the_single_run(cluster: Cluster) -> None:
    first = cluster.submit("--shards", "4", "--cpus", "1", "--setup", "echo set up")
    job = first["array_job"]
    assert (first["submitted"], first["queued"]) == ([1, 2, 3, 4], [])
    for index in (1, 2, 3):
        wait_until(under_way(shard(cluster, index)), f"blocks of shard {index}", seconds=100)
    # Killed; preempted, as Slurm does it; and told that its time is over, as Slurm tells its batch script.
    os.kill(read_holder(shard(cluster, 1)).pid, signal.SIGKILL)
    cluster("scontrol", "requeue", f"{job}_2")
    cluster("scancel", "--batch", "--signal=USR2", f"{job}_3")
    wait_until(lambda: f"{job}_1" not in cluster.queued(job), "the end of the killed task")

    second = cluster.submit("--shards", "4", "--cpus", "1")
    assert second["submitted"] == [1]
    assert set(second["queued"]) | set(second["complete"]) == {2, 3, 4}
    assert {2, 3} <= set(second["queued"])
    assert first["merge_job"] not in cluster.queued(first["merge_job"])

    wait_until((cluster.folder / "out.h5").exists, "the merged file", seconds=200)
    again = second["array_job"]
    assert "Killed" in log(cluster, job, 1) and "resumed after" in log(cluster, again, 1)
    assert "Stopped by SIGTERM" in log(cluster, job, 2) and "resumed after" in log(cluster, job, 2)
    assert "Stopped by SIGUSR2" in log(cluster, job, 3) and "resumed after" in log(cluster, job, 3)
    assert log(cluster, job, 4).startswith("set up\n") and "went on" not in log(cluster, job, 4)
    assert_same_datasets(cluster.folder / "out.h5", single_run(cluster.folder, RUN))

    third = cluster.submit("--shards", "4", "--cpus", "1")
    assert (third["array_job"], third["merge_job"]) == (None, None)


def test_what_is_cancelled_stays_cancelled(cluster: Cluster) -> None:
    job = cluster.submit("--shards", "2")["array_job"]
    wait_until(under_way(shard(cluster, 1, 2)), "blocks of shard 1", seconds=100)
    cluster("scancel", job)
    wait_until(lambda: not cluster.queued(job), "the end of the tasks")
    assert "Stopped by SIGTERM" in log(cluster, job, 1)
    # The merge came all the same, and says what is missing.
    merged = cluster.folder / "out.h5.slurm"
    wait_until(lambda: any(merged.glob("merge_*.log")), "the merge")
    (told,) = merged.glob("merge_*.log")
    wait_until(lambda: "jacli:" in told.read_text(encoding="utf-8"), "what the merge says")
    assert "2 of 2 shards" in told.read_text(encoding="utf-8")
    assert not (cluster.folder / "out.h5").exists()
    assert "#SBATCH --array=1-2\n" in cluster.jacli("submit", *RUN, "--shards", "2", "--print")


STEPS = """\
#!/bin/bash
#SBATCH --array=1-2
#SBATCH --ntasks=2
#SBATCH --output=%a.log
srun {command} --shard auto
"""


def test_tasks_of_a_step_in_an_array_are_shards_of_shards(cluster: Cluster) -> None:
    command = shlex.join([sys.executable, "-m", "jacli", "compute", *SHORT_RUN, "-o", "out.h5"])
    (cluster.folder / "steps.sh").write_text(STEPS.format(command=command))
    cluster("sbatch", "--wait", "steps.sh")
    cluster.jacli("merge", "out.h5")
    assert_same_datasets(cluster.folder / "out.h5", single_run(cluster.folder, SHORT_RUN))
    assert [read_shard_attribute(shard(cluster, index)) for index in (1, 2, 3, 4)] == [
        "1/4",
        "2/4",
        "3/4",
        "4/4",
    ]


def test_what_sbatch_refuses_is_told(cluster: Cluster) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jacli", "submit", *RUN, "--shards", "2", "--partition", "nowhere"],
        cwd=cluster.folder,
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "invalid partition specified: nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def read_shard_attribute(path: Path) -> str:
    with h5py.File(path) as file:
        return str(file.attrs["shard"])
