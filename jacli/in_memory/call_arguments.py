"""What `jacli.jacobian`, `jacli.singular_values` and `jacli.compute` are called with: the common mistakes.

Each error says what came and what to give instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn

from jacli.errors import InputsError, JacliError, ModelError, UsageError
from jacli.errors.printable import count_of
from jacli.inputs.check import check_dtype
from jacli.models.dtypes import real_dtypes
from jacli.models.tensors import module_tensors
from jacli.verify.explain import is_about_dtypes

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def check_model(model: object, x: object) -> None:
    """Refuse what is no network in memory.

    >>> check_model(torch.zeros(4, 3), nn.Linear(3, 2))
    Traceback (most recent call last):
        ...
    jacli.errors.UsageError: The model and x are swapped.
    The first argument is a tensor, float32 (4, 3), the second a module, Linear.
    Give the model first: jacli.jacobian(model, x).

    Raises:
        UsageError: Model and points are swapped.
        ModelError: It is anything else that is no module and no function.
    """
    if is_array(model) and callable(x):
        raise UsageError(
            "The model and x are swapped.",
            why=f"The first argument is {described(model)}, the second {described(x)}.",
            hint="Give the model first: jacli.jacobian(model, x).",
        )
    if isinstance(model, type):
        raise ModelError(
            f"The model is the class {model.__name__}.",
            why="Only an instance of it has weights.",
            hint=f"Give an instance, for example model = {model.__name__}(...), with its weights loaded.",
        )
    if not callable(model) or type(model).__name__ == "ExportedProgram":
        raise ModelError(
            f"The model is {described(model)}.",
            why="It must be a torch.nn.Module or a function in memory.",
            hint=_instead_of_model(model),
        )


def _instead_of_model(model: object) -> str:
    if isinstance(model, (str, os.PathLike)):
        return "Load it first; for files: jacli.compute(model_path, inputs_path, out='out.h5')."
    if isinstance(model, Mapping):
        return "Build the network and load the weights: model.load_state_dict(weights)."
    if type(model).__name__ == "ExportedProgram":
        return "Give its module: exported.module()."
    if isinstance(model, Sequence) and any(isinstance(part, nn.Module) for part in model):
        return "Give one of them, or torch.nn.Sequential(*models) if they follow one another."
    return "Give a torch.nn.Module, or a function of a batch."


def check_points(x: object, model: object = None) -> Tensor:
    """The points, if a network can be differentiated at them.

    >>> check_points(np.zeros((4, 3)))
    Traceback (most recent call last):
        ...
    jacli.errors.InputsError: x is a NumPy array, float64 (4, 3).
    It must be a tensor (batch, *input).
    Give torch.from_numpy(x).

    Args:
        x: As it was given.
        model: Whose points they are; its device is compared.

    Raises:
        InputsError: They are not; with the remedy.
    """
    if not isinstance(x, Tensor):
        raise InputsError(
            f"x is {described(x)}.", why="It must be a tensor (batch, *input).", hint=_instead_of_x(x)
        )
    for holds, kind, remedy in (
        (x.is_quantized, "quantized", "x.dequantize()"),
        (x.is_nested, "nested", "x.to_padded_tensor(0.0)"),
        (x.layout != torch.strided, "sparse", "x.to_dense()"),
    ):
        if holds:
            raise InputsError(
                f"x is a {kind} tensor.",
                why="A Jacobian is computed at a dense tensor (batch, *input).",
                hint=f"Give {remedy}.",
            )
    if not x.is_floating_point():
        with suppress(TypeError):  # a dtype that NumPy does not have
            check_dtype(np.dtype(str(x.dtype).removeprefix("torch.")), f"x is {described(x)}.")
    if not x.is_floating_point() or x.dim() < 1 or x.numel() == 0:
        raise InputsError(
            f"x is {described(x)}.",
            why="A Jacobian needs a floating tensor (batch, *input) with at least one sample.",
            hint="Give a batch; a single sample is x[None].",
        )
    _check_device(x, model)
    finite = torch.isfinite(x.detach())
    if not bool(finite.all()):
        finite = finite.flatten(1).all(dim=1) if x.dim() > 1 else finite
        bad = torch.nonzero(~finite).flatten().tolist()
        raise InputsError(
            f"x has values that are not finite, in {len(bad)} of {len(x)} samples.",
            why=f"There is no Jacobian at NaN or infinity; samples {_first(bad)}.",
            hint=f"Leave those samples out: x[x.isfinite(){'.flatten(1).all(1)' if x.dim() > 1 else ''}].",
        )
    return x.detach()


def _first(numbers: Sequence[int], most: int = 5) -> str:
    return ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")


def _instead_of_x(x: object) -> str:
    if isinstance(x, np.ndarray):
        return "Give torch.from_numpy(x)" + ("." if x.dtype.kind == "f" else ", as floating numbers.")
    if isinstance(x, (str, os.PathLike)):
        return "Load it first, for example torch.from_numpy(np.load(path)); for files there is jacli.compute."
    if isinstance(x, torch.utils.data.DataLoader):
        return "Give the inputs of a batch, for example x = next(iter(loader))[0]."
    if isinstance(x, Mapping):
        return "Give one tensor as x, and further arguments of the model by name: mask=mask."
    if isinstance(x, (list, tuple)) and x and all(isinstance(part, Tensor) for part in x):
        if len({part.shape for part in x}) == 1:
            return "Give torch.stack(list(x)) if each is a sample, torch.cat(list(x)) if each is a batch."
        return "Give the tensor of the inputs, for example x[0], and further arguments of the model by name."
    if isinstance(x, (list, tuple, int, float)):
        return "Give torch.tensor(x), of shape (batch, *input)."
    if callable(x):
        return "The points come second: jacli.jacobian(model, x)."
    if hasattr(x, "__array__"):
        return "Give torch.from_numpy(np.asarray(x))."
    return "Give a floating tensor."


def _check_device(x: Tensor, model: object) -> None:
    if x.is_meta:
        raise InputsError(
            "x is on the device meta.",
            why="Such a tensor holds no values.",
            hint="Give a tensor on another device.",
        )
    if not isinstance(model, nn.Module):
        return
    devices = sorted({str(tensor.device) for tensor in module_tensors(model)})
    if "meta" in devices:
        raise ModelError(
            "The model has parameters or buffers on the device meta.",
            why="They hold no values.",
            hint="Load its weights: model.load_state_dict(weights, assign=True).",
        )
    if devices and str(x.device) not in devices:
        raise InputsError(
            f"x is on {x.device}, the model on {' and '.join(devices)}.",
            why="Both must be on the same device.",
            hint=f"Give x.to({devices[0]!r}), or move the model: model.to({str(x.device)!r}).",
        )


def mistake_in_points(model: nn.Module, x: Tensor, said: str) -> JacliError | None:
    """The mistake behind a model's own error, if it is a usual one: a dtype, or a sample in place of a batch.

    >>> said = "expected scalar type Float but found Double"
    >>> print(mistake_in_points(nn.Linear(3, 2), torch.zeros(4, 3, dtype=torch.float64), said).what)
    x is float64, the model float32.

    Args:
        model: Frozen; it is run on ``x[None]``.
        x: The points.
        said: What the model says, as a sentence.
    """
    kinds = real_dtypes(model)
    if len(kinds) == 1 and x.dtype not in kinds and is_about_dtypes(said):
        own, given = (str(kind).removeprefix("torch.") for kind in (*kinds, x.dtype))
        return InputsError(
            f"x is {given}, the model {own}.",
            why=said,
            hint=f'Give x.to(torch.{own}); or dtype="{given}", which converts a copy of the model.'
            if given in _DTYPES
            else f"Give x.to(torch.{own}).",
        )
    try:
        with torch.no_grad():
            model(x[None])
    except Exception:  # the model's own code may raise anything: then it is no lone sample
        return None
    return InputsError(
        f"x of shape {tuple(x.shape)} has no batch axis, or the model needs another shape.",
        why=f"The model does not accept it, but accepts {(1, *x.shape)}. {said}",
        hint="Give x[None] if x is a single sample.",
    )


def dtype_of(dtype: object) -> torch.dtype | None:
    """``"float32"``, ``torch.float64`` and the like.

    >>> dtype_of("float64"), dtype_of(None)
    (torch.float64, None)

    Raises:
        UsageError: It is another one.
    """
    if dtype is None or dtype in _DTYPES.values():
        return dtype  # type: ignore[return-value]  # the comparison says that it is one
    if isinstance(dtype, str) and dtype.removeprefix("torch.") in _DTYPES:
        return _DTYPES[dtype.removeprefix("torch.")]
    raise UsageError(
        f"dtype={dtype!r} is wrong.",
        why="It must be float32 or float64.",
        hint="Leave it out to use the dtype of x.",
    )


def rows_of(arguments: Mapping[str, object], per_sample: Iterable[str], batch: int) -> dict[str, Tensor]:
    """The arguments that have one row per sample.

    >>> rows = rows_of({"mask": torch.ones(4, 2), "scale": 2}, ["mask"], batch=4)
    >>> {name: tuple(tensor.shape) for name, tensor in rows.items()}
    {'mask': (4, 2)}

    Raises:
        UsageError: One of them has not.
    """
    names = (per_sample,) if isinstance(per_sample, str) else tuple(per_sample)
    by_name: dict[str, Tensor] = {}
    for name in names:
        rows = arguments.get(name)
        if not isinstance(rows, Tensor) or rows.dim() == 0 or len(rows) != batch:
            came = described(rows) if name in arguments else "not given"
            raise UsageError(
                f"The argument {name} has no row per sample: it is {came}.",
                why=f"per_sample names it, and x has {count_of(batch, 'sample')}.",
                hint="Give a tensor of that length.",
            )
        by_name[name] = rows
    return by_name


def labels_of(labels: object, x: Tensor) -> Tensor:
    """One whole number per sample, on the points' device.

    Raises:
        UsageError: It is anything else.
    """
    tensor = torch.as_tensor(labels) if isinstance(labels, (np.ndarray, list, tuple)) else labels
    if (
        not isinstance(tensor, Tensor)
        or tensor.shape != x.shape[:1]
        or tensor.is_floating_point()
        or tensor.is_complex()
        or tensor.dtype == torch.bool
    ):
        raise UsageError(
            f"labels is {described(labels)}.",
            why=f"One whole number per sample is needed, and x has {len(x)} samples.",
            hint="Give a tensor of class indices, (batch,).",
        )
    return tensor.to(x.device, torch.int64)


def check_paths(model: object, inputs: object, out: object) -> None:
    """Refuse what `jacli.compute` cannot read as the path of a file.

    >>> check_paths(nn.Linear(3, 2), "x.npy", "out.h5")
    Traceback (most recent call last):
        ...
    jacli.errors.UsageError: The model is a module, Linear.
    jacli.compute reads a file, so that the result can record which model it belongs to.
    Save its weights, torch.save(model.state_dict(), "model.pt"), and give "model.pt" with
        arch="file.py:Linear". In memory: jacli.jacobian(model, x).

    Raises:
        UsageError: Naming each argument that is no path, with what to do.
    """
    problems: list[JacliError] = []
    for given, noun, verb, remedy in (
        (model, "model", "is", _file_of_model),
        (inputs, "inputs", "are", _file_of_inputs),
    ):
        if not _is_path(given):
            what = f"The {noun} {verb} {described(given)}."
            why = f"jacli.compute reads a file, so that the result can record which {noun} it belongs to."
            problems.append(UsageError(what, why=why, hint=remedy(given)))
    if not _is_path(out):
        problems.append(
            UsageError(f"out is {described(out)}.", why="It must be a path.", hint='Give out="out.h5".')
        )
    if problems:
        raise UsageError.from_problems(problems)


def _is_path(given: object) -> bool:
    return isinstance(given, (str, os.PathLike))


def _file_of_model(model: object) -> str:
    if isinstance(model, torch.jit.ScriptModule):
        return 'Save it, model.save("model.pt"), and give "model.pt".'
    in_memory = " In memory: jacli.jacobian(model, x)."
    save = 'torch.save({}, "model.pt"), and give "model.pt" with arch="file.py:{}"'
    if isinstance(model, nn.Module):
        return f"Save its weights, {save.format('model.state_dict()', type(model).__name__)}.{in_memory}"
    if isinstance(model, type):
        return f'Give the weights\' file, with arch="file.py:{model.__name__}".'
    if isinstance(model, Mapping):
        return f"Save it, {save.format('weights', 'Network')}."
    if is_array(model):
        return "Give the model first, then the inputs: jacli.compute(model_path, inputs_path)."
    return "Give the path of a model file." + (in_memory if callable(model) else "")


def _file_of_inputs(inputs: object) -> str:
    if isinstance(inputs, Tensor):
        return 'Save them, np.save("inputs.npy", x.numpy(force=True)), and give "inputs.npy".'
    if isinstance(inputs, (np.ndarray, list, tuple)):
        return 'Save them, np.save("inputs.npy", x), and give "inputs.npy".'
    return "Give the path of a file of inputs, such as inputs.npy."


def is_array(given: object) -> bool:
    """Whether it is a tensor or a NumPy array."""
    return isinstance(given, (Tensor, np.ndarray))


def described(given: object) -> str:
    """Description of an argument: its type, and its shape if it has one.

    >>> described(torch.zeros(4, 3)), described([1, 2.0])
    ('a tensor, float32 (4, 3)', 'a list of 2 (float, int)')
    """
    if isinstance(given, Tensor):
        return f"a tensor, {str(given.dtype).removeprefix('torch.')} {tuple(given.shape)}"
    if isinstance(given, np.ndarray):
        return f"a NumPy array, {given.dtype} {given.shape}"
    if isinstance(given, (str, os.PathLike)):
        return f"a path, {os.fspath(given)!r}"
    if isinstance(given, type):
        return f"the class {given.__name__}"
    if isinstance(given, Mapping) and given and all(isinstance(value, Tensor) for value in given.values()):
        return f"a state dict ({type(given).__name__} of {len(given)} tensors)"
    if isinstance(given, nn.Module):
        return f"a module, {type(given).__name__}"
    if isinstance(given, (list, tuple)) and given:
        kinds = sorted({type(part).__name__ for part in given})
        return f"a {type(given).__name__} of {len(given)} ({', '.join(kinds)})"
    if given is None:
        return "None"
    if hasattr(given, "__name__") and callable(given):
        return f"a function, {given.__name__}"
    return f"of type {type(given).__name__}"
