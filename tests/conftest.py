"""Shared fixtures: device from the environment, random state fixed."""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(os.environ.get("JACLI_TEST_DEVICE", "cpu"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
