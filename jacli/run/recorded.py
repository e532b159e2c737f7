"""Compares the run that a result file records with the run requested now."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from jacli.errors.printable import quote
from jacli.inputs import InputSource
from jacli.options.table import Changes, File, RunConfig, flag_of, names_of, usual_options
from jacli.run.prepare import Prepared
from jacli.run.provenance import READ_BY_CONTENT
from jacli.store.attributes import Attributes
from jacli.store.sources import Source

_READ_BYTES = 64 * 2**20
"""Bytes of finished outputs read at once."""

NOT_COMPARED = (
    "device",  # of which the kind is compared
    *names_of(lambda option: option.changes is Changes.NOTHING or option.file is File.WHOLE),
)
"""Options that may differ between two processes of one run; what files hold is compared by its content."""


def other_options(
    recorded: Mapping[str, Any], config: RunConfig, *, may_differ: Collection[str] = NOT_COMPARED
) -> list[str]:
    """Options that are not what they were, each with both values.

    ``--method auto`` follows whatever method the file was begun or made with.

    >>> config = RunConfig("net.pt", "x.npy", dtype="float64")
    >>> other_options(RunConfig("net.pt", "x.npy").to_dict(), config)
    ['--dtype was float32, is float64']
    """
    now = json.loads(json.dumps(config.to_dict()))
    before = {**usual_options(), **recorded}
    for options in (now, before):
        options["arg"] = _without_paths(options["arg"])
        options["constant"] = sorted(options["constant"])  # compared by their content
    return [
        f"{flag_of(name)} was {_shown(before.get(name))}, is {_shown(now[name])}"
        for name in now
        if name not in may_differ
        and before.get(name) != now[name]
        and (name, now[name]) != ("method", "auto")
    ]


def other_content(recorded: Attributes, prepared: Prepared, n_samples: int) -> list[str]:
    """What the run reads and is not what was read, by its content; the rows of INPUTS aside.

    Args:
        recorded: Of the file.
        prepared: The run.
        n_samples: In the file.
    """
    loaded = prepared.loaded
    now = {
        "model_sha256": loaded.sha256,
        "arch": loaded.arch,
        "arch_sha256": loaded.arch_sha256,
        "weights_sha256": loaded.weights_sha256,
        "arguments_sha256": prepared.arguments_sha256,
        "constants_sha256": prepared.constants_sha256,
    }
    if "weights_sha256" not in recorded:
        del now["weights_sha256"]  # files from before it was recorded, and models from files
    different = [READ_BY_CONTENT[name] for name in now if recorded.get(name) != now[name]]
    samples = prepared.shapes.n_samples
    if samples != n_samples:
        different.append(f"the number of samples was {n_samples}, is {samples}")
    return different


def same_inputs(source: InputSource, recorded: Attributes, sources: Collection[Source]) -> bool | None:
    """Whether these are the rows that a finished file was made of; None where it does not say.

    By the SHA-256 of all rows as read; of a merged file, by that of the rows of each shard.
    """
    whole = recorded.text("inputs_sha256")
    parts = [(part.start, part.stop, part.inputs_sha256) for part in sources]
    if whole is not None:
        parts = [(0, len(source), whole)]
    if not parts or any(digest is None for _, _, digest in parts):
        return None
    return all(source.sha256(start, stop).hexdigest() == digest for start, stop, digest in parts)


def rows_not_finite(datasets: Mapping[str, Any], done: int) -> Iterator[int]:
    """Rows among the first ``done`` whose Jacobian or outputs are not finite.

    >>> datasets = {"outputs": np.ones((3, 2)), "frobenius_norm": np.array([1.0, np.inf, 2.0])}
    >>> list(rows_not_finite(datasets, done=3))
    [1]
    """
    outputs, norms = datasets["outputs"], datasets["frobenius_norm"]
    step = max(1, _READ_BYTES // max(1, math.prod(outputs.shape[1:]) * outputs.dtype.itemsize))
    for start in range(0, done, step):
        stop = min(done, start + step)
        finite = np.isfinite(norms[start:stop]) & np.isfinite(
            outputs[start:stop].reshape(stop - start, -1)
        ).all(1)
        yield from (start + np.flatnonzero(~finite)).tolist()


def _without_paths(arguments: Any) -> Any:
    """Arguments of forward; those from files, which are compared by content, by name only."""
    if not isinstance(arguments, Mapping):
        return arguments
    return {
        name: "@" if isinstance(value, str) and value.startswith("@") else value
        for name, value in arguments.items()
    }


def _shown(value: object) -> str:
    return quote(value) if isinstance(value, str) else json.dumps(value)
