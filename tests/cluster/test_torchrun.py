"""Two processes of torchrun, each with its shard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.same_results import assert_same_datasets

ROOT = Path(__file__).resolve().parents[2]
RUN = [str(ROOT / "sample_models/digits_cnn.pt"), str(ROOT / "sample_models/digits.npy")]
RUN += [
    "--method",
    "vmap",
    "--batch-size",
    "8",
    "--device",
    "cpu",
    "--verify",
    "0",
    "--quiet",
    "-o",
    "out.h5",
]


def run(folder: Path, *command: str) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=100,
    )


@pytest.mark.slow
@pytest.mark.parametrize("copy", [False, True], ids=["virtual", "copy"])
def test_two_processes_of_torchrun_give_what_one_gives(tmp_path: Path, copy: bool) -> None:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(tmp_path / "two", *launcher, "-m", "jacli", "compute", *RUN, "--shard", "auto")
    run(tmp_path / "two", "jacli", "merge", "out.h5", "--copy" if copy else "--virtual")
    run(tmp_path / "one", "jacli", "compute", *RUN)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "out.00001-of-00002.h5",
        "out.00002-of-00002.h5",
        "out.h5",
    ]
    assert_same_datasets(tmp_path / "two/out.h5", tmp_path / "one/out.h5")
