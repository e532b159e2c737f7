"""What is asked of the engine: a dozen values, made by the command and by the Python API alike.  No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jacli.options.methods import CHAIN


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to compute of a problem, and by which means.  Knows no file, no option, no command.

    Attributes:
        method: A name in `jacli.options.methods.METHOD_NAMES`; ``auto``: the fastest, by measurement.
        precision: Arithmetic of the linear passes alone: ``ieee``, ``tf32`` or ``bf16``.
        batch_size: Samples per batch; None: the fastest.
        chunk_size: Vectors per pass; None: the fastest.
        memory: Bytes that the work may hold; None: a safe share of what is free.
        keep: ``dense``: the whole Jacobians; ``factors``: two factors of each; ``nothing``: only what is
            computed from them.
        written: Whether batches are written while the next one is computed, and so held beside it.
        singular_values: ``all``, ``none``, ``auto`` or how many.
        spectrum: Where a few singular values are asked for: ``dense``: from the matrices; ``krylov``: from
            products with vectors, no matrix being formed; ``auto``: whichever is faster.
        rtol: Error of singular values from products with vectors, relative to the largest.
        certify: Probability of having missed a larger one that may remain; None: as it comes.
        seed: Of the rows and vectors that are checked, and of starting vectors.
        earlier_plan: A plan to be repeated, as `Plan.to_dict` gives it; None: choose.
        must_follow: Whether nothing but that plan will do: its results are to be continued.
        search_share: Part of the time of a short run that the search for a plan may take.
    """

    method: str = "auto"
    precision: str = "ieee"
    batch_size: int | None = None
    chunk_size: int | None = None
    memory: int | None = None
    keep: Literal["dense", "factors", "nothing"] = "dense"
    written: bool = False
    singular_values: str | int = "none"
    spectrum: Literal["auto", "dense", "krylov"] = "dense"
    rtol: float = 1e-3
    certify: float | None = None
    seed: int = 0
    earlier_plan: Mapping[str, Any] | None = None
    must_follow: bool = False
    search_share: float = 0.25

    @property
    def is_free(self) -> bool:
        """Whether any method may serve: none was asked for by name."""
        return self.method == "auto"

    @property
    def needs_chain(self) -> bool:
        """Whether the network must be cut: asked for by name, or for the sake of the factors."""
        return self.method == CHAIN or self.keep == "factors"

    @property
    def is_exact(self) -> bool:
        """Whether passes compute in the run's own dtype."""
        return self.precision == "ieee"
