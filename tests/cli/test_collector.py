"""The garbage collector pauses while a command imports, in a process of jacli's own and nowhere else."""

from __future__ import annotations

import gc

import pytest

from jacli.cli import collector


@pytest.fixture
def own_process(monkeypatch):
    """Say that this process is jacli's own; what is frozen is thawed afterwards."""
    monkeypatch.setattr(collector, "_process_is_own", False)
    collector.own_process()
    gc.freeze()  # what the session has frozen stays so
    yield
    gc.enable()


def test_imports_are_not_looked_through_and_exempt_afterwards(own_process):
    frozen = gc.get_freeze_count()
    with collector.importing():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(made)


def test_an_import_that_fails_leaves_the_collector_running(own_process):
    with pytest.raises(ImportError), collector.importing():
        raise ImportError("no such room")
    assert gc.isenabled()


@pytest.mark.parametrize("enabled", [True, False])
def test_a_process_that_only_uses_jacli_keeps_its_collector(enabled, monkeypatch):
    monkeypatch.setattr(collector, "_process_is_own", False)
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        frozen = gc.get_freeze_count()
        with collector.importing():
            assert gc.isenabled() is enabled
        assert (gc.isenabled(), gc.get_freeze_count()) == (enabled, frozen)
    finally:
        (gc.enable if before else gc.disable)()
