"""How far runs are, told from what lies beside them."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import h5py
import pytest

from jacli.cluster import shard_path, shard_rows
from jacli.commands.status import RunStatus, status
from jacli.errors import ResultsError, UsageError
from jacli.options.values import Shard
from jacli.run.run_files import FileStatus, RunCommand, commands_for, look_at, ranges_of, shown_shards
from jacli.store import ResultLayout, RunLock, part_path
from tests.run.shard_files import unfinished, write_shard, write_shards

COMMAND = ("jacli", "compute", "m.pt", "x.npy", "--shard", "2/3")


def states(run: RunStatus) -> list[str]:
    return [file.state for file in run.files]


def test_states_of_one_file(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    assert look_at(out).state == "missing"
    lock = RunLock(out)
    assert look_at(out).state == "waiting"  # it loads its model
    unfinished(out, "running", folder=tmp_path, done=0)
    assert look_at(out).state == "waiting"  # its first block
    unfinished(out, "running", folder=tmp_path, done=2, command=COMMAND)
    found = look_at(out)
    assert (found.state, found.done, found.samples) == ("running", 2, 4)
    assert found.rate and found.seconds_left == pytest.approx(2 / found.rate)
    assert "process" in found.where
    unfinished(out, "stopped", folder=tmp_path)
    assert look_at(out).state == "waiting"  # another process goes on with it
    lock.release()
    assert look_at(out).state == "stopped"
    unfinished(out, "running", folder=tmp_path)
    found = look_at(out)
    assert (found.state, found.rate, found.where) == ("killed", None, "")
    unfinished(out, "failed", folder=tmp_path, reason="The disk is full.")
    assert (look_at(out).state, look_at(out).reason) == ("failed", "The disk is full.")


def test_a_part_of_which_nothing_is_told_was_killed(tmp_path: Path) -> None:
    part_path(tmp_path / "out.h5").touch()
    assert look_at(tmp_path / "out.h5").state == "killed"


def test_finished_files(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "out.h5", Shard(1, 1))
    assert look_at(path) == FileStatus(path, None, "complete", 10, 10)
    path.write_text("no longer")
    assert look_at(path).state == "failed" and "cannot be read" in look_at(path).reason


def test_an_unfinished_file_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.h5"
    for index, state in enumerate(("running", "stopped", "failed"), start=1):
        unfinished(shard_path(out, Shard(index, 3)), state, folder=tmp_path, command=COMMAND)

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr(h5py, "File", refuse)
    monkeypatch.setattr("jacli.store.shard_file.open_guarded", refuse)
    assert states(status([out])[0]) == ["killed", "stopped", "failed"]


def test_shards_by_the_name_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("out.h5")
    write_shard(out, Shard(1, 4))
    unfinished(shard_path(out, Shard(2, 4)), "stopped", folder=tmp_path / "b c", done=2, command=COMMAND)
    lock = RunLock(shard_path(out, Shard(3, 4)))
    unfinished(
        shard_path(out, Shard(3, 4)), "running", folder=tmp_path, done=2, samples=3, started=time.time() - 4
    )
    [run] = status([out])
    lock.release()
    assert states(run) == ["complete", "stopped", "running", "missing"]
    assert (run.done, run.samples, run.samples_are_known) == (6, 12, False)
    assert run.rate == pytest.approx(0.5, rel=0.2)
    assert run.seconds_left == pytest.approx((12 - 6) / 0.5, rel=0.2)
    assert run.next == (
        f"cd '{tmp_path / 'b c'}' && for i in 2 4; do jacli compute m.pt x.npy --shard $i/4; done",
    )
    json.dumps(run.to_dict())


def test_time_left_is_that_of_the_slowest_where_all_run(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    write_shard(out, Shard(1, 3))
    locks = []
    for index, done in ((2, 1), (3, 3)):
        path = shard_path(out, Shard(index, 3))
        locks.append(RunLock(path))
        unfinished(path, "running", folder=tmp_path, done=done, started=time.time() - 6)
    [run] = status([out])
    for lock in locks:
        lock.release()
    assert run.seconds_left == pytest.approx(3 * 6, rel=0.2)
    assert run.next == ()


def test_what_to_run_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(Path("out.h5"), 2)
    assert status(["out.h5"])[0].next == ("jacli merge out.h5",)
    Path("out.00002-of-00002.h5").rename("out.h5")
    assert [file.path.name for file in status(["out.h5"])[0].files] == ["out.h5"]
    assert status(["out.h5"])[0].next == ()


def test_some_shards_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard(Path("out.h5"), Shard(1, 3))
    [run] = status(["out.00002-of-00003.h5.part", "out.00001-of-00003.h5"])
    assert states(run) == ["missing", "complete"]
    assert run.next == ("jacli compute m.pt x.npy -o out.h5 --shard 2/3",)


def test_several_runs_and_several_counts(tmp_path: Path) -> None:
    for name, count in (("a.h5", 2), ("b.h5", 1), ("b.h5", 3)):
        write_shards(tmp_path / name, count)
    runs = status([tmp_path / "a.h5", tmp_path / "b.h5"])
    assert [(run.out.name, len(run.files)) for run in runs] == [("a.h5", 2), ("b.h5", 1), ("b.h5", 3)]


@pytest.mark.parametrize("samples", [100, 109, 199])
@pytest.mark.parametrize("options", [{}, {"samples": "::-1"}], ids=["all", "chosen"])
def test_of_many_shards_one_is_opened(
    tmp_path: Path, samples: int, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, layout = tmp_path / "out.h5", ResultLayout(1, (2,), (3,), batch_size=4)
    for index in range(1, 71):
        write_shard(out, Shard(index, 70), samples=samples, layout=layout, options=options)

    def refuse(path: Path) -> None:
        raise AssertionError(f"opened {path}")

    monkeypatch.setattr("jacli.run.run_files.count_samples", refuse)
    [run] = status([out])
    assert run.next and states(run) == ["complete"] * 70
    exact = not options
    assert run.samples_are_known == exact
    if exact:
        assert [file.samples for file in run.files] == [
            len(shard_rows(Shard(index, 70), samples)) for index in range(1, 71)
        ]
        assert (run.done, run.samples) == (samples, samples)
    for index in (69, 70):
        shard_path(out, Shard(index, 70)).unlink()
    [run] = status([out])
    assert run.samples is not None and run.samples == pytest.approx(samples, abs=70)
    assert states(run)[-2:] == ["missing"] * 2
    shard_path(out, Shard(68, 70)).write_text("damaged")
    assert states(status([out])[0])[66:68] == ["complete", "failed"]


@pytest.mark.parametrize("name", ["out.h5", "out.h5.part", "out.00001-of-00002.h5", "no/out.h5"])
def test_nothing_of_that_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ResultsError, match="Nothing is named") as raised:
        status([tmp_path / name])
    assert raised.value.exit_code == 4


def test_no_file_is_usage() -> None:
    with pytest.raises(UsageError):
        status([])


def test_from_python_there_is_no_command_to_type(tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    unfinished(out, "stopped", folder=tmp_path)
    [run] = status([out])
    assert run.next == () and "jacli.compute" in run.notes[0]
    out = tmp_path / "shards.h5"
    write_shard(out, Shard(1, 2), command="jacli.compute(...)")
    first = shard_path(out, Shard(1, 2))
    assert status([out])[0].next == (f"jacli compute --config {first} -o {out} --shard 2/2",)


def test_where_a_finished_shard_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its relative -o tells; an absolute one tells nothing, and then the options are taken from the file."""
    (tmp_path / "results").mkdir()
    out = tmp_path / "results" / "out.h5"
    write_shard(out, Shard(1, 2), options={"out": "results/out.h5"})
    [line] = status([out])[0].next
    assert line.startswith(f"cd {tmp_path} && jacli compute m.pt x.npy")
    monkeypatch.chdir(tmp_path)
    assert status([out])[0].next[0].startswith("jacli compute m.pt x.npy")
    shard_path(out, Shard(1, 2)).unlink()
    write_shard(out, Shard(1, 2), options={"out": str(out)})
    assert status([out])[0].next[0].startswith("jacli compute --config ")


