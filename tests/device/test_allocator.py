"""Freed memory stays with the process while a run lasts, and goes back when it is asked for, or later."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from jacli.device import allocator as module
from jacli.device.allocator import give_back, reused_memory

BLOCK = 96 * 2**20
PAGE = 4096

pytestmark = pytest.mark.skipif(module._gnu_library() is None, reason="another C library")


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def use_and_free() -> None:
    torch.ones(BLOCK, dtype=torch.uint8)


def test_what_is_freed_is_kept_and_given_back_when_asked_for() -> None:
    give_back()
    before = resident()
    with reused_memory():
        use_and_free()
        assert resident() > before + BLOCK // 2
        give_back()
        assert resident() < before + BLOCK // 2


def test_afterwards_large_blocks_go_back_at_once() -> None:
    with reused_memory():
        pass
    give_back()
    before = resident()
    use_and_free()
    assert resident() < before + BLOCK // 2


def test_it_ends_with_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError), reused_memory():
        raise ZeroDivisionError
    give_back()
    before = resident()
    use_and_free()
    assert resident() < before + BLOCK // 2


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: None) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", fails)
    module._gnu_library.cache_clear()
    try:
        with reused_memory():
            give_back()
        assert module._gnu_library() is None
    finally:
        module._gnu_library.cache_clear()
