"""A result never depends on a stream: closed, full, broken, blocked, of another encoding, or hung up."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jacli.cli.streams import Output, trusted
from jacli.store import open_results
from tests.run.shard_files import write_shards

JACLI = (sys.executable, "-m", "jacli")


class Failing(io.StringIO):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.tried = number, 0

    def write(self, text: str) -> int:
        self.tried += 1
        raise OSError(self.number, os.strerror(self.number))


def test_text_is_escaped_and_lines_stay() -> None:
    stream = io.StringIO()
    output = Output(stream)
    print("a\x1b[31mb\u202e\udcff\tc\nd", file=output)
    assert stream.getvalue() == "a\\x1b[31mb\\u202e\\xff\tc\nd\n"
    trusted(output).write("\x1b[31mred\n")
    assert stream.getvalue().endswith("\x1b[31mred\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EBADF, errno.EPIPE])
def test_a_stream_that_fails_is_left_alone(number: int) -> None:
    stream = Failing(number)
    output = Output(stream)
    for _ in range(3):
        print("a line", file=output)
        output.flush()
    assert stream.tried == 1
    assert (output.failure is None) == (number == errno.EPIPE)


def test_a_stream_that_is_not_there() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        output = Output(stream)
        print("a line", file=output)
        assert not output.isatty() and output.failure is None


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", "--- ... 5 x 3 \\xe9\n"),
        ("latin-1", "--- ... 5 \xd7 3 \xe9\n"),
        ("cp1252", "--- \u2026 5 \xd7 3 \xe9\n"),
        ("utf-8", "─━─ \u2026 5 \xd7 3 \xe9\n"),
    ],
)
def test_an_encoding_that_lacks_characters(tmp_path: Path, encoding: str, expected: str) -> None:
    with (tmp_path / "log").open("w", encoding=encoding) as file:
        Output(file).write("─━─ \u2026 5 \xd7 3 \xe9\n")
    assert (tmp_path / "log").read_bytes().decode(encoding) == expected


def test_a_pipe_that_does_not_block_gets_everything() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    got = bytearray()

    def read() -> None:
        while chunk := os.read(reading, 65536):
            got.extend(chunk)
            time.sleep(0.001)

    thread = threading.Thread(target=read)
    thread.start()
    with os.fdopen(writing, "w") as file:
        output = Output(file)
        output.write("x" * 2_000_000 + "\n")
    thread.join()
    assert len(got) == 2_000_001 and output.failure is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, its inputs, and the result of one run in two shards."""
    folder = tmp_path_factory.mktemp("streams")
    torch.manual_seed(0)
    torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()).save(folder / "m.pt")
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((4, 3, 4)).astype(np.float32))
    write_shards(folder / "whole.h5", 2)
    return folder


def _sh(line: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which ``jacli`` is this jacli."""
    function = f'jacli() {{ "{sys.executable}" -m jacli "$@"; }}; set -o pipefail; '
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environ
    return subprocess.run(
        ["bash", "-c", function + line],
        cwd=folder,
        env=env,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


COMPUTE = "jacli compute m.pt x.npy --method loop --device cpu"


@pytest.mark.parametrize(
    "streams",
    ["2>&-", ">&- 2>&- <&-", ">/dev/full 2>/dev/full --json", "--json 2>&1 | true", "2> >(true)"],
    ids=["stderr closed", "all closed", "full", "reader of both gone", "reader of stderr gone"],
)
def test_a_run_ends_whatever_the_streams(folder: Path, tmp_path: Path, streams: str) -> None:
    out = tmp_path / "out.h5"
    ran = _sh(f"{COMPUTE} -o {out} {streams}", folder)
    assert ran.returncode == 0, ran.stderr
    with open_results(out) as results:
        assert results.complete and len(results) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]


@pytest.mark.parametrize("command", ["summarize", "status", "inspect", "--help"])
def test_output_that_is_lost_is_an_error(folder: Path, command: str) -> None:
    file = "" if command == "--help" else "whole.00001-of-00002.h5"
    assert _sh(f"jacli {command} {file} >&-", folder).returncode == 0  # nobody wants it
    ran = _sh(f"jacli {command} {file} | true", folder)
    assert ran.returncode == 0 and "jacli:" not in ran.stderr
    ran = _sh(f"jacli {command} {file} > /dev/full", folder)
    assert ran.returncode == 4 and "No space left" in ran.stderr and "defect" not in ran.stderr


def test_a_reader_that_leaves_hides_no_failure(folder: Path, tmp_path: Path) -> None:
    ran = _sh(f"jacli summarize {tmp_path}/missing.h5 whole.h5 2>&1 | true; echo ${{PIPESTATUS[0]}}", folder)
    assert ran.stdout == "4\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437:strict"])
def test_tables_in_other_encodings(folder: Path, encoding: str) -> None:
    ran = subprocess.run(
        [*JACLI, "status", "whole.h5"],
        cwd=folder,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 0 and b"complete" in ran.stdout
    assert "-----" in ran.stdout.decode("latin-1") or encoding.startswith("cp437")


def test_tables_in_the_locale_c(folder: Path) -> None:
    c = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = _sh(
        "jacli summarize whole.00001-of-00002.h5 -h; jacli summarize whole.00001-of-00002.h5", folder, **c
    )
    assert ran.returncode == 0 and "-----" in ran.stdout and ran.stdout.isascii()


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Else what a library prints would be written into a result."""
    code = (
        "from jacli.cli.streams import guard; guard(); import os; print(os.open('file', os.O_CREAT), file=f)"
    )
    code = f"f = open('said', 'w'); {code}"
    ran = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{code}" <&- >&- 2>&-'], cwd=tmp_path, check=False
    )
    assert ran.returncode == 0 and int((tmp_path / "said").read_text()) > 2