@pytest.mark.parametrize(
    "words", [(), ("--shard", "auto"), ("--shard=1/12",), ("--quiet", "--shard", "5/12", "--json")]
)
def test_commands_are_what_a_shell_runs(tmp_path: Path, words: tuple[str, ...]) -> None:
    folder = tmp_path / "it's here"
    folder.mkdir()
    command = RunCommand(("jacli", "compute", "a b.pt", "$x.npy", *words), str(folder))
    files = [FileStatus(Path("x"), Shard(i, 12), "missing") for i in (1, 2, 3, 7, 11, 12)]
    [line] = commands_for(files, command)
    script = f'jacli() {{ printf "%s|" "$PWD" "$@"; echo; }}\n{line}'
    ran = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    rest = [word for word in words if word in ("--quiet", "--json")]
    expected = [
        "|".join([str(folder), "compute", "a b.pt", "$x.npy", *rest, "--shard", f"{i}/12", ""])
        for i in (1, 2, 3, 7, 11, 12)
    ]
    assert ran.stdout.splitlines() == expected


def test_commands_are_for_those_that_nobody_works_on() -> None:
    command = RunCommand(("jacli", "compute", "m", "x"))
    files = [
        FileStatus(Path("x"), Shard(i, 6), state)
        for i, state in enumerate(("complete", "running", "waiting", "stopped", "killed", "failed"), start=1)
    ]
    assert commands_for(files, command) == ["for i in {4..6}; do jacli compute m x --shard $i/6; done"]
    assert commands_for([FileStatus(Path("x"), None, "stopped", command=command)], None) == [str(command)]


def test_ranges() -> None:
    assert ranges_of([9, 3, 7, 8]) == [(3, 3), (7, 9)]
    assert ranges_of([]) == []
    assert shown_shards([2]) == "shard 2"
    assert shown_shards([1, 2, 3, 5]) == "shards 1-3, 5"
    assert shown_shards(range(1, 99, 2)).endswith("37, 39, ...")
