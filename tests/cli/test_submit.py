"""`jacli submit`: what it prints, what it hands to Slurm's programs, and what it leaves out."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from jacli.cli import app
from jacli.cluster import shard_path
from jacli.cluster.slurm import NOT_OF_TASKS
from jacli.options.table import OPTIONS
from jacli.options.values import Shard
from jacli.store import RunLock

MOCKS = {
    "sbatch": """\
echo "sbatch $*" >> calls
[ -e refuse ] && [[ "$*" == *"$(cat refuse)"* ]] && { echo "sbatch: error: no such luck" >&2; exit 1; }
number=$(( $(cat number 2>/dev/null || echo 100) + 1 ))
echo $number > number
echo "$number;a-cluster"
""",
    "squeue": '[ -e queue ] && cat queue && exit\necho "slurm_load_jobs error: $(cat why)" >&2\nexit 1\n',
    "scancel": 'echo "scancel $*" >> calls\n',
}


@dataclass(frozen=True)
class Place:
    """A folder with a model, inputs, and Slurm's programs, which only write down how they were called."""

    folder: Path
    jacli: Callable[..., Any]

    def submit(self, *arguments: str) -> dict[str, Any]:
        ran = self.jacli("submit", "model.pt", "inputs.npy", "--json", *arguments)
        assert ran.code == 0, ran.err
        told: dict[str, Any] = json.loads(ran.out)
        return told

    def calls(self) -> list[str]:
        """Since the last time, paths without the folder."""
        path = self.folder / "calls"
        lines = path.read_text().replace(f"{self.folder}/", "").splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def queue(self, *tasks: str) -> None:
        (self.folder / "queue").write_text("".join(f"{task}\n" for task in tasks))

    def shard(self, index: int, count: int = 4) -> Path:
        return shard_path(self.folder / "out.h5", Shard(index, count))


