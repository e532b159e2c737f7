"""A run that is ended at any moment goes on and gives the very bytes of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import jacli
from jacli.durable.write_ahead_log import journal_path
from jacli.errors import ModelError, OutputError
from jacli.options.table import RunConfig
from jacli.store import open_results, part_path, read_progress
from jacli.store.batches import damaged_batches
from jacli.store.lock import lock_path
from tests.store.signing import sign_again

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolutional network, one that is narrow inside, and inputs."""
    folder = tmp_path_factory.mktemp("continued")
    torch.manual_seed(0)
    convolutions = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
    )
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 40), nn.Tanh())
    for name, module in (("convolutions", convolutions), ("narrow", narrow)):
        torch.jit.script(module.eval()).save(str(folder / f"{name}.pt"))
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((300, 1, 8, 8), np.float32))
    return folder


def assert_same_bytes(one: Path, other: Path) -> None:
    """Dataset by dataset, byte by byte (NaN too), and the attributes that tell of the numbers."""
    with open_results(one) as a, open_results(other) as b:
        assert a.complete and b.complete
        assert a.names == b.names
        for name in a.names:
            assert a[name][...].tobytes() == b[name][...].tobytes(), name
        for name in ("inputs_sha256", "model_sha256", "plan", "method", "verified_dtype", "config"):
            if name == "config":
                kept = [{**json.loads(str(r.attrs[name])), "out": ""} for r in (a, b)]
                assert kept[0] == kept[1]
            else:
                assert a.attrs[name] == b.attrs[name], name


RUNS = {
    "whole": ("convolutions.pt", "--method", "loop", "--batch-size", "4"),
    "gzip": ("convolutions.pt", "--method", "vmap", "--batch-size", "5", "--compress", "gzip"),
    "none": (
        "convolutions.pt",
        "--method",
        "loop",
        "--batch-size",
        "3",
        "--save",
        "none",
        "--classes",
        "top:3",
    ),
    "product": ("narrow.pt", "--method", "factored", "--batch-size", "7"),
    "factors": ("narrow.pt", "--save", "factors", "--batch-size", "4", "--save-dtype", "float16"),
}


def interrupted(folder: Path, place: Path, name: str, signal_name: str, runs: int) -> dict[str, list[int]]:
    model, *options = RUNS[name]
    command = ["compute", str(folder / model), str(folder / "x.npy"), "--samples", "0:100", *options]
    subprocess.run(
        [sys.executable, "-m", "tests.run.interrupted", place, signal_name, str(runs), "0", *command],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    codes: dict[str, list[int]] = json.loads((place / "codes.json").read_text())
    return codes


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_ten_times_at_random_moments_and_continued(folder: Path, tmp_path: Path, name: str) -> None:
    """Five kinds of files, ten runs each, ``kill -9`` twice in every run."""
    codes = interrupted(folder, tmp_path, name, "SIGKILL", 10)
    for run, of_run in codes.items():
        assert of_run == [-9, -9, 0], (tmp_path / run / "log").read_text()
        assert_same_bytes(tmp_path / "whole.h5", tmp_path / run / "out.h5")
        assert {path.name for path in (tmp_path / run).iterdir()} == {"out.h5", "log"}
    told = "".join((tmp_path / run / "log").read_text() for run in codes)
    assert "resumed after" in told
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize(("signal_name", "code"), [("SIGTERM", 75), ("SIGUSR2", 75), ("SIGINT", 130)])
def test_stopped_by_a_signal_and_continued(folder: Path, tmp_path: Path, signal_name: str, code: int) -> None:
    codes = interrupted(folder, tmp_path, "whole", signal_name, 10)
    for run, of_run in codes.items():
        assert of_run == [code, code, 0], (tmp_path / run / "log").read_text()
        assert_same_bytes(tmp_path / "whole.h5", tmp_path / run / "out.h5")
        assert {path.name for path in (tmp_path / run).iterdir()} == {"out.h5", "log"}
    assert "Traceback" not in "".join((tmp_path / run / "log").read_text() for run in codes)


class Stop(BaseException):
    """What a signal raises in a run."""


def stopped_after(place: Path, until: int, *, out: str = "out.h5", **options: object) -> int:
    """A run of 60 samples that is stopped when so many are in the file; how many there are in the end."""
    from jacli.commands.compute import run_compute
    from jacli.run.config_file import resolve_options

    def progress(done: int, total: int) -> None:
        nonlocal reached
        reached = done >= until

    def stop_when_reached(self: object, block: object, *, wait: bool = False) -> None:
        put(self, block, wait=True)
        if reached:
            raise Stop

    from jacli.run.pipeline import Pipeline

    reached, put = False, Pipeline.put
    config = resolve_options({"model": str(place / "model.pt"), "inputs": str(place / "x.npy"),
                              "out": str(place / out), "method": "loop", "batch_size": 4,
                              "samples": "0:60", **options})  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop) as stop:
        patch.setattr(Pipeline, "put", stop_when_reached)
        run_compute(config, command="jacli compute model.pt x.npy", progress=progress)
    assert any("of 60 samples are finished" in note for note in stop.value.__notes__)
    progress_file = read_progress(place / out)
    assert progress_file is not None
    assert (progress_file.state, progress_file.samples) == ("stopped", 60)
    assert until <= progress_file.done < 60
    return progress_file.done


