"""The probe before any work: does a per-sample Jacobian of this model exist, and of what shape?

A handful of forward passes and one reverse pass over one or two samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jacli.errors import JacliError, ModelError
from jacli.linear_map import Extra, Network
from jacli.verify.explain import explain_failure

_OTHER_SIZES = (3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 25, 32, 48, 50, 64, 100, 128, 256)
"""Batch sizes tried on a model that accepts neither 1 nor 2."""


@dataclass(frozen=True)
class Probed:
    """What the probe learnt.

    Attributes:
        output_shape: Per sample, without the batch axis.
        fixed_batch: The only batch size the model accepts, or None.
        stateful: Whether the module keeps state between calls, so that every forward pass needs a
            fresh copy.
        lone: Whether the module drops the batch axis of a single sample.
    """

    output_shape: tuple[int, ...]
    fixed_batch: int | None
    stateful: bool
    lone: bool


def probe(network: Network, x: Tensor, extra: Extra, *, batch_hints: Iterable[int] = ()) -> Probed:
    """Learn shapes and state, and refuse what has no per-sample Jacobian.

    Args:
        network: The network, its parameters frozen.
        x: The first few rows of the inputs, ``(m, *input)``, m >= 1.
        extra: Further arguments of those rows.
        batch_hints: Batch sizes to try where the model accepts neither one nor two samples.

    Raises:
        ModelError: Random outputs, samples that influence one another, no batch axis, outputs that
            do not depend differentiably on the input, or another dtype inside.
        InputsError: The model does not accept inputs of this shape.
    """
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        batch, fixed = _accepted_batch(network, x, extra, batch_hints)
        points, rest = _rows(x, extra, batch)
        stateful = _is_stateful(network, points, rest)
        trial = network.renewing() if stateful else network
        output = trial(points, rest)
        lone = False
        if fixed is None:
            lone = _check_batch_axis(trial, x, extra, output)
        else:
            _require_batch_axis(output, batch, f"a batch of {batch}")
        _check_dtype(output, x)
        if batch > 1:
            _check_independence(trial, points, rest, output)
        _check_derivative(trial, points, rest)
    return Probed(tuple(output.shape[1:]), fixed, stateful, lone)


def _rows(x: Tensor, extra: Extra, size: int) -> tuple[Tensor, Extra]:
    """A batch of ``size`` made of the rows at hand, repeated where they are too few."""
    index = torch.arange(size, device=x.device) % x.shape[0]
    rest = {k: v[index.to(v.device)] if isinstance(v, Tensor) else v for k, v in extra.items()}
    return x[index], rest


def _attempt(network: Network, x: Tensor, extra: Extra, size: int) -> Exception | None:
    try:
        network.copied()(*_rows(x, extra, size))
    except (JacliError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model's own code may raise anything
        return error
    return None


def _accepted_batch(
    network: Network, x: Tensor, extra: Extra, hints: Iterable[int]
) -> tuple[int, int | None]:
    """A batch size to probe with, and whether it is the only one: ``(2, None)`` for most models."""
    two, one = (_attempt(network, x, extra, size) for size in (2, 1))
    if two is None:
        # Two and nothing else is a size; two and more but not one is for `_check_batch_axis`.
        only = one is not None and _attempt(network, x, extra, 3) is not None
        return 2, 2 if only else None
    if one is None:
        return 1, 1
    for size in dict.fromkeys((*hints, *_OTHER_SIZES)):
        if size > 2 and _attempt(network, x, extra, size) is None:
            return size, size
    raise explain_failure(
        lambda points: network.copied()(points, _rows(points, extra, len(points))[1]), x, one
    )


def _is_stateful(network: Network, x: Tensor, extra: Extra) -> bool:
    shared = network.copied()
    first, second = shared(x, extra), shared(x, extra)
    if not _moved(first, second):
        return False
    renewing = network.renewing()
    if not _moved(renewing(x, extra), renewing(x, extra)):
        return True
    noisy = sorted(
        {
            type(m).__name__
            for m in network.module.modules()
            if "drop" in type(m).__name__.lower() or m.training
        }
    )
    raise ModelError(
        "The model is random: the same input gives other outputs from call to call.",
        why="A Jacobian needs one function. "
        + (
            f"Suspects: {', '.join(noisy)}."
            if noisy
            else "Dropout or noise acts in eval mode too, or the archive was traced in training mode."
        ),
        todo="Switch the randomness off in the model, or save it again after model.eval().",
    )


def _check_batch_axis(network: Network, x: Tensor, extra: Extra, pair: Tensor) -> bool:
    """Whether a lone sample loses its batch axis; raises where the output has none at all."""
    alone = _single(network, x, extra)
    if alone is None and pair.dim() > 0 and pair.shape[0] == 2:
        raise _mixes(network.module, "a lone sample is refused, and a batch of two is not")
    if alone is not None and pair.dim() > 0 and pair.shape[0] == 2:
        if alone.shape == pair.shape[1:] and alone.shape != pair.shape:
            return True
        if alone.dim() == pair.dim() and alone.shape[0] == 1 and alone.shape[1:] == pair.shape[1:]:
            if _moved(alone[0], pair[0], loose=True):
                raise _mixes(network.module, "a sample's output alone is not its output in a batch of two")
            return False
    shape = "an error" if alone is None else tuple(alone.shape)
    raise ModelError(
        "The model has no per-sample output: its output has no batch axis.",
        why=f"A batch of 1 gives an output of shape {shape}, a batch of 2 one of shape {tuple(pair.shape)}: "
        "the samples are mixed into one result, so a Jacobian per sample does not exist.",
        todo="Give a model whose output has one row a sample (--arch file.py:callable can wrap it).",
    )


def _single(network: Network, x: Tensor, extra: Extra) -> Tensor | None:
    try:
        return network(*_rows(x, extra, 1))
    except (JacliError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # a model that takes two samples but not one: told apart by the caller
        return None


def _require_batch_axis(output: Tensor, batch: int, given: str) -> None:
    if output.dim() == 0 or output.shape[0] != batch:
        raise ModelError(
            "The model has no per-sample output: its output has no batch axis.",
            why=f"For {given} samples the output has shape {tuple(output.shape)}.",
            todo="Give a model whose output has one row a sample (--arch file.py:callable can wrap it).",
        )


def _check_dtype(output: Tensor, x: Tensor) -> None:
    if not output.is_floating_point():
        raise ModelError(
            f"The model's output is {str(output.dtype).removeprefix('torch.')}: it has no derivative.",
            why="Whole numbers (class indices, masks) do not change when the input moves a little.",
            todo="Choose another output (--select), or wrap the model to return its scores.",
        )
    if output.dtype != x.dtype:
        raise ModelError(
            f"The model computes in {str(output.dtype).removeprefix('torch.')} when given "
            f"{str(x.dtype).removeprefix('torch.')}.",
            why="It converts its input itself, so the dtype asked for would be one in name only.",
            todo=f"Give --dtype {str(output.dtype).removeprefix('torch.')}, if that is float32 or float64.",
        )


def _check_independence(network: Network, x: Tensor, extra: Extra, output: Tensor) -> None:
    """Change every sample but the first: the first output must stay."""
    others = x[1:].reshape(len(x) - 1, -1).roll(1, dims=1).reshape(x[1:].shape)
    spread = x[1:].float().std(correction=0).nan_to_num(1.0).clamp(min=0.1).to(x.dtype)
    changed = torch.cat([x[:1], others + spread * torch.randn_like(others)])
    if _moved(output[0], network(changed, extra)[0]):
        raise _mixes(network.module, "the first sample's output moves when only the others change")
    with torch.enable_grad():
        points = x.clone().requires_grad_(True)
        first = network(points, extra)[0]
        if not first.requires_grad:
            return
        (gradient,) = torch.autograd.grad((first * torch.randn_like(first)).sum(), points, allow_unused=True)
    if gradient is not None:
        here, there = gradient[0].abs().max(), gradient[1:].abs().max()
        if there > 1e-6 * here and there > 0:
            raise _mixes(network.module, "the first sample's output has a gradient at the others")


def _mixes(module: nn.Module, how: str) -> ModelError:
    layers = [
        f"{name} ({type(part).__name__})"
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (part.training or part.running_mean is None)
    ]
    suspects = f" Suspects: {', '.join(layers[:3])}, normalising by batch statistics." if layers else ""
    return ModelError(
        "The model mixes samples: one sample's output depends on the others in its batch.",
        why=f"In the probe {how}, so a Jacobian per sample does not exist.{suspects}",
        todo="Save the model in eval mode with running statistics, or wrap it so that samples stay apart.",
    )


def _check_derivative(network: Network, x: Tensor, extra: Extra) -> None:
    """With every parameter frozen, ``requires_grad`` of the output is an honest test."""
    with torch.enable_grad():
        points = x.clone().requires_grad_(True)
        output = network(points, extra)
        try:
            depends = (
                output.requires_grad
                and torch.autograd.grad(output.sum(), points, allow_unused=True)[0] is not None
            )
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, NotImplementedError) as error:
            raise ModelError(
                "The model has an operation without a derivative.",
                why=f"torch says: {str(error).strip().splitlines()[-1]}",
                todo="Replace that operation, or save the model for training rather than for inference.",
            ) from error
    if not depends:
        raise ModelError(
            "The output does not depend differentiably on the input.",
            why="The path is cut inside the model: an integer cast, argmax, detach() or no_grad().",
            todo="Choose another output (--select), or mend the model; zeros would be a wrong answer.",
        )


def _moved(a: Tensor, b: Tensor, *, loose: bool = False) -> bool:
    """Whether two outputs differ beyond rounding; ``loose`` where the batch sizes differed."""
    if a.shape != b.shape:
        return True
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    eps = 1e-5 if a.numel() and not loose else 1e-3
    scale = torch.maximum(a.abs().max(), b.abs().max()) if a.numel() else a.new_zeros(())
    return bool(a.numel() and (a - b).abs().max() > eps * scale)
