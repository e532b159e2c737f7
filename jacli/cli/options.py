"""Options that several commands have, each declared once: its flag, its help, its panel.

A command takes one as ``arch: Arch = None``.  None means not given: defaults stand in `jacli.options.config`.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

MODEL, INPUTS, METHOD, RESULT, RUN = "Model", "Inputs", "Method", "Result file", "Run"
"""The panels of the help."""


def option(*names: str, panel: str, help: str, metavar: str | None = None) -> Any:
    """An option of a panel, its default said in the help."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, show_default=False)


Model = Annotated[
    str | None, typer.Argument(help="Model file, or an architecture's name.", show_default=False)
]
Inputs = Annotated[
    str | None,
    typer.Argument(
        help="Inputs: .npy, .npz, .pt, .safetensors, HDF5, or random:64x3x224x224.", show_default=False
    ),
]

Arch = Annotated[
    str | None,
    option(
        "--arch",
        panel=MODEL,
        help="For weights-only files: resnet18, timm:NAME, package.module:callable, file.py:callable.",
        metavar="NAME",
    ),
]
ArchArg = Annotated[
    list[str] | None,
    option("--arch-arg", panel=MODEL, help="Argument of the architecture (repeatable).", metavar="KEY=VALUE"),
]
WeightsKey = Annotated[
    str | None, option("--weights-key", panel=MODEL, help="Which part of a checkpoint.", metavar="KEY")
]
StripPrefix = Annotated[
    str | None, option("--strip-prefix", panel=MODEL, help="Take the tensors below this prefix.", metavar="P")
]
IgnoreExtraWeights = Annotated[
    bool | None,
    option(
        "--ignore-extra-weights",
        panel=MODEL,
        help="Leave aside tensors that the architecture does not have.",
    ),
]
Arg = Annotated[
    list[str] | None,
    option(
        "--arg",
        panel=MODEL,
        help="Argument of forward (repeatable): sr=16000, mask=@mask.npy (a row per sample), state.0=@h.npy.",
        metavar="NAME=VALUE",
    ),
]
Constant = Annotated[
    list[str] | None,
    option(
        "--constant",
        panel=MODEL,
        help="Argument of forward: one tensor for all samples (repeatable).",
        metavar="NAME=FILE",
    ),
]
InputArg = Annotated[
    str | None,
    option(
        "--input-arg",
        panel=MODEL,
        help="Argument of forward that INPUTS are [the first that is not named].",
        metavar="NAME",
    ),
]
Select = Annotated[
    str | None,
    option(
        "--select", panel=MODEL, help="Which output of a tuple or dict (nested: 1.0).", metavar="NAME|INDEX"
    ),
]
AllowPickle = Annotated[
    bool | None, option("--allow-pickle", panel=MODEL, help="Load a pickled module: runs the file's code.")
]

InputsKey = Annotated[
    str | None, option("--inputs-key", panel=INPUTS, help="Which array of the inputs file.", metavar="KEY")
]
Samples = Annotated[
    str | None, option("--samples", panel=INPUTS, help="Part of them: 0:100 or 0,7,9.", metavar="SPEC")
]
Labels = Annotated[
    str | None,
    option(
        "--labels",
        panel=INPUTS,
        help="One class index per sample; stored beside the results.",
        metavar="FILE",
    ),
]

Classes = Annotated[
    str | None,
    option(
        "--classes", panel=METHOD, help="Which outputs: all, 0,3,7, top:5 or label [all].", metavar="SPEC"
    ),
]
Of = Annotated[
    str | None, option("--of", panel=METHOD, help="logits, probs or log-probs [logits].", metavar="WHAT")
]
Dtype = Annotated[
    str | None, option("--dtype", panel=METHOD, help="float32 or float64 [float32].", metavar="DTYPE")
]
Precision = Annotated[
    str | None,
    option(
        "--precision",
        panel=METHOD,
        help="Of the linear passes alone: ieee (as --dtype), bf16, or tf32 on a GPU [ieee].",
        metavar="NAME",
    ),
]
Device = Annotated[
    str | None, option("--device", panel=METHOD, help="auto, cpu, cuda or cuda:N [auto].", metavar="DEVICE")
]
BatchSize = Annotated[
    str | None, option("--batch-size", panel=METHOD, help="Samples per batch [auto].", metavar="N|auto")
]
ChunkSize = Annotated[
    str | None,
    option(
        "--chunk-size",
        panel=METHOD,
        help="Outputs (or inputs) per pass [auto].",
        metavar="N|auto",
    ),
]
Memory = Annotated[
    str | None,
    option("--memory", panel=METHOD, help="Never hold more than this: 4GiB [auto].", metavar="SIZE"),
]

Seed = Annotated[
    str | None,
    option("--seed", panel=RUN, help="Of random inputs, untrained weights, checked rows [0].", metavar="N"),
]
Debug = Annotated[bool | None, option("--debug", panel=RUN, help="Tracebacks and library warnings.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
