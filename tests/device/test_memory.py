"""Memory of the host: nested control groups, and one answer for `jacli doctor` and for a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from jacli.commands.doctor import diagnose
from jacli.device.memory import (
    HostMemory,
    free_memory,
    held_memory,
    host_memory,
    peak_memory,
    release_cached_memory,
    reset_peak_memory,
)
from jacli.errors.numbers import format_size

MIB = 2**20


def memory_in(tmp_path: Path, own: str, groups: dict[str, dict[str, str]]) -> HostMemory:
    """The host's memory for a process whose ``/proc/self/cgroup`` reads ``own``."""
    membership = tmp_path / "own"
    membership.write_text(own)
    root = tmp_path / "groups"
    for group, files in groups.items():
        (root / group).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (root / group / name).write_text(f"{text}\n")
    return host_memory(control_groups=root, own_control_groups=membership)


def limited(limit: str | int, used: int) -> dict[str, str]:
    return {"memory.max": str(limit), "memory.current": str(used)}


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"job/step": limited(80 * MIB, 30 * MIB)}, (50 * MIB, 80 * MIB)),
        ({"job": limited(64 * MIB, 60 * MIB), "job/step": limited("max", 0)}, (4 * MIB, 64 * MIB)),
        ({"job": limited(40 * MIB, 10 * MIB), "job/step": limited(90 * MIB, 80 * MIB)}, (10 * MIB, 40 * MIB)),
        ({"": limited(70 * MIB, 90 * MIB)}, (0, 70 * MIB)),
    ],
    ids=["own", "outer", "both", "over the limit of the root"],
)
def test_the_tightest_of_nested_groups_counts(
    tmp_path: Path, groups: dict[str, dict[str, str]], expected: tuple[int, int]
) -> None:
    assert memory_in(tmp_path, "0::/job/step\n", groups) == HostMemory(*expected)


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    files = {"memory.limit_in_bytes": str(32 * MIB), "memory.usage_in_bytes": str(8 * MIB)}
    own = "5:cpu,cpuacct:/job\n4:memory:/job\n"
    assert memory_in(tmp_path, own, {"memory/job": files}) == HostMemory(24 * MIB, 32 * MIB)


def test_a_group_seen_from_inside_a_container(tmp_path: Path) -> None:
    """The kernel names the group as the host sees it, and only its own folder is mounted."""
    assert memory_in(tmp_path, "0::/pods/17\n", {"": limited(16 * MIB, MIB)}) == HostMemory(
        15 * MIB, 16 * MIB
    )


def test_no_control_groups(tmp_path: Path) -> None:
    found = host_memory(control_groups=tmp_path, own_control_groups=tmp_path / "missing")
    assert 0 < found.free <= found.total


def test_doctor_promises_what_a_run_gets(tmp_path: Path) -> None:
    (value,) = [finding.value for finding in diagnose(tmp_path) if finding.name == "memory"]
    match = re.fullmatch(r"(\S+) GiB available of (.+)", value)
    assert match is not None
    assert float(match[1]) == pytest.approx(free_memory(torch.device("cpu")) / 2**30, abs=0.5)
    assert match[2] == format_size(host_memory().total)


def test_the_peak_is_at_least_what_is_held(device: torch.device) -> None:
    reset_peak_memory(device)
    values = torch.ones(2**22, device=device)
    held = held_memory(device)
    del values
    release_cached_memory(device)
    assert peak_memory(device) >= held > 0
