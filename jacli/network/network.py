"""A module as a function of one tensor: arguments filled in, one output selected, state contained."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from jacli.device.torch_switches import forward_pass, without_checkpoints
from jacli.errors import ModelError, noting_user_code, telling_line
from jacli.errors.printable import count_of
from jacli.linear_maps import Extra
from jacli.models.hooks import drop_backward_hooks
from jacli.network.parameters import nested, parameters_of


@dataclass(frozen=True)
class TensorNetwork:
    """``f(x)``: a frozen module in eval mode from ``(batch, *input)`` to ``(batch, *output)``.

    Attributes:
        module: The module; it is never changed here.
        arguments: Further arguments of ``forward``, the same for every sample; parts of a nested one by
            dotted names, as in ``extra`` (see `nested`).
        input_arg: The argument that the points are; None for the first one, by position.
        lists: Arguments that are lists in place of tuples, where parts are given.
        select: Path to the output where the module returns a tuple or a dict (``"1.0"``).
        of: ``logits`` (raw outputs), ``probs`` (their softmax) or ``log-probs``.
        copy_each_call: Run every forward pass on a fresh copy (a module that keeps state between calls).
        saves_copies: Save for the reverse passes copies of tensors (a module that overwrites them later in
            its forward pass, as one with state in buffers may).
        squeezes_batch_of_one: Whether the module drops the batch axis of a single sample: such a batch is
            duplicated.
        recurrent: Whether the module holds recurrent layers.
        scripted_attention: Whether it is TorchScript with an inference path of attention inside.
        anchor: Points, their arguments, and the outputs there of the module as it was before it ran
            otherwise; None where that is not known.
    """

    module: nn.Module
    arguments: Mapping[str, object] = field(default_factory=dict)
    input_arg: str | None = None
    lists: frozenset[str] = frozenset()
    select: str | None = None
    of: str = "logits"
    copy_each_call: bool = False
    saves_copies: bool = False
    squeezes_batch_of_one: bool = False
    recurrent: bool = False
    scripted_attention: bool = False
    anchor: tuple[Tensor, Extra, Tensor] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of_module(cls, module: nn.Module, **options: Any) -> TensorNetwork:
        """Wrap a module, noticing the layers that need other kernels."""
        program = _program(module)
        recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
        return cls(
            module,
            lists=frozenset(one.name for one in parameters_of(module) if one.takes_list),
            recurrent=recurrent or re.search(r"aten[.:]+(lstm|gru|rnn_)", program) is not None,
            scripted_attention="aten::_native_multi_head_attention" in program,
            **options,
        )

    def __call__(self, x: Tensor, extra: Extra) -> Tensor:
        """``(batch, *input) -> (batch, *output)``.

        Raises:
            ModelError: The output is no tensor, ``select`` does not name one, or ``of`` has no
                class axis to act on.
        """
        if self.squeezes_batch_of_one and x.shape[0] == 1:
            return self._run(torch.cat([x, x]), {k: duplicated(v) for k, v in extra.items()})[:1]
        return self._run(x, extra)

    def _run(self, x: Tensor, extra: Extra) -> Tensor:
        module = self.copied().module if self.copy_each_call else self.module
        # A clone: models normalise or rectify their input in place, which a leaf would refuse and
        # which would move the caller's points.
        points, given = [x.clone()], {**self.arguments, **extra}
        if self.input_arg is not None:
            given[self.input_arg] = points.pop()
        where = f"{type(self.module).__name__}.forward, for inputs of shape {tuple(x.shape)}"
        with (
            forward_pass(recurrent=self.recurrent, device=x.device),
            self._saving(),
            _no_exit(),
            noting_user_code(where),
        ):
            output = module(*points, **nested(given, self.lists))
        return _activate(select_output(output, self.select), self.of)

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Around a forward pass: what is saved for the reverse passes."""
        if not self.saves_copies:
            # Without a tape there is nothing to save, and reentrant checkpoints warn of that.
            with nullcontext() if torch.is_grad_enabled() else without_checkpoints():
                yield
            return
        save, load = (lambda saved: saved.detach().clone()), (lambda copy: copy)
        # A checkpoint would compute again with what has been overwritten.
        with without_checkpoints(), torch.autograd.graph.saved_tensors_hooks(save, load):
            yield

    def copied(self) -> TensorNetwork:
        """The same network on a copy of the module, state and all."""
        return replace(self, module=_copy(self.module), copy_each_call=False)

    def sharing(self) -> TensorNetwork:
        """The same network on a copy of the module that has the same parameters and buffers.

        What a pass stores as attributes stays in the copy.  TorchScript, which cannot share, is not copied.
        """
        if any(isinstance(part, torch.jit.ScriptModule) for part in self.module.modules()):
            return self
        shared = [*self.module.parameters(), *self.module.buffers()]
        return replace(self, module=_copy(self.module, shared))

    def renewing(self) -> TensorNetwork:
        """The same network that copies the module before every forward pass."""
        return replace(self, copy_each_call=True)

    def saving_copies(self) -> TensorNetwork:
        """The same network that saves copies for its reverse passes."""
        return replace(self, saves_copies=True)