@pytest.fixture
def place(folder: Path, tmp_path: Path) -> Path:
    shutil.copy(folder / "convolutions.pt", tmp_path / "model.pt")
    shutil.copy(folder / "x.npy", tmp_path / "x.npy")
    return tmp_path


def go_on(place: Path, out: str = "out.h5", **options: object) -> object:
    return jacli.compute(
        str(place / "model.pt"), str(place / "x.npy"), str(place / out),
        **{"method": "loop", "batch_size": 4, "samples": "0:60", **options},
    )  # fmt: skip


def test_what_is_done_is_not_computed_again(place: Path) -> None:
    out, done = place / "out.h5", stopped_after(place, 24)
    with h5py.File(part_path(out), "r+") as file:
        file["class_norms"][5] = 123.0  # a mark; the sample that is compared is another one
        sign_again(file)
    outcome = go_on(place)
    assert outcome.continued == done
    with open_results(out) as results:
        assert (results.class_norms[5] == 123.0).all()
        assert results.done.all()
    assert {path.name for path in place.iterdir()} == {"out.h5", "model.pt", "x.npy"}


def test_options_that_change_no_number_may_differ(place: Path) -> None:
    done = stopped_after(place, 24)
    assert go_on(place, verify=3, memory="2GiB", device="cpu", tolerance=1e-3).continued == done


def change_model(place: Path) -> None:
    torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()).save(str(place / "model.pt"))


def scale_inputs(place: Path) -> None:
    np.save(place / "x.npy", 2 * np.load(place / "x.npy"))


