"""The linearisation of a network at a batch of points, by each primitive that torch offers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, func, nn

from jacli.device.torch_switches import batched_pass, forward_pass, thawed
from jacli.errors import MethodError, telling_line, translating
from jacli.errors.printable import capitalised
from jacli.linear_maps import Extra, LinearMap, Samples, SelectedOutputs
from jacli.linear_maps.agreement import same_outputs
from jacli.linear_maps.tape import Tape
from jacli.linear_program import LinearizedGraph, LinearProgram
from jacli.network.network import duplicated
from jacli.network.primitives import Passes, PrimitiveMap, naming, on_copies, on_first_samples, one_by_one


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
    def squeezes_batch_of_one(self) -> bool: ...

    def __call__(self, x: Tensor, extra: Extra) -> Tensor: ...

    def renewing(self) -> Function: ...


class Linearized:
    """``J[b] = df(x)[b] / dx[b]`` for every sample of a batch, by three primitives.

    Samples must be independent of one another (the probe sees to that): then one reverse pass with
    a cotangent in every sample gives a row of every sample's Jacobian at once.

    `tape`, `batched` and `program` give the map as a `jacli.linear_maps.LinearMap`, composed with the
    selection of outputs where there is one.  What a primitive needs is made at its first use and kept until
    `close`: a tape, a pullback, a linear program; each holds the activations of one forward pass over the
    batch.  A context manager; a map that is used after the end raises ``ValueError``.

    Args:
        network: The network.
        x: The points, ``(batch, *input)``.
        extra: Further arguments of this batch.
        selected: Flat output indices of each sample, ``(batch, k)``; all outputs if None.
        outputs: The outputs at the points, where they are known.
        n_out: Flattened outputs per sample, where that is known: else a forward pass finds it out.
        program: The network as a linear program, where it was traced.
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
        program: LinearProgram | None = None,
        precision: str = "ieee",
    ) -> None:
        self._network = network
        self._transformed = network  # what runs under torch.func's transforms
        self._program = program
        self._precision = precision
        self._x = x.detach()
        self._extra = extra
        self._selected = selected
        self._outputs = outputs
        self._n_all = n_out
        self._open = True
        self._tape: Tape | None = None
        self._pullback: Callable[[Tensor], Tensor] | None = None
        self._program_map: LinearizedGraph | None = None
        self._parts: list[Linearized] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the tape, the pullback and the linear program; its maps are then of no use."""
        self._open = False
        self._tape = self._pullback = self._program_map = None
        for part in self._parts:
            part.close()
        self._parts.clear()

    def require_open(self) -> None:
        """Raise ``ValueError`` if this is closed."""
        if not self._open:
            raise ValueError("the linearisation that this map belongs to was closed")

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self._x.shape[0]

    @property
    def n_in(self) -> int:
        """Flattened inputs per sample."""
        return self._x[0].numel()

    @property
    def n_all(self) -> int:
        """Flattened outputs per sample, selected or not."""
        if self._n_all is None:
            self._n_all = self.outputs[0].numel()
        return self._n_all

    @property
    def n_out(self) -> int:
        """Flattened (selected) outputs per sample."""
        return self.n_all if self._selected is None else self._selected.shape[1]

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

    def tape(self, *, copies: int = 1) -> LinearMap:
        """Plain reverse passes over one recorded forward pass; no batching rule is involved.

        ``vjp`` pulls one vector after another back, or with ``copies`` as many at a time, over copies of the
        batch.  ``jvp`` is double backward: the reverse pass, linear in its cotangents, is differentiated by
        them (see `Tape.double_backward`); `MethodError` where an operation has no second derivative.

        Memory: the activations of ``copies`` batches.
        """
        return self._selecting(self._whole_tape(copies))

    def batched(self) -> LinearMap:
        """torch.func's ``vjp`` and ``jvp`` under ``vmap``: a chunk of vectors in one pass.

        Only the vectors are batched, never the samples: ``vmap(jacrev)`` over samples is silently wrong for
        PReLU where the batch size equals n_out.  Each ``jvp`` runs the network anew.
        """
        return self._selecting(self._whole_batched())

    def program(self) -> LinearMap:
        """The linear program at these points: a chunk of vectors in one pass, in the precision asked for.

        Its outputs become the `outputs` where these are not known yet: they are the model's own, of the same
        kernels; where the model runs here by itself, they are compared with what it gives.

        Raises:
            MethodError: There is no program, it fails here, or its outputs are not the network's.
        """
        return self._selecting(self._whole_program())

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
        return Linearized(
            self._network,
            x,
            extra,
            selected,
            n_out=self._n_all,
            program=self._program,
            precision=self._precision,
        )

    def part(self, samples: Samples) -> Linearized:
        """The same network at some samples, closed together with this linearisation."""
        self.require_open()
        part = self.at(torch.arange(self.batch, device=self.device)[samples])
        self._parts.append(part)
        return part

    def _selecting(self, whole: LinearMap) -> LinearMap:
        return whole if self._selected is None else SelectedOutputs(whole, self._selected)

    def _whole_tape(self, copies: int = 1) -> LinearMap:
        if copies == 1:
            reverse = one_by_one(self._backward)
            forward = one_by_one(self._double_backward)
        else:
            repeated = self.part(torch.arange(self.batch, device=self.device).repeat(copies))
            reverse = on_copies(repeated._backward, copies)
            forward = on_copies(repeated._double_backward, copies)
        return PrimitiveMap(
            self,
            vjp=reverse,
            jvp=naming("jvp on a tape", forward),
            again=lambda part: part._whole_tape(copies),
        )

    def _whole_batched(self) -> LinearMap:
        return PrimitiveMap(
            self,
            vjp=self._batched_vjp,
            jvp=self._batched_jvp,
            again=lambda part: part._whole_batched(),
        )

    def _whole_program(self) -> LinearMap:
        program = self._linearized_program()
        vjp: Passes = program.vjp
        jvp: Passes = program.jvp
        if program.batch != self.batch:  # a single sample, duplicated
            vjp, jvp = (on_first_samples(passes, program.batch) for passes in (vjp, jvp))
        return PrimitiveMap(self, vjp=vjp, jvp=jvp, again=lambda part: part._whole_program())

    def _function(self, x: Tensor, network: Function | None = None) -> tuple[Tensor, Tensor]:
        outputs = (network or self._network)(x, self._extra)
        return outputs.reshape(outputs.shape[0], -1), outputs.detach().clone()

    def _recorded(self) -> Tape:
        with torch.enable_grad():
            x = self._x.clone().requires_grad_(True)
            flat, self._outputs = self._function(x)
            return Tape(x, flat)

    def _own_tape(self) -> Tape:
        if self._tape is None:
            self.require_open()
            self._tape = self._recorded()
            assert self._outputs is not None  # recorded along
            self._hold_against(self._outputs)
        return self._tape

    def _backward(self, cotangents: Tensor) -> Tensor:
        """One reverse pass: ``(b, o) -> (b, i)``."""
        tape = self._own_tape()
        # Checkpoints run parts of the forward pass again.
        with forward_pass(recurrent=self._network.recurrent, device=self.device):
            gradient = tape.backward(cotangents)
        assert gradient is not None  # else it has raised
        return gradient.reshape(self.batch, self.n_in)

    def _double_backward(self, tangents: Tensor) -> Tensor:
        """One pass of the reverse pass's own reverse: ``(b, i) -> (b, o)``."""
        tape = self._own_tape()
        with forward_pass(recurrent=self._network.recurrent, device=self.device):
            return tape.double_backward(tangents.reshape(self._x.shape)).detach()

    def _batched_vjp(self, cotangents: Tensor) -> Tensor:
        with batched_pass():
            if self._pullback is None:
                self._pullback = self._batched_pullback()
            rows = self._pullback(cotangents)
        return rows.detach().reshape(len(cotangents), self.batch, self.n_in)

    def _batched_pullback(self) -> Callable[[Tensor], Tensor]:
        """``(k, b, o) -> (k, b, *input)``.

        torch.func's transforms forbid hooks on saved tensors, by which copies are saved and checkpoints
        (``use_reentrant=False``) are made: then a plain tape is pulled back by the same batching rules.
        """
        if not self._network.saves_copies:
            try:
                _, pullback, self._outputs = self._in_transform(
                    lambda function: func.vjp(function, self._x, has_aux=True)
                )
            except RuntimeError as error:
                if "saved tensor hooks" not in str(error):
                    raise
            else:
                return lambda cotangents: func.vmap(pullback)(cotangents)[0]
        return partial(self._recorded().backward, batched=True)  # type: ignore[return-value]

    def _batched_jvp(self, tangents: Tensor) -> Tensor:
        x = self._x
        shaped = tangents.reshape(len(tangents), *x.shape)

        def columns(function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
            def directional(tangent: Tensor) -> Tensor:
                result: Tensor = func.jvp(function, (x,), (tangent,), has_aux=True)[1]
                return result

            return func.vmap(directional)(shaped).detach()

        with ExitStack() as stack:
            stack.enter_context(batched_pass(recurrent=self._network.recurrent))
            if self._network.scripted_attention:
                stack.enter_context(thawed(self._network.module))
            columns_of_outputs: Tensor = self._in_transform(columns)
        return columns_of_outputs

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

    def _linearized_program(self) -> LinearizedGraph:
        if self._program_map is None:
            self.require_open()
            if self._program is None:
                raise no_program("it was not traced")
            program = self._program
            arguments: list[Any] = [self._x, *(self._extra[name] for name in program.names)]
            if self._network.squeezes_batch_of_one and self.batch == 1:
                arguments = list(map(duplicated, arguments))
            with (
                translating(lambda error: no_program(f"it fails on this batch: {telling_line(error)}")),
                forward_pass(recurrent=self._network.recurrent, device=self.device),
            ):
                linearized = program.linearize(arguments[0], arguments[1:], precision=self._precision)
            self._program_map = linearized
            if self._outputs is None:
                self._outputs = linearized.outputs[: self.batch]
            else:
                self._hold_against(self._outputs)
        return self._program_map

    def _hold_against(self, own: Tensor) -> None:
        """Compare the program's outputs, where there is a program, with the network's own."""
        if self._program_map is not None and not same_outputs(own, self._program_map.outputs[: self.batch]):
            raise no_program(OTHER_OUTPUTS)


def _sizes(x: Tensor) -> Tensor:
    """The magnitude of every number, or its sample's root mean square if larger; 1 for a zero sample."""
    rms = x.reshape(len(x), -1).square().mean(1).sqrt()
    rms = torch.where(rms > 0, rms, 1.0)
    return torch.maximum(x.abs(), rms.reshape(-1, *[1] * (x.dim() - 1)))


def _gaussian_like(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)


OTHER_OUTPUTS = "its outputs are not those of the model on this batch"


def no_program(why: str, *, asked: str = "--method, and --precision if it was given,") -> MethodError:
    """The error of a network of which there is no linear program.

    Args:
        why: As a clause.
        asked: The options that need one.
    """
    return MethodError(
        "The network has no linear program.",
        why=f"{capitalised(why).rstrip('.')}.",
        hint=f"Leave {asked} out: the other methods work.",
    )
