"""Shards: who has which samples, where they go, and what the environment says."""

from __future__ import annotations

from pathlib import Path

import pytest

from jacli.cluster import (
    local_rank,
    name_of_shard,
    shard_of_environment,
    shard_path,
    shard_rows,
    shards_beside,
)
from jacli.errors import UsageError
from jacli.options.values import Shard


def rows_of_all(count: int, n_samples: int) -> list[range]:
    return [shard_rows(Shard(index, count), n_samples) for index in range(1, count + 1)]


@pytest.mark.parametrize("n_samples", [7, 8, 64, 50_000])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_contiguous_and_leave_nothing_out(count: int, n_samples: int) -> None:
    rows = rows_of_all(count, n_samples)
    assert [row for part in rows for row in part] == list(range(n_samples))


def test_shards_differ_by_one_sample_at_most() -> None:
    sizes = {len(part) for part in rows_of_all(16, 1_000_003)}
    assert sizes == {62_500, 62_501}


def test_more_shards_than_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="3 samples for 4 shards"):
        shard_rows(Shard(1, 4), 3)


@pytest.mark.parametrize(
    ("out", "name"),
    [
        ("out.h5", "out.00003-of-00016.h5"),
        ("out", "out.00003-of-00016"),
        ("a.b.h5", "a.b.00003-of-00016.h5"),
        (".hidden", ".hidden.00003-of-00016"),
        ("it's 50%.h5", "it's 50%.00003-of-00016.h5"),
        ("out.00001-of-00002.h5", "out.00001-of-00002.00003-of-00016.h5"),
    ],
)
def test_a_shard_s_name_leads_there_and_back(out: str, name: str) -> None:
    path = shard_path(Path("folder") / out, Shard(3, 16))
    assert path == Path("folder") / name
    found = name_of_shard(path)
    assert found is not None
    assert (found.out, found.shard) == (Path("folder") / out, Shard(3, 16))


def test_a_million_shards_have_names_too() -> None:
    path = shard_path(Path("out.h5"), Shard(7, 1_000_000))
    assert path.name == "out.00007-of-1000000.h5"
    assert name_of_shard(path).shard == Shard(7, 1_000_000)


@pytest.mark.parametrize(
    "name",
    [
        "out.h5",
        "out.0003-of-0016.h5",
        "out.00000-of-00016.h5",
        "out.00017-of-00016.h5",
        "out.000003-of-00016.h5",
        "out.00003-of-00016.h5.part.json",
    ],
)
def test_other_names_are_no_shards(name: str) -> None:
    assert name_of_shard(Path(name)) is None


def test_shards_beside_are_those_of_this_result(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    for name in (
        "out.00001-of-00004.h5",
        "out.00003-of-00004.h5.part",
        "out.00002-of-00002.h5",
        "other.00001-of-00004.h5",
        "out.00002-of-00004.nc",
        "out.h5",
    ):
        (tmp_path / name).touch()
    assert shards_beside(out) == {4: {1, 3}, 2: {2}}
    assert shards_beside(tmp_path / "no folder" / "out.h5") == {}


def array(task: int, first: int, last: int, size: int | None = None) -> dict[str, str]:
    """As a batch script of an array has it, beside the variables of any job."""
    return {
        "SLURM_JOB_ID": "10",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_MAX": str(last),
        "SLURM_ARRAY_TASK_COUNT": str(last - first + 1 if size is None else size),
    }


def step(process: int, size: int) -> dict[str, str]:
    """As srun's tasks have it, in a job of more tasks than this step."""
    return {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process % 4),
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_NTASKS": "64",
    }


def torchrun(rank: int, size: int) -> dict[str, str]:
    return {
        "TORCHELASTIC_RUN_ID": "none",
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank % 2),
    }


@pytest.mark.parametrize(
    ("environ", "shard"),
    [
        pytest.param(array(1, 1, 16), Shard(1, 16), id="the first task of an array"),
        pytest.param(array(16, 1, 16), Shard(16, 16), id="the last task"),
        pytest.param(array(3, 0, 7), Shard(4, 8), id="an array from 0"),
        pytest.param(step(5, 8), Shard(6, 8), id="a step"),
        pytest.param(array(2, 1, 4) | step(0, 8), Shard(9, 32), id="a step of an array"),
        pytest.param(array(4, 1, 4) | step(7, 8), Shard(32, 32), id="the last of them"),
        pytest.param(torchrun(1, 2), Shard(2, 2), id="torchrun"),
        pytest.param(array(2, 1, 3) | torchrun(1, 2), Shard(4, 6), id="torchrun in an array"),
        pytest.param(step(1, 2) | torchrun(3, 4), Shard(4, 4), id="a torchrun a node"),
        pytest.param({"RANK": "0", "WORLD_SIZE": "3"}, Shard(1, 3), id="another launcher's RANK"),
        pytest.param(
            array(2, 1, 4) | {"SLURM_STEP_ID": str(0xFFFFFFFB)}, Shard(2, 4), id="the batch script's own step"
        ),
    ],
)
def test_auto_is_what_the_environment_says(environ: dict[str, str], shard: Shard) -> None:
    assert shard_of_environment(environ) == shard


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        pytest.param({}, "no shard is assigned", id="no launcher"),
        pytest.param(
            {"SLURM_JOB_ID": "3", "SLURM_PROCID": "0"}, "no shard is assigned", id="a job without tasks"
        ),
        pytest.param({"RANK": "1"}, "no shard is assigned", id="half of torchrun"),
        pytest.param(array(7, 3, 7, 2), "2 tasks from 3 to 7", id="two tasks submitted again"),
        pytest.param(array(2, 2, 3), "2 tasks from 2 to 3", id="two neighbours submitted again"),
        pytest.param(array(4, 0, 14, 8), "8 tasks from 0 to 14", id="every second number"),
        pytest.param({"SLURM_ARRAY_TASK_ID": "3"}, "not the array's first", id="no bounds"),
    ],
)
def test_an_environment_that_does_not_say_is_refused(environ: dict[str, str], why: str) -> None:
    with pytest.raises(UsageError, match=why) as error:
        shard_of_environment(environ)
    assert "--shard" in error.value.hint


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({}, 0),
        (array(3, 1, 4), 0),
        (step(6, 8), 2),
        (step(6, 8) | torchrun(3, 4), 1),
        ({"LOCAL_RANK": "5"}, 5),
        ({"SLURM_LOCALID": "5"}, 0),
    ],
)
def test_the_local_rank_counts_where_a_launcher_set_it(environ: dict[str, str], rank: int) -> None:
    assert local_rank(environ) == rank
