"""Jacobians, singular values and linear maps of a model in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jacli.device.allocator import reused_memory
from jacli.in_memory.in_memory_run import InMemoryRun
from jacli.in_memory.network_map import NetworkMap
from jacli.in_memory.spectrum_arguments import check_accuracy, check_count, check_some
from jacli.network import exact_arithmetic
from jacli.run.request import asked_of_call
from jacli.spectrum import Triples


def jacobian(
    model: Callable[..., object],
    x: Tensor,
    *,
    method: str = "auto",
    precision: str = "ieee",
    batch_size: int | None = None,
    chunk_size: int | None = None,
    memory: int | str | None = None,
    select: str | None = None,
    classes: str | int | Sequence[int] = "all",
    labels: Tensor | None = None,
    of: str = "logits",
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    per_sample: Sequence[str] = (),
    **arguments: object,
) -> Tensor:
    """The Jacobian of the outputs with respect to the inputs, for every sample.

    ``J[b, *i, *o] = d model(x)[b, *o] / d x[b, *i]``.  The class axis is last, as in the field's
    papers; ``torch.func.jacrev`` gives it first.  A module runs in eval mode, on a frozen copy: the
    module itself stays as it is.  A function runs as it is.

    Forward hooks and forward pre-hooks of the module run in each of jacli's forward passes (a few dozen
    for the first call), since they may be part of the function.  Backward hooks do not run: they would change
    gradients and not the function.

    The first call for a module and a shape finds out which method and sizes are the fastest, cutting the
    network where it is narrow; that is kept for the next call, also with fewer samples, as long as the module
    lives.

    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 5))
    >>> x = torch.randn(2, 3)
    >>> jacobian(model, x).shape, jacobian(model, x, classes=[0, 4]).shape
    (torch.Size([2, 3, 5]), torch.Size([2, 3, 2]))
    >>> jacobian(model, x, classes="top:1", dtype="float64").dtype  # the model itself stays float32
    torch.float64

    Args:
        model: A module (TorchScript too) or a function, ``(batch, *input) -> (batch, *output)``.
        x: The points, ``(batch, *input)``, floating.
        method: ``auto``, ``loop``, ``replicate``, ``vmap``, ``forward``, ``adjoint``, ``tangent`` or
            ``factored``.
        precision: Arithmetic of the linear passes alone: ``ieee`` (the dtype's own), ``bf16``, or ``tf32`` on
            a GPU.  The point of linearisation is computed in the dtype whatever the precision.
        batch_size: Samples per batch; decided if None.  With 1, samples may influence one another in larger
            batches: each is computed alone.
        chunk_size: Outputs or, with ``forward`` and ``tangent``, inputs a pass; decided if None.
        memory: What the work may hold beside the result, in bytes or as ``"4GiB"``; a share of what is
            free if None.
        select: Which output, where the model returns several.
        classes: Which outputs, as flat indices: ``[0, 3, 7]`` or ``"0,3,7"``, ``"top:5"`` (each sample's five
            largest, in that order), ``"label"`` (each sample's label) or ``"all"``.
        labels: ``(batch,)`` whole numbers, for ``classes="label"``.
        of: ``logits``, ``probs`` or ``log-probs``.
        dtype: ``float32`` or ``float64``: ``x`` and a copy of the module are converted to it, and the outputs
            are compared with those before.  A module that is converted is planned anew in each call.  A
            function is not converted, but called with points in the dtype.
        seed: Chooses the rows that are checked.
        per_sample: Names of the arguments that have one row per sample.
        **arguments: Further arguments of the model; the same for every sample unless named in
            ``per_sample``.  ``x`` is the first argument of the model that they do not name.

    Returns:
        ``(batch, *input, *output)``, with ``classes`` ``(batch, *input, k)``, on the device of ``x``, in
        ``dtype`` or that of ``x``; a view: in memory the input's axes are last (``.contiguous()`` makes a
        copy in the order of the shape).

    Raises:
        ModelError: The model is no network, has no per-sample Jacobian, or the method cannot serve it.
        InputsError: ``x`` is no tensor, not floating, empty, not finite or not accepted by the model.
        UsageError: Wrong options.

    What a run would tell as a note goes to the logger ``jacli`` at level INFO; nothing is printed.
    """
    request, which = asked_of_call(
        select=select,
        classes=classes,
        labels=labels,
        of=of,
        method=method,
        precision=precision,
        batch_size=batch_size,
        chunk_size=chunk_size,
        memory=memory,
        seed=seed,
    )
    with exact_arithmetic(), reused_memory():
        run = InMemoryRun(model, x, request, which, arguments, per_sample, dtype=dtype, labels=labels)
        return run.dense()


def singular_values(
    model: Callable[..., object],
    x: Tensor,
    *,
    k: int | None = None,
    rtol: float = 1e-3,
    certify: float | None = None,
    precision: str = "ieee",
    memory: int | str | None = None,
    select: str | None = None,
    classes: str | int | Sequence[int] = "all",
    labels: Tensor | None = None,
    of: str = "logits",
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    per_sample: Sequence[str] = (),
    **arguments: object,
) -> Tensor:
    """Singular values of every sample's Jacobian as a matrix ``(n_out, n_in)``, decreasing.

    All of them, and few of a small matrix, come from the matrices, batch by batch: the eigenvalues of their
    float64 Gram matrices, or by QR.  Few of a large one come from products with J and its transpose where
    that is faster by measurement: a block Krylov search, some dozen passes per value.  `svd` gives bounds,
    too.

    >>> model = torch.nn.Linear(4, 3)
    >>> sigma = singular_values(model, torch.randn(2, 4), k=2)
    >>> torch.allclose(sigma[0], torch.linalg.svdvals(model.weight.detach().double())[:2], rtol=1e-4)
    True

    Args:
        model: As `jacobian`.
        x: As `jacobian`.
        k: How many, the largest; all if None.
        rtol: Where no matrix is formed: residual at which the search ends, relative to the largest value.  A
            value errs by about the square of that over the gap to the next one.
        certify: Where no matrix is formed: go on until the probability of having missed a larger value is no
            more than this.
        precision: As `jacobian`; the values are those of the matrix so computed, and have its error.
        memory: As `jacobian`.
        select: As `jacobian`.
        classes: As `jacobian`: the rows of the matrix.
        labels: As `jacobian`.
        of: As `jacobian`.
        dtype: As `jacobian`; the values are float64 in any case.
        seed: Of the random vectors.
        per_sample: As `jacobian`.
        **arguments: As `jacobian`.

    Returns:
        ``(batch, min(k, n_out, n_in))``, float64.

    Raises:
        JacliError: As `jacobian`.
    """
    k = check_count(k)
    check_accuracy(rtol, certify)
    request, which = asked_of_call(
        labels=labels,
        select=select,
        of=of,
        classes=classes,
        precision=precision,
        memory=memory,
        seed=seed,
    )
    spectrum = replace(
        request, singular_values=k or "all", keep="nothing", spectrum="auto", rtol=rtol, certify=certify
    )
    with exact_arithmetic(), reused_memory():
        run = InMemoryRun(model, x, spectrum, which, arguments, per_sample, dtype=dtype, labels=labels)
        return run.spectra()


@dataclass(frozen=True)
class SVD:
    """The leading part of a singular value decomposition, ``J ~ U diag(S) V'``; unpacks to ``U, S, V``.

    Attributes:
        U: Left vectors, ``(batch, *output, k)``, with ``classes`` ``(batch, selected, k)``; float64.
        S: ``(batch, k)``, decreasing.
        V: Right vectors, ``(batch, *input, k)``; the largest entry of each is positive.
        errors: ``(batch, k)``, bound on the absolute error of each value: a singular value lies within it.
        vector_errors: ``(batch, k)``, bound on the angles to the singular vectors in radians; pi / 2 where
        the
            next value is too near to tell them apart.
        failure_probability: ``(batch,)``, that a larger value was missed; 0 where the matrix was decomposed.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    errors: Tensor
    vector_errors: Tensor
    failure_probability: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.U, self.S, self.V))


