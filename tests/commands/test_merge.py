"""What is merged, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from jacli.cluster import shard_path
from jacli.commands.merge import merge
from jacli.commands.summarize import summarize
from jacli.errors import JacliError, OutputError, ResultsError, UnsoundResultsError, UsageError
from jacli.options.values import Shard
from jacli.store import RunLock, open_results, part_path
from tests.run.shard_files import LAYOUT, unfinished, write_shard, write_shards


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("out.h5")


@pytest.mark.parametrize("virtual", [True, False])
def test_by_the_name_of_the_run(out: Path, virtual: bool) -> None:
    paths = write_shards(out, 3)
    seen: list[tuple[int, int]] = []
    merged = merge(
        [out], virtual=virtual, command="jacli merge out.h5", progress=lambda *done: seen.append(done)
    )
    assert (merged.out, merged.shards, merged.samples) == (out, 3, 10)
    assert merged.in_shards == (("inputs", "jacobian") if virtual else ())
    assert seen == [(3, 10), (6, 10), (10, 10)]
    assert sorted(Path().iterdir()) == sorted([out, *paths])
    with open_results(out) as results:
        assert results.sample_index.tolist() == list(range(10))
        assert results.complete and results.done.all()
    json.dumps(merged.to_dict())


def test_by_the_names_of_the_shards_in_any_order(out: Path, tmp_path: Path) -> None:
    paths = write_shards(out, 3)
    (tmp_path / "other").mkdir()
    merge([paths[2], paths[0], paths[1]], tmp_path / "other" / "all.h5")
    with open_results(tmp_path / "other" / "all.h5") as results:
        assert results.sample_index.tolist() == list(range(10))
        assert np.isfinite(results.jacobian[...]).all()
    assert merge(paths).out == out  # the name that they have in common


def test_attributes_are_those_of_the_whole_run(out: Path) -> None:
    write_shards(out, 3, options={"classes": "top:2"}, plan={"method": "vmap"})
    merge([out], command="jacli merge out.h5")
    with open_results(out) as results:
        attributes = results.attrs
    assert not {"shard", "inputs_sha256"} & set(attributes)
    assert attributes["command"] == "jacli merge out.h5"
    config = json.loads(str(attributes["config"]))
    assert (config["shard"], config["out"], config["classes"]) == (None, "out.h5", "top:2")
    assert json.loads(str(attributes["notes"])) == ["of every shard", "of 1/3", "of 2/3", "of 3/3"]
    assert json.loads(str(attributes["plan"])) == {"method": "vmap"}
    assert [part["inputs_sha256"] for part in json.loads(str(attributes["sources"]))] == [
        "of 1/3",
        "of 2/3",
        "of 3/3",
    ]


def test_a_missing_shard_is_named_with_its_command(out: Path) -> None:
    write_shards(out, 4)
    shard_path(out, Shard(2, 4)).unlink()
    shard_path(out, Shard(3, 4)).unlink()
    with pytest.raises(UnsoundResultsError) as raised:
        merge([out])
    assert raised.value.exit_code == 6
    assert raised.value.what == "2 of 4 shards of out.h5 are not complete."
    assert raised.value.why == "Missing: shards 2-3."
    assert "for i in {2..3}; do jacli compute m.pt x.npy -o out.h5 --shard $i/4; done" in raised.value.hint
    assert not out.exists() and not list(Path().glob("out.h5.*"))


def test_names_of_shards_that_are_not_there(out: Path) -> None:
    """As a job that merges gives them, whatever became of the others."""
    write_shard(out, Shard(1, 3))
    names = [shard_path(out, Shard(index, 3)) for index in (1, 2, 3)]
    with pytest.raises(UnsoundResultsError, match=r"2 of 3 shards"):
        merge(names, out)
    for path in (names[0],):
        path.unlink()
    with pytest.raises(UnsoundResultsError, match="no file tells"):
        merge(names, out)


def test_a_shard_left_out_is_taken_from_beside(out: Path) -> None:
    paths = write_shards(out, 3)
    assert merge(paths[:2]).shards == 3


def test_unfinished_shards_are_told_apart(out: Path, tmp_path: Path) -> None:
    write_shard(out, Shard(1, 4))
    command = ("jacli", "compute", "m.pt", "x.npy", "--shard", "auto")
    unfinished(shard_path(out, Shard(2, 4)), "stopped", folder=tmp_path / "there", command=command)
    lock = RunLock(shard_path(out, Shard(3, 4)))
    with pytest.raises(UnsoundResultsError) as raised:
        merge([out])
    assert raised.value.why == "Stopped: shard 2; waiting: shard 3; missing: shard 4."
    assert f"cd {tmp_path / 'there'} && for i in 2 4; do jacli compute" in raised.value.hint
    for index in (2, 4):
        part_path(shard_path(out, Shard(index, 4))).unlink(missing_ok=True)
        write_shard(out, Shard(index, 4))
    with pytest.raises(UnsoundResultsError, match="Wait for them: jacli status"):
        merge([out])
    lock.release()


@pytest.mark.parametrize("mark", ["done", "complete"])
def test_a_shard_that_only_has_the_name_of_a_finished_one(out: Path, mark: str) -> None:
    write_shards(out, 2)
    with h5py.File(shard_path(out, Shard(2, 2)), "r+") as file:
        if mark == "done":
            file["done"][3] = 0
        else:
            file.attrs["complete"] = False
    with pytest.raises(UnsoundResultsError, match=r"out\.00002-of-00002\.h5 is not complete"):
        merge([out])


OTHER_RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model_sha256": "beef"}, r"content of MODEL \(f00d there, beef here\)"),
    "code": ({"arch_sha256": "1"}, "code of the architecture"),
    "weights": ({"weights_sha256": "1"}, "weights that the architecture comes with"),
    "arithmetic": ({"dtype": "float64"}, "--dtype"),
    "precision": ({"precision": "bf16"}, r"--precision \(none there, bf16 here\)"),
    "arguments": ({"arguments_sha256": "1"}, "labels or arguments"),
    "option": ({"options": {"of": "probs"}}, r"--of \(logits there, probs here\)"),
    "classes": ({"options": {"classes": "1,2"}}, r"--classes \(all there, 1,2 here\)"),
    "inputs": ({"options": {"inputs": "y.npy"}}, r"INPUTS \(x.npy there, y.npy here\)"),
    "samples": ({"options": {"samples": "0:10"}}, "--samples"),
    "datasets": ({"layout": replace(LAYOUT, save_inputs=False)}, "inputs in one only"),
    "shape": ({"layout": replace(LAYOUT, output_shape=(6,))}, "the dataset jacobian"),
    "stored dtype": ({"layout": replace(LAYOUT, save_dtype="float16")}, "the dataset jacobian"),
}


@pytest.mark.parametrize(("other", "message"), OTHER_RUNS.values(), ids=OTHER_RUNS.keys())
def test_a_shard_of_another_run(out: Path, other: dict[str, Any], message: str) -> None:
    write_shard(out, Shard(1, 2))
    write_shard(out, Shard(2, 2), **other)
    with pytest.raises(ResultsError, match=message) as raised:
        merge([out])
    assert raised.value.exit_code == 4 and "00002-of-00002" in raised.value.what
    assert not out.exists()


def test_a_shard_from_before_there_were_precisions_is_of_the_same_run(out: Path) -> None:
    write_shards(out, 2)
    with h5py.File(shard_path(out, Shard(1, 2)), "r+") as file:
        options = json.loads(file.attrs["config"])
        del options["precision"]
        file.attrs["config"] = json.dumps(options)
    assert merge([out]).shards == 2


def _renamed(out: Path) -> None:
    write_shards(out, 3)
    first, second = shard_path(out, Shard(1, 3)), shard_path(out, Shard(2, 3))
    first.rename("x.h5")
    second.rename(first)
    Path("x.h5").rename(second)


def _whole(out: Path) -> None:
    write_shards(out, 2)
    with h5py.File(shard_path(out, Shard(2, 2)), "r+") as file:
        del file.attrs["shard"]


def _moved(out: Path) -> None:
    write_shard(out, Shard(1, 2))
    write_shard(out, Shard(2, 2), shift=1)


def _overlapping(out: Path) -> None:
    write_shard(out, Shard(1, 2), options={"samples": "5:15"})
    write_shard(out, Shard(2, 2), options={"samples": "5:15"}, shift=-1)


def _longer(out: Path) -> None:
    write_shard(out, Shard(1, 2))
    write_shard(out, Shard(2, 2), samples=14, shift=-2)


OTHER_SAMPLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "names exchanged": (_renamed, "It was computed as shard 2/3"),
    "no shard": (_whole, "was not computed as a shard"),
    "moved": (_moved, "holds sample 6 where sample 5 belongs"),
    "overlapping": (_overlapping, "Sample 4 is in another shard as well"),
    "of longer inputs": (_longer, "has 5 samples, and all together have 12"),
}


@pytest.mark.parametrize(("make", "message"), OTHER_SAMPLES.values(), ids=OTHER_SAMPLES.keys())
def test_other_samples_than_those_of_the_shard(out: Path, make: Callable[[Path], None], message: str) -> None:
    make(out)
    with pytest.raises(ResultsError, match=message):
        merge([out])


def test_chosen_samples_may_lie_anywhere(out: Path) -> None:
    write_shard(out, Shard(1, 2), options={"samples": "90:95,0:5"}, shift=90)
    write_shard(out, Shard(2, 2), options={"samples": "90:95,0:5"}, shift=-5)
    merge([out])
    with open_results(out) as results:
        assert results.sample_index.tolist() == [*range(90, 95), *range(5)]


def test_what_may_differ(out: Path) -> None:
    write_shard(out, Shard(1, 2), options={"memory": "1GiB", "overwrite": True, "verify": 0, "quiet": True})
    write_shard(out, Shard(2, 2), options={"batch_size": 2, "verify": 3, "out": "elsewhere/out.h5"})
    assert merge([out]).notes == ()


def test_what_is_said_where_it_differs(out: Path) -> None:
    write_shard(out, Shard(1, 2), torch_version="2.6")
    options = {"method": "loop", "device": "cpu", "inputs": "/scratch/7/x.npy", "model": "/scratch/7/m.pt"}
    write_shard(out, Shard(2, 2), options=options, method="loop", torch_version="2.7")
    notes = merge([out]).notes
    assert any("--device" in note and "rounding" in note for note in notes)
    assert any("--method" in note for note in notes)
    assert "the shards read inputs from different folders" in notes
    assert any("versions of torch: 2.6 (1), 2.7 (1)" in note for note in notes)
    with open_results(out) as results:
        assert set(notes) <= set(json.loads(str(results.attrs["notes"])))


def test_an_index_of_more_shards_than_open_files(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(out, 3)
    monkeypatch.setattr("jacli.commands.merge.resource.getrlimit", lambda what: (64, 64))
    assert any("ulimit -n" in note for note in merge([out]).notes)
    assert merge([out], virtual=False, overwrite=True).notes == ()


NAMES: dict[str, tuple[list[str], type[JacliError], str]] = {
    "nothing": (["none.h5"], ResultsError, "no shards of none.h5"),
    "no shard's name": (["out.h5", "out.00001-of-00002.h5"], UsageError, "out.h5 is not named like a shard"),
    "two runs": (["a.00001-of-00002.h5", "b.00001-of-00002.h5"], UsageError, "a.h5 in 2, b.h5 in 2"),
    "two counts": (["twice.h5"], UsageError, "2 and 3 shards"),
    "no file": ([], UsageError, "one run at a time"),
}


@pytest.mark.parametrize(("names", "error", "message"), NAMES.values(), ids=NAMES.keys())
def test_names_that_are_not_clear(out: Path, names: list[str], error: type[JacliError], message: str) -> None:
    write_shard(Path("twice.h5"), Shard(1, 2))
    write_shard(Path("twice.h5"), Shard(1, 3))
    with pytest.raises(error, match=message) as raised:
        merge(names)
    assert raised.value.hint


def test_the_place_is_left_alone(out: Path) -> None:
    write_shards(out, 2)
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        merge([out])
    lock = RunLock(out)
    with pytest.raises(OutputError, match="Another process is writing"):
        merge([out], overwrite=True)
    lock.release()
    part_path(out).write_text("an unfinished run")
    with pytest.raises(OutputError, match="unfinished file of another run"):
        merge([out], overwrite=True)
    assert (out.read_text(), part_path(out).read_text()) == ("mine", "an unfinished run")
    part_path(out).unlink()
    assert merge([out], overwrite=True).samples == 10


def test_a_summary_needs_no_shard_but_for_the_jacobian(out: Path) -> None:
    paths = write_shards(out, 2)
    merge([out])
    table = summarize([out])
    computed = summarize([out], dataset="jacobian")
    paths[0].unlink()
    assert summarize([out]).rows == table.rows
    with pytest.raises(ResultsError, match=r"out\.00001-of-00002\.h5 is gone"):
        summarize([out], dataset="jacobian")
    assert len(computed.rows) == len(table.rows)
