"""What `jacli.jacobian` keeps of a call for the next one with the same model and shape.

Choosing costs a part of a run; a second call with the same module, shape and options takes the plan
over, on a copy of the module as it is now.  A traced network is a graph of what the module was: it is
taken over only where everything in the module still is the same, and is looked at as in any run: by plain
passes through that copy.

A call with fewer samples, such as the last batch of an epoch, takes over the plan of the larger one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from jacli.choice.memory_limit import MemoryLimit
from jacli.choice.problem import Graph
from jacli.engine.batch_checks import CheckHistory
from jacli.engine.engine import Chosen
from jacli.engine.same_module import equals_copy
from jacli.models.tensors import bytes_of, module_tensors
from jacli.network import TensorNetwork, frozen_twin
from jacli.plans.plan import Plan
from jacli.verify import Probed


@dataclass
class _Entry:
    """What one call found out.

    Attributes:
        plan: Method and sizes; None where no matrix was formed.
        graph: The traced network, where the plan's method runs it.
        twin: The copy that was probed; None where it is large and nothing else holds its parameters.
        network: That of the call, without its module.
        probed: What the probe learnt.
        memory: What may be held, where the call held far less; None where it has to be looked at anew.
        history: What was checked of the batches so far.
        borrowed: How often the entry served a call with so many fewer samples.
    """

    plan: Plan | None
    graph: Graph
    twin: nn.Module | None
    network: TensorNetwork
    probed: Probed
    memory: MemoryLimit | None
    history: CheckHistory
    borrowed: Counter[int] = field(default_factory=Counter)


_ENTRIES: WeakKeyDictionary[Callable[..., object], dict[tuple[int, Hashable], _Entry]] = WeakKeyDictionary()
"""Module to what is kept for each number of samples and everything else that a plan depends on."""

_MOST = 4
"""Entries per module: each that is cut holds a copy of its parameters."""

_SMALL_TWIN_BYTES = 64 * 2**20
"""Up to so many bytes of parameters the copy is kept also where no graph holds them."""

_MANY_BORROWED = 4
"""Calls with at most half of the samples, after which these get a plan of their own."""

_SMALL_SHARE = 64
"""Memory is not looked at again where a call held at most this part of what it might."""


class Kept:
    """The entry of one model, number of samples and set of options; or that of more samples.

    Attributes:
        choice: Plan and traced network to go on with, or None.
        network: A copy of the module, with what the probe learnt of the earlier one, or None.
        memory: What may be held, where it need not be looked at; or None.
        history: What was checked of the batches of earlier calls, where module, graph and plan are the same;
            or one that begins.
    """

    def __init__(
        self, model: Callable[..., object] | None, n_samples: int = 0, options: Hashable = ()
    ) -> None:
        self._model = model
        self._key = n_samples, options
        self.choice: tuple[Plan, Graph] | None = None
        self.network: tuple[TensorNetwork, Probed] | None = None
        self.memory: MemoryLimit | None = None
        self.history = CheckHistory()
        entry, own = self._found()
        if entry is None or not isinstance(model, nn.Module):
            return
        self.memory = entry.memory
        same = entry.twin is not None and equals_copy(model, entry.twin)
        # A module that keeps no state between calls: the earlier copy is as good as a fresh one.
        # Not so of TorchScript, whose attributes are not seen: there plain passes show what changed.
        scripted = any(isinstance(part, torch.jit.ScriptModule) for part in model.modules())
        module = entry.twin if same and not scripted and entry.twin is not None else frozen_twin(model)
        self.network = replace(entry.network, module=module), entry.probed
        if entry.plan is not None and own and (same or entry.graph is None):
            self.choice = entry.plan, entry.graph
            if same and not scripted:
                self.history = entry.history

    def _found(self) -> tuple[_Entry | None, bool]:
        """The entry of as many samples, else of the next larger number; and whether its plan serves."""
        entries = _ENTRIES.get(self._model, {}) if self._model is not None else {}
        if self._key in entries:
            return entries[self._key], True
        n_samples, options = self._key
        larger = [other for other, rest in entries if rest == options and other > n_samples]
        if not larger:
            return None, False
        most = min(larger)
        entry = entries[most, options]
        entry.borrowed[n_samples] += 1
        return entry, 2 * n_samples > most or entry.borrowed[n_samples] <= _MANY_BORROWED

    @property
    def is_kept(self) -> bool:
        """Whether what is found out serves later calls."""
        return self._model is not None

    @classmethod
    def of(
        cls,
        model: Callable[..., object],
        x: Tensor,
        asked: Hashable,
        arguments: Mapping[str, object],
        extra: Mapping[str, Tensor],
        *,
        keep: bool = True,
    ) -> Kept:
        """What is kept for this call; nothing for functions, which may close over anything.

        Nor where an argument is not a plain value: the copy that was probed has it filled in; nor without
        ``keep``.  ``asked`` is all that a plan depends on beside the model and the points.
        """
        if not keep or not isinstance(model, nn.Module) or set(arguments) - set(extra):
            return cls(None)
        rows = tuple((name, extra[name].shape[1:], extra[name].dtype) for name in sorted(extra))
        autocast = torch.is_autocast_enabled(x.device.type)  # then the probe refuses, whatever is kept
        settings = (torch.get_num_threads(), autocast, rows, _plain_attributes(model))
        return cls(model, len(x), (tuple(x.shape[1:]), x.dtype, x.device, asked, settings))

    def keep(
        self,
        network: TensorNetwork,
        probed: Probed,
        chosen: Chosen | None,
        memory: MemoryLimit,
        *,
        held: int,
    ) -> None:
        """Remember what a call began with; not of a module with state, which may have brought it anywhere.

        Args:
            network: Of the call.
            probed: What the probe learnt.
            chosen: Method and plan; None where no matrix was formed.
            memory: What might be held.
            held: Bytes that were.
        """
        if self._model is None or network.fresh:
            return
        entries = _ENTRIES.setdefault(self._model, {})
        if self._key not in entries and self._serves(chosen):
            return  # the entry of more samples does
        before = entries.pop(self._key, None)
        plan, graph = (chosen.plan, chosen.graph) if chosen is not None else (None, None)
        # A graph holds the parameters of its own copy: with another copy it would be stale.
        if plan is None and before is not None and (before.graph is None or network.module is before.twin):
            plan, graph = before.plan, before.graph
        while len(entries) >= _MOST:
            entries.pop(next(iter(entries)))
        small = bytes_of(module_tensors(network.module)) <= _SMALL_TWIN_BYTES
        entries[self._key] = _Entry(
            plan,
            graph,
            network.module if graph is not None or small else None,
            replace(network, module=nn.Identity(), anchor=None),  # weights may change until the next call
            probed,
            replace(memory, watched=False) if held * _SMALL_SHARE <= memory.limit else None,
            self.history,
        )

    def _serves(self, chosen: Chosen | None) -> bool:
        """Whether what this call ended with is what it took over."""
        if self.network is None:
            return False
        if chosen is None:
            return True
        if self.choice is None:
            return False
        (plan, graph), now = self.choice, chosen.plan
        sizes = plan.batch_size, plan.chunk_size
        same = (plan.method, *sizes) == (now.method, now.batch_size, now.chunk_size)
        return graph is chosen.graph and same


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