def svd(
    model: Callable[..., object],
    x: Tensor,
    *,
    k: int,
    rtol: float = 1e-3,
    certify: float | None = None,
    memory: int | str | None = None,
    select: str | None = None,
    classes: str | int | Sequence[int] = "all",
    labels: Tensor | None = None,
    of: str = "logits",
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    per_sample: Sequence[str] = (),
    **arguments: object,
) -> SVD:
    """The k leading singular triples of every sample's Jacobian: ``J V = U diag(S)``, with bounds.

    From products with vectors or from the matrices, whichever is faster, as `singular_values`.

    >>> model = torch.nn.Linear(4, 3)
    >>> U, S, V = svd(model, torch.randn(2, 4), k=2)
    >>> U.shape, S.shape, V.shape
    (torch.Size([2, 3, 2]), torch.Size([2, 2]), torch.Size([2, 4, 2]))
    >>> J = model.weight.detach().double()
    >>> torch.allclose(J @ V[0], U[0] * S[0], atol=1e-5)
    True

    Args:
        model: As `jacobian`.
        x: As `jacobian`.
        k: How many.
        rtol: As `singular_values`.
        certify: As `singular_values`.
        memory: As `jacobian`.
        select: As `jacobian`.
        classes: As `jacobian`: the rows of the matrix.
        labels: As `jacobian`.
        of: As `jacobian`.
        dtype: As `jacobian`; the results are float64 in any case.
        seed: Of the random vectors.
        per_sample: As `jacobian`.
        **arguments: As `jacobian`.

    Raises:
        JacliError: As `jacobian`.
    """
    check_accuracy(rtol, certify)
    request, which = asked_of_call(
        labels=labels, select=select, of=of, classes=classes, memory=memory, seed=seed
    )
    spectrum = replace(
        request, singular_values=check_some(k), keep="nothing", spectrum="auto", rtol=rtol, certify=certify
    )
    with exact_arithmetic(), reused_memory():
        run = InMemoryRun(model, x, spectrum, which, arguments, per_sample, dtype=dtype, labels=labels)
        triples = run.triples()
    return _shaped(triples, tuple(x.shape[1:]), run.output_shape)