@pytest.fixture
def place(jacli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    programs, folder = tmp_path / "bin", tmp_path / "here"
    for path in (programs, folder):
        path.mkdir()
    for name, text in MOCKS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    (folder / "model.pt").write_bytes(b"only its name counts here")
    np.save(folder / "inputs.npy", np.zeros((8, 3, 5, 4), np.float32))
    (folder / "why").write_text("Invalid job id specified")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(folder)
    return Place(folder, jacli)


@pytest.fixture
def no_slurm(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("PATH", "/nowhere")
    return place


def files(place: Place) -> set[str]:
    return {path.name for path in place.folder.iterdir()}


def computed(script: str) -> list[str]:
    """The arguments of `jacli compute` in a script."""
    (line,) = re.findall(r"^.* -m jacli compute (.*) --shard \"\$SLURM_ARRAY_TASK_ID/\d+\" &$", script, re.M)
    return shlex.split(line)


# What is printed


def test_print_shows_the_scripts_without_slurm_and_writes_nothing(no_slurm: Place) -> None:
    before = files(no_slurm)
    ran = no_slurm.jacli("submit", "model.pt", "inputs.npy", "--shards", "4", "--print")
    assert (ran.code, ran.err) == (0, "")
    array, merge = ran.out.split("\n\n#!/bin/bash\n")
    assert array.startswith("#!/bin/bash\n#SBATCH --job-name=jacli-out\n#SBATCH --array=1-4\n")
    assert f"\ncd -- {no_slurm.folder} || exit 4\n" in array
    assert f"\n{sys.executable} -P -m jacli compute model.pt inputs.npy " in array
    assert f"-m jacli merge {no_slurm.folder}/out.{{00001..00004}}-of-00004.h5 --out" in merge
    assert files(no_slurm) == before


SAMPLE_VALUES: dict[str, Any] = {
    "arch": "net.py:make",
    "arch_arg": ["width=6", "name=a b"],
    "weights_key": "state.dict",
    "strip_prefix": "module.",
    "ema": False,
    "ignore_extra_weights": True,
    "arg": ["sr=16000", "text=it's $HOME"],
    "constant": ["edges=edges.npy"],
    "input_arg": "x",
    "select": "1.0",
    "allow_pickle": True,
    "inputs_key": "/a/b",
    "samples": "-4:",
    "classes": "label",
    "of": "probs",
    "labels": "labels.npy",
    "method": "factored",
    "dtype": "float64",
    "precision": "bf16",
    "device": "cuda:0",
    "batch_size": "8",
    "chunk_size": "auto",
    "memory": "4GiB",
    "save": "full",
    "save_dtype": "float16",
    "compress": "gzip",
    "save_inputs": False,
    "singular_values": "3",
    "verify": "2",
    "tolerance": "1e-3",
    "overwrite": True,
    "seed": "3",
    "log_every": "5",
    "debug": True,
    "config": "run.toml",
}


def test_every_option_of_the_run_reaches_the_tasks_as_it_was_given(no_slurm: Place) -> None:
    assert set(SAMPLE_VALUES) == {*OPTIONS, "config"} - {
        "model",
        "inputs",
        "out",
        "quiet",
        "json",
        *NOT_OF_TASKS,
    }
    (no_slurm.folder / "run.toml").write_text("seed = 1\n")
    given: list[str] = []
    for name, value in SAMPLE_VALUES.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            given += [f"--{flag}={one}" for one in (value if isinstance(value, list) else [value])]
    # The inputs are a plain array, which --inputs-key would have refused.
    given.remove("--inputs-key=/a/b")
    ran = no_slurm.jacli("submit", "./-m.pt:x", "inputs.npy", *given, "--quiet", "--shards", "2", "--print")
    assert ran.code == 0, ran.err
    arguments = computed(ran.out)
    parsed = get_command(app).commands["compute"].make_context("compute", list(arguments)).params
    wanted = SAMPLE_VALUES | {"model": "./-m.pt:x", "inputs": "inputs.npy", "inputs_key": None}
    wanted["out"] = str(no_slurm.folder / "out.h5")
    assert {name: value for name, value in parsed.items() if value} == {k: v for k, v in wanted.items() if v}
    assert (parsed["ema"], parsed["save_inputs"]) == (False, False)


def test_files_that_look_like_options_are_files(no_slurm: Place) -> None:
    (no_slurm.folder / "-m.pt").touch()
    ran = no_slurm.jacli("submit", "--shards", "2", "--print", "--", "-m.pt", "inputs.npy")
    assert computed(ran.out)[:2] == ["./-m.pt", "inputs.npy"]


def test_the_folder_is_called_as_the_shell_calls_it(
    no_slurm: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An automounter's real folder may be there on this machine only."""
    (tmp_path / "link").symlink_to(no_slurm.folder)
    monkeypatch.setenv("PWD", str(tmp_path / "link"))
    script = no_slurm.jacli("submit", "model.pt", "inputs.npy", "--shards", "2", "--print").out
    assert f"cd -- {tmp_path}/link || exit 4\n" in script
    assert f"--out {tmp_path}/link/out.h5 " in script
    monkeypatch.setenv("PWD", str(tmp_path))  # as after a chdir that no shell made
    script = no_slurm.jacli("submit", "model.pt", "inputs.npy", "--shards", "2", "--print").out
    assert f"cd -- {no_slurm.folder} || exit 4\n" in script


# What is refused


def test_all_bad_options_are_told_at_once_and_nothing_is_submitted(place: Place) -> None:
    bad = {
        "--method": "lop",
        "--batch-size": "0",
        "--shards": "0",
        "--gpus": "2",
        "--cpus": "x",
        "--mem": "much",
        "--time": "soon",
        "--array-limit": "0",
        "--notice": "0",
        "--sbatch": "array=1-3",
    }
    before = files(place)
    ran = place.jacli("submit", "model.pt", "inputs.npy", *(word for pair in bad.items() for word in pair))
    assert ran.code == 2
    assert "10 options are wrong" in ran.err and "jacli submit --help" in ran.err
    for flag, value in bad.items():
        assert f"{flag} {value} is wrong" in ran.err
    assert files(place) == before


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, "--shards is not given"),
        (["--shards", "9"], 2, "The inputs have 8 samples"),
        (["--shards", "3", "--samples", "0:2"], 2, "The inputs have 2 samples"),
        (["--shards", "100000"], 2, "a whole number from 1 to 99999"),
        (["--shards", "2", "--time", "2"], 2, "120 s before its end"),
        (["--shards", "2", "--time", "0:30", "--notice", "30"], 2, "30 s before its end"),
        (["--shards", "2", "--sbatch", "output=x"], 2, "jacli submit sets itself"),
        (["--shards", "2", "--sbatch", "--partition=x"], 2, "Write --sbatch KEY=VALUE"),
        (["--shards", "2", "--sbatch", "qos="], 2, "KEY=VALUE"),
        (["--shards", "2", "--shard", "1/2"], 2, "There is no option"),
        (["--shards", "2", "--dry-run"], 2, "There is no option"),
        (["--shards", "2", "--config", "dry.toml"], 2, "--config sets dry_run"),
        (["--shards", "2", "-o", "nowhere/out.h5"], 4, "There is no folder"),
        (["--shards", "2", "-o", "a\nb.h5"], 2, "cannot be part of a batch script"),
        (["--shards", "2", "-o", "a\\b.h5"], 2, "cannot hold the logs"),
        (["--shards", "2", "--job-name", "a\nb"], 2, "cannot be part of a batch script"),
        (["--shards", "2", "--sbatch", "comment=a\nb"], 2, "cannot be part of a batch script"),
        (["--shards", "2", "-o", "inputs.npy"], 2, "both read and written"),
    ],
)
def test_what_cannot_be_submitted_is_refused(
    place: Place, arguments: list[str], code: int, told: str
) -> None:
    (place.folder / "dry.toml").write_text("dry_run = true\n")
    before = files(place)
    ran = place.jacli("submit", "model.pt", "inputs.npy", *arguments)
    assert ran.code == code
    assert told in ran.err
    assert files(place) == before


