"""How fast results are written and read: MB/s beside `np.save` and raw writes of the same bytes.

All in one run on one disk, interleaved, the medians of several rounds.  ``result file``: `ResultWriter`
with a block that is C-contiguous, as `np.save` gets it; ``, classes first``: the view that autograd makes,
transposed on the way.  Every writer ends with its bytes at the disk (fsync), and every reader starts
without the page cache where the system lets it (``posix_fadvise``).

Example: python -m benchmarks.store --markdown benchmarks/RESULTS.md
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks.report import machine, refresh
from jacli.store import ResultLayout, ResultWriter

MIB = 2**20


@dataclass(frozen=True)
class Shape:
    """A block of Jacobians.

    Attributes:
        name: In words.
        input_shape: Of a sample.
        classes: Outputs.
        samples: In the block.
        blocks: In the file.
    """

    name: str
    input_shape: tuple[int, ...]
    classes: int
    samples: int
    blocks: int

    @property
    def block_bytes(self) -> int:
        """Of the Jacobians, in float32."""
        return 4 * self.samples * int(np.prod(self.input_shape)) * self.classes


SHAPES = (
    Shape("digits, 1x8x8 -> 10", (1, 8, 8), 10, 64, 256),
    Shape("CIFAR, 3x32x32 -> 10", (3, 32, 32), 10, 256, 16),
    Shape("CIFAR, 3x32x32 -> 100", (3, 32, 32), 100, 64, 8),
    Shape("ImageNet, 3x224x224 -> 1000", (3, 224, 224), 1000, 1, 2),
)


def layout_of(shape: Shape) -> ResultLayout:
    """A file of Jacobians and norms."""
    return ResultLayout(
        n_samples=shape.samples * shape.blocks,
        input_shape=shape.input_shape,
        output_shape=(shape.classes,),
        save_inputs=False,
        batch_size=shape.samples,
    )


def arrays_of(shape: Shape, jacobian: np.ndarray, start: int) -> dict[str, np.ndarray]:
    """A block for the writer: Jacobians, and small arrays."""
    ones = np.ones(shape.samples)
    return {
        "jacobian": jacobian,
        "sample_index": np.arange(start, start + shape.samples),
        "outputs": np.ones((shape.samples, shape.classes), np.float32),
        "frobenius_norm": ones,
        "class_norms": np.ones((shape.samples, shape.classes)),
    }


def write_result(path: Path, shape: Shape, block: np.ndarray) -> None:
    """As a run does, without the computation."""
    with ResultWriter.create(path, layout_of(shape), {}, overwrite=True) as writer:
        for number in range(shape.blocks):
            start = number * shape.samples
            writer.write_batch(start, arrays_of(shape, block, start))
            if writer.seconds_to_commit == 0:
                writer.commit()
        writer.finish()


def write_raw(path: Path, shape: Shape, block: np.ndarray) -> None:
    """The bytes, in one system call a block."""
    with path.open("wb", buffering=0) as file:
        for _ in range(shape.blocks):
            left = block.data.cast("B")
            while len(left):
                left = left[file.write(left) :]
        os.fsync(file.fileno())


def write_npy(path: Path, shape: Shape, block: np.ndarray) -> None:
    """`np.save`, a file a block; they wait for the disk together, as the others do."""
    with ExitStack() as stack:
        files = [stack.enter_context(name.open("wb")) for name in _npy_names(path, shape)]
        for file in files:
            np.save(file, block)
        for file in files:
            file.flush()
            os.fsync(file.fileno())


def _npy_names(path: Path, shape: Shape) -> list[Path]:
    return [path.with_suffix(f".{number}.npy") for number in range(shape.blocks)]


def read_result(path: Path, shape: Shape) -> None:
    """Block by block."""
    with h5py.File(path, "r") as file:
        for number in range(shape.blocks):
            file["jacobian"][number * shape.samples : (number + 1) * shape.samples]


def read_raw(path: Path, shape: Shape) -> None:
    """The bytes, a block at a time."""
    with path.open("rb", buffering=0) as file:
        for _ in range(shape.blocks):
            left = memoryview(bytearray(shape.block_bytes))
            while len(left):
                left = left[file.readinto(left) :]


def read_npy(path: Path, shape: Shape) -> None:
    """`np.load`, a file a block."""
    for name in _npy_names(path, shape):
        np.load(name)


def forget(folder: Path) -> None:
    """Let the system drop what it holds of these files in memory."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


