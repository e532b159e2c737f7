"""What the probe cannot see is seen in the blocks of the run."""

import pytest
import torch
from torch import nn

import jacli
from jacli.errors import ModelError


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        return self.linear(self.function(x))


class EveryFew(nn.Module):
    """Changes its answer with every call, after some that do not."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.tanh(x) * (1 + max(0, self.calls - 20))


MIXING = {
    "in larger batches only": Function(lambda x: torch.tanh(x - x.mean(0) if len(x) > 4 else x)),
    "a branch on the whole batch": Function(lambda x: torch.tanh(x) if x.sum() > 3 else torch.sin(3 * x)),
    "state after a while": EveryFew(),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixing_is_found_in_a_block(name):
    torch.manual_seed(1)
    x = torch.randn(64, 6) + 0.5
    with pytest.raises(ModelError, match="mixes samples"):
        jacli.jacobian(MIXING[name], x, batch_size=8)


def test_a_fixed_batch_is_checked_in_another_order():
    def anchored(x):
        assert len(x) == 4
        return x - 0.5 * x[2:3].detach() * (x.abs().max() > 2)

    x = torch.randn(8, 6)
    x[4:] *= 5  # only the second block reaches the branch
    x[:4] = x[:4].clamp(-1, 1)
    with pytest.raises(ModelError, match="another order"):
        jacli.jacobian(Function(anchored), x)


@pytest.mark.parametrize("error", [AssertionError, KeyError, RuntimeError])
def test_a_model_that_fails_on_larger_blocks_is_named(error):
    def small_only(x):
        if len(x) > 4:
            raise error("too many")
        return torch.tanh(x)

    with pytest.raises(ModelError, match="fails on a batch of 8"):
        jacli.jacobian(Function(small_only), torch.randn(16, 6), batch_size=8)
    assert jacli.jacobian(Function(small_only), torch.randn(16, 6), batch_size=4).shape == (16, 6, 5)
