"""The examples in docstrings run, and every public function has one."""

from __future__ import annotations

import doctest
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import jacli
from tests.readme import ROOT, copy_samples

MODULES = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for path in (ROOT / "jacli").rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)
FUNCTIONS = sorted(name for name in jacli.__all__ if inspect.isfunction(getattr(jacli, name)))


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that looks like a clone: some examples read the sample models."""
    monkeypatch.chdir(copy_samples(tmp_path))
    module = import_module(name)
    outcome = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example(name: str) -> None:
    assert ">>>" in (getattr(jacli, name).__doc__ or "")
