"""`jacli` run in this process, as its console script runs it: the same `main`, exit code and streams."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import pytest

from jacli.cli import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def _run(*arguments: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        with (
            mock.patch.object(sys, "argv", ["jacli", *map(str, arguments)]),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as stop,
        ):
            main()
    finally:
        for number, action in before.items():
            signal.signal(number, action)
    return Ran(int(stop.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def jacli() -> Callable[..., Ran]:
    return _run
