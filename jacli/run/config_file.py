"""Options of a run from a file: TOML, or an earlier result (``--config RESULT.h5`` repeats it)."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from jacli.cluster import shard_of_environment, shard_path
from jacli.errors import ResultsError, UsageError
from jacli.models.names import absolute_name, model_runs_code, runs_own_code, split_name
from jacli.options.config import from_options
from jacli.options.table import OPTIONS, File, RunConfig, names_of
from jacli.options.values import Shard
from jacli.untrusted.content import Content, recognise_content, why_unseen


def resolve_options(flags: Mapping[str, Any]) -> RunConfig:
    """Flags over the file that ``config`` names, checked together.

    >>> resolve_options({"model": "net.pt", "inputs": "x.npy", "classes": "top:2", "seed": None}).classes
    Classes(kind='top', indices=(), k=2)

    Raises:
        UsageError: Naming every wrong option of both; OUT would replace a file that is read.
    """
    given = {name: value for name, value in flags.items() if value is not None and name != "config"}
    path = Path(flags["config"]) if flags.get("config") else None
    config = from_options({**(read_options(path, given) if path else {}), **given})
    if config.shard == "auto":
        config = replace(config, shard=shard_of_environment(os.environ))
    if path:
        again, recorded = _code_given_again(path, given)
        config = replace(config, repeated_arch_sha256=recorded)
        if not (set(given) - again) & set(CHANGES_PLAN):
            config = replace(config, repeated_plan=_recorded_plan(path))
    _check_arguments(config.arg)
    out = result_path(config)
    read = [*_files_read(config), *([str(path)] if path else [])]
    for file in read:
        if os.path.exists(out) and os.path.exists(file) and out.samefile(file):
            raise UsageError(
                f"{out} is both read and written.",
                why="--out would replace it with the result.",
                hint="Give --out another name.",
            )
    return config


def _files_read(config: RunConfig) -> Iterator[str]:
    """Names of the files that a run reads; of code, that of its file."""
    for name, option in OPTIONS.items():
        value = getattr(config, name)
        match option.file:
            case File.WHOLE if value:
                yield value
                if runs_own_code(value):
                    yield split_name(value)[0]
            case File.INSIDE:
                yield from (v[1:] for v in value.values() if isinstance(v, str) and v.startswith("@"))
            case File.EACH:
                yield from value.values()


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    """A value that is the name of an array's file was meant as that file.

    Raises:
        UsageError: Naming each.
    """
    meant = [
        UsageError(
            f"--arg {name}={value} passes that text to forward.",
            why=f"There is a file {value}, which is read only with an @ before its name.",
            hint=f"Did you mean --arg {name}=@{value} (one row per sample), or --constant {name}={value} "
            "(one tensor for all samples)?",
        )
        for name, value in arguments.items()
        if isinstance(value, str) and os.path.splitext(value)[1] in _ARRAYS and os.path.isfile(value)
    ]
    if meant:
        raise UsageError.from_problems(meant)


def result_path(config: RunConfig) -> Path:
    """The file that a run writes: OUT, or its shard's.

    >>> config = RunConfig("net.pt", "x.npy", out="out.h5", shard=Shard(3, 16))
    >>> result_path(config).name
    'out.00003-of-00016.h5'
    """
    out = Path(config.out)
    return shard_path(out, config.shard) if isinstance(config.shard, Shard) else out


_ARRAYS = (".npy", ".npz", ".pt", ".safetensors", ".h5", ".hdf5")
"""Suffixes of files that hold arrays."""

CHANGES_PLAN = names_of(lambda option: option.plan)
"""Options with which the plan of an earlier run no longer fits; the same code given again is none."""


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

    >>> read_options(Path("configs/digits.toml"), {})["dtype"]
    'float64'

    Raises:
        UsageError: No such file, no valid TOML, or an HDF5 file that is no result of jacli.
    """
    if not os.path.isfile(path):
        why = why_unseen(path) or "There is no such file."
        raise UsageError(f"--config {path} cannot be read.", why=why, hint="Check the path.")
    if recognise_content(path) is Content.HDF5:
        return _options_of_result(path, given)
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"--config {path} is not valid TOML.",
            why=f"{error}.",
            hint="Correct the file; see configs/ for examples.",
        ) from error
    named = {name.replace("-", "_"): value for name, value in options.items()}
    if len(named) < len(options) or "debug" in named:
        name = "debug" if "debug" in named else next(n for n in options if "-" in n)
        raise UsageError(
            f"--config {path}: {name} is not allowed there.",
            why="It can only be a flag."
            if name == "debug"
            else "The file holds it twice, with a hyphen and with an underscore.",
            hint="Take it out of the file.",
        )
    return named


def _options_of_result(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an earlier run; code that it names runs only if the caller names it again.

    No hash vouches for such code: whoever wrote the result wrote the hash as well.
    """
    from jacli.store import open_results

    with open_results(path) as results:
        if "config" not in results.attrs:
            raise UsageError(
                f"{path} holds no options.",
                why="The result has no attribute 'config'.",
                hint="Give a TOML file.",
            )
        said = results.json("config")
    not_repeated = names_of(lambda option: not option.repeated)
    options = {name: value for name, value in said.items() if name not in not_repeated}
    for name, runs_code, again in (
        ("arch", runs_own_code, "--arch {0}"),
        ("model", model_runs_code, "MODEL {0} (of jacli verify: --model {0})"),
    ):
        value = options.get(name)
        if name in given or value is None:
            continue
        if not isinstance(value, str):
            raise UsageError(
                f"{path}: {name} is not text.",
                why=f"The result says {value!r:.60}.",
                hint=f"Give {again.format(name.upper())}, or another file.",
            )
        if runs_code(value):
            raise UsageError(
                f"{path}: {name} {value} is not taken from a result file.",
                why="It names code to run, and anyone may have written the file.",
                hint=f"If you trust that code, give it again by hand: {again.format(value)}",
            )
    return options


def _code_given_again(path: Path, given: Mapping[str, Any]) -> tuple[frozenset[str], str | None]:
    """Which of ``arch`` and ``model`` name the code that the result names too; and its recorded SHA-256."""
    if recognise_content(path) is not Content.HDF5:
        return frozenset(), None
    from jacli.store import open_results

    with open_results(path) as results:
        said, recorded = results.json("config"), results.attrs.get("arch_sha256")
    again = {
        name
        for name, runs_code in (("arch", runs_own_code), ("model", model_runs_code))
        if isinstance(value := given.get(name), str)
        and isinstance(was := said.get(name), str)
        and runs_code(value)
        and absolute_name(value) == absolute_name(was)
    }
    return frozenset(again), str(recorded) if again and recorded is not None else None
