"""What `jacli.jacobian` keeps of a call for the next one with the same model and shape.

Choosing costs a part of a run; a second call with the same module, shape and options takes the plan
over, on a copy of the module as it is now.  A traced network is a graph of what the module was: it is
taken over only where everything in the module still is the same, and is looked at as in any run: by plain
passes through that copy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from jacli.config import RunConfig
from jacli.network import TensorNetwork, frozen_twin
from jacli.plan import Plan
from jacli.run.alike import alike
from jacli.run.engine import Chosen
from jacli.run.task import Graph
from jacli.verify import Probed


@dataclass
class _Entry:
    plan: Plan
    graph: Graph
    twin: nn.Module | None  # whose parameters the graph holds
    network: TensorNetwork  # without its module
    probed: Probed


_ENTRIES: WeakKeyDictionary[Callable[..., object], dict[Hashable, _Entry]] = WeakKeyDictionary()
"""Module to what is kept for each of its shapes and options."""

_MOST = 4
"""Shapes and options kept for a module: each that is cut holds a copy of its parameters."""


class Kept:
    """The entry of one model, shape and set of options.

    Attributes:
        choice: Plan and traced network to go on with, or None.
        network: A copy of the module, with what the probe learnt of the earlier one, or None.
    """

    def __init__(self, model: Callable[..., object] | None, key: Hashable) -> None:
        self._model = model
        self._key = key
        self.choice: tuple[Plan, Graph] | None = None
        self.network: tuple[TensorNetwork, Probed] | None = None
        entry = _ENTRIES.get(model, {}).get(key) if model is not None else None
        if entry is None or not isinstance(model, nn.Module):
            return
        if entry.twin is not None and alike(model, entry.twin):
            # A module that keeps no state between calls: the earlier copy is as good as a fresh one.
            # Not so of TorchScript, whose attributes are not seen: there plain passes show what changed.
            scripted = any(isinstance(part, torch.jit.ScriptModule) for part in model.modules())
            module = frozen_twin(model) if scripted else entry.twin
            self.network = replace(entry.network, module=module), entry.probed
            self.choice = entry.plan, entry.graph
            return
        self.network = replace(entry.network, module=frozen_twin(model)), entry.probed
        if entry.graph is None:
            self.choice = entry.plan, None

    @property
    def is_kept(self) -> bool:
        """Whether what is found out serves later calls."""
        return self._model is not None

    @classmethod
    def of(
        cls,
        model: Callable[..., object],
        x: Tensor,
        config: RunConfig,
        arguments: Mapping[str, object],
        extra: Mapping[str, Tensor],
    ) -> Kept:
        """What is kept for this call; nothing for functions, which may close over anything.

        Nor where an argument is not a plain value: the copy that was probed has it filled in.
        """
        if not isinstance(model, nn.Module) or set(arguments) - set(extra):
            return cls(None, ())
        options = (
            config.method,
            config.precision,
            config.batch_size,
            config.chunk_size,
            config.memory,
            config.select,
            config.of,
        )
        rows = tuple((name, extra[name].shape[1:], extra[name].dtype) for name in sorted(extra))
        autocast = torch.is_autocast_enabled(x.device.type)  # then the probe refuses, whatever is kept
        settings = (torch.get_num_threads(), autocast, rows, _plain_attributes(model))
        return cls(model, (tuple(x.shape), x.dtype, x.device, options, settings))

    def keep(self, network: TensorNetwork, probed: Probed, chosen: Chosen) -> None:
        """Remember what a call began with; not of a module with state, which may have brought it anywhere."""
        if self._model is None or network.fresh:
            return
        entries = _ENTRIES.setdefault(self._model, {})
        entries.pop(self._key, None)
        while len(entries) >= _MOST:
            entries.pop(next(iter(entries)))
        twin = network.module if chosen.graph is not None else None
        bare = replace(network, module=nn.Identity(), anchor=None)  # weights may change until the next call
        entries[self._key] = _Entry(chosen.plan, chosen.graph, twin, bare, probed)


def _plain_attributes(model: nn.Module) -> Hashable:
    """What makes up the function beside its tensors: types, hooks, numbers, texts, flags, other objects."""
    return tuple(
        (name, type(module), key, _identity(value))
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for key, value in sorted(vars(module).items())
        if key not in ("training", "_parameters", "_buffers", "_modules")
    )


def _identity(value: object) -> Hashable:
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, Mapping):
        return tuple((str(key), _identity(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_identity, value))
    return id(value)
