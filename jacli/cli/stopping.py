"""Signals that stop a command: Ctrl-C, SIGHUP of a closed terminal, SIGTERM and SIGUSR2 of batch systems.

The first one unwinds the command, which saves what is finished.  Python runs its handlers in the main thread,
and there only between two instructions: while C++ code works, for instance a loop of TorchScript, nothing
happens.  Therefore a second one ends the process from another thread, which the interpreter's own handler,
in C, wakes through a pipe (`signal.set_wakeup_fd`).  What was committed stays, as after ``kill -9``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

from jacli.errors import InterruptedRunError, JacliError, StoppedError

_SAME_SIGNAL_SECONDS: dict[int, float] = {
    signal.SIGINT: 0.1,
    signal.SIGHUP: 0.5,
    signal.SIGTERM: 0.5,
    signal.SIGUSR2: 0.5,
}
"""Signals that stop a command.  One that follows the first so soon is the same: Slurm and others send it to
a shell and to its children, and the shell passes it on."""

_AGAIN_SECONDS = 0.02

_finished = False
_first: float | None = None
_watched = 0  # the process whose signals are watched: after a fork, the child has no watcher


class Stopped(BaseException):
    """Unwinds the command, which saves what is finished; no ``except Exception`` on the way keeps it."""

    def as_error(self) -> JacliError:
        """The message, with the notes of the run on the exception (its ``__notes__``)."""
        noted = " ".join(getattr(self, "__notes__", ()))
        why = noted or "Nothing had been finished."
        hint = "Run the same command again to resume." if noted else ""
        number = self.args[0]
        if number == signal.SIGINT:
            return InterruptedRunError("Interrupted from the keyboard.", why=why, hint=hint)
        return StoppedError(f"Stopped by {signal.Signals(number).name}.", why=why, hint=hint)


def stop_behind(error: BaseException | None) -> JacliError | None:
    """The stop of which code in C has made a SystemError, and whoever read that another error.

    Python runs its handlers also between two lines that Cython has compiled, of h5py's lock for instance,
    which may then return as if nothing had been raised.
    """
    while error is not None:
        if isinstance(error, SystemError) and isinstance(error.__cause__, Stopped):
            return error.__cause__.as_error()
        error = error.__cause__
    return None


def listen() -> None:
    """Let the signals end the command in good order from now on, and a second one at once."""
    global _finished, _first
    _finished, _first = False, None
    _start_watcher()
    _heed_dropped_stops()
    for number in _SAME_SIGNAL_SECONDS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _stop)


def finished() -> None:
    """The work is done: what comes now stops nothing, and nobody is to run the command again."""
    global _finished
    _finished = True


def _stop(signum: int, frame: FrameType | None) -> None:
    if _finished:
        return
    # What follows is saving: only the watcher stops that.
    for number in _SAME_SIGNAL_SECONDS:
        if signal.getsignal(number) == _stop:
            signal.signal(number, _wake_the_watcher)
    raise Stopped(signum)


def _heed_dropped_stops() -> None:
    """Deliver a signal once more whose exception Python has dropped.

    It drops what is raised within a finaliser or a weak reference's callback, where a handler may happen to
    run; the command would go on as if nobody had asked it to stop.
    """
    before = sys.unraisablehook
    if getattr(before, "heeds_stops", False):
        return

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            before(unraisable)
            return
        for number in _SAME_SIGNAL_SECONDS:
            if signal.getsignal(number) == _wake_the_watcher:
                signal.signal(number, _stop)
        # Later, and so soon that the watcher takes it for the same signal: here it would be dropped again.
        threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), unraisable.exc_value.args[0])).start()

    hook.heeds_stops = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


def _wake_the_watcher(signum: int, frame: FrameType | None) -> None:
    """Python's part of a signal that the watcher has been told of: none."""


def _start_watcher() -> None:
    global _watched
    if _watched == os.getpid():
        return
    _watched = os.getpid()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()


def _watch(reader: int) -> None:
    """End the process at the second signal; each comes as a byte, whatever the main thread does."""
    global _first
    while came := os.read(reader, 1):
        number = came[0]
        same = _SAME_SIGNAL_SECONDS.get(number)
        heard = signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler)
        if same is None or _finished or not heard:
            continue
        now = time.monotonic()
        if _first is None:
            _first = now
        elif now - _first >= same:
            os._exit(128 + number)
