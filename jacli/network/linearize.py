"""The linearisation of a network at a batch of points, by each primitive that autograd offers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap

from jacli.device.torch_switches import batched_pass, forward_pass, thawed
from jacli.errors import MethodError, telling_line, translating
from jacli.linear_map import Extra
from jacli.linear_map.agreement import finite, gaps
from jacli.linear_map.tape import Tape
from jacli.linear_program import Program, ProgramMap
from jacli.network.network import twice


class Function(Protocol):
    """What is linearised: a network, or the part of one between two cuts."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def saves_copies(self) -> bool: ...

    @property
    def recurrent(self) -> bool: ...

    @property
    def scripted_attention(self) -> bool: ...

    @property
    def lone(self) -> bool: ...

    def __call__(self, x: Tensor, extra: Extra) -> Tensor: ...

    def renewing(self) -> Function: ...


class Linearized:
    """``J[b] = df(x)[b] / dx[b]`` for every sample of a batch, as linear maps.

    Samples must be independent of one another (the probe sees to that): then one reverse pass with
    a cotangent in every sample gives a row of every sample's Jacobian at once.

    With ``selected``, the map is of the selected outputs only: selecting is linear, so it is simply
    composed with the network, and every method serves it unchanged.

    What a primitive needs is made at its first use and kept until `close`: a tape for `pull`, a
    pullback for `vjp`, a linear program for `adjoint` and `tangent`; each holds the activations of one
    forward pass over the batch.

    Args:
        network: The network.
        x: The points, ``(batch, *input)``.
        extra: Further arguments of this batch.
        selected: Flat output indices of each sample, ``(batch, k)``; all outputs if None.
        outputs: The outputs at the points, where they are known.
        n_out: Flattened outputs a sample, where that is known: else a forward pass finds it out.
        program: The network as a program, where it was traced.
        precision: Of the program's passes: ``ieee``, ``tf32`` or ``bf16``.
    """

    def __init__(
        self,
        network: Function,
        x: Tensor,
        extra: Extra,
        selected: Tensor | None = None,
        *,
        outputs: Tensor | None = None,
        n_out: int | None = None,
        program: Program | None = None,
        precision: str = "ieee",
    ) -> None:
        self._network = network
        self._transformed = network  # what runs under torch.func's transforms
        self._program = program
        self._precision = precision
        self._program_map: ProgramMap | None = None
        self._x = x.detach()
        self._extra = extra
        self._selected = selected
        self._outputs = outputs
        self._n_out = n_out
        self._tape: Tape | None = None
        self._pullback: Callable[[Tensor], Tensor] | None = None

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self._x.shape[0]

    @property
    def n_in(self) -> int:
        """Flattened inputs a sample."""
        return self._x[0].numel()

    @property
    def n_out(self) -> int:
        """Flattened (selected) outputs a sample."""
        if self._selected is not None:
            return self._selected.shape[1]
        if self._n_out is None:
            self._n_out = self.outputs[0].numel()
        return self._n_out

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the points, the outputs and every vector."""
        return self._x.dtype

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self._x.device

    @property
    def selected(self) -> Tensor:
        """Flat index of every output that is differentiated, ``(batch, n_out)``."""
        if self._selected is None:
            return torch.arange(self.n_out, device=self.device).expand(self.batch, -1)
        return self._selected

    @property
    def outputs(self) -> Tensor:
        """All outputs at the points, ``(batch, *output)``."""
        if self._outputs is None:
            with torch.no_grad():  # a copy: a model may write every result into the same memory
                self._outputs = self._network(self._x, self._extra).clone()
        return self._outputs

    def _function(self, x: Tensor, network: Function | None = None) -> tuple[Tensor, Tensor]:
        outputs = (network or self._network)(x, self._extra)
        flat = outputs.reshape(outputs.shape[0], -1)
        return (flat if self._selected is None else flat.gather(1, self._selected)), outputs.detach().clone()

    def pull(self, cotangents: Tensor) -> Tensor:
        """One plain reverse pass on a kept tape: ``(batch, n_out) -> (batch, n_in)``."""
        if self._tape is None:
            self._tape = self._recorded()
            assert self._outputs is not None  # recorded along
            self._hold_against(self._outputs)
        # Checkpoints run parts of the forward pass again.
        with forward_pass(recurrent=self._network.recurrent, device=self.device):
            gradient = self._tape.pull(cotangents)
        assert gradient is not None  # else it has raised
        return gradient.reshape(self.batch, self.n_in)

    def _recorded(self) -> Tape:
        x = self._x.clone().requires_grad_(True)
        flat, self._outputs = self._function(x)
        return Tape(x, flat)

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Batched reverse passes: ``(k, batch, n_out) -> (k, batch, n_in)``.

        As ``torch.func.vmap`` over the pullback of ``torch.func.vjp``.  Only the cotangents are
        batched, never the samples: ``vmap(jacrev)`` over samples is silently wrong for PReLU where
        the batch size equals n_out.
        """
        with batched_pass():
            if self._pullback is None:
                self._pullback = self._batched_pullback()
            rows = self._pullback(cotangents)
        return rows.detach().reshape(len(cotangents), self.batch, self.n_in)

    def _batched_pullback(self) -> Callable[[Tensor], Tensor]:
        """``(k, batch, n_out) -> (k, batch, *input)``.

        torch.func's transforms forbid hooks on saved tensors, by which copies are saved and checkpoints
        (``use_reentrant=False``) are made: then a plain tape is pulled back by the same batching rules.
        """
        if not self._network.saves_copies:
            try:
                _, pullback, self._outputs = self._in_transform(
                    lambda function: vjp(function, self._x, has_aux=True)
                )
            except RuntimeError as error:
                if "saved tensor hooks" not in str(error):
                    raise
            else:
                return lambda cotangents: vmap(pullback)(cotangents)[0]
        return partial(self._recorded().pull, batched=True)  # type: ignore[return-value]

    def jvp(self, tangents: Tensor) -> Tensor:
        """Batched forward-mode passes: ``(k, batch, n_in) -> (k, batch, n_out)``.

        As ``torch.func.vmap`` over ``torch.func.jvp``.
        """
        x = self._x
        shaped = tangents.reshape(len(tangents), *x.shape)

        def columns(function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
            def directional(tangent: Tensor) -> Tensor:
                result: Tensor = jvp(function, (x,), (tangent,), has_aux=True)[1]
                return result

            return vmap(directional)(shaped).detach()

        with ExitStack() as stack:
            stack.enter_context(batched_pass(recurrent=self._network.recurrent))
            if self._network.scripted_attention:
                stack.enter_context(thawed(self._network.module))
            made: Tensor = self._in_transform(columns)
        return made

    def _in_transform(self, run: Callable[[Callable[[Tensor], tuple[Tensor, Tensor]]], Any]) -> Any:
        """Run a transform of the network's function.

        torch.func's transforms let nobody write into tensors from outside, as a module does that counts its
        calls in a buffer: then each forward pass runs on a copy of the module that is made inside.
        """
        try:
            return run(partial(self._function, network=self._transformed))
        except RuntimeError as error:
            if self._transformed is not self._network or "mutate a captured Tensor" not in str(error):
                raise
        self._transformed = self._network.renewing()
        return run(partial(self._function, network=self._transformed))

    def adjoint(self, cotangents: Tensor) -> Tensor:
        """Adjoint passes of the program: ``(k, batch, n_out) -> (k, batch, n_in)``.

        Raises:
            MethodError: There is no program, or its outputs are not the network's.
        """
        program, k = self.program_map, len(cotangents)
        if self._selected is not None:
            index = self._selected.expand(k, -1, -1)
            every = cotangents.new_zeros(k, self.batch, program.n_out)
            cotangents = every.scatter_add_(2, index, cotangents)
        if program.batch != self.batch:
            cotangents = torch.cat([cotangents, torch.zeros_like(cotangents)], dim=1)
        return program.vjp(cotangents)[:, : self.batch]

    def tangent(self, tangents: Tensor) -> Tensor:
        """Tangent passes of the program: ``(k, batch, n_in) -> (k, batch, n_out)``.

        Raises:
            MethodError: There is no program, or its outputs are not the network's.
        """
        program = self.program_map
        if program.batch != self.batch:
            tangents = torch.cat([tangents, torch.zeros_like(tangents)], dim=1)
        columns = program.jvp(tangents)[:, : self.batch]
        if self._selected is None:
            return columns
        return columns.gather(2, self._selected.expand(len(columns), -1, -1))

    @property
    def program_map(self) -> ProgramMap:
        """The program linearised at these points.

        Its outputs become the `outputs` where these are not known yet: they are the model's own, of the same
        kernels; where the model runs here by itself, for `pull`, they are compared with what it gives.

        Raises:
            MethodError: There is no program, it fails here, or its outputs are not the network's.
        """
        if self._program_map is None:
            if self._program is None:
                raise _no_program("it was not traced")
            program = self._program
            arguments: list[Any] = [self._x, *(self._extra[name] for name in program.names)]
            if self._network.lone and self.batch == 1:
                arguments = list(map(twice, arguments))
            with (
                translating(lambda error: _no_program(f"it fails on this block: {telling_line(error)}")),
                forward_pass(recurrent=self._network.recurrent, device=self.device),
            ):
                found = program.linearize(arguments[0], arguments[1:], precision=self._precision)
            self._program_map = found
            if self._outputs is None:
                self._outputs = found.outputs[: self.batch]
            else:
                self._hold_against(self._outputs)
        return self._program_map

    def _hold_against(self, own: Tensor) -> None:
        """Compare the program's outputs, where there is a program, with the network's own."""
        if self._program_map is not None and not same_outputs(own, self._program_map.outputs[: self.batch]):
            raise _no_program("its outputs are not those of the model on this block")

    def at(self, index: Tensor, *, noise: float = 0.0, seed: int = 0) -> Linearized:
        """The same network at other samples of this batch: fewer, reordered, repeated or moved by noise."""
        extra = {
            name: value[index.to(value.device)] if isinstance(value, Tensor) else value
            for name, value in self._extra.items()
        }
        selected = None if self._selected is None else self._selected[index]
        x = self._x[index]
        if noise:
            x = x + noise * _sizes(x) * _gaussian_like(x, seed)
        return Linearized(self._network, x, extra, selected, n_out=self._n_out)

    def close(self) -> None:
        """Free the tape, the pullback and the linear program."""
        self._tape = self._pullback = self._program_map = None


def _sizes(x: Tensor) -> Tensor:
    """The magnitude of every number, or its sample's root mean square if larger; 1 for a zero sample."""
    rms = x.reshape(len(x), -1).square().mean(1).sqrt()
    rms = torch.where(rms > 0, rms, 1.0)
    return torch.maximum(x.abs(), rms.reshape(-1, *[1] * (x.dim() - 1)))


def _gaussian_like(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)


OUTPUTS_AGREE = 1e-4
"""Largest relative difference between the outputs of a graph and of the model on a block: other kernels
of attention round otherwise (1e-6); a graph that lost a write or a branch is off by its size."""


def same_outputs(own: Tensor, traced: Tensor) -> bool:
    """Whether two batches of outputs are the same, each sample by its own scale."""
    if own.shape != traced.shape:
        return False
    own, traced = own.reshape(len(own), -1), traced.reshape(len(own), -1)
    gap = torch.linalg.vector_norm(gaps(traced, own), ord=torch.inf, dim=1)
    scale = torch.linalg.vector_norm(finite(own), ord=torch.inf, dim=1)
    return bool((gap <= OUTPUTS_AGREE * scale + 1e-30).all())


def _no_program(why: str) -> MethodError:
    return MethodError(
        "The network does not run as a program.",
        why=f"{why[0].upper()}{why[1:].rstrip('.')}.",
        todo="Leave --method out, or choose --method loop; and --precision, if it was given.",
    )