Work = tuple[str, Callable[[Path, Shape, np.ndarray], None], Callable[[Path, Shape], None] | None, bool]

WORKS: tuple[Work, ...] = (
    ("np.save, np.load", write_npy, read_npy, False),
    ("raw", write_raw, read_raw, False),
    ("result file", write_result, read_result, False),
    ("result file, classes first", write_result, None, True),
)
"""Name, writer, reader, and whether the block is a transposed view."""


def measure(shape: Shape, folder: Path, rounds: int) -> dict[str, tuple[float, float | None]]:
    """MB/s of writing and of reading, by name; the medians of the rounds."""
    draw = np.random.default_rng(0)
    block = draw.standard_normal((shape.samples, *shape.input_shape, shape.classes), np.float32)
    first = np.ascontiguousarray(np.moveaxis(block, -1, 1))
    view = np.moveaxis(first, 1, -1)
    megabytes = shape.block_bytes * shape.blocks / 1e6
    rates: dict[str, list[tuple[float, float | None]]] = {name: [] for name, *_ in WORKS}
    for _ in range(rounds):
        for name, write, read, transposed in WORKS:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                path = Path(place) / "out.h5"
                began = time.perf_counter()
                write(path, shape, view if transposed else block)
                writing = megabytes / (time.perf_counter() - began)
                reading = None
                if read is not None:
                    forget(Path(place))
                    began = time.perf_counter()
                    read(path, shape)
                    reading = megabytes / (time.perf_counter() - began)
                rates[name].append((writing, reading))
    return {
        name: (
            statistics.median(rate[0] for rate in found),
            statistics.median(rate[1] for rate in found if rate[1] is not None) if found[0][1] else None,
        )
        for name, found in rates.items()
    }


def table(found: dict[str, dict[str, tuple[float, float | None]]], rounds: int) -> str:
    """The figures in Markdown."""
    lines = [
        f"{time.strftime('%Y-%m-%d')}; {machine(torch.device('cpu'))}.",
        "",
        f"MB/s of float32 Jacobians, uncompressed, medians of {rounds} interleaved rounds on one disk; every",
        "writer ends with its bytes at the disk, every reader begins without them in memory. In brackets:",
        "over `np.save` or `np.load` of the same blocks. `classes first`: the block as autograd makes it,",
        "transposed on the way.",
        "",
        "| block | MiB a block | " + " | ".join(f"{name}: write" for name, *_ in WORKS),
    ]
    lines[-1] += " | " + " | ".join(f"{name}: read" for name, _, read, _ in WORKS if read) + " |"
    lines.append("| --- " * (lines[-1].count("|") - 1) + "|")
    for shape in SHAPES:
        rates = found[shape.name]
        base_write, base_read = rates[WORKS[0][0]]
        cells = [f"{rates[name][0]:.0f} ({rates[name][0] / base_write:.2f})" for name, *_ in WORKS]
        for name, _, read, _ in WORKS:
            rate = rates[name][1]
            if read is not None and rate is not None and base_read is not None:
                cells.append(f"{rate:.0f} ({rate / base_read:.2f})")
        lines.append(f"| {shape.name} | {shape.block_bytes / MIB:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, and put the table into a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to try")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", type=Path, help="put the table into this file")
    options = parser.parse_args()
    needed = 3 * max(shape.block_bytes * shape.blocks for shape in SHAPES)
    if shutil.disk_usage(options.folder).free < needed:
        parser.error(f"{options.folder} has less than {needed / 1e9:.1f} GB free")
    found = {shape.name: measure(shape, options.folder, options.rounds) for shape in SHAPES}
    text = table(found, options.rounds)
    print(text)
    if options.markdown:
        refresh(options.markdown, "store", text, title="Writing and reading result files")


if __name__ == "__main__":
    main()
