"""Everything a run needs before its first batch: model, inputs, labels, probe."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jacli.choice.memory_limit import memory_errors
from jacli.cluster import local_rank, shard_rows
from jacli.device.hardware import pick_device
from jacli.device.precision import check_precision
from jacli.errors import InputsError
from jacli.errors.printable import count_of
from jacli.inputs import InputSource, check_dtype, check_rows, open_inputs, scale_notes
from jacli.models import LoadedModel, load_model
from jacli.models.hooks import forward_hooks
from jacli.network import TensorNetwork
from jacli.options.table import RunConfig
from jacli.options.values import Shard
from jacli.plans.plan import Shapes
from jacli.run.arguments import read_along, read_arguments
from jacli.run.placing import place
from jacli.run.selection import check_classes
from jacli.untrusted.content import Content, recognise_content
from jacli.verify import BATCH_SIZES, Probed

_PROBE_ROWS = 4


@dataclass(frozen=True)
class Prepared:
    """A probed network and the samples it will be linearised at.

    Attributes:
        loaded: What the model's file gave; its module is the network's.
        network: The network, on the device and in the dtype of the run.
        source: The chosen samples.
        extra: Arguments with one row a chosen sample.
        labels: The chosen samples' labels, or None.
        shapes: Learnt by the probe.
        device: Where the run computes.
        dtype: Of the run's arithmetic.
        converted: The real dtypes whose tensors were converted to it, see `jacli.run.placing`.
        arguments_sha256: Of the labels and of the arguments with a row per sample, of the whole run whatever
            the shard; None without any.
        constants_sha256: Of the tensors that are arguments of every sample; None without any.
        notes: What the user must be told.
    """

    loaded: LoadedModel
    network: TensorNetwork
    source: InputSource
    extra: Mapping[str, Tensor]
    labels: np.ndarray | None
    shapes: Shapes
    device: torch.device
    dtype: torch.dtype
    converted: frozenset[torch.dtype]
    arguments_sha256: str | None
    constants_sha256: str | None
    notes: tuple[str, ...]

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, Tensor, dict[str, Tensor]]:
        """Chosen samples ``start:stop``: as read, as a tensor on the device, and their further arguments.

        Raises:
            InputsError: A value is not finite.
        """
        raw = self.source.read(start, stop)
        check_rows(raw, self.source.index[start:stop], self.source)
        x = torch.from_numpy(raw).to(self.device, self.dtype)
        return raw, x, {k: v[start:stop].to(self.device) for k, v in self.extra.items()}


def prepare(config: RunConfig) -> Prepared:
    """Open, load and probe.

    Raises:
        InputsError: The inputs are unreadable, of a wrong dtype or shape, or not finite.
        ModelError: The model is unreadable or has no per-sample Jacobian.
        UsageError: Options that do not fit this model or these inputs.
    """
    device = pick_device(config.device, local_rank(os.environ) if config.shard else 0)
    check_precision(config.precision, device, getattr(torch, config.dtype))
    source = open_inputs(config.inputs, key=config.inputs_key, samples=config.samples, seed=config.seed)
    try:
        rows = range(len(source))
        if isinstance(config.shard, Shard):
            rows = shard_rows(config.shard, len(source))
        with memory_errors("loading the model and running it on the first samples"):
            return _prepare(config, source, rows, device)
    except BaseException:
        source.close()
        raise


def _prepare(config: RunConfig, whole: InputSource, rows: range, device: torch.device) -> Prepared:
    """Prepare the samples ``rows`` of the whole run: all of them, or those of a shard."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    check_dtype(whole.dtype)
    labels = _read_labels(config.labels, whole) if config.labels else None
    arguments = read_arguments(config.arg, config.constant, whole, dtype)
    arguments_sha256 = _sha256_of_arguments(labels, arguments.rowwise)  # the same in every shard
    mine = slice(rows.start, rows.stop)
    labels = None if labels is None else labels[mine]
    extra = {name: values[mine] for name, values in arguments.rowwise.items()}
    source = whole.at(whole.index[mine])
    loaded = load_model(
        config.model,
        arch=config.arch,
        arch_args=config.arch_arg,
        weights_key=config.weights_key,
        strip_prefix=config.strip_prefix,
        ema=config.ema,
        allow_pickle=config.allow_pickle,
        seed=config.seed,
        ignore_extra_weights=config.ignore_extra_weights,
    )
    count = min(_PROBE_ROWS, len(source))
    first = source.read(0, count)
    check_rows(first, source.index[:count], source)
    placed = place(
        loaded,
        torch.from_numpy(first),
        {name: rows[:count] for name, rows in extra.items()},
        dtype=dtype,
        device=device,
        arguments=arguments.constant,
        input_arg=config.input_arg,
        select=config.select,
        of=config.of,
        batch_hints=[s for s in (loaded.static_batch, config.batch_size, *BATCH_SIZES, len(source)) if s],
        alone=config.batch_size == 1,
    )
    network, probed = placed.network, placed.probed
    loaded = replace(loaded, module=network.module)
    n_out = math.prod(probed.output_shape)
    check_classes(config.classes, labels, n_out)
    shapes = Shapes(
        n_samples=len(source),
        input_shape=source.shape,
        output_shape=probed.output_shape,
        n_selected=config.classes.count(n_out),
        fixed_batch=probed.fixed_batch,
        itemsize=dtype.itemsize,
    )
    return Prepared(
        loaded,
        network,
        source,
        extra,
        labels,
        shapes,
        device,
        dtype,
        placed.converted,
        arguments_sha256=arguments_sha256,
        constants_sha256=arguments.constants_sha256,
        notes=(
            *loaded.notes,
            *_code_notes(config, loaded),
            *placed.notes,
            *_probe_notes(probed, network),
            *scale_notes(first),
        ),
    )


