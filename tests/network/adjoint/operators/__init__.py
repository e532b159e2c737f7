"""A registry of operators, each in every form that a rule may treat differently."""

from __future__ import annotations

from tests.network.adjoint.operators.as_traced import AS_TRACED
from tests.network.adjoint.operators.attention import ATTENTION
from tests.network.adjoint.operators.blocks import BLOCKS, WRITTEN
from tests.network.adjoint.operators.case import BATCH, Of, Operator, points, seeded
from tests.network.adjoint.operators.convolution import CONVOLUTIONS
from tests.network.adjoint.operators.normalisation import NORMALISATIONS
from tests.network.adjoint.operators.pointwise import ARITHMETIC, POINTWISE
from tests.network.adjoint.operators.products import PRODUCTS
from tests.network.adjoint.operators.reductions import POOLS, REDUCTIONS
from tests.network.adjoint.operators.shapes import JOINED, MOVED, PICKED

__all__ = ["AS_TRACED", "BATCH", "OPERATORS", "Of", "Operator", "points", "seeded"]

OPERATORS: dict[str, Operator] = {
    **CONVOLUTIONS,
    **PRODUCTS,
    **NORMALISATIONS,
    **POINTWISE,
    **ARITHMETIC,
    **MOVED,
    **PICKED,
    **JOINED,
    **POOLS,
    **REDUCTIONS,
    **ATTENTION,
    **WRITTEN,
    **BLOCKS,
}