@pytest.mark.parametrize(("model", "inputs", "code"), [("no.pt", "inputs.npy", 3), ("model.pt", "no.npy", 4)])
def test_what_every_task_would_fail_at_is_told_before(
    place: Place, model: str, inputs: str, code: int
) -> None:
    ran = place.jacli("submit", model, inputs, "--shards", "2")
    assert ran.code == code and ": " in ran.err
    assert place.calls() == []


def test_without_sbatch_there_is_print(no_slurm: Place) -> None:
    before = files(no_slurm)
    ran = no_slurm.jacli("submit", "model.pt", "inputs.npy", "--shards", "2")
    assert ran.code == 2
    assert "no sbatch" in ran.err and "--print" in ran.err
    assert files(no_slurm) == before


@pytest.mark.parametrize(
    ("time", "wanted"),
    [
        ("90", "90"),
        ("4:00:00", "4:00:00"),
        ("1-12", "1-12"),
        ("2-12:30:00", "2-12:30:00"),
        ("3:00", "3:00"),
    ],
)
def test_times_are_those_of_slurm(no_slurm: Place, time: str, wanted: str) -> None:
    ran = no_slurm.jacli("submit", "model.pt", "inputs.npy", "--shards", "2", "--time", time, "--print")
    assert ran.out.count(f"#SBATCH --time={wanted}\n") == 2


# What is submitted


def test_the_array_is_submitted_and_a_merge_behind_it(place: Place) -> None:
    told = place.submit("--shards", "4")
    assert place.calls() == [
        "sbatch --parsable out.h5.slurm/array.sh",
        "sbatch --parsable --dependency=afterany:101 out.h5.slurm/merge.sh",
    ]
    assert (told["array_job"], told["merge_job"], told["submitted"]) == ("101", "102", [1, 2, 3, 4])
    shown = place.jacli("submit", "model.pt", "inputs.npy", "--shards", "4", "--print").out
    logs = place.folder / "out.h5.slurm"
    assert (logs / "array.sh").read_text() + "\n" + (logs / "merge.sh").read_text() == shown


def test_what_was_done_is_told_in_words(place: Place) -> None:
    ran = place.jacli("submit", "model.pt", "inputs.npy", "--shards", "4")
    assert (ran.code, ran.out) == (0, "")
    assert "submitted job 101: shards 1-4 of 4" in ran.err
    assert f"submitted job 102: merges them into {place.folder}/out.h5" in ran.err
    assert f"once a task has begun: jacli status {place.folder}/out.h5" in ran.err
    assert place.jacli("submit", "model.pt", "inputs.npy", "--shards", "4", "--quiet").err == ""


def test_a_second_call_submits_only_what_is_missing(place: Place) -> None:
    place.submit("--shards", "6")
    place.calls()
    place.queue("101_2", "101_3", "102")
    for index in (1, 2):  # the second has just ended and is still in the queue
        place.shard(index, 6).touch()
    lock = RunLock(place.shard(4, 6))
    try:
        told = place.submit("--shards", "6")
    finally:
        lock.release()
    assert told["submitted"] == [5, 6]
    assert (told["complete"], told["queued"], told["written"]) == ([1, 2], [3], [4])
    assert place.calls() == [
        "sbatch --parsable out.h5.slurm/array.sh",
        "scancel 102",
        "sbatch --parsable --dependency=afterany:101:103 out.h5.slurm/merge.sh",
    ]
    assert "#SBATCH --array=5-6\n" in (place.folder / "out.h5.slurm/array.sh").read_text()
    # The third knows of both arrays.
    place.queue("101_3", "103_5", "103_6", "104")
    assert place.submit("--shards", "6")["submitted"] == [4]
    assert place.calls()[-1] == "sbatch --parsable --dependency=afterany:101:103:105 out.h5.slurm/merge.sh"


def test_who_is_left_out_is_said(place: Place) -> None:
    place.submit("--shards", "4")
    place.queue("101_3")
    place.shard(1).touch()
    lock = RunLock(place.shard(4))
    try:
        told = place.jacli("submit", "model.pt", "inputs.npy", "--shards", "4").err
    finally:
        lock.release()
    assert "complete: shard 1\n" in told
    assert "in the queue already: shard 3\n" in told
    assert f"being written: shard 4, by process {os.getpid()} on " in told
    assert "submitted job 103: shard 2 of 4\n" in told


