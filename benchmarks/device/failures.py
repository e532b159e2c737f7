"""A pytest plugin that writes each failure down as it comes, for a run that a deadline may stop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append a test's outcome, and its text if it failed, to the files that JACLI_FAILURES names."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # the controller hears of every test
    if report.when != "call" and report.passed:
        return
    path = Path(os.environ["JACLI_FAILURES"])
    with path.with_name(path.name + ".counts").open("a") as counts:
        counts.write(f"{report.outcome}\n")
    if report.failed:
        with path.open("a") as failures:
            failures.write(f"FAILED {report.nodeid}\n{report.longreprtext[-1500:]}\n\n")
