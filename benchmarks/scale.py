"""A thousand shards and a million samples: are merge, status and summarize quick, and small?

    python -m benchmarks.scale [--shards 1000] [--samples 1000000] [--markdown FILE]...

The shards hold random numbers of the shape that a small run has (16 inputs, 10 outputs, all singular
values), written by the writer of the runs themselves into a temporary folder.  Each command is a process of
its own; its memory is the largest resident size of that process.  Exits with 1 where one takes more than
60 s or 1 GiB.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import report
from jacli.cluster import shard_path, shard_rows
from jacli.options.table import RunConfig
from jacli.options.values import Shard
from jacli.store import Progress, ResultLayout, ResultWriter, part_path, write_progress
from jacli.store.schema import AFTERWARDS

SECONDS = 60.0
BYTES = 2**30
_LAYOUT = ResultLayout(1, (16,), (10,), n_singular_values=10, nuclear_norm=True, batch_size=100)


@dataclass(frozen=True)
class Figure:
    """What a command took.

    Attributes:
        what: In words.
        seconds: Of the whole process, start included.
        peak: Bytes, the largest resident size of the process.
    """

    what: str
    seconds: float
    peak: int

    @property
    def held(self) -> bool:
        """Whether it is within the limits."""
        return self.seconds < SECONDS and self.peak < BYTES


def main() -> int:
    """Simulate, measure, print; 0 if every command keeps the limits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--markdown", type=Path, action="append", default=[])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jacli-scale-") as name:
        out = Path(name) / "out.h5"
        began = time.perf_counter()
        written = write_shards(out, asked.shards, asked.samples)
        print(f"wrote {asked.shards} shards, {written / 1e6:.0f} MB, in {time.perf_counter() - began:.1f} s")
        figures = measure(out, asked.shards)
        index, files = out.stat().st_size, len(list(out.parent.iterdir()))
    lines = [
        f"{asked.shards} shards, {asked.samples:,} samples, {written / 1e6:.0f} MB; "
        f"index {index / 1e6:.0f} MB; {files} files in the folder"
    ]
    lines += [f"{f.what:<44} {f.seconds:>6.1f} s {f.peak / 2**20:>6.0f} MiB" for f in figures]
    print("\n".join(lines))
    for page in asked.markdown:
        report.refresh(page, "scale", markdown(lines[0], figures), title="A thousand shards")
    return 0 if all(figure.held for figure in figures) else 1


def write_shards(out: Path, count: int, samples: int) -> int:
    """Write all shards of a run; returns their bytes."""
    config = RunConfig("model.pt", "inputs.npy", out=str(out))
    draw, written = np.random.default_rng(0), 0
    for index in range(1, count + 1):
        shard = Shard(index, count)
        rows = shard_rows(shard, samples)
        layout = replace(_LAYOUT, n_samples=len(rows))
        attributes = {
            "jacli_version": "0",
            "created": f"2026-01-01T00:00:00.{index}",
            "command": f"jacli compute model.pt inputs.npy --shard {shard}",
            "config": replace(config, shard=shard).to_dict(),
            "model_sha256": "0" * 64,
            "inputs_sha256": f"{index:064d}",
            "dtype": "float32",
            "precision": "ieee",
            "method": "vmap",
            "plan": {"method": "vmap", "measured": [[1.0] * 5] * 10},
            "shard": str(shard),
        }
        path = shard_path(out, shard)
        with ResultWriter.create(path, layout, attributes, overwrite=False) as writer:
            writer.write_batch(0, random_rows(layout, rows, draw))
            writer.finish()
        written += path.stat().st_size
    return written


def random_rows(layout: ResultLayout, rows: range, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Numbers of every dataset that a block brings."""
    arrays = {
        name: draw.random((len(rows), *dataset.shape[1:])).astype(dataset.dtype)
        for name, dataset in layout.datasets().items()
        if name not in AFTERWARDS
    }
    arrays["sample_index"] = np.arange(rows.start, rows.stop)
    return arrays


def measure(out: Path, count: int) -> list[Figure]:
    """Each command on these shards; in the end they are unfinished ones."""
    figures = [
        run("jacli status, all complete", "status", out),
        run("jacli merge, an index", "merge", out),
        run("jacli summarize of the index", "summarize", out),
        run("jacli summarize --per-class of the index", "summarize", out, "--per-class"),
        run("jacli inspect of the index", "inspect", out),
    ]
    copy = out.with_name("copy.h5")
    shards = (str(shard_path(out, Shard(index, count))) for index in range(1, count + 1))
    figures.append(run("jacli merge --copy", "merge", *shards, "--copy", "-o", copy))
    copy.unlink(missing_ok=True)
    unfinished = out.with_name("stopped.h5")
    for index in range(1, count + 1):
        path = shard_path(unfinished, Shard(index, count))
        part_path(path).touch()
        command = ("jacli", "compute", "model.pt", "inputs.npy", "--shard", f"{index}/{count}")
        write_progress(path, Progress("stopped", 1000, index % 1000, 0, 1.0, 2.0, command, str(out.parent)))
    figures.append(run("jacli status, all stopped halfway", "status", unfinished))
    return figures


_LIMITED = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "jacli", *sys.argv[1:]], stdout=subprocess.DEVNULL)
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""
"""A parent of its own for each command: the largest size of children is that of one child then."""


def run(what: str, *arguments: object) -> Figure:
    """Run one command and measure it.

    Raises:
        RuntimeError: It failed.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    seconds = time.perf_counter() - began
    peak = re.search(r"^peak (\d+)$", done.stdout, flags=re.M)
    if done.returncode or peak is None:
        raise RuntimeError(f"{what} failed: {done.stderr}")
    return Figure(what, seconds, int(peak[1]) * 1024)


def markdown(about: str, figures: list[Figure]) -> str:
    """The section of the results file."""
    machine = report.machine(torch.device("cpu"))
    lines = [f"{time.strftime('%Y-%m-%d')}; {machine}; {about}.", ""]
    limits = f"{SECONDS:.0f} s and {BYTES / 2**20:.0f} MiB"
    lines += [f"Each command ran in its own process; each may take at most {limits}.", ""]
    lines += ["| command | seconds | peak MiB |", "| --- | ---: | ---: |"]
    lines += [f"| {f.what} | {f.seconds:.1f} | {f.peak / 2**20:.0f} |" for f in figures]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
