"""Installed packages, hardware of this machine, and whether a folder can hold results."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jacli
from jacli.errors.numbers import format_size
from jacli.errors.printable import count_of

FOLDER = "output folder"
"""Name of the finding that says whether results can be written at all."""

_PACKAGES = ("torch", "torchvision", "numpy", "h5py", "safetensors", "timm", "hdf5plugin")
_OPTIONAL = {
    "timm": "Only --arch timm:NAME needs it: pip install 'jacli[timm]'.",
    "hdf5plugin": "Only --compress zstd needs it: pip install 'jacli[compress]'.",
}

# torchvision 0.N is built for torch 2.(N - 15): 0.21 for 2.6, 0.28 for 2.13.
_TORCHVISION_MINOR_AHEAD = 15

_LOW_DISK_BYTES = 2**30
_LOW_MEMORY_BYTES = 2**30

_REFUSED = 75
_OPEN_FOR_WRITING = f"""
import sys, h5py
try:
    h5py.File(sys.argv[1], "r+").close()
except BlockingIOError:
    sys.exit({_REFUSED})
"""
_IMPORT_SECONDS = 120


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was examined.
        value: What was found.
        ok: Whether jacli works with it.
        todo: The remedy if it does not, or a hint; empty if there is nothing to say.
    """

    name: str
    value: str
    ok: bool = True
    todo: str = ""


def diagnose(folder: Path) -> list[Finding]:
    """Examine this installation, this machine, and ``folder`` as a place for results.

    Starts two short Python processes (one imports torchvision by itself, one tries to open a locked
    file) and writes one small temporary file into ``folder``, which it removes.

    Returns:
        Findings, in reading order.
    """
    packages = [_find_package(name) for name in _PACKAGES]
    return [
        Finding("Python", f"{platform.python_version()} ({sys.executable})"),
        Finding("jacli", f"{jacli.__version__} ({Path(jacli.__file__).parent})"),
        *packages,
        _find_hdf5(),
        *_find_torchvision(packages),
        *_find_processors(),
        _find_memory(),
        *_find_folder(folder),
    ]


def _find_package(name: str) -> Finding:
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        todo = _OPTIONAL.get(name, f"Install it: pip install {name}.")
        return Finding(name, "not installed", ok=name in _OPTIONAL, todo=todo)


def _find_hdf5() -> Finding:
    import h5py

    return Finding("HDF5", h5py.version.hdf5_version)


def _find_torchvision(packages: list[Finding]) -> list[Finding]:
    installed = {finding.name: finding.value for finding in packages if finding.ok}
    if "torchvision" not in installed:
        return []
    return [_find_pairing(installed["torch"], installed["torchvision"]), _find_torchvision_import()]


def _find_pairing(torch_version: str, torchvision_version: str) -> Finding:
    """Whether the two releases were built for each other (2.N with 0.(N + 15))."""
    name = "torch/torchvision pairing"
    torch_major, torch_minor = (int(part) for part in torch_version.split(".")[:2])
    major, minor = (int(part) for part in torchvision_version.split(".")[:2])
    value = f"torch {torch_major}.{torch_minor} with torchvision {major}.{minor}"
    expected = torch_minor + _TORCHVISION_MINOR_AHEAD
    if torch_major != 2 or (major, minor) == (0, expected):
        return Finding(name, value)
    todo = f"Install the pair: pip install 'torch==2.{torch_minor}.*' 'torchvision==0.{expected}.*'."
    return Finding(name, f"{value}; expected torchvision 0.{expected}", ok=False, todo=todo)


