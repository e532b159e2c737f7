"""`jacli merge` of shards that `jacli compute` made: the same file as a single run's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.readme import ROOT

MODEL, INPUTS = ROOT / "sample_models" / "digits_cnn.pt", ROOT / "sample_models" / "digits.npy"
RUN = ("compute", MODEL, INPUTS, "--samples", "0:13", "--method", "loop", "--batch-size", "2", "--quiet")


@pytest.fixture(scope="module")
def computed(jacli, tmp_path_factory) -> Path:
    """A folder with a run in one file and the same in three shards."""
    folder = tmp_path_factory.mktemp("merge")
    assert jacli(*RUN, "-o", folder / "single.h5", "--verify", 0).code == 0
    for index in (1, 2, 3):
        assert jacli(*RUN, "-o", folder / "out.h5", "--verify", 0, "--shard", f"{index}/3").code == 0
    return folder


@pytest.fixture
def folder(computed: Path, tmp_path: Path) -> Path:
    shutil.copytree(computed, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("how", ["--virtual", "--copy"])
def test_every_dataset_has_the_bytes_of_the_single_run(jacli, folder: Path, how: str) -> None:
    ran = jacli("merge", folder / "out.h5", how)
    assert (ran.code, ran.out) == (0, "")
    assert "wrote" in ran.err and "13 samples" in ran.err and "3 shards" in ran.err
    assert ("keep the shards: inputs, jacobian" in ran.err) == (how == "--virtual")
    if how == "--copy":
        for shard in folder.glob("out.*-of-*.h5"):
            shard.unlink()
    with h5py.File(folder / "out.h5") as merged, h5py.File(folder / "single.h5") as single:
        assert set(merged) == set(single)
        for name in set(single) - {"batch_start", "checksums"}:  # a shard's batches are its own
            assert merged[name].dtype == single[name].dtype
            assert merged[name][...].tobytes() == single[name][...].tobytes(), name
        assert set(single.attrs) - {"inputs_sha256"} <= set(merged.attrs)


def test_verify_and_compare_with_the_inputs(jacli, folder: Path, tmp_path: Path) -> None:
    assert jacli("merge", folder / "out.h5").code == 0
    ran = jacli("verify", folder / "out.h5", "-n", "3")
    assert ran.code == 0 and ran.out.count(" ok\n") == 3
    other = np.load(INPUTS)
    other[11] += 0.25
    np.save(tmp_path / "other.npy", other)
    ran = jacli("verify", folder / "out.h5", "-n", "1", "--inputs", tmp_path / "other.npy")
    assert ran.code == 4 and "not the inputs" in ran.err


def test_a_lost_shard_is_named_by_those_that_need_it(jacli, folder: Path) -> None:
    assert jacli("merge", folder / "out.h5").code == 0
    lost = folder / "out.00002-of-00003.h5"
    lost.unlink()
    assert jacli("summarize", folder / "out.h5").code == 0
    ran = jacli("verify", folder / "out.h5")
    assert ran.code == 4 and f"{lost} is gone" in ran.err and "Traceback" not in ran.err
    told = json.loads(jacli("inspect", folder / "out.h5", "--json").out)
    assert (told["shards"], told["in_shards"]) == (3, ["inputs", "jacobian"])
    assert told["lost_shards"] == [f"{lost} is gone"]


def test_a_missing_shard_and_then_its_command(jacli, folder: Path) -> None:
    (folder / "out.00002-of-00003.h5").unlink()
    ran = jacli("merge", folder / "out.h5")
    assert ran.code == 6 and ran.err.count("\n") == 3
    words = ran.err.rpartition("Run: jacli ")[2].split()
    assert words[0] == "compute" and "--shard 2/3" in ran.err
    assert jacli(*words).code == 0
    ran = jacli("merge", folder / "out.h5", "--json")
    assert ran.code == 0
    told = json.loads(ran.out)
    assert (told["shards"], told["samples"], told["notes"]) == (3, 13, [])


def test_the_merged_file_repeats_the_whole_run(jacli, folder: Path) -> None:
    assert jacli("merge", folder / "out.h5").code == 0
    ran = jacli("compute", "--config", folder / "out.h5", "-o", folder / "again.h5", "--quiet")
    assert ran.code == 0, ran.err
    with h5py.File(folder / "again.h5") as again, h5py.File(folder / "single.h5") as single:
        assert again["jacobian"][...].tobytes() == single["jacobian"][...].tobytes()


def test_an_existing_file(jacli, folder: Path) -> None:
    assert jacli("merge", folder / "out.h5").code == 0
    ran = jacli("merge", folder / "out.h5")
    assert ran.code == 0 and "already complete: merged before from the same 3 shards" in ran.err
    ran = jacli("merge", folder / "out.h5", "--copy")
    assert ran.code == 4 and "--overwrite" in ran.err
    assert jacli("merge", folder / "out.h5", "--overwrite").code == 0


def test_usage(jacli, folder: Path) -> None:
    assert jacli("merge").code == 2
    assert jacli("merge", folder / "single.h5", folder / "out.00001-of-00003.h5").code == 2
    assert jacli("merge", folder / "single.h5").code == 4
