"""How far a run is: a small JSON file beside ``OUT.part``, replaced atomically.

Whoever wants to know reads this file and never the open HDF5 file.  It goes when the run is complete.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jacli.store.paths import new_progress_path, progress_path
from jacli.untrusted.json_values import parse_json
from jacli.untrusted.own_files import read_own, replace_own

STATES = ("running", "stopped", "failed")


@dataclass(frozen=True)
class Progress:
    """A run's progress, as its own process reports it.

    Attributes:
        state: ``running``; ``stopped`` (by a signal or the keyboard, saved), ``failed`` (see ``reason``).
            A process that was killed leaves ``running`` behind: whether it lives, its lock tells.
        samples: In this file.
        done: Of these, on disk.
        done_before: On disk when this process began; the rate is that of the others.
        started: When this process began its first batch, seconds since 1970.
        updated: When this was written.
        command: What continues the run: program and arguments.
        folder: Where that was typed.
        shard: ``I/N``; None where the run has no shards.
        reason: Why it stopped.
    """

    state: str
    samples: int
    done: int
    done_before: int = 0
    started: float = 0.0
    updated: float = 0.0
    command: tuple[str, ...] = ()
    folder: str = ""
    shard: str | None = None
    reason: str = ""

    @property
    def rate(self) -> float | None:
        """Samples a second of this process; None before its first batch."""
        seconds = self.updated - self.started
        return (
            (self.done - self.done_before) / seconds if self.done > self.done_before and seconds > 0 else None
        )

    @property
    def seconds_left(self) -> float | None:
        """At that rate."""
        return None if self.rate is None else (self.samples - self.done) / self.rate


def write_progress(out: Path, progress: Progress) -> None:
    """Replace the file; on a full disk the last one stays, since a run is not to fail for its report.

    >>> write_progress(Path("out.h5"), Progress("running", done=10, samples=64, started=0.0))
    >>> read_progress(Path("out.h5")).done
    10
    """
    path = progress_path(out)
    new = new_progress_path(out)
    values = {**asdict(progress), "updated": time.time()}
    with contextlib.suppress(OSError):
        replace_own(path, json.dumps(values).encode(), new=new)


def remove_progress(out: Path) -> None:
    """The run is complete, or nothing of it was kept.

    >>> progress_path(Path("out.h5")).touch()
    >>> remove_progress(Path("out.h5"))
    >>> progress_path(Path("out.h5")).exists()
    False
    """
    with contextlib.suppress(OSError):
        progress_path(out).unlink(missing_ok=True)


def read_progress(out: Path) -> Progress | None:
    """The last progress of the run that writes ``out``; None if there is none, or no valid one.

    >>> read_progress(Path("nobody.h5")) is None
    True
    """
    try:
        values = parse_json(read_own(progress_path(out)))
    except (OSError, ValueError):
        return None
    return _from_json(values) if isinstance(values, Mapping) else None


def _from_json(values: Mapping[str, Any]) -> Progress | None:
    """Progress from JSON; None if a value has the wrong type."""
    known = {name: values[name] for name in (f.name for f in fields(Progress)) if name in values}
    command = known.get("command", [])
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        return None
    try:
        progress = Progress(**{**known, "command": tuple(command)})
    except TypeError:  # one is not there
        return None
    counts, times = (
        (progress.samples, progress.done, progress.done_before),
        (progress.started, progress.updated),
    )
    texts = (progress.state, progress.folder, progress.reason, progress.shard or "")
    sound = (
        all(type(count) is int and 0 <= count < 2**63 for count in counts)
        and all(type(when) in (int, float) and abs(when) < 2**63 for when in times)
        and all(isinstance(text, str) for text in texts)
        and progress.state in STATES
        and progress.done <= progress.samples
    )
    return progress if sound else None