DIFFERENT: dict[str, tuple[dict[str, object], Callable[[Path], None], str]] = {
    "option": ({"classes": "top:3"}, lambda place: None, "--classes was all, is top:3"),
    "several": ({"dtype": "float64", "batch_size": 5}, lambda place: None, "--dtype was.*--batch-size was 4"),
    "samples": ({"samples": "0:50"}, lambda place: None, "--samples was 0:60"),
    "save": ({"save": "none"}, lambda place: None, "--save was full, is none"),
    "model": ({}, change_model, "the content of MODEL"),
    "inputs": ({}, scale_inputs, "the content of INPUTS"),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_run_is_not_continued_and_what_differs_is_said(place: Path, name: str) -> None:
    options, change, message = DIFFERENT[name]
    out = place / "out.h5"
    stopped_after(place, 24)
    change(place)
    before = part_path(out).read_bytes()
    with pytest.raises(OutputError, match=message) as raised:
        go_on(place, **options)
    assert "jacli compute model.pt x.npy" in raised.value.why  # the command that began it
    assert part_path(out).read_bytes() == before
    assert go_on(place, **options, resume=False).continued == 0


def begun_with(place: Path, patch: pytest.MonkeyPatch, change: dict[str, str]) -> None:
    """An unfinished file that records another precision, or none: from before there was a choice."""
    own = RunConfig.to_dict

    def recorded(config: RunConfig) -> dict[str, object]:
        options = own(config)
        del options["precision"]
        return options | change

    with patch.context() as while_it_runs:
        while_it_runs.setattr(RunConfig, "to_dict", recorded)
        stopped_after(place, 24)


def test_precisions_are_not_mixed_in_a_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun_with(place, monkeypatch, {"precision": "bf16"})
    with pytest.raises(OutputError, match="--precision was bf16, is ieee"):
        go_on(place)


def test_a_file_from_before_there_were_precisions_is_continued(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun_with(place, monkeypatch, {})
    assert go_on(place).continued


@pytest.mark.parametrize("name", ["dtype", "precision"])
@pytest.mark.parametrize("value", ["float16", float("nan")], ids=str)
def test_what_the_file_says_of_its_numbers_is_what_this_run_knows(
    place: Path, name: str, value: object
) -> None:
    out = place / "out.h5"
    stopped_after(place, 56)
    journal_path(part_path(out)).unlink()  # or the last commit would be laid over the change
    with h5py.File(part_path(out), "r+") as file:
        said = file.attrs[name]
        file.attrs[name] = value
    go_on(place)
    with open_results(out) as results:
        assert results.attrs[name] == said


@pytest.mark.parametrize("name", ["dtype", "config"])
def test_a_change_that_the_last_commit_is_laid_over_is_no_defect(place: Path, name: str) -> None:
    """HDF5 refuses what the two make together, as late as where it writes."""
    stopped_after(place, 56)
    with h5py.File(part_path(place / "out.h5"), "r+") as file:
        file.attrs[name] = file.attrs[name]
    with pytest.raises(OutputError, match=r"out\.h5\.part cannot be continued"):
        go_on(place)


def test_rows_that_are_not_done_may_change(place: Path) -> None:
    """The file is then as a run over the inputs of today would have written it."""
    out, done = place / "out.h5", stopped_after(place, 24)
    x = np.load(place / "x.npy")
    x[done:] *= 2
    np.save(place / "x.npy", x)
    assert go_on(place).continued == done
    go_on(place, "whole.h5")
    assert_same_bytes(place / "whole.h5", out)


def test_labels_that_changed_are_noticed(place: Path) -> None:
    np.save(place / "labels.npy", np.zeros(300, np.int64))
    labels = {"classes": "label", "labels": str(place / "labels.npy")}
    stopped_after(place, 24, **labels)
    np.save(place / "labels.npy", np.ones(300, np.int64))
    with pytest.raises(OutputError, match="the labels"):
        go_on(place, **labels)


def test_a_finished_sample_that_is_not_right_stops_the_run(place: Path) -> None:
    out = place / "out.h5"
    stopped_after(place, 24)
    with h5py.File(part_path(out), "r+") as file:
        file["jacobian"][...] *= 1.01
        sign_again(file)
    with pytest.raises(OutputError, match="not what this run computes"):
        go_on(place)
    assert part_path(out).exists()


@pytest.mark.parametrize("options", [{}, {"compress": "gzip"}, {"save": "none"}], ids=str)
def test_a_byte_that_flipped_in_the_finished_part_stops_the_run(place: Path, options: dict[str, str]) -> None:
    """In every dataset, wherever in it: the first, a middle and the last finished byte."""
    out = place / "out.h5"
    done = stopped_after(place, 24, **options)
    whole = part_path(out).read_bytes()
    with h5py.File(part_path(out)) as file:
        places = {
            name: byte_ranges(file[name], done)
            for name in ("jacobian", "inputs", "outputs", "class_norms", "singular_values", "sample_index")
            if name in file
        }
    for name, ranges in places.items():
        for position in {ranges[0][0], sum(ranges[len(ranges) // 2]) // 2, ranges[-1][1] - 1}:
            damaged = bytearray(whole)
            damaged[position] ^= 0x40
            part_path(out).write_bytes(damaged)
            with pytest.raises(OutputError, match=f"was damaged after it was written.*\n.* of {name}"):
                go_on(place, **options)
    part_path(out).write_bytes(whole)
    assert go_on(place, **options).continued == done


def byte_ranges(dataset: h5py.Dataset, done: int) -> list[tuple[int, int]]:
    """First and one past the last byte in the file of the finished rows, or of every chunk."""
    if dataset.chunks is None:
        start, row = dataset.id.get_offset(), dataset.nbytes // len(dataset)
        return [(start, start + done * row)]
    chunks = [dataset.id.get_chunk_info(i) for i in range(dataset.id.get_num_chunks())]
    return [(chunk.byte_offset, chunk.byte_offset + chunk.size) for chunk in chunks]


def test_batches_are_recorded_across_an_interruption(place: Path) -> None:
    done = stopped_after(place, 24)
    with h5py.File(part_path(place / "out.h5")) as file:
        assert file["batch_start"][...].tolist() == list(range(0, done, 4))
    go_on(place)
    with open_results(place / "out.h5") as results:
        assert results.batch_start.tolist() == list(range(0, 60, 4))
        assert not list(damaged_batches(results.datasets, 60))


def test_samples_that_are_not_finite_are_told_of_both_parts(tmp_path: Path) -> None:
    module = torch.jit.script(Root().eval())
    module.save(str(tmp_path / "model.pt"))
    x = np.random.default_rng(0).uniform(1, 2, (60, 5)).astype(np.float32)
    x[[3, 50]] = 0.0
    np.save(tmp_path / "x.npy", x)
    stopped_after(tmp_path, 24)
    assert go_on(tmp_path).not_finite == (3, 50)


class Root(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sqrt()


def test_the_plan_is_taken_over_and_nothing_is_measured(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    automatic = {"method": "auto", "batch_size": None}
    out = place / "out.h5"
    stopped_after(place, 1, **automatic, memory=200_000)
    with open_results(part_path(out)) as results:
        plan = json.loads(str(results.attrs["plan"]))

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("jacli.choice.measure._Stopwatch.seconds", refuse)
    go_on(place, **automatic, memory=200_000)
    with open_results(out) as results:
        resumed = json.loads(str(results.attrs["plan"]))
    # So little memory may be exceeded by the process itself, and then the batches are halved.
    assert plan["batch_size"] % resumed["batch_size"] == 0
    sizes_alone = dict.fromkeys(("batch_size", "n_blocks", "passes"))
    assert resumed | sizes_alone == plan | sizes_alone


def test_overwrite_replaces_only_at_the_end(place: Path) -> None:
    go_on(place, samples="0:8")
    before = (place / "out.h5").read_bytes()
    done = stopped_after(place, 24, overwrite=True)
    assert (place / "out.h5").read_bytes() == before
    with pytest.raises(OutputError, match="exists already"):
        go_on(place)
    assert (place / "out.h5").read_bytes() == before
    assert go_on(place, overwrite=True).continued == done
    with open_results(place / "out.h5") as results:
        assert len(results) == 60


def test_a_foreign_part_is_left_alone(place: Path) -> None:
    part = part_path(place / "out.h5")
    part.write_bytes(b"somebody's own")
    with pytest.raises(OutputError, match="cannot be continued"):
        go_on(place)
    assert part.read_bytes() == b"somebody's own"
    assert {path.name for path in place.iterdir()} == {"out.h5.part", "model.pt", "x.npy"}


def test_a_second_process_stops_and_the_first_goes_on(place: Path) -> None:
    command = [sys.executable, "-m", "jacli", "compute", "model.pt", "random:3000x1x8x8", "-o", "out.h5",
               "--method", "loop", "--batch-size", "2"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True) as first:
        for _ in range(600):
            if (found := read_progress(place / "out.h5")) and found.done:
                break
            time.sleep(0.05)
        second = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
        still_running = first.poll() is None
        with h5py.File(place / "out.h5.part", "r") as reader:  # nor does a reader disturb it
            assert reader["done"].shape == (3000,)
            _, err = first.communicate(timeout=100)
    assert still_running
    assert second.returncode == 4
    assert f"process {first.pid} on" in second.stderr
    assert first.returncode == 0, err
    with open_results(place / "out.h5") as results:
        assert results.complete and results.done.all()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB, which `grow` enlarges."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place]
    if os.geteuid() or not sys.platform.startswith("linux") or subprocess.run(mount).returncode:
        pytest.skip("mounting a small disk needs root on Linux")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("compress", ["gzip", "none"])
def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_space(
    place: Path, small_disk: Path, compress: str
) -> None:
    options = {"samples": "0:300", "compress": compress, "save_dtype": "float64"}  # 1.5 MB of Jacobians
    go_on(place, "whole.h5", **options)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_200_000))
    if compress == "none":  # else it is known beforehand that it does not fit
        from jacli.commands import compute

        with pytest.MonkeyPatch.context() as patch, pytest.raises(OutputError, match="disk is full") as full:
            patch.setattr(compute, "check_room", lambda out, layout: None)
            patch.setattr("jacli.store.writer.check_room", lambda out, layout: None)
            go_on(place, "disk/out.h5", **options)
    else:
        with pytest.raises(OutputError, match="disk is full") as full:
            go_on(place, "disk/out.h5", **options)
    assert "kept in" in full.value.why
    filler.unlink()
    assert go_on(place, "disk/out.h5", **options).continued > 0
    assert_same_bytes(place / "whole.h5", small_disk / "out.h5")
    assert [path.name for path in small_disk.iterdir()] == ["out.h5"]


def test_shards_are_parts_of_the_run(place: Path) -> None:
    go_on(place, "whole.h5")
    for index in (1, 2, 3):
        go_on(place, shard=f"{index}/3")
    with open_results(place / "whole.h5") as whole:
        start = 0
        for index in (1, 2, 3):
            with open_results(place / f"out.{index:05d}-of-00003.h5") as part:
                assert part.attrs["shard"] == f"{index}/3"
                stop = start + len(part)
                np.testing.assert_array_equal(part.sample_index, whole.sample_index[start:stop])
                np.testing.assert_allclose(
                    part.jacobian[...], whole.jacobian[start:stop], rtol=1e-4, atol=1e-5
                )
                start = stop
        assert start == 60
    assert not (place / "out.h5").exists()


def test_what_lies_around_is_gone_afterwards(place: Path) -> None:
    out = place / "out.h5"
    go_on(place)
    for path in (part_path(out), lock_path(out), journal_path(part_path(out))):
        assert not path.exists()


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * x.flatten(1)[:, :4].tanh()


def test_another_argument_of_forward_is_another_run(place: Path) -> None:
    torch.jit.script(Scaled().eval()).save(str(place / "model.pt"))
    done = stopped_after(place, 24, arg={"scale": 2.0})
    with pytest.raises(OutputError, match="--arg was"):
        go_on(place, arg={"scale": 3.0})
    assert go_on(place, arg={"scale": 2.0}).continued == done


LOADS_ITS_WEIGHTS = """
import torch

def make():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    net.load_state_dict(torch.load({path!r}))
    return net
"""


def test_other_weights_of_a_callable_are_another_run(place: Path) -> None:
    weights = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict()
    torch.save(weights, place / "own.pt")
    (place / "net.py").write_text(LOADS_ITS_WEIGHTS.format(path=str(place / "own.pt")))
    model = f"{place / 'net.py'}:make"
    done = stopped_after(place, 24, model=model)
    call = (model, str(place / "x.npy"), str(place / "out.h5"))
    options = {"method": "loop", "batch_size": 4, "samples": "0:60"}
    torch.save({name: value * 1.001 for name, value in weights.items()}, place / "own.pt")
    with pytest.raises(OutputError, match="the weights that the architecture comes with"):
        jacli.compute(*call, **options)
    torch.save(weights, place / "own.pt")
    assert jacli.compute(*call, **options).continued == done


def test_starting_anew_removes_the_old_file_only_when_there_is_a_new_one(place: Path) -> None:
    stopped_after(place, 24)
    before = part_path(place / "out.h5").read_bytes()
    (place / "model.pt").rename(place / "kept.pt")
    with pytest.raises(ModelError):
        go_on(place, resume=False)
    assert part_path(place / "out.h5").read_bytes() == before
    (place / "kept.pt").rename(place / "model.pt")
    assert go_on(place, resume=False).continued == 0


@pytest.mark.parametrize("moment", ["before the rename", "after the link"])
def test_killed_while_the_file_gets_its_name(place: Path, moment: str) -> None:
    """Everything was computed: the same command finishes, or says that it is finished."""
    import jacli.store.writer as writer

    go_on(place, "whole.h5")

    def dies(part: Path, out: Path, *, overwrite: bool) -> None:
        if moment == "after the link":
            os.link(part, out)
        raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(writer, "publish", dies)
        go_on(place)
    if moment == "after the link":
        assert go_on(place).already_complete
    else:
        assert go_on(place).continued == 60
    assert_same_bytes(place / "whole.h5", place / "out.h5")
    assert {path.name for path in place.iterdir()} == {"out.h5", "whole.h5", "model.pt", "x.npy"}


def test_inputs_that_moved_are_told_where_they_are_now(place: Path) -> None:
    stopped_after(place, 24)
    (place / "x.npy").rename(place / "moved.npy")
    options = {"method": "loop", "batch_size": 4, "samples": "0:60"}
    jacli.compute(str(place / "model.pt"), str(place / "moved.npy"), str(place / "out.h5"), **options)
    with open_results(place / "out.h5") as results:
        assert str(results.attrs["inputs_path"]).endswith("moved.npy")
        assert json.loads(str(results.attrs["config"]))["inputs"].endswith("moved.npy")


def test_more_rows_are_said_to_be_more_rows(place: Path) -> None:
    whole = {"samples": None}
    x = np.load(place / "x.npy")
    np.save(place / "x.npy", x[:60])
    stopped_after(place, 24, **whole)
    np.save(place / "x.npy", x[:80])
    with pytest.raises(OutputError, match="the number of samples was 60, is 80"):
        go_on(place, **whole)


def test_values_that_overflow_do_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    large = nn.Linear(5, 3)
    with torch.no_grad():
        large.weight.mul_(1e6)
    torch.jit.script(nn.Sequential(large).eval()).save(str(tmp_path / "model.pt"))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((60, 5), np.float32))
    done = stopped_after(tmp_path, 24, save_dtype="float16")
    outcome = go_on(tmp_path, save_dtype="float16")
    assert outcome.continued == done
    assert outcome.overflowed > 0


def test_nobody_who_reads_the_progress_ends_the_run(place: Path) -> None:
    """As `jacli compute ... 2>&1 | head -1` does."""
    from jacli.commands.compute import run_compute
    from jacli.run.config_file import resolve_options

    def broken(done: int, total: int) -> None:
        raise BrokenPipeError

    options = {"method": "loop", "batch_size": 4, "samples": "0:60", "out": str(place / "out.h5")}
    config = resolve_options({"model": str(place / "model.pt"), "inputs": str(place / "x.npy"), **options})
    assert run_compute(config, command="test", progress=broken).samples == 60
