"""Copies to the host: the tensors themselves on a CPU; from a GPU, into two buffers in turn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jacli.device import transfer as host_copies
from jacli.device.transfer import ArrivingArray, HostCopies


class Event:
    """Happens when somebody waits for it."""

    def __init__(self) -> None:
        self.waited = 0

    def synchronize(self) -> None:
        self.waited += 1


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4).mT
    array = HostCopies(torch.device("cpu")).copy("jacobian", tensor)
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, tensor.numpy())
    assert np.shares_memory(array, tensor.numpy())


def test_whoever_takes_a_piece_waits_for_the_copy() -> None:
    event = Event()
    array = ArrivingArray(torch.arange(6.0).reshape(2, 3), event)  # type: ignore[arg-type]
    assert (array.shape, array.dtype, len(array), event.waited) == ((2, 3), np.float32, 2, 0)
    np.testing.assert_array_equal(array[1:2, 0:2], [[3.0, 4.0]])
    assert event.waited == 1


def test_two_buffers_take_turns_and_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def plain(count: int, dtype: torch.dtype) -> torch.Tensor:
        made.append(count)
        return torch.empty(count, dtype=dtype)

    monkeypatch.setattr(host_copies, "pinned", plain)
    copies = HostCopies(torch.device("cpu"))
    first, second, third = (copies._buffer("jacobian", torch.empty(2, 3)) for _ in range(3))
    assert first.data_ptr() == third.data_ptr() != second.data_ptr()
    assert made == [6, 6]
    assert copies._buffer("jacobian", torch.empty(1, 3)).shape == (1, 3)  # a last, smaller block
    assert made == [6, 6]
    copies._buffer("jacobian", torch.empty(4, 3))
    assert made == [6, 6, 12]


def test_on_a_gpu_the_copy_arrives_in_the_order_of_the_shape(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs a GPU (JACLI_TEST_DEVICE=cuda)")
    copies = HostCopies(device)
    for number in range(5):
        tensor = torch.full((2, 300, 200), float(number), device=device).mT
        array = copies.copy("jacobian", tensor)
        assert isinstance(array, ArrivingArray)
        assert array.shape == (2, 200, 300)
        assert (array[:] == number).all()
