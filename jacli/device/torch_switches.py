"""Process-wide switches of torch that decide whether a derivative exists and how exact it is.

Each is set for the duration of a ``with`` block and put back afterwards.
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

    Reduced precision is switched off, whatever the process had set: cuDNN convolutions use TF32
    unless told otherwise since Ampere, which moves Jacobians by 2e-4
    (https://github.com/jax-ml/jax/issues/11628).  The inference fast path of
    ``nn.MultiheadAttention`` is switched off: ``aten::_native_multi_head_attention`` has no
    derivative, and a frozen model takes it.
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

    Those of CUDA, and ``of_cpu``.  Since torch 2.9 it is ``fp32_precision``, an operator and a library each;
    mixing it with the older ``allow_tf32`` raises, so the older ones are touched only where there is nothing
    else.
    """
    backends: Any = torch.backends  # its stubs know neither of the two ways in full
    cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
    if hasattr(cuda.matmul, "fp32_precision"):
        operators = [cuda.matmul, cudnn.conv, cudnn.rnn]
        operators += [mkldnn.conv, mkldnn.matmul, mkldnn.rnn] if of_cpu else []
        return [(operator, "fp32_precision", "ieee") for operator in operators]
    return [(cuda.matmul, "allow_tf32", False), (cudnn, "allow_tf32", False)]


def process_precision() -> tuple[str, str]:
    """How this process rounds float32 matrix products and convolutions outside of jacli: IEEE or TF32."""
    matmul = "TF32" if torch.get_float32_matmul_precision() != "highest" else "IEEE"
    return matmul, "TF32" if torch.backends.cudnn.allow_tf32 else "IEEE"


@contextmanager
def reduced_precision(precision: str) -> Iterator[None]:
    """Around linear passes: float32 products in TF32 where ``tf32`` was asked for."""
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
    """Around every forward pass.

    TorchScript's profiling executor specialises a graph on its second call and then fails under
    torch.func transforms from the third on (https://github.com/pytorch/pytorch/issues/170680);
    without its optimisations it does not.  cuDNN's recurrent layers have no backward in eval mode;
    the plain kernels do.  Grad mode and default dtype are given back, should a forward pass change them.
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
    """Around passes with batched vectors.

    Flash attention has no forward-mode rule, and no batching rule for its backward (it would loop);
    the plain kernels have both.  oneDNN's recurrent layers (``recurrent``) have no forward-mode rule.
    Checkpoints have none of these, and are run as what they hold.
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
    """``torch.utils.checkpoint`` just calls the function that it is given, which keeps its activations.

    A checkpoint runs its part of the forward pass again when the gradient is asked for.  By then a module
    that keeps state has changed it, and the gradient is that of another function.  Under torch.func's
    transforms checkpoints of either kind fail.
    """
    function: Any = CheckpointFunction  # of ``use_reentrant=True``
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
"""What torch does before and after the function of a checkpoint with ``use_reentrant=False``."""


def _nothing_around(*arguments: object, **options: object) -> Iterator[None]:
    yield


@contextmanager
def thawed(module: nn.Module) -> Iterator[None]:
    """Parameters that require a gradient, although none is taken.

    A scripted attention layer asks for it at run time: with frozen weights it takes an inference
    path (`exact_arithmetic` reaches Python's layers only) that has no forward-mode rule.
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
