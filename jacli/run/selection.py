"""Which outputs of each sample are differentiated: ``--classes``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jacli.errors import InputsError, UsageError
from jacli.errors.printable import count_of
from jacli.linear_maps import Extra
from jacli.network import Linearized, TensorNetwork
from jacli.options.values import Classes
from jacli.plans.plan import Shapes


def selected_outputs(
    network: TensorNetwork, x: Tensor, extra: Extra, classes: Classes, labels: Tensor | None
) -> Tensor | None:
    """Flat output indices of each row of ``x``, ``(batch, k)``; None for all.

    >>> network = TensorNetwork.of_module(torch.nn.Identity())
    >>> x = torch.tensor([[1.0, 3.0, 2.0]])
    >>> selected_outputs(network, x, {}, Classes("top", k=2), None).tolist()
    [[1, 2]]

    Args:
        network: The network.
        x: ``(batch, *input)``.
        extra: Further arguments of these rows.
        classes: Which outputs.
        labels: ``(batch,)``, of these rows, for ``label``.
    """
    if classes.kind == "all":
        return None
    if classes.kind == "indices":
        return torch.tensor(classes.indices, device=x.device).expand(len(x), -1)
    if classes.kind == "label":
        assert labels is not None  # checked with the options
        return labels[:, None].to(x.device)
    with Linearized(network, x, extra) as linearization:
        outputs = linearization.outputs.reshape(len(x), -1)
    return outputs.topk(classes.k, dim=1).indices


def jacobian_shape(shapes: Shapes, classes: Classes) -> tuple[int, ...]:
    """Per sample: ``(*domain, *output)``, or ``(*domain, k)`` where some outputs were selected.

    >>> shapes = Shapes(100, (3, 32, 32), (10,), n_selected=2, fixed_batch=None, itemsize=4)
    >>> jacobian_shape(shapes, Classes("top", k=2)), jacobian_shape(shapes, Classes())
    ((3, 32, 32, 2), (3, 32, 32, 10))
    """
    outputs = shapes.output_shape if classes.kind == "all" else (shapes.n_selected,)
    return (*shapes.domain_shape, *outputs)


def check_classes(classes: Classes, labels: np.ndarray | None, n_out: int) -> None:
    """Refuse outputs that the model does not have.

    >>> check_classes(Classes("indices", indices=(3, 12)), None, n_out=10)
    Traceback (most recent call last):
        ...
    jacli.errors.UsageError: --classes 3,12 is out of range.
    The model has 10 outputs per sample (flat indices 0 to 9).
    Choose among them; the first one is 0.

    Raises:
        UsageError: An index is out of range, or more are wanted than there are.
        InputsError: A label is out of range.
    """
    last = max(classes.indices, default=-1)
    if last >= n_out or classes.k > n_out:
        raise UsageError(
            f"--classes {classes} is out of range.",
            why=f"The model has {count_of(n_out, 'output')} per sample (flat indices 0 to {n_out - 1}).",
            hint="Choose among them; the first one is 0.",
        )
    if labels is not None and classes.kind == "label":
        wrong = np.flatnonzero((labels < 0) | (labels >= n_out))
        if len(wrong):
            raise InputsError(
                f"Label {labels[wrong[0]]} of sample {wrong[0]} is out of range.",
                why=f"The model has {count_of(n_out, 'output')}; {count_of(len(wrong), 'label')} "
                f"outside 0 to {n_out - 1}.",
                hint="Give class indices that start at 0.",
            )