def _find_torchvision_import() -> Finding:
    """Whether torchvision imports by itself, only with jacli's repair, or not at all.

    The plain import is tried in a process of its own: after the repair it would succeed in this one.
    """
    from jacli.models.torchvision_import import import_torchvision

    name = "torchvision import"
    try:
        plain = subprocess.run(
            [sys.executable, "-c", "import torchvision"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(
            name,
            f"no answer within {_IMPORT_SECONDS} s",
            ok=False,
            todo="Try: python -c 'import torchvision'.",
        )
    if plain.returncode == 0:
        return Finding(name, "works by itself")
    try:
        import_torchvision()
    except Exception as error:  # whatever a broken installation raises, it is the finding
        return Finding(
            name,
            f"fails: {type(error).__name__}: {error}".splitlines()[0],
            ok=False,
            todo="Install the torchvision that was built for this torch, from the same index.",
        )
    return Finding(
        name,
        "works with jacli's repair (its compiled operators do not fit this torch)",
        todo="jacli needs none of those operators; detection models do.",
    )


def _find_processors() -> list[Finding]:
    """CPU threads, GPUs with their memory, and the settings that round float32 products."""
    import torch

    from jacli.device.hardware import GPU_KIND, gpus, why_no_gpu
    from jacli.device.torch_switches import process_precision

    threads = count_of(torch.get_num_threads(), "thread")
    findings = [Finding("CPU", f"{count_of(os.cpu_count() or 1, 'core')}, torch uses {threads}")]
    devices = gpus()
    if not devices:
        return [*findings, Finding(GPU_KIND, why_no_gpu())]
    for index, gpu in enumerate(devices):
        value = f"{gpu.name}, {format_size(gpu.free)} free of {format_size(gpu.total)}"
        findings.append(Finding(f"{GPU_KIND} device {index}", value))
    matmul, convolution = process_precision()
    return [*findings, Finding("float32 defaults", f"matrix products {matmul}, convolutions {convolution}")]


def _find_memory() -> Finding:
    """Memory of the host, exactly as a run determines it (a run may hold a share of what is available)."""
    from jacli.device.memory import host_memory

    memory = host_memory()
    value = f"{format_size(memory.free)} available of {format_size(memory.total)}"
    if memory.free < _LOW_MEMORY_BYTES:
        return Finding("memory", value, ok=False, todo="Close other programs, or use a smaller --batch-size.")
    return Finding("memory", value)


def _find_folder(folder: Path) -> list[Finding]:
    """Whether ``folder`` takes an HDF5 file, keeps a second writer out of it, and has space."""
    try:
        locking = _find_locking(folder)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        todo = "Name an existing folder that you may write to and that has space left."
        return [Finding(FOLDER, f"{folder}: cannot be written ({reason})", ok=False, todo=todo)]
    free = shutil.disk_usage(folder).free
    space = Finding("free space", format_size(free))
    if free < _LOW_DISK_BYTES:
        todo = "jacli compute --dry-run says what a run needs; --save none writes no Jacobian."
        space = Finding("free space", format_size(free), ok=False, todo=todo)
    return [Finding(FOLDER, f"{folder.resolve()}: can be written"), space, locking]


def _find_locking(folder: Path) -> Finding:
    """Open an HDF5 file for writing here, then again from another process: that must be refused.

    HDF5 shares a file that one process opens twice, so only a second process meets the lock.

    Raises:
        OSError: No file can be written in ``folder``.
    """
    import h5py

    name = "HDF5 locking"
    with tempfile.TemporaryDirectory(prefix=".jacli-doctor-", dir=folder) as temporary:
        path = Path(temporary) / "lock.h5"
        with h5py.File(path, "w") as file:
            file.flush()  # without locks the second process must find a whole file
            second = subprocess.run(
                [sys.executable, "-c", _OPEN_FOR_WRITING, str(path)],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                text=True,
                timeout=_IMPORT_SECONDS,
                check=False,
            )
    if second.returncode == _REFUSED:
        return Finding(name, "works: a second writer is refused")
    if second.returncode:
        last_line = second.stderr.strip().rpartition("\n")[2]
        return Finding(
            name, f"could not be tried: {last_line}", ok=False, todo="Check the h5py installation."
        )
    setting = os.environ.get("HDF5_USE_FILE_LOCKING")
    switched_off = f" (HDF5_USE_FILE_LOCKING={setting})" if setting else ""
    return Finding(
        name,
        f"a second writer is let in{switched_off}",
        ok=False,
        todo="Never let two runs write the same file here; "
        + (
            "unset HDF5_USE_FILE_LOCKING."
            if setting
            else "network file systems often ignore locks: a local disk is safe."
        ),
    )