def frozen_twin(module: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters require no gradient, without hooks on gradients.

    The module given stays as it is, whatever the copy does to itself: its training flags,
    ``requires_grad``, parameters and buffers.

    >>> layer = nn.BatchNorm1d(3).train()
    >>> twin = frozen_twin(layer)
    >>> twin.training, twin.weight.requires_grad, layer.training, layer.weight.requires_grad
    (False, False, True, True)

    Raises:
        ModelError: The module cannot be copied.
    """
    twin = _copy(module)
    for parameter in twin.parameters():  # ScriptModules refuse requires_grad_()
        parameter.requires_grad_(False)
    drop_backward_hooks(twin)
    with suppress(NotImplementedError):  # modules of torch.export, whose mode is settled
        twin.eval()
    return twin


def _copy(module: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    memo = {id(tensor): tensor for tensor in shared}
    try:
        # Tensors with a history (weight_norm's product, features that a list keeps) refuse to be copied;
        # their values are all that a copy needs.
        for part in module.modules():
            for value in tree_leaves(vars(part)):
                if isinstance(value, Tensor) and _is_computed(value):
                    memo[id(value)] = torch._C._functorch.unwrap_if_dead(value).detach().clone()
        # TorchScript clones its parameters: leaves only without a tape.  Copying an exported program
        # copies its call's structure, whose class torch itself deprecates.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*", FutureWarning)
            return copy.deepcopy(module, memo)
    except Exception as error:  # a model's own __deepcopy__ may raise anything
        raise ModelError(
            f"The model {type(module).__name__} cannot be copied.",
            why=f"copy.deepcopy says: {str(error).strip() or type(error).__name__}",
            hint="jacli runs a copy so that the model does not change; remove what cannot be copied.",
        ) from error


def _is_computed(value: Tensor) -> bool:
    """Whether a computation left a tensor behind: it has a history, or is of a transform that has ended.

    Hooks that compute a weight (pruning, spectral norm) store it in their module, also under ``torch.func``.
    """
    return not value.is_leaf or torch._C._functorch.is_functorch_wrapped_tensor(value)


@contextmanager
def _no_exit() -> Iterator[None]:
    """A model that calls ``exit()`` must not end the run as if all were well."""
    try:
        yield
    except SystemExit as stop:
        raise ModelError(
            "The model ended the program.",
            why=f"Its forward called exit({stop.code}).",
            hint="Take that call out of the model.",
        ) from stop


def _program(module: nn.Module) -> str:
    """The operators of a TorchScript or exported program, as text; empty for Python code."""
    if isinstance(module, torch.jit.ScriptModule):
        try:
            return str(module.inlined_graph)
        except (RuntimeError, AttributeError) as error:  # no forward, or damaged notes on its sources
            raise ModelError(
                "The program's operators cannot be listed.",
                why=telling_line(error),
                hint="Save it again with torch.jit.save.",
            ) from error
    return "".join(str(part.graph) for part in module.modules() if isinstance(part, torch.fx.GraphModule))


def duplicated(value: object) -> object:
    """Duplicate a single sample: the model squeezes the batch axis of a batch of one.

    >>> tuple(duplicated(torch.zeros(1, 3)).shape), duplicated(0.5)
    ((2, 3), 0.5)
    """
    return torch.cat([value, value]) if isinstance(value, Tensor) else value


def outputs_of(output: object) -> dict[str, Tensor]:
    """The tensors in a nested output, by their path (``"1.0"``, ``"logits"``).

    >>> {name: tuple(t.shape) for name, t in outputs_of((torch.zeros(2, 5), {"aux": torch.zeros(2)})).items()}
    {'0': (2, 5), '1.aux': (2,)}
    """

    def walk(value: object, path: str) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            yield path, value
        for name, part in _parts(value):
            yield from walk(part, f"{path}.{name}" if path else name)

    return dict(walk(output, ""))


def _at(value: object, path: str) -> object:
    """What a path leads to, each step a name or, where there is none of that name, a position."""
    for step in path.split("."):
        parts = _parts(value)
        by_name = dict(parts)
        if step in by_name:
            value = by_name[step]
        elif step.isdigit() and int(step) < len(parts):
            value = parts[int(step)][1]
        else:
            return None
    return value


def _parts(value: object) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [(str(name), part) for name, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return [(str(i), part) for i, part in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in fields(value)]
    return []


def select_output(output: object, select: str | None) -> Tensor:
    """The one tensor that is differentiated.

    >>> output = {"logits": torch.zeros(2, 5), "aux": torch.zeros(2)}
    >>> tuple(select_output(output, "logits").shape)
    (2, 5)
    >>> select_output(output, None)
    Traceback (most recent call last):
        ...
    jacli.errors.ModelError: The model returns dict of 2 outputs: logits (2, 5), aux (2,).
    A Jacobian needs one output.
    Choose one with --select, for example --select logits.

    Raises:
        ModelError: Several outputs and none selected, or the selected one does not exist.
    """
    if isinstance(output, Tensor) and select is None:
        return output
    named = outputs_of(output)
    if select is not None and not isinstance(output, Tensor):
        selected = _at(output, select)
        if isinstance(selected, Tensor):
            return selected
    listed = ", ".join(f"{name} {tuple(t.shape)}" for name, t in named.items())
    if isinstance(output, Tensor):
        raise ModelError(
            f"There is no output {select!r}.",
            why="The model returns a single tensor.",
            hint="Leave --select out.",
        )
    if not named:
        raise ModelError(
            "The model returns no tensor.",
            why=f"forward returned {type(output).__name__}.",
            hint="Wrap the model so that it returns its output as a tensor (--arch file.py:callable).",
        )
    if select is None:
        raise ModelError(
            f"The model returns {type(output).__name__} of {count_of(len(named), 'output')}: {listed}.",
            why="A Jacobian needs one output.",
            hint=f"Choose one with --select, for example --select {next(iter(named))}.",
        )
    raise ModelError(
        f"There is no output {select!r}.", why=f"The outputs are {listed}.", hint="Choose one of them."
    )


def _activate(output: Tensor, of: str) -> Tensor:
    if of == "logits":
        return output
    if of not in _ACTIVATIONS:
        raise ValueError(f"of is {of!r}, not logits, {', '.join(_ACTIVATIONS)}")
    if output.dim() != 2:
        raise ModelError(
            f"--of {of} needs one class axis.",
            why=f"The output has shape {tuple(output.shape[1:])} per sample, and nothing says which axis "
            "holds the classes.",
            hint="Leave --of out, or wrap the model so that it applies the softmax itself.",
        )
    return _ACTIVATIONS[of](output, -1)


_ACTIVATIONS = {"probs": torch.softmax, "log-probs": torch.log_softmax}
