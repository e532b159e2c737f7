"""Which devices this machine has, which of them a process computes on, and what they are called."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from jacli.errors import UsageError
from jacli.errors.printable import count_of

GPU_KIND = "CUDA"
"""The kind of GPU that jacli computes on, as messages name it."""

AUTOCAST_DEVICES = ("cpu", "cuda")
"""The types of device for which torch has autocast switches that may be on."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees.

    Attributes:
        name: As its driver gives it.
        free: Bytes that no process holds.
        total: Bytes.
    """

    name: str
    free: int
    total: int


def is_gpu(device: torch.device) -> bool:
    """Is the device a GPU, which works beside the host and has memory of its own?

    >>> is_gpu(torch.device("cpu")), is_gpu(torch.device("cuda", 1))
    (False, True)
    """
    return device.type == "cuda"


def gpus() -> list[Gpu]:
    """The GPUs that torch sees, in the order of their numbers; empty if there are none.

    >>> len(gpus()) == torch.cuda.device_count()
    True
    """
    if not torch.cuda.is_available():
        return []
    devices = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        devices.append(Gpu(torch.cuda.get_device_name(index), free, total))
    return devices


def why_no_gpu() -> str:
    """Why `gpus` is empty, as a phrase.

    >>> why_no_gpu() in ("none seen", "this torch is built without CUDA")
    True
    """
    return "none seen" if torch.version.cuda else "this torch is built without CUDA"


def device_name(device: torch.device) -> str:
    """The model of the GPU, or of the host's processor."""
    return torch.cuda.get_device_name(device) if is_gpu(device) else _cpu_name()


def pick_device(asked: str, rank: int = 0) -> torch.device:
    """``auto`` is a GPU if there is one; if there are several, ``auto`` and ``cuda`` mean this process's own.

    >>> pick_device("cpu")
    device(type='cpu')

    Args:
        asked: ``--device``.
        rank: Number of this process on its node (its *local rank*): processes that see several GPUs share
            them out in turn.

    Raises:
        UsageError: There is no such GPU.
    """
    if asked == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", rank % torch.cuda.device_count())
    if asked == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", rank % torch.cuda.device_count())
    device = torch.device(asked)
    if is_gpu(device) and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {asked} is not there.",
            why=f"torch {torch.__version__} sees {count_of(torch.cuda.device_count(), 'CUDA device')}.",
            hint="Give --device cpu, or run `jacli doctor`.",
        )
    return torch.device("cuda", device.index or 0) if is_gpu(device) else device


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
