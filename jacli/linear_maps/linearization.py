"""What the rooms see of a network and of its linearisation at a batch of points."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from torch import Tensor, nn

from jacli.linear_maps.maps import LinearMap, Shaped

Extra = Mapping[str, object]
"""Further arguments of a forward pass: a value, or a tensor with one row per sample."""


class Network(Protocol):
    """A network as the rooms see it: frozen, in eval mode, one tensor in and one tensor out."""

    @property
    def module(self) -> nn.Module: ...

    def __call__(self, x: Tensor, extra: Extra) -> Tensor:
        """Run on a batch: ``(batch, *input) -> (batch, *output)``."""
        ...

    def copied(self) -> Network:
        """The same network on a copy of the module: calling it leaves the module as it was."""
        ...

    def renewing(self) -> Network:
        """The same network that runs every forward pass on a fresh copy of the module."""
        ...

    def saving_copies(self) -> Network:
        """The same network that saves copies of tensors for its reverse passes, whatever overwrites them."""
        ...


class Linearization(Shaped, Protocol):
    """A network at a batch of points: its Jacobians as linear maps, by every primitive there is.

    A context manager: what a primitive holds (activations, a linear program) lives until it is closed, and a
    map that is used after that raises ``ValueError``.
    """

    @property
    def outputs(self) -> Tensor:
        """All outputs at the points, ``(batch, *output)``; also once it is closed."""
        ...

    def tape(self, *, copies: int = 1) -> LinearMap:
        """Plain reverse passes over one recorded forward pass, one vector after another.

        Args:
            copies: Copies of the batch; as many vectors are pulled back in one pass.
        """
        ...

    def batched(self) -> LinearMap:
        """A chunk of vectors at a time, by torch's batching rules."""
        ...

    def program(self) -> LinearMap:
        """A chunk of vectors at a time through the linear program, in the precision asked for."""
        ...

    def at(self, index: Tensor, *, noise: float = 0.0, seed: int = 0) -> Linearization:
        """The same network at samples ``index`` of this batch: fewer, reordered or repeated.

        Args:
            index: ``(m,)``.
            noise: Moves every input by Gaussian noise of this size, relative to it or to the root mean square
                of its sample, whichever is larger.
            seed: Seed for the noise.
        """
        ...

    def close(self) -> None:
        """Free what the primitives hold."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class CutLinearization(Linearization, Protocol):
    """One of a network that is cut: also linearised link by link, link 0 nearest the input."""

    def span(self, first: int, last: int) -> Linearization:
        """Links ``first`` to ``last - 1`` as one network at these points."""
        ...
