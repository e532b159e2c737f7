"""Global settings, given back after code that may change them: a user's imports and builders.

A script that ends with ``torch.set_grad_enabled(False)`` or begins with ``torch.set_default_device("cuda")``
means itself; left so, the settings would hold for everything that jacli computes afterwards.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from jacli.device.hardware import AUTOCAST_DEVICES
from jacli.device.random_state import fork_every_random_state

_never_left: list[Any] = []
"""Guards that take back an inference mode which user code entered and never left."""


@contextmanager
def settings_kept() -> Iterator[None]:
    """Give back, whatever happens inside, what is global.

    Of torch these are: grad mode and inference mode, default dtype and device, the number of threads,
    deterministic algorithms, anomaly detection, autocast, and the random states.  The precision of float32
    products is not among them: each pass sets its own (`jacli.network`).  Beside torch: the working folder,
    what NumPy does at an overflow, and filters that make errors of warnings; filters that silence stay.

    >>> with settings_kept():
    ...     torch.set_default_dtype(torch.float64)
    >>> torch.get_default_dtype()
    torch.float32
    """
    before = [(write, read()) for read, write in _SETTINGS]
    inference = torch.is_inference_mode_enabled()
    with _no_errors_of_warnings(), fork_every_random_state():
        try:
            yield
        finally:
            if torch.is_inference_mode_enabled() != inference:
                guard = torch.inference_mode(inference)
                guard.__enter__()
                _never_left.append(guard)
            for (read, write), (_, value) in zip(_SETTINGS, before, strict=True):
                if read() != value:
                    write(value)


@contextmanager
def _no_errors_of_warnings() -> Iterator[None]:
    """Take back the filters added inside that make errors of warnings."""
    before = list(warnings.filters)
    added: list[Any] = []
    with warnings.catch_warnings():
        try:
            yield
        finally:
            added = [found for found in warnings.filters if found not in before and found[0] != "error"]
    for action, message, category, module, line in reversed(added):
        texts = ["" if part is None else getattr(part, "pattern", part) for part in (message, module)]
        warnings.filterwarnings(action, texts[0], category, texts[1], line)


def _folder() -> str | None:
    """The working folder; None where it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _set_folder(path: str | None) -> None:
    if path is not None:
        os.chdir(path)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _set_anomaly(value: tuple[bool, bool]) -> None:
    torch.set_anomaly_enabled(*value)


def _autocast() -> tuple[bool, ...]:
    return tuple(map(torch.is_autocast_enabled, AUTOCAST_DEVICES))


def _set_autocast(value: tuple[bool, ...]) -> None:
    for device, enabled in zip(AUTOCAST_DEVICES, value, strict=True):
        torch.set_autocast_enabled(device, enabled)


def _device() -> torch.device | None:
    """The default device that was set, None where none was: `get_default_device` does not tell them apart."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (_device, torch.set_default_device),
    (torch.is_grad_enabled, torch._C._set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (_deterministic, _set_deterministic),
    (_anomaly, _set_anomaly),
    (_autocast, _set_autocast),
    (_folder, _set_folder),
    (np.geterr, lambda how: np.seterr(**how)),
)
"""How a setting is read and written."""


def without_inference_tensors(module: torch.nn.Module) -> torch.nn.Module:
    """Copy tensors that were made in inference mode, of which torch refuses to record any use; in place.

    Tied ones stay tied.

    >>> with torch.inference_mode():
    ...     layer = torch.nn.Linear(3, 2)
    >>> without_inference_tensors(layer).weight.is_inference()
    False
    """
    copies: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for owned in (part._parameters, part._buffers):
            for name, tensor in owned.items():
                if tensor is None or is_lazy(tensor) or not tensor.is_inference():
                    continue
                if id(tensor) not in copies:
                    plain = tensor.detach().clone()
                    parameter = isinstance(tensor, torch.nn.Parameter)
                    copies[id(tensor)] = torch.nn.Parameter(plain, False) if parameter else plain
                owned[name] = copies[id(tensor)]  # type: ignore[assignment]
    return module
