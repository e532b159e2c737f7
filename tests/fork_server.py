"""A fork server for `jacli`: one process that has imported everything, and a fork of it for each command.

``python -m tests.fork_server FOLDER`` writes a command ``FOLDER/jacli`` that behaves as the console script:
a process with its own streams, folder, environment and limits, and the exit code of `jacli.cli.main`.
It takes milliseconds to start, where importing torch and its batching rules takes seconds.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
_SOCKET = "socket"
_LIMITS = (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_AS)

_CLIENT = """
import json, os, resource, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
limits = {{number: resource.getrlimit(number) for number in {limits!r}}}
asked = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environ": dict(os.environ), "limits": limits}}
socket.send_fds(server, [b"."], [0, 1, 2])
server.sendall(json.dumps(asked).encode())
server.shutdown(socket.SHUT_WR)
code = server.recv(16)
sys.exit(int(code) if code else "jacli was killed")
"""


@contextmanager
def fork_server(folder: Path, environ: dict[str, str]) -> Iterator[dict[str, str]]:
    """A running server; gives the environment in which `jacli` is served.

    Args:
        folder: Empty; with a short path, as those of sockets have to be.
        environ: Of the server: what torch and rich read when they are imported.
    """
    log = folder / "log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", folder],
            cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stream, text=True,
        )  # fmt: skip
    assert server.stdout is not None
    ready = server.stdout.readline()
    assert ready == "ready\n", log.read_text()
    yield environ | {"PATH": f"{folder}{os.pathsep}{environ['PATH']}"}
    server.kill()
    server.communicate()


def main(folder: Path) -> None:
    """Serve until killed."""
    import_everything()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / _SOCKET))
    listener.listen()
    client = folder / "client.py"
    client.write_text(_CLIENT.format(socket=str(folder / _SOCKET), limits=_LIMITS))
    command = folder / "jacli"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{client}" "$@"\n')
    command.chmod(0o755)
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(connection)
        connection.close()


def import_everything() -> None:
    """What a command would import in its fork, each time anew."""
    import networkx  # noqa: F401
    import sympy  # noqa: F401
    import torch._dynamo  # noqa: F401
    import typer

    from jacli.cli import app
    from jacli.commands.compute import run_compute  # noqa: F401
    from jacli.models.torchvision_import import import_torchvision

    import_torchvision()
    # Reading the arguments of a command imports pydantic.
    typer.main.get_command(app).commands["inspect"].make_context("inspect", ["file"])
    gc.collect()
    gc.freeze()  # a collection in a fork would touch, and so copy, all of the server's memory


def _answer(connection: socket.socket) -> NoReturn:
    """Run the command that is asked for, as the console script does; never returns."""
    from jacli.cli import main as jacli_main

    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    asked = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    code: object = 1
    try:
        for number, limits in asked["limits"].items():
            resource.setrlimit(int(number), tuple(limits))
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environ"])
        sys.argv = ["jacli", *asked["arguments"]]
        jacli_main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(code if isinstance(code, int) else 1).encode())
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