@pytest.fixture
def slow_run(folder: Path, tmp_path: Path) -> Iterator[list[str]]:
    """A run that takes long enough to be interrupted."""
    yield [
        *JACLI, "compute", str(folder / "m.pt"), "random:300000x3x4", "-o", str(tmp_path / "out.h5"),
        "--method", "loop", "--device", "cpu", "--batch-size", "1",
    ]  # fmt: skip


def _wait_for_samples(out: Path) -> None:
    progress = out.with_name("out.h5.part.json")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if progress.exists() and json.loads(progress.read_text())["done"] > 0:
            return
        time.sleep(0.05)
    raise AssertionError("the run did not begin")


class Talking(nn.Module):
    """Prints what would clear the screen."""

    def forward(self, x: Tensor) -> Tensor:
        print("\x1b[2J\x1b]8;;http://evil\x1b\\ a line of the model")
        return 2 * x.flatten(1)


def test_a_terminal_gets_the_bar_and_no_escapes_of_a_model(folder: Path, tmp_path: Path) -> None:
    torch.jit.script(Talking()).save(tmp_path / "m.pt")
    main, side = pty.openpty()
    process = subprocess.Popen(
        [*JACLI, "compute", "m.pt", str(folder / "x.npy"), "-o", "out.h5", "--method", "loop"],
        cwd=tmp_path,
        stdin=side,
        stdout=side,
        stderr=side,
        env=os.environ | {"TERM": "xterm", "OMP_NUM_THREADS": "1"},
    )
    os.close(side)
    said = bytearray()
    with contextlib.suppress(OSError):  # as the end of a terminal is told
        while chunk := os.read(main, 65536):
            said += chunk
    os.close(main)
    assert process.wait(60) == 0, said
    assert b"computing" in said and b"\x1b[" in said  # the bar, with escapes of its own
    assert b"\x1b[2J" not in said and b"\x1b]8" not in said
    assert b"\\x1b[2J\\x1b]8;;http://evil" in said and b"a line of the model" in said


def test_a_terminal_that_hangs_up_stops_the_run_in_good_order(slow_run: list[str], tmp_path: Path) -> None:
    def own_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may themselves run under nohup
        os.setsid()
        fcntl.ioctl(0, 0x540E, 0)  # TIOCSCTTY: its controlling terminal

    main, side = pty.openpty()
    process = subprocess.Popen(slow_run, stdin=side, stdout=side, stderr=side, preexec_fn=own_terminal)
    os.close(side)
    hang_up = threading.Event()
    terminal = threading.Thread(target=_drain_until, args=(main, hang_up), daemon=True)
    terminal.start()
    try:
        _wait_for_samples(tmp_path / "out.h5")
        hang_up.set()
        terminal.join()  # SIGHUP; and from now on writing to it is EIO
        assert process.wait(60) == 75
    finally:
        process.kill()
        process.wait()
    assert json.loads((tmp_path / "out.h5.part.json").read_text())["state"] == "stopped"


def _drain_until(descriptor: int, hang_up: threading.Event) -> None:
    """Read, and then close, by the same thread: a descriptor that another one still reads stays open."""
    while not hang_up.is_set():
        if select.select([descriptor], [], [], 0.1)[0]:
            os.read(descriptor, 65536)
    os.close(descriptor)


def test_nohup_is_respected(slow_run: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(["nohup", *slow_run], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for_samples(tmp_path / "out.h5")
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    finally:
        process.kill()
        process.wait()
