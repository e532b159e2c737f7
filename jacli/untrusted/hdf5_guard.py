"""HDF5 files that nobody vouches for are opened in a child process first.

The HDF5 library is written in C: a damaged or malicious file may crash it.  `jacli.untrusted.hdf5_walk` walks
the file's table of contents in a child with little memory; only a file that it comes back from is
opened here.  One child serves many files, and a file is walked once as long as it does not change.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

WALKER = Path(__file__).with_name("hdf5_walk.py")
SECONDS = 20.0
"""For one file; the walk looks at a table of contents, not at the numbers."""


@dataclass(frozen=True)
class Hdf5Findings:
    """Report of the child process.

    Attributes:
        problem: Why the file must not be opened, as a sentence; None where it may be.  A file that HDF5
            refuses cleanly has no problem here: whoever opens it meets the refusal.
        external_link: Name of a link into another file; following it reads that file.
        bytes: Of the file, and of those that its virtual datasets draw from.
        sources: Those files, walked as well.
    """

    problem: str | None
    external_link: str | None
    bytes: int
    sources: tuple[str, ...] = ()


def examine_hdf5(path: str | Path) -> Hdf5Findings:
    """Walk one file in the child, or say what was found before if the file has not changed since.

    The child is started with the first file, and each costs it some milliseconds.

    >>> _ = Path("bad.h5").write_bytes(b"no HDF5")
    >>> examine_hdf5("bad.h5").problem is None
    True
    """
    with _LOCK:
        key = _key(path)
        if key not in _FOUND:
            _FOUND[key] = _ask(str(key[0]))
            if _FOUND[key].problem is None:
                for source in _FOUND[key].sources:
                    _FOUND.setdefault(_key(source), Hdf5Findings(None, None, 0))
        return _FOUND[key]


class _Child:
    """A running walker; it ends by itself when nothing is asked for a few seconds, or when we end."""

    def __init__(self) -> None:
        self.owner = os.getpid()  # after a fork, two processes would talk to the same child
        # -P: the walker's folder, this package's, must not shadow the standard library.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(WALKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, path: str) -> Hdf5Findings | None:
        """The answer; None if the child ended before it could read the question.

        Raises:
            TimeoutError: It is still busy after `SECONDS`.
            ChildProcessError: It crashed; its text says how.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps([path, os.getcwd()]).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            return None
        answer, until = b"", time.monotonic() + SECONDS
        while not answer.endswith(b"\n"):
            if not select.select([stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            more = os.read(stdout.fileno(), 2**16)
            if not more:
                code = self.process.wait()
                if code == 0:
                    return None
                raise ChildProcessError(signal.Signals(-code).name if code < 0 else f"exit code {code}")
            answer += more
        fields = json.loads(answer)
        return Hdf5Findings(**{**fields, "sources": tuple(fields["sources"])})

    def close(self) -> None:
        """End it."""
        if self.owner != os.getpid():
            return
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


_LOCK = threading.Lock()
_FOUND: dict[tuple[object, ...], Hdf5Findings] = {}
_CHILDREN: list[_Child] = []


def _ask(path: str) -> Hdf5Findings:
    try:
        for _ in range(2):  # a child that went idle just now is followed by a fresh one
            if not _CHILDREN or _CHILDREN[0].owner != os.getpid():
                _CHILDREN[:] = [_Child()]
            findings = _CHILDREN[0].ask(path)
            if findings is not None:
                return findings
            _close_child()
        why = "The process that examines it does not start."
    except TimeoutError:
        why = f"HDF5 is busy with its table of contents for more than {SECONDS:.0f} s."
    except ChildProcessError as crash:
        why = f"It crashes the HDF5 library ({crash}), as was tried in a process of its own."
    _close_child()
    return Hdf5Findings(why, None, 0)


def _close_child() -> None:
    while _CHILDREN:
        _CHILDREN.pop().close()


atexit.register(_close_child)


def _key(path: str | Path) -> tuple[object, ...]:
    """Changes when the file does."""
    absolute = os.path.abspath(path)
    try:
        stat = os.stat(absolute)
    except OSError:
        return (absolute,)
    return absolute, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