def test_jobs_that_slurm_has_forgotten_have_ended(place: Place) -> None:
    place.submit("--shards", "2")
    assert place.submit("--shards", "2")["submitted"] == [1, 2]


def test_a_queue_that_does_not_answer_is_no_empty_queue(place: Place) -> None:
    place.submit("--shards", "2")
    place.calls()
    (place.folder / "why").write_text("Unable to contact slurm controller")
    ran = place.jacli("submit", "model.pt", "inputs.npy", "--shards", "2")
    assert ran.code == 2
    assert "Unable to contact slurm controller" in ran.err
    assert place.calls() == []


def test_print_says_where_the_queue_cannot_be_asked(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.submit("--shards", "2")
    monkeypatch.setenv("PATH", "/nowhere")
    ran = place.jacli("submit", "model.pt", "inputs.npy", "--shards", "2", "--print")
    assert "squeue is not here" in ran.err
    assert "#SBATCH --array=1-2\n" in ran.out


def test_only_the_merge_is_left_where_every_shard_is_complete(place: Place) -> None:
    for index in (1, 2, 3, 4):
        place.shard(index).touch()
    told = place.submit("--shards", "4")
    assert (told["array_job"], told["merge_job"]) == (None, "101")
    assert place.calls() == ["sbatch --parsable out.h5.slurm/merge.sh"]


def test_nothing_is_left_where_all_is_in_the_queue(place: Place) -> None:
    place.submit("--shards", "2")
    place.calls()
    place.queue("101_1", "101_2", "102")
    ran = place.jacli("submit", "model.pt", "inputs.npy", "--shards", "2")
    assert "in the queue already: shards 1-2" in ran.err and "nothing was submitted" in ran.err
    assert place.calls() == []
    place.queue("101_1", "101_2")  # somebody cancelled the merge
    place.submit("--shards", "2")
    assert place.calls() == ["sbatch --parsable --dependency=afterany:101 out.h5.slurm/merge.sh"]


def test_nothing_is_left_where_the_result_is_there(place: Place) -> None:
    (place.folder / "out.h5").touch()
    ran = place.jacli("submit", "model.pt", "inputs.npy", "--shards", "2")
    assert ran.code == 0
    assert "out.h5 is there already" in ran.err and "nothing was submitted" in ran.err
    assert place.calls() == []


def test_overwrite_computes_every_shard_again(place: Place) -> None:
    (place.folder / "out.h5").touch()
    place.shard(1, 2).touch()
    assert place.submit("--shards", "2", "--overwrite")["submitted"] == [1, 2]
    logs = place.folder / "out.h5.slurm"
    assert "--overwrite" in computed((logs / "array.sh").read_text())
    assert (logs / "merge.sh").read_text().endswith("--overwrite\n")


def test_another_number_of_shards_waits_for_the_first(place: Place) -> None:
    place.submit("--shards", "2")
    place.queue("101_1")
    ran = place.jacli("submit", "model.pt", "inputs.npy", "--shards", "4")
    assert ran.code == 2
    assert "in the queue with 2 shards" in ran.err and "scancel 101" in ran.err
    place.queue()
    place.shard(1, 2).touch()
    told = place.submit("--shards", "4")
    assert told["submitted"] == [1, 2, 3, 4]
    assert told["notes"] == ["there are also files of 2 shards, which are left alone"]


def test_other_options_for_the_rest_are_noticed(place: Place) -> None:
    place.submit("--shards", "2")
    place.shard(1, 2).touch()
    (note,) = place.submit("--shards", "2", "--dtype", "float64")["notes"]
    assert "only shards of the same run can be merged" in note
    assert f"jacli compute model.pt inputs.npy --out {place.folder}/out.h5" in note


def test_an_array_is_remembered_when_its_merge_is_refused(place: Place) -> None:
    (place.folder / "refuse").write_text("merge.sh")
    ran = place.jacli("submit", "model.pt", "inputs.npy", "--shards", "2")
    assert ran.code == 2 and "no such luck" in ran.err
    (place.folder / "refuse").unlink()
    place.queue("101_1", "101_2")
    place.calls()
    assert place.submit("--shards", "2")["queued"] == [1, 2]
    assert place.calls() == ["sbatch --parsable --dependency=afterany:101 out.h5.slurm/merge.sh"]


def test_a_refused_array_says_what_slurm_says(place: Place) -> None:
    (place.folder / "refuse").write_text("array.sh")
    ran = place.jacli("submit", "model.pt", "inputs.npy", "--shards", "2")
    assert ran.code == 2
    assert "sbatch: error: no such luck" in ran.err
    assert len(place.calls()) == 1
