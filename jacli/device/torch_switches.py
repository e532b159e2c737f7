"""Process-wide switches of torch that decide whether a derivative exists and how exact it is.

Each context manager here sets some of them and restores them at the end of the ``with`` block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint
from torch.utils.checkpoint import CheckpointFunction

from jacli.device.hardware import is_gpu


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """IEEE arithmetic, gradients on, and only kernels that have a derivative.

    Reduced precision is switched off, whatever the process had set: since Ampere, cuDNN convolutions use TF32
    by default, which moves Jacobians by 2e-4 (https://github.com/jax-ml/jax/issues/11628).  The inference
    fast path of ``nn.MultiheadAttention`` is switched off, too: a frozen model would take it, and its
    operator ``aten::_native_multi_head_attention`` has no derivative.

    >>> with torch.no_grad(), exact_arithmetic():
    ...     torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()
    (True, False)
    """
    precisions = [(holder, name, getattr(holder, name)) for holder, name, _ in _precision_switches()]
    matmul = torch.get_float32_matmul_precision()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.set_float32_matmul_precision("highest")  # the oldest of the three ways; they must agree
    for holder, name, exact in _precision_switches():
        setattr(holder, name, exact)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.set_float32_matmul_precision(matmul)  # sets some of the others, so it comes first
        for holder, name, before in precisions:
            setattr(holder, name, before)


def _precision_switches(*, of_cpu: bool = True) -> list[tuple[Any, str, Any]]:
    """Where torch keeps the precision of float32 products: holder, attribute, exact value.

    Since torch 2.9 these are attributes ``fp32_precision``, one per library and operator.  Setting the older
    ``allow_tf32`` as well would raise, so it is used only in releases that have nothing else.

    Args:
        of_cpu: Include those of oneDNN on the CPU, beside those of CUDA.
    """
    backends: Any = torch.backends  # its stubs know neither of the two ways in full
    cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
    if hasattr(cuda.matmul, "fp32_precision"):
        operators = [cuda.matmul, cudnn.conv, cudnn.rnn]
        operators += [mkldnn.conv, mkldnn.matmul, mkldnn.rnn] if of_cpu else []
        return [(operator, "fp32_precision", "ieee") for operator in operators]
    return [(cuda.matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]


def process_precision() -> tuple[str, str]:
    """How this process rounds float32 matrix products and convolutions outside of jacli: IEEE or TF32.

    >>> set(process_precision()) <= {"IEEE", "TF32"}
    True
    """
    matmul = "TF32" if torch.get_float32_matmul_precision() != "highest" else "IEEE"
    return matmul, "TF32" if torch.backends.cudnn.allow_tf32 else "IEEE"


@contextmanager
def reduced_precision(precision: str) -> Iterator[None]:
    """For linear passes: float32 products in TF32 if the precision is ``tf32``.

    >>> with exact_arithmetic(), reduced_precision("ieee"):
    ...     torch.get_float32_matmul_precision()
    'highest'
    """
    if precision != "tf32":
        yield
        return
    switches = _precision_switches(of_cpu=False)
    before = [(holder, name, getattr(holder, name)) for holder, name, _ in switches]
    for holder, name, exact in switches:
        setattr(holder, name, "tf32" if exact == "ieee" else True)
    try:
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)


@contextmanager
def forward_pass(*, recurrent: bool, device: torch.device) -> Iterator[None]:
    """For every forward pass of a network.

    TorchScript's profiling executor is switched off: it specialises a graph on its second call, and from the
    third call on it fails under torch.func transforms (https://github.com/pytorch/pytorch/issues/170680).
    cuDNN's recurrent layers are switched off: in eval mode they have no backward, torch's own kernels do.
    Grad mode and default dtype are restored, in case the forward pass changes them.

    >>> with forward_pass(recurrent=False, device=torch.device("cpu")):
    ...     torch.set_default_dtype(torch.float64)  # as a model might
    >>> torch.get_default_dtype()
    torch.float32

    Args:
        recurrent: The network has recurrent layers.
        device: Where it runs.
    """
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    cudnn: Any = torch.backends.cudnn
    without_cudnn = recurrent and is_gpu(device) and cudnn.enabled
    if without_cudnn:
        cudnn.enabled = False  # `flags()` would read `allow_tf32`, which the newer switches forbid
    try:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            yield
    finally:
        if torch.is_grad_enabled() != grad:
            torch.set_grad_enabled(grad)
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if without_cudnn:
            cudnn.enabled = True


@contextmanager
def batched_pass(*, recurrent: bool = False) -> Iterator[None]:
    """For passes with batched vectors: only kernels that have batching and forward-mode rules.

    Flash attention has no forward-mode rule, and no batching rule for its backward, which would fall back to
    a loop; torch's plain attention has both.  oneDNN's recurrent layers have no forward-mode rule.
    Checkpoints have no rules at all, so their functions are called directly.

    >>> with batched_pass():
    ...     torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()
    (False, True)

    Args:
        recurrent: Switch oneDNN off, for the recurrent layers of the network.
    """
    before = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    if recurrent and before:
        torch.backends.mkldnn.set_flags(_enabled=False)  # `flags()` would touch TF32 too, and warn
    try:
        with sdpa_kernel(SDPBackend.MATH), without_checkpoints():
            yield
    finally:
        if recurrent and before:
            torch.backends.mkldnn.set_flags(_enabled=True)


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Activation checkpointing off: ``torch.utils.checkpoint`` only calls the function that it is given.

    A checkpoint runs its part of the forward pass again during the backward pass.  A module that keeps state
    may have changed it by then, and the gradient would be that of another function.  Under torch.func's
    transforms, checkpoints of either kind fail.

    >>> calls, x = [], torch.ones(1, requires_grad=True)
    >>> with without_checkpoints():
    ...     y = checkpoint.checkpoint(lambda x: calls.append(1) or x.sin(), x, use_reentrant=True)
    >>> y.backward()
    >>> len(calls)  # a checkpoint would have made it two
    1
    """
    function: Any = CheckpointFunction  # what ``use_reentrant=True`` applies
    nested = "apply" in vars(function)
    generator = getattr(checkpoint, _NOT_REENTRANT, None)
    function.apply = staticmethod(lambda run, preserve_rng_state, *arguments: run(*arguments))
    if generator is not None:
        setattr(checkpoint, _NOT_REENTRANT, _nothing_around)
    try:
        yield
    finally:
        if not nested:
            del function.apply
        if generator is not None:
            setattr(checkpoint, _NOT_REENTRANT, generator)


_NOT_REENTRANT = "_checkpoint_without_reentrant_generator"
"""Generator that torch runs around the function of a checkpoint with ``use_reentrant=False``."""


def _nothing_around(*arguments: object, **options: object) -> Iterator[None]:
    yield


@contextmanager
def thawed(module: nn.Module) -> Iterator[None]:
    """Let frozen parameters require gradients, although none is computed.

    A scripted attention layer looks at this flag when it runs: with frozen weights it takes an inference path
    that has no forward-mode rule, and the switch in `exact_arithmetic` reaches layers in Python only.

    >>> layer = nn.Linear(3, 2).requires_grad_(False)
    >>> with thawed(layer):
    ...     layer.weight.requires_grad
    True
    >>> layer.weight.requires_grad
    False
    """
    parameters = list(module.parameters())
    with torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
