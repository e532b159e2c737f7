"""The worker that runs jacli on hostile files: one a test process, since it takes seconds to start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Worker:
    """Ask `tests.hostile.worker`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = (folder / "worker.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.hostile.worker", str(folder)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # A file that a job runs (--arch) leaves no bytecode: that would count as a file written.
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            text=True,
        )
        self.specimens: list[str] = self._answer()["specimens"]

    def ask(self, **job: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def sound(self, name: str) -> bytes:
        """A specimen as it is, which every command reads without complaint."""
        return Path(self.ask(sound=name)["file"]).read_bytes()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the worker ended: {(self.folder / 'worker.log').read_text()[-3000:]}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.communicate()
        self._log.close()


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("hostile"))
    yield worker
    worker.close()
