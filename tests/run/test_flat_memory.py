"""A long run holds at its end what it held at its beginning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

WATCHED = """
import json, sys
from pathlib import Path
from jacli.commands.compute import run_compute
from jacli.run.config_file import resolve_options

def resident():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) - int(fields["RssFile"].split()[0])

held = {}
def progress(done, total):
    held[done] = resident()

config = resolve_options({"model": sys.argv[1], "inputs": "random:10000x1x8x8", "out": "out.h5",
                          "method": "loop", "batch_size": 16, **json.loads(sys.argv[2])})
run_compute(config, command="test", progress=progress)
print(json.dumps(held))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    "options", [{}, {"save": "none"}, {"compress": "gzip"}], ids=["full", "none", "gzip"]
)
def test_memory_stays_flat_over_ten_thousand_samples(tmp_path: Path, options: dict[str, str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WATCHED, ROOT / "sample_models" / "digits_cnn.pt", json.dumps(options)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    held = {int(done): kibibytes for done, kibibytes in json.loads(ran.stdout).items()}
    assert max(held) == 10_000
    early = max(kibibytes for done, kibibytes in held.items() if done <= 1000)
    late = max(kibibytes for done, kibibytes in held.items() if done >= 9000)
    print(f"{options}: {early / 1024:.1f} MiB after 1,000 samples, {late / 1024:.1f} MiB after 10,000")
    assert late - early < 4 * 1024  # 450 bytes per sample; what was seen is a quarter of that
