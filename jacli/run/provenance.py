"""Provenance: who made a result file, of what, and how."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import torch

import jacli
from jacli.device.hardware import device_name
from jacli.engine.engine import Chosen
from jacli.models.names import absolute_name
from jacli.options.table import RunConfig
from jacli.run.prepare import Prepared

READ_BY_CONTENT = {
    "model_sha256": "the content of MODEL",
    "arch": "the architecture",
    "arch_sha256": "the code of the architecture",
    "weights_sha256": "the weights that the architecture comes with",
    "constants_sha256": "the content of a --constant",
    "arguments_sha256": "the labels or arguments with a row per sample",
}
"""Attributes, in words, that two processes of one run have alike; beside the rows of INPUTS."""


def provenance(config: RunConfig, prepared: Prepared, chosen: Chosen, command: str) -> dict[str, object]:
    """Root attributes of the result file; with its ``config`` the run can be repeated from anywhere."""
    loaded, source = prepared.loaded, prepared.source
    resolved = config.to_dict()
    resolved["model"] = loaded.path or absolute_name(config.model)
    resolved["inputs"] = source.path or config.inputs
    resolved["arch"] = config.arch and absolute_name(config.arch)
    resolved["labels"] = config.labels and str(Path(config.labels).resolve())
    resolved["arg"] = {
        k: f"@{Path(v[1:]).resolve()}" if isinstance(v, str) and v.startswith("@") else v
        for k, v in resolved["arg"].items()
    }
    resolved["constant"] = {name: str(Path(path).resolve()) for name, path in config.constant.items()}
    return {
        "jacli_version": jacli.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "config": resolved,
        "model_path": loaded.path or config.model,
        "model_sha256": loaded.sha256,
        "model_format": loaded.format,
        "arch": loaded.arch,
        "arch_sha256": loaded.arch_sha256,
        "weights_sha256": loaded.weights_sha256,
        "arguments_sha256": prepared.arguments_sha256,
        "constants_sha256": prepared.constants_sha256,
        "shard": None if config.shard is None else str(config.shard),
        "inputs_path": source.path or config.inputs,
        "torch_version": torch.__version__,
        "device": str(prepared.device),
        "device_name": device_name(prepared.device),
        "dtype": config.dtype,
        "precision": config.precision,
        "method": chosen.plan.method,
        "plan": chosen.to_dict(),
        "notes": list(prepared.notes),
    }