def _sha256_of_arguments(labels: np.ndarray | None, extra: Mapping[str, Tensor]) -> str | None:
    if labels is None and not extra:
        return None
    digest = hashlib.sha256(b"" if labels is None else labels.tobytes())
    for name, rows in sorted(extra.items()):
        digest.update(name.encode() + rows.numpy().tobytes())
    return digest.hexdigest()


def _code_notes(config: RunConfig, loaded: LoadedModel) -> Iterator[str]:
    recorded = config.repeated_arch_sha256
    if recorded is not None and loaded.arch_sha256 != recorded:
        yield "the architecture's source file is not the one of the run that is repeated (SHA-256)"


def _probe_notes(probed: Probed, network: TensorNetwork) -> Iterator[str]:
    if network.input_arg is not None:
        yield f"INPUTS are given to the argument {network.input_arg} of forward"
    if hooks := forward_hooks(network.module):
        listed = ", ".join(dict.fromkeys(hooks))
        yield f"the model's forward hooks ({listed}) run in every forward pass: they may be part of it"
    if probed.stateful:
        yield "the model keeps state between calls: every forward pass runs on a fresh copy"
    if probed.alone:
        yield "samples influence one another in larger batches: each is computed alone (--batch-size 1)"
    elif probed.fixed_batch:
        yield f"the model runs in batches of {probed.fixed_batch}, not of any size: the last batch is padded"


def _read_labels(path: str, source: InputSource) -> np.ndarray:
    """Labels as int64, one per chosen sample; a text file holds one number per line."""
    if os.path.isfile(path) and recognise_content(Path(path)) is Content.TEXT:
        try:
            every = np.loadtxt(path, dtype=np.int64, ndmin=1)
        except ValueError as error:
            raise InputsError(
                f"{path} holds no labels.", why=f"{error}.", hint="Give one whole number per line."
            ) from error
        if every.ndim != 1 or len(every) <= int(source.index.max()):
            raise InputsError(
                f"{path} has {count_of(len(every), 'label')}.",
                why=f"The samples reach up to position {int(source.index.max())}.",
                hint="Give one label per sample of INPUTS.",
            )
        chosen: np.ndarray = every[source.index]
        return chosen
    labels = read_along(path, source, "--labels")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.array_equal(labels, labels.astype(np.int64)):
        raise InputsError(
            f"{path} holds no labels.",
            why=f"Its rows are {labels.dtype} of shape {labels.shape[1:]}, not one whole number per sample.",
            hint="Give class indices, shape (batch,): of one-hot rows, np.save('labels.npy', y.argmax(1))."
            if labels.ndim == 2
            else "Give class indices: shape (batch,).",
        )
    whole: np.ndarray = labels.astype(np.int64)
    return whole
