"""One Slurm for all tests of a process that need one: it starts in seconds, and several are no matter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.one_node_slurm import missing, one_node_slurm


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's programs speak to a Slurm of one node."""
    if why := missing():
        pytest.skip(f"no Slurm can be started here: {why}")
    with one_node_slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment
