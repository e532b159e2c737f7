"""Options of a run from a file: TOML, or an earlier result (``--config RESULT.h5`` repeats it)."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jacli.config import NOT_REPEATED, RunConfig, from_options
from jacli.content import Content, recognise_content
from jacli.errors import UsageError


def resolve_options(flags: Mapping[str, Any]) -> RunConfig:
    """Flags over the file that ``config`` names, checked together.

    Raises:
        UsageError: Naming every wrong option of both.
    """
    given = {name: value for name, value in flags.items() if value is not None and name != "config"}
    if flags.get("config"):
        return from_options({**read_options(Path(flags["config"])), **given})
    return from_options(given)


def read_options(path: Path) -> dict[str, Any]:
    """Option names (underscores) to values.

    Paths in it are relative to the current folder, as on the command line.

    Raises:
        UsageError: No such file, no valid TOML, or an HDF5 file that is no result of jacli.
    """
    if not path.is_file():
        raise UsageError(
            f"--config {path} cannot be read.", why="There is no such file.", todo="Check the path."
        )
    if recognise_content(path) is Content.HDF5:
        return _options_of_result(path)
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--config {path} is not valid TOML.",
            why=f"{error}.",
            todo="Correct it there; see configs/ for examples.",
        ) from error
    return {name.replace("-", "_"): value for name, value in options.items()}


def _options_of_result(path: Path) -> dict[str, Any]:
    from jacli.store import open_results

    with open_results(path) as results:
        text = results.attrs.get("config")
    if text is None:
        raise UsageError(
            f"--config {path} holds no options.",
            why="The result has no attribute 'config'.",
            todo="Give a TOML file.",
        )
    options = json.loads(str(text))
    return {name: value for name, value in options.items() if name not in NOT_REPEATED}
