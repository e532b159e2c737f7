"""Reduced precisions of the linear passes: which of them a device has for a dtype."""

from __future__ import annotations

import torch

from jacli.device.hardware import is_gpu
from jacli.errors import UsageError
from jacli.options.methods import PRECISIONS


def precisions_of(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """The precisions available for linear passes there, ``ieee`` first.

    >>> precisions_of(torch.device("cpu"), torch.float32)
    ('ieee', 'bf16')
    """

    def available(precision: str) -> bool:
        try:
            check_precision(precision, device, dtype)
        except UsageError:
            return False
        return True

    return tuple(filter(available, PRECISIONS))


def check_precision(precision: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a precision that the device does not have, or that does not reduce anything for this dtype.

    >>> check_precision("tf32", torch.device("cpu"), torch.float32)
    Traceback (most recent call last):
        ...
    jacli.errors.UsageError: The precision tf32 does not exist on cpu.
    Only NVIDIA GPUs have TF32, since Ampere.
    Choose bf16, or ieee.

    Args:
        precision: ``ieee``, ``tf32`` or ``bf16``.
        device: The run's.
        dtype: Of the points at which the network is linearised.

    Raises:
        UsageError: ``tf32`` without a GPU that has it, or with another dtype than float32; ``bf16`` if the
            points themselves are in half precision.
    """
    name = str(dtype).removeprefix("torch.")
    if precision == "tf32" and not _has_tf32(device):
        raise UsageError(
            f"The precision tf32 does not exist on {device}.",
            why="Only NVIDIA GPUs have TF32, since Ampere.",
            hint="Choose bf16, or ieee.",
        )
    dtypes = {"tf32": (torch.float32,), "bf16": (torch.float32, torch.float64)}
    if dtype not in dtypes.get(precision, (dtype,)):
        raise UsageError(
            f"The precision {precision} does not go with {name}.",
            why="A reduced precision must be below the dtype in which the network itself computes."
            if dtype != torch.float64
            else "TF32 is a way to multiply float32 numbers.",
            hint="Convert model and inputs to float32, or choose ieee.",
        )


def _has_tf32(device: torch.device) -> bool:
    return is_gpu(device) and torch.cuda.get_device_capability(device) >= (8, 0)
