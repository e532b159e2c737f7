"""Time on the host's clock, read when a device has finished its work."""

from __future__ import annotations

from time import perf_counter

import torch

from jacli.device.hardware import is_gpu


def now(device: torch.device) -> float:
    """Seconds on `time.perf_counter`, once the device has finished everything that is queued on it.

    A GPU runs its kernels after the call that launches them has returned: without waiting, only the launches
    would be timed.

    >>> began = now(torch.device("cpu"))
    >>> now(torch.device("cpu")) >= began
    True
    """
    if is_gpu(device):
        torch.cuda.synchronize(device)
    return perf_counter()
