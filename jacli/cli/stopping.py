"""Signals that stop a command: Ctrl-C, SIGHUP of a closed terminal, SIGTERM and SIGUSR2 of batch systems."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

from jacli.errors import InterruptedRunError, JacliError, StoppedError

_finished = False


class Stopped(BaseException):
    """Unwinds the command, which saves what is finished; no ``except Exception`` on the way keeps it."""

    def as_error(self) -> JacliError:
        """What to tell, with what the run has noted on the exception (its ``__notes__``)."""
        noted = " ".join(getattr(self, "__notes__", ()))
        why = noted or "Nothing had been finished."
        todo = "Run the same command again: it goes on." if noted else ""
        number = self.args[0]
        if number == signal.SIGINT:
            return InterruptedRunError("Interrupted from the keyboard.", why=why, todo=todo)
        return StoppedError(f"Stopped by {signal.Signals(number).name}.", why=why, todo=todo)


def listen() -> None:
    """Let the signals end the command in good order from now on."""
    global _finished
    _finished = False
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, _stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
        signal.signal(signal.SIGHUP, _stop)


def finished() -> None:
    """The work is done: what comes now stops nothing, and nobody is to run the command again."""
    global _finished
    _finished = True


def _stop(signum: int, frame: FrameType | None) -> None:
    if _finished:
        return
    # What follows is saving: it is not to be stopped in turn, except by an impatient second Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGINT, _at_once)
    raise Stopped(signum)


def _at_once(signum: int, frame: FrameType | None) -> NoReturn:
    """As ``kill -9``, after which a run goes on all the same."""
    os._exit(InterruptedRunError.exit_code)
