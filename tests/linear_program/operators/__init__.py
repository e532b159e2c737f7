"""A registry of operators, each in every form that a rule may treat differently."""

from __future__ import annotations

from tests.linear_program.operators.as_traced import AS_TRACED
from tests.linear_program.operators.attention import ATTENTION
from tests.linear_program.operators.blocks import BLOCKS, WRITTEN
from tests.linear_program.operators.case import BATCH, Of, Operator, points, seeded
from tests.linear_program.operators.convolution import CONVOLUTIONS
from tests.linear_program.operators.normalisation import NORMALISATIONS
from tests.linear_program.operators.pointwise import ARITHMETIC, POINTWISE
from tests.linear_program.operators.products import PRODUCTS
from tests.linear_program.operators.reductions import POOLS, REDUCTIONS
from tests.linear_program.operators.shapes import JOINED, MOVED, PICKED

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
