"""Seeded mutations of files of every format: none of them crashes, hangs, floods or misuses jacli.

``JACLI_MUTATIONS=5000`` hunts longer, ``JACLI_MUTATIONS_FROM=1000`` among other seeds.
"""

from __future__ import annotations

import os

import pytest

from .conftest import Worker

BATCH = 25
COUNT = int(os.environ.get("JACLI_MUTATIONS", "525"))
FIRST = int(os.environ.get("JACLI_MUTATIONS_FROM", "0"))


@pytest.mark.timeout(BATCH * 30)
@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, BATCH))
def test_mutated_files_do_no_harm(worker: Worker, first: int) -> None:
    failures = []
    for seed in range(first, min(first + BATCH, FIRST + COUNT)):
        found = worker.ask(seed=seed)
        if found["wrong"]:
            command = " ".join(found["command"])
            failures.append(
                f"seed {seed}: {found['mutator']} of {found['specimen']!r}, jacli {command}: "
                f"{', '.join(found['wrong'])}\n{found['stderr'][-1500:]}\nkept as {found['kept']}"
            )
    assert not failures, "\n\n".join(failures)
