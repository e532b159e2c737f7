"""The thread that writes: in order, one block at a time, and its errors are the run's."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import jacli
from jacli.choice.memory_limit import MemoryLimit
from jacli.errors import OutputError
from jacli.run.pipeline import Pipeline, WrittenBatch
from jacli.store import ResultWriter, WriteCancelled, open_results
from tests.store.layouts import IMAGES, random_batch

CPU = torch.device("cpu")


class Writer:
    """Notes what is asked of it; each block takes a while."""

    def __init__(
        self, *, seconds: float = 0.0, fails_at: int | None = None, commit_takes: float = 0.0
    ) -> None:
        self.seconds, self.fails_at, self.commit_takes = seconds, fails_at, commit_takes
        self.written = self.committed = 0
        self.starts: list[int] = []
        self.commits: list[int] = []
        self.threads: set[str] = set()
        self.attributes: dict[str, object] = {}
        self._ended = 0.0

    def set_attributes(self, attributes: Mapping[str, object]) -> None:
        self.attributes |= attributes

    def write_batch(self, start: int, arrays: Mapping[str, object], *, inputs_sha256: str, given_up) -> None:
        self.threads.add(threading.current_thread().name)
        began = time.monotonic()
        while time.monotonic() - began < self.seconds:
            if given_up():
                raise WriteCancelled
            time.sleep(0.001)
        if start == self.fails_at:
            raise OutputError("The disk is full.")
        self.starts.append(start)
        self.written = start + 1

    def commit(self) -> None:
        time.sleep(self.commit_takes)
        self.commits.append(self.written)
        self.committed, self._ended = self.written, time.monotonic()

    @property
    def seconds_to_commit(self) -> float | None:
        if self.written == self.committed:
            return None
        return max(0.0, 10 * self.commit_takes - (time.monotonic() - self._ended))


def block(start: int) -> WrittenBatch:
    return WrittenBatch(start, {}, "")


def ignore(written: int, committed: int) -> None:
    """Nobody wants to know."""


def test_blocks_are_written_in_order_by_one_thread_and_all_of_them_for_good() -> None:
    writer, told = Writer(seconds=0.002), []
    with Pipeline(
        writer, CPU, written=lambda written, committed: told.append((written, committed))
    ) as pipeline:
        for start in range(20):
            pipeline.put(block(start))
        pipeline.finish()
    assert writer.starts == list(range(20))
    assert writer.threads == {"writer"}
    assert writer.committed == 20
    assert told[-1] == (20, 20)


def test_the_next_block_waits_for_the_one_before() -> None:
    writer = Writer(seconds=0.1)
    with Pipeline(writer, CPU, written=ignore) as pipeline:
        began = time.monotonic()
        pipeline.put(block(0))
        assert time.monotonic() - began < 0.08  # one is taken at once
        pipeline.put(block(1))
        assert writer.starts == [0]
        pipeline.put(block(2), wait=True)
        assert writer.starts == [0, 1, 2]
        pipeline.finish()


def test_commits_take_little_of_the_time_and_none_is_forgotten() -> None:
    writer = Writer(commit_takes=0.02)
    with Pipeline(writer, CPU, written=ignore) as pipeline:
        for start in range(100):
            pipeline.put(block(start))
            time.sleep(0.004)  # 0.4 s in all
        assert len(writer.commits) <= 4
        time.sleep(0.5)
        assert writer.committed == 100  # without another block
        for start in range(100, 110):
            pipeline.put(block(start))  # those that come during a commit are not lost
            time.sleep(0.03)
        pipeline.finish()
    assert writer.starts == list(range(110))
    assert writer.committed == 110


def test_an_error_of_the_writer_is_the_runs() -> None:
    writer = Writer(fails_at=3)
    with pytest.raises(OutputError, match="disk is full"), Pipeline(writer, CPU, written=ignore) as pipeline:
        for start in range(20):
            pipeline.put(block(start))
            time.sleep(0.001)
        pipeline.finish()
    assert writer.starts == [0, 1, 2]


def test_an_error_of_the_last_block_is_not_overlooked() -> None:
    with (
        pytest.raises(OutputError, match="disk is full"),
        Pipeline(Writer(fails_at=0), CPU, written=ignore) as pipeline,
    ):
        pipeline.put(block(0))
        pipeline.finish()


def test_a_block_that_is_lost_on_the_way_is_noticed() -> None:
    with (
        pytest.raises(RuntimeError, match="sample 2 came after 1"),
        Pipeline(Writer(), CPU, written=ignore) as pipeline,
    ):
        pipeline.put(block(0))
        pipeline.put(block(2))
        pipeline.finish()


def test_stopped_it_finishes_the_block_being_written() -> None:
    writer = Writer(seconds=0.05)
    with pytest.raises(KeyboardInterrupt), Pipeline(writer, CPU, written=ignore) as pipeline:
        pipeline.put(block(0))
        raise KeyboardInterrupt
    assert (writer.starts, writer.committed) == ([0], 1)


class Signalled(BaseException):
    """What a signal handler raises in the main thread."""


@pytest.mark.parametrize("where", ["block", "commit"])
def test_a_signal_while_the_last_block_is_waited_for_lets_the_thread_end_first(where: str) -> None:
    """It lands in the main thread, which waits; nobody may touch the file before the thread is done."""
    writer = Writer(seconds=0.4) if where == "block" else Writer(commit_takes=0.4)

    def stop(number: int, frame: object) -> None:
        raise Signalled

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(Signalled), Pipeline(writer, CPU, written=ignore) as pipeline:
            pipeline.put(block(0))
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            pipeline.finish()
        assert not any(thread.name == "writer" and not writer.commits for thread in threading.enumerate())
        assert (writer.starts, writer.committed) == ([0], 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_commit_that_is_refused_ends_the_run() -> None:
    def taken_over() -> None:
        raise OutputError("out.h5 is now being written by another process.")

    writer = Writer()
    pipeline = Pipeline(writer, CPU, before_commit=taken_over, written=ignore)
    with pytest.raises(OutputError, match="is now being written by another process"), pipeline:
        pipeline.put(block(0))
        pipeline.finish()
    assert writer.committed == 0


def test_stopped_it_gives_up_a_block_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jacli.run.pipeline.PATIENCE", 0.05)
    writer = Writer(seconds=60)
    with pytest.raises(KeyboardInterrupt), Pipeline(writer, CPU, written=ignore) as pipeline:
        pipeline.put(block(0))
        raise KeyboardInterrupt
    assert writer.starts == []


def test_torch_uses_as_many_cores_as_before() -> None:
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: list[int] = []
    with Pipeline(
        Writer(), CPU, written=lambda written, committed: seen.append(torch.get_num_threads())
    ) as pipeline:
        pipeline.put(block(0))
        assert torch.get_num_threads() == 2
        torch.ones(500, 500) @ torch.ones(500, 500)
        pipeline.finish()
    found = torch.get_num_threads()
    torch.set_num_threads(usual)
    assert set(seen) == {1}
    assert found == 2


def test_into_a_real_file(tmp_path: Path) -> None:
    with ResultWriter.create(tmp_path / "out.h5", IMAGES, {}, overwrite=False) as writer:
        with Pipeline(writer, CPU, written=ignore) as pipeline:
            for start in range(0, 10, 4):
                arrays = random_batch(IMAGES, start, min(10, start + 4))
                pipeline.put(WrittenBatch(start, arrays, "", {"plan": {"start": start}}))
            pipeline.finish()
        writer.finish()
    with open_results(tmp_path / "out.h5") as results:
        assert results.attrs["plan"] == '{"start": 8}'
        np.testing.assert_array_equal(results.jacobian[4:8], random_batch(IMAGES, 4, 8)["jacobian"])


@pytest.mark.parametrize("both_fit", [True, False])
def test_the_next_block_is_computed_meanwhile_only_where_both_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both_fit: bool
) -> None:
    asked: list[tuple[int, int]] = []
    waits: list[bool] = []
    put = Pipeline.put

    def holds(self: MemoryLimit, held: int, waiting: int) -> bool:
        asked.append((held, waiting))
        return both_fit

    def noting(self: Pipeline, block: WrittenBatch, *, wait: bool = False) -> None:
        waits.append(wait)
        put(self, block, wait=wait)

    monkeypatch.setattr(MemoryLimit, "holds", holds)
    monkeypatch.setattr(Pipeline, "put", noting)
    torch.jit.script(torch.nn.Sequential(torch.nn.Linear(6, 3)).eval()).save(str(tmp_path / "model.pt"))
    jacli.compute(
        str(tmp_path / "model.pt"), "random:8x6", str(tmp_path / "out.h5"), method="loop", batch_size=2
    )
    assert waits == [not both_fit] * 4
    assert {waiting for _, waiting in asked} == {2 * 6 * 3 * 4}  # the Jacobians of a block


def test_two_blocks_fit_where_the_limit_says_so() -> None:
    limit = MemoryLimit(device=CPU, limit=100, host=100, asked=True, before=0)
    assert limit.holds(60, 40)
    assert not limit.holds(61, 40)
    gpu = MemoryLimit(device=torch.device("cuda"), limit=100, host=50, asked=True, before=0)
    assert gpu.holds(60, 25)
    assert not gpu.holds(60, 26)  # two buffers on the host
