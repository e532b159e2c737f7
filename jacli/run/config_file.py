"""Options of a run from a file: TOML, or an earlier result (``--config RESULT.h5`` repeats it)."""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from jacli.cluster import shard_of_environment, shard_path
from jacli.config import NOT_REPEATED, RunConfig, from_options
from jacli.content import Content, recognise_content, why_unseen
from jacli.errors import ResultsError, UsageError
from jacli.option_values import Shard


def resolve_options(flags: Mapping[str, Any]) -> RunConfig:
    """Flags over the file that ``config`` names, checked together.

    Raises:
        UsageError: Naming every wrong option of both; OUT would replace a file that is read.
    """
    given = {name: value for name, value in flags.items() if value is not None and name != "config"}
    path = Path(flags["config"]) if flags.get("config") else None
    config = from_options({**(read_options(path, given) if path else {}), **given})
    if config.shard == "auto":
        config = replace(config, shard=shard_of_environment(os.environ))
    if path and not set(given) & set(CHANGES_PLAN):
        config = replace(config, repeated_plan=_recorded_plan(path))
    read = [config.model, config.inputs, config.labels, path, (config.arch or "").partition(":")[0]]
    read += [value[1:] for value in config.arg.values() if isinstance(value, str) and value.startswith("@")]
    out = result_path(config)
    for file in read:
        if file and os.path.exists(out) and os.path.exists(file) and out.samefile(file):
            raise UsageError(
                f"{out} is both read and written.",
                why="--out would replace it with the result.",
                todo="Give --out another name.",
            )
    return config


def result_path(config: RunConfig) -> Path:
    """The file that a run writes: OUT, or its shard's."""
    out = Path(config.out)
    return shard_path(out, config.shard) if isinstance(config.shard, Shard) else out


CHANGES_PLAN = (
    *("model", "arch", "arch_arg", "weights_key", "strip_prefix", "ema", "arg", "select", "of"),
    *("inputs", "inputs_key", "samples", "classes", "labels"),
    *(
        "method",
        "dtype",
        "precision",
        "device",
        "batch_size",
        "chunk_size",
        "memory",
        "save",
        "singular_values",
    ),
)
"""Options with which the plan of an earlier run no longer fits."""


def _recorded_plan(path: Path) -> Mapping[str, Any] | None:
    """The plan of a result file, to be repeated without measuring; None for TOML, or an unreadable one."""
    if recognise_content(path) is not Content.HDF5:
        return None
    from jacli.store import open_results

    with open_results(path) as results, suppress(ResultsError):
        return results.json("plan")
    return None


def read_options(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Option names (underscores) to values.

    Paths in it are relative to the current folder, as on the command line.

    Raises:
        UsageError: No such file, no valid TOML, or an HDF5 file that is no result of jacli.
    """
    if not os.path.isfile(path):
        why = why_unseen(path) or "There is no such file."
        raise UsageError(f"--config {path} cannot be read.", why=why, todo="Check the path.")
    if recognise_content(path) is Content.HDF5:
        return _options_of_result(path, given)
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"--config {path} is not valid TOML.",
            why=f"{error}.",
            todo="Correct it there; see configs/ for examples.",
        ) from error
    named = {name.replace("-", "_"): value for name, value in options.items()}
    if len(named) < len(options) or "debug" in named:
        name = "debug" if "debug" in named else next(n for n in options if "-" in n)
        raise UsageError(
            f"--config {path}: {name} cannot be given there.",
            why="It is a flag only."
            if name == "debug"
            else "It is there twice, with a hyphen and an underscore.",
            todo="Take it out of the file.",
        )
    return named


def _options_of_result(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an earlier run; what would run code must be the same code, or be given anew."""
    from jacli.store import open_results

    with open_results(path) as results:
        if "config" not in results.attrs:
            raise UsageError(
                f"--config {path} holds no options.",
                why="The result has no attribute 'config'.",
                todo="Give a TOML file.",
            )
        recorded, said = results.attrs.get("arch_sha256"), results.json("config")
    options = {name: value for name, value in said.items() if name not in NOT_REPEATED}
    for name in ("arch", "model"):
        architecture = options.get(name)
        if not isinstance(architecture, str | None):
            raise UsageError(
                f"--config {path}: {name} is no text.",
                why=f"The result says {architecture!r:.60}.",
                todo=f"Give --{name}, or another file.",
            )
        if name not in given and architecture and _runs_other_code(architecture, recorded):
            raise UsageError(
                f"--config {path}: {name} {architecture} is not taken from a result file.",
                why="It would run code that is not the code recorded there, by its sha256.",
                todo=f"If you trust it, give it anew: {'--arch ' * (name == 'arch')}{architecture}.",
            )
    return options


def _runs_other_code(architecture: str, recorded: object) -> bool:
    """Whether a name stands for Python code other than the recorded file, torchvision's or timm's."""
    source, colon, _ = architecture.rpartition(":")
    if os.path.exists(architecture) or not colon or source in ("torchvision", "timm"):
        return False
    path = Path(source)
    if not os.path.isfile(path):
        return True
    return hashlib.sha256(path.read_bytes()).hexdigest() != recorded
