"""Shared fixtures: device from the environment, random state fixed, garbage collection kept short."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fork_server import fork_server
from tests.readme import environment


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(os.environ.get("JACLI_TEST_DEVICE", "cpu"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def earlier_objects_frozen() -> None:
    """Exempt what exists already from garbage collection (`gc.freeze`).

    `jacli bench`, for one, collects garbage for every method.  Torch and thousands of tests are millions of
    objects, among which each collection would search for a second.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def served_environment() -> Iterator[dict[str, str]]:
    """The environment of the README's sessions, where a fork server answers `jacli`."""
    with (
        tempfile.TemporaryDirectory(prefix="jacli-") as folder,
        fork_server(Path(folder), environment()) as served,
    ):
        yield served
