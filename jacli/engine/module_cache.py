"""Cache of plans and traced graphs, per module, shape and options, for repeated calls of `jacli.jacobian`.

Choosing a plan costs a part of a run.  A second call with the same module, shape and options takes over the
plan of the first, on a copy of the module as it is now.  A traced graph belongs to the module as it was: it
is taken over only if everything in the module is still the same, and it is checked as in any run, by plain
passes through that copy.

A call with fewer samples, such as the last batch of an epoch, takes over the plan of a call with more.
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
        plan: Method and sizes; None if no matrix was formed.
        graph: The traced network, if the plan's method runs it.
        twin: The copy that was probed; None if it is large and no graph holds its parameters anyway.
        network: That of the call, without its module.
        probed: What the probe learnt.
        memory: What may be held, if the call held far less; None if it has to be found out anew.
        history: What was checked of the batches so far.
        borrowed: Numbers of samples, each with how many calls of that size used this entry.
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
"""Module -> (number of samples, everything else that a plan depends on) -> entry."""

_MAX_ENTRIES_PER_MODULE = 4
"""The oldest entry goes first; each that is cut holds a copy of the module's parameters."""

_MAX_TWIN_BYTES = 64 * 2**20
"""The copy is kept although no graph holds its parameters, if they take at most so many bytes."""

_MAX_BORROWED_CALLS = 4
"""After so many calls with at most half of the samples, that number of samples gets a plan of its own."""

_MIN_LIMIT_OVER_HELD = 64
"""Memory is not measured again if a call may hold at least this many times what it held."""


class CachedPlan:
    """The cache entry for a model, a number of samples and a set of options; or that for more samples.

    Attributes:
        choice: Plan and traced network to take over, or None.
        network: A copy of the module, with what the probe learnt from an earlier one, or None.
        memory: What may be held, if it need not be measured again, or None.
        history: What was checked of the batches of earlier calls, if module, graph and plan are the same;
            else an empty one.
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
        entry, own = self._entry()
        if entry is None or not isinstance(model, nn.Module):
            return
        self.memory = entry.memory
        same = entry.twin is not None and equals_copy(model, entry.twin)
        # The module keeps no state between calls, so the earlier copy is as good as a fresh one.  Not so for
        # TorchScript, whose attributes are not compared: there plain passes show what has changed.
        scripted = any(isinstance(part, torch.jit.ScriptModule) for part in model.modules())
        module = entry.twin if same and not scripted and entry.twin is not None else frozen_twin(model)
        self.network = replace(entry.network, module=module), entry.probed
        if entry.plan is not None and own and (same or entry.graph is None):
            self.choice = entry.plan, entry.graph
            if same and not scripted:
                self.history = entry.history

    def _entry(self) -> tuple[_Entry | None, bool]:
        """The entry for as many samples, else for the next larger number; whether its plan may be used."""
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
        return entry, 2 * n_samples > most or entry.borrowed[n_samples] <= _MAX_BORROWED_CALLS

    @property
    def is_kept(self) -> bool:
        """Whether `keep` stores anything."""
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
    ) -> CachedPlan:
        """What the cache has for this call; never anything for functions, which may close over anything.

        Nor if an argument is the same for all samples: the copy that was probed has it filled in; nor without
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
        """Store what a call found out; nothing of a module with state, which may have changed meanwhile.

        Args:
            network: Of the call.
            probed: What the probe learnt.
            chosen: Method and plan; None if no matrix was formed.
            memory: What might be held.
            held: Bytes that were held.
        """
        if self._model is None or network.copy_each_call:
            return
        entries = _ENTRIES.setdefault(self._model, {})
        if self._key not in entries and self._unchanged(chosen):
            return  # the entry for more samples has the same
        before = entries.pop(self._key, None)
        plan, graph = (chosen.plan, chosen.graph) if chosen is not None else (None, None)
        # A graph holds the parameters of the copy it was made from: with another copy it would be stale.
        if plan is None and before is not None and (before.graph is None or network.module is before.twin):
            plan, graph = before.plan, before.graph
        while len(entries) >= _MAX_ENTRIES_PER_MODULE:
            entries.pop(next(iter(entries)))
        small = bytes_of(module_tensors(network.module)) <= _MAX_TWIN_BYTES
        entries[self._key] = _Entry(
            plan,
            graph,
            network.module if graph is not None or small else None,
            replace(network, module=nn.Identity(), anchor=None),  # weights may change until the next call
            probed,
            replace(memory, watched=False) if held * _MIN_LIMIT_OVER_HELD <= memory.limit else None,
            self.history,
        )

    def _unchanged(self, chosen: Chosen | None) -> bool:
        """Did this call end with the plan and graph that it took over?"""
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
    """What defines the function beside tensors: types, hooks, numbers, texts, flags, other objects."""
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
