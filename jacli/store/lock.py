"""One writer a result: a lock file beside ``OUT.part`` that names host, process and job.

The kernel's lock (flock) is what keeps a second process out, and it goes with its process, however that
ends.  Some network file systems keep such locks to each host, though: there the file's time of change is
a sign of life, renewed by a thread, and a lock of another host is taken over only when that has stopped.
A process that was only asleep meanwhile finds another name in the file, and writes no more
(`RunLock.check`).  Ages are differences of times that the file system itself has given.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex

from jacli.errors import OutputError
from jacli.errors.printable import quote_path
from jacli.store.paths import cannot_write, part_path
from jacli.untrusted.json_values import parse_json
from jacli.untrusted.own_files import open_own, read_own

RENEWED_EVERY = 15.0
"""Seconds between signs of life."""
GONE_AFTER = 90.0
"""Seconds without one after which a process on another host is gone."""


@dataclass(frozen=True)
class Holder:
    """The owner of a lock: the process that writes a result.

    Attributes:
        host: Name of the machine.
        pid: Process there.
        began: When that process began, in clock ticks of ``/proc``; 0 if unknown. Numbers are used again.
        space: Its space of process numbers (since the machine was started; containers have their own).
        job: The batch system's name of its job, or None.
        restarts: How often the batch system has started that job again.
        token: Of this lock alone.
    """

    host: str
    pid: int
    began: int
    space: str
    job: str | None
    restarts: int
    token: str

    @classmethod
    def me(cls) -> Holder:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _began(os.getpid()), _space(), *_job(), token_hex(8))

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"

    @property
    def is_neighbour(self) -> bool:
        """Whether its process number is one of this host and PID namespace."""
        return (self.host, self.space) == (socket.gethostname(), _space())

    @property
    def was_requeued(self) -> bool:
        """Whether this process is the same Slurm job, started again."""
        job, restarts = _job()
        return job is not None and job == self.job and restarts > self.restarts


def lock_path(out: Path) -> Path:
    """``out.h5`` -> ``out.h5.part.lock``.

    >>> lock_path(Path("out.h5")).name
    'out.h5.part.lock'
    """
    part = part_path(out)
    return part.with_name(part.name + ".lock")


def read_holder(out: Path) -> Holder | None:
    """Who is writing ``out`` now; None if nobody is, as far as can be told without touching the lock.

    >>> read_holder(Path("nobody.h5")) is None
    True
    """
    path = lock_path(out)
    holder = _read(path)
    return holder if holder is not None and _lives(path, holder) else None


class RunLock:
    """The right to write a result, until `release`.

    Args:
        out: The result's final path.
        waiting: Called once with what is waited for, where a sign of life of another host must run out first.

    Raises:
        OutputError: Another process is writing it; or the folder cannot be written.
    """

    def __init__(self, out: Path, waiting: Callable[[str], None] = lambda what: None) -> None:
        self._path = lock_path(out)
        self._out = out
        self._me = Holder.me()
        self._descriptor = -1
        try:
            self._descriptor = self._locked()
            self._take_over(waiting)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(asdict(self._me)).encode(), 0)
        except BaseException as error:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            if isinstance(error, OSError):
                raise cannot_write(out, error) from error
            raise
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()

    def _locked(self) -> int:
        """The lock file, open and locked: that file which the name still stands for."""
        while True:
            descriptor = open_own(self._path, os.O_RDWR | os.O_CREAT)
            try:
                self._lock(descriptor)
                if os.fstat(descriptor).st_ino == self._path.lstat().st_ino:
                    self._check_content(descriptor)
                    return descriptor
            except FileNotFoundError:
                pass  # its last holder removed it between our opening and our locking
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._held(_read(self._path)) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            holder = _read(self._path)
            if holder is not None and _lives(self._path, holder):
                raise self._held(holder) from None

    def _check_content(self, descriptor: int) -> None:
        """Nothing is overwritten that is no lock; after a power cut one may be empty, or zeros."""
        if os.pread(descriptor, 4096, 0).strip(b"\0") and _read(self._path) is None:
            raise OutputError(
                f"{self._path} is not a lock of jacli.",
                why="A file of that name, with something else in it, is in the way; it was left as it is.",
                hint="Move it away, or choose another name with -o.",
            )

    def _take_over(self, waiting: Callable[[str], None]) -> None:
        """An earlier holder that the file names is gone; on another host that must be seen first."""
        holder = _read(self._path)
        if holder is None or holder.is_neighbour or holder.was_requeued:
            return  # its lock is free, and it was on this machine; or the batch system started the job again
        age = max(0.0, _age(self._path))  # below zero, it says less than nothing: wait the whole time
        if age >= GONE_AFTER:
            return
        waiting(f"{holder} gave a sign of life {age:.0f} s ago: waiting {GONE_AFTER - age:.0f} s for another")
        last, until = self._path.stat().st_mtime_ns, time.monotonic() + GONE_AFTER - age
        while time.monotonic() < until:
            time.sleep(min(1.0, GONE_AFTER / 10))
            if self._path.stat().st_mtime_ns != last:
                raise self._held(holder)

    def _held(self, holder: Holder | None) -> OutputError:
        return OutputError(
            f"Another process is writing {self._out}.",
            why=f"It is {holder or 'unknown'}, according to {self._path.name}.",
            hint=f"Wait for it (`jacli status {quote_path(self._out)}` shows its progress), "
            "or choose another -o.",
        )

    def check(self) -> None:
        """Look whether the lock is still this process's; to be called before anything is made final.

        Raises:
            OutputError: While this process was suspended, another one took it for gone.
        """
        holder = _read(self._path)
        if holder != self._me:
            raise OutputError(
                f"{self._out} is now being written by another process.",
                why=f"It is {holder or 'unknown'}; it took over because this one did not renew its lease.",
                hint="Leave it to that process.",
            )

    def _renew(self) -> None:
        while not self._released.wait(RENEWED_EVERY):
            with contextlib.suppress(OSError):
                os.utime(self._descriptor)

    def release(self) -> None:
        """Let others write; does nothing the second time."""
        if self._released.is_set():
            return
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if _read(self._path) == self._me:
                self._path.unlink()
        os.close(self._descriptor)


def _read(path: Path) -> Holder | None:
    try:
        holder = Holder(**parse_json(read_own(path)))
    except (OSError, ValueError, TypeError):
        return None
    texts, numbers = (holder.host, holder.space, holder.token), (holder.pid, holder.began, holder.restarts)
    sound = all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)
    return holder if sound and isinstance(holder.job, str | None) else None


def _lives(path: Path, holder: Holder) -> bool:
    if holder.is_neighbour and holder.began:
        return _began(holder.pid) == holder.began
    try:
        return abs(_age(path)) < GONE_AFTER  # nobody renews a lock whose time lies in the future
    except FileNotFoundError:
        return False
    except OSError:  # a folder that may only be read: by this machine's clock
        return abs(time.time() - path.stat().st_mtime) < GONE_AFTER


def _age(path: Path) -> float:
    """Seconds since a file's time was set, by the clock that set it: that of its file system."""
    with tempfile.TemporaryFile(dir=path.parent) as probe:
        return os.fstat(probe.fileno()).st_mtime - path.stat().st_mtime


def _began(pid: int) -> int:
    """When a process began, in clock ticks since the system did; 0 if there is none, or no way to know."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _space() -> str:
    """The PID namespace of this process; empty if the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _job() -> tuple[str | None, int]:
    """Slurm's number of the job, which a job that is requeued keeps, and how often it was."""
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    return os.environ.get("SLURM_JOB_ID"), int(restarts) if restarts.isdigit() else 0
