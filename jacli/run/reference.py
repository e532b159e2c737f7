"""The model that results are rechecked against: loaded anew from its file, for nothing but that.

What was prepared for the run may be wrong itself, so no part of it is used but what the probe learnt of
the forward pass (`TensorNetwork`'s flags).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from jacli.errors import JacliError, means_out_of_memory
from jacli.models import load_anew
from jacli.models.dtypes import as_dtype, convert
from jacli.network import Linearized, TensorNetwork, frozen_twin, watch
from jacli.run.placing import arguments_at, move, restore_built_dtypes
from jacli.run.prepare import Prepared
from jacli.verify import with_others_changed


class References:
    """The original model at small batches, in float64 where it is the same function there.

    It is not where the model does not run in float64, nor where it computes in a lower precision inside than
    the run does (autocast, a layer in half precision, a ``float()`` in a float64 run): then the reference is
    in the run's dtype, as `notes` say.

    Attributes:
        reduced: A dtype below the run's that the model computes in internally; known after the first `at`.
        notes: What the user must be told of the reference; known after the first `at`.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.reduced: str | None = None
        self.notes: list[str] = []
        self._prepared = prepared
        self._network: TensorNetwork | None = None
        self._own: TensorNetwork | None = None
        self._dtype = torch.float64

    def at(self, row: int, selected: Tensor | None) -> tuple[Linearized, int]:
        """The linearisation at a batch that holds ``row``, and the sample's position in it."""
        x, extra, position = self._points(row)
        if self._network is None:
            self._choose(x, extra, selected)
        assert self._network is not None  # just chosen
        return linearized(self._network, *_converted(x, extra, self._dtype), selected), position

    @property
    def own(self) -> TensorNetwork:
        """The original model in the dtypes of the run."""
        if self._own is None:
            self._own = self._anew(None)
        return self._own

    def _choose(self, x: Tensor, extra: Mapping[str, Tensor], selected: Tensor | None) -> None:
        self.reduced = _reduced_inside(self._prepared.network, x, extra)
        if self.reduced is not None:
            other = "" if self.reduced == "float32" else ", and in float64 would be another function"
            self.notes.append(
                f"the model computes in {self.reduced} inside{other}: "
                f"rechecked in its own dtypes, to the accuracy of {self.reduced}"
            )
        else:
            # A model's own code may raise anything when its numbers are converted.
            try:
                twin = self._anew(torch.float64)
                with linearized(twin, *_converted(x, extra, torch.float64), selected) as trial:
                    trial.tape().vjp(x.new_zeros(1, trial.batch, trial.n_out, dtype=torch.float64))
                    if trial.outputs.dtype == torch.float64:
                        self._network = twin
            except Exception as error:
                if means_out_of_memory(error):
                    self.notes.append("rechecked in the run's own dtype: float64 does not fit in memory")
        if self._network is None:
            self._network, self._dtype = self.own, self._prepared.dtype

    def _anew(self, dtype: torch.dtype | None) -> TensorNetwork:
        """The model from its file; in the dtypes of the run if ``dtype`` is None, as it was placed there."""
        prepared, network = self._prepared, self._prepared.network
        try:
            loaded = load_anew(prepared.loaded, dtype=dtype)
            restore_built_dtypes(loaded)
            module = loaded.module
        except JacliError as error:
            note = f"rechecked against the model as it was loaded for the run. {error.summary}"
            if note not in self.notes:
                self.notes.append(note)
            module = frozen_twin(network.module)
        if dtype is None:
            move(module, prepared.dtype, prepared.device, prepared.converted)
            return replace(network, module=module)
        convert(module.to(prepared.device), dtype)
        arguments = arguments_at(network.arguments, dtype, prepared.device)
        return replace(network, module=module, arguments=arguments)

    def _points(self, row: int) -> tuple[Tensor, dict[str, Tensor], int]:
        prepared, n_samples = self._prepared, self._prepared.shapes.n_samples
        if fixed := prepared.shapes.fixed_batch:
            start = row // fixed * fixed
            return *batch_of(prepared, start, min(start + fixed, n_samples), fixed), row - start
        if n_samples > 1:
            start = min(row, n_samples - 2)
            return *batch_of(prepared, start, start + 2, 2), row - start
        x, extra = batch_of(prepared, 0, 1, 2)
        with torch.no_grad():
            x, _ = with_others_changed(prepared.network, x, extra, 0)
        return x, extra, 0


def linearized(
    network: TensorNetwork, x: Tensor, extra: Mapping[str, Tensor], selected: Tensor | None
) -> Linearized:
    """The network at a batch, with the same selected outputs for every sample."""
    return Linearized(network, x, extra, None if selected is None else selected.expand(len(x), -1))


def batch_of(prepared: Prepared, start: int, stop: int, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Samples ``start:stop``, the last one repeated up to ``size``."""
    _, x, extra = prepared.rows(start, stop)
    index = torch.arange(max(size, len(x)), device=x.device).clamp(max=len(x) - 1)
    return x[index], {name: rows[index] for name, rows in extra.items()}


def _converted(
    x: Tensor, extra: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    """The run's own points, rounded as it saw them, in another dtype."""
    return x.to(dtype), {name: as_dtype(rows, dtype) for name, rows in extra.items()}


def _reduced_inside(network: TensorNetwork, x: Tensor, extra: Mapping[str, Tensor]) -> str | None:
    """The coarsest dtype below the run's in which some operation of the forward pass gives its result.

    None too where the model does not run while it is watched: it is then tried in float64 as any other.
    """
    try:
        with torch.no_grad():
            return watch(lambda: network(x, extra)).reduced(x.dtype)
    except Exception as error:  # a model's own code may raise anything
        if means_out_of_memory(error):
            raise
        return None