def linear_map(
    model: Callable[..., object],
    x: Tensor,
    *,
    select: str | None = None,
    classes: str | int | Sequence[int] = "all",
    labels: Tensor | None = None,
    of: str = "logits",
    dtype: str | torch.dtype | None = None,
    seed: int = 0,
    per_sample: Sequence[str] = (),
    **arguments: object,
) -> NetworkMap:
    """The Jacobians of all samples as a linear map, for your own algorithms: nothing is formed.

    Its products are those of the linear program of the traced network where there is one, else of torch's
    batched passes, else of plain ones; they are checked against plain passes first.

    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    >>> with linear_map(model, torch.randn(2, 6)) as A:
    ...     u, v = torch.randn(4, 2, 3), torch.randn(4, 2, 6)  # four vectors for each of two samples
    ...     torch.allclose((u * A.jvp(v)).sum(2), (A.vjp(u) * v).sum(2), atol=1e-5)
    True

    Args:
        model: As `jacobian`.
        x: As `jacobian`.
        select: As `jacobian`.
        classes: As `jacobian`: the rows of the matrix.
        labels: As `jacobian`.
        of: As `jacobian`.
        dtype: As `jacobian`.
        seed: Of the vectors with which it is checked.
        per_sample: As `jacobian`.
        **arguments: As `jacobian`.

    Returns:
        A context manager with ``batch, n_out, n_in, dtype, device, outputs, vjp, jvp, take, close``, and
        ``to_scipy(sample)``.

    Memory: the activations of all samples, until it is closed.

    Raises:
        JacliError: As `jacobian`.
    """
    request, which = asked_of_call(labels=labels, select=select, of=of, classes=classes, seed=seed)
    with exact_arithmetic():
        run = InMemoryRun(
            model,
            x,
            replace(request, keep="nothing"),
            which,
            arguments,
            per_sample,
            dtype=dtype,
            labels=labels,
        )
        return NetworkMap(*run.products())


def _shaped(triples: Triples, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> SVD:
    """Vectors in the shapes of outputs and inputs, with their signs fixed."""
    largest = triples.right.gather(1, triples.right.abs().argmax(dim=1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0)
    batch, _, k = triples.right.shape
    return SVD(
        U=(triples.left * signs).reshape(batch, *output_shape, k),
        S=triples.values,
        V=(triples.right * signs).reshape(batch, *input_shape, k),
        errors=triples.errors,
        vector_errors=triples.vector_errors,
        failure_probability=triples.failure_probability,
    )
