"""The Jacobians of a network at a batch of points as linear maps, for people's own algorithms."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from jacli.errors import UsageError
from jacli.linear_maps import Linearization, LinearMap, Samples, Wrapper

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class NetworkMap(Wrapper):
    """``J[b] = d outputs[b] / d x[b]`` of shape ``(n_out, n_in)`` for every sample, as a linear map.

    Vectors have the dtype and device of the points; the axes of an input or output are flattened in row-major
    order.  It holds the activations of the points until it is closed; a context manager closes it at its end.

    Attributes:
        outputs: At the points, ``(batch, *output)``.
    """

    whole: LinearMap

    def __init__(self, linearization: Linearization, products: LinearMap) -> None:
        self.whole = products
        self.outputs = linearization.outputs
        self._linearization = linearization
        self._of: dict[int, LinearMap] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free what it holds; a product after that raises ``ValueError``."""
        self._linearization.close()

    @torch.no_grad()
    def vjp(self, cotangents: Tensor) -> Tensor:
        """``u[k, b] -> u[k, b] @ J[b]``: ``(k, batch, n_out) -> (k, batch, n_in)``, in one pass.

        Raises:
            UsageError: The cotangents have another shape.
        """
        return self.whole.vjp(self._checked(cotangents, self.n_out, "cotangents", "n_out"))

    @torch.no_grad()
    def jvp(self, tangents: Tensor) -> Tensor:
        """``v[k, b] -> J[b] @ v[k, b]``: ``(k, batch, n_in) -> (k, batch, n_out)``, in one pass.

        Raises:
            UsageError: The tangents have another shape.
        """
        return self.whole.jvp(self._checked(tangents, self.n_in, "tangents", "n_in"))

    def take(self, samples: Samples) -> LinearMap:
        """The map of some samples, which are linearised anew."""
        return self.whole.take(samples)

    def to_scipy(self, sample: int) -> LinearOperator:
        """The Jacobian of one sample as a ``scipy.sparse.linalg.LinearOperator`` on NumPy vectors.

        Raises:
            UsageError: SciPy is not installed, or there is no such sample.
        """
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise UsageError("to_scipy needs SciPy.", why=f"{error}.", hint="pip install scipy") from error
        if not -self.batch <= sample < self.batch:
            raise UsageError(f"There is no sample {sample}.", why=f"The map has {self.batch} samples.")
        one = self._of.setdefault(sample % self.batch, self.take(torch.tensor([sample % self.batch])))

        def columns_through(product: str) -> object:
            @torch.no_grad()
            def through(matrix: object) -> object:
                vectors = torch.as_tensor(matrix, dtype=self.dtype, device=self.device)
                single = vectors.dim() == 1
                rows = vectors.reshape(len(vectors), -1).T[:, None].contiguous()
                images = getattr(one, product)(rows)[:, 0].T
                return (images[:, 0] if single else images).cpu().numpy()

            return through

        forward, adjoint = columns_through("jvp"), columns_through("vjp")
        return LinearOperator(
            (self.n_out, self.n_in),
            matvec=forward,
            matmat=forward,
            rmatvec=adjoint,
            rmatmat=adjoint,
            dtype=torch.empty(0, dtype=self.dtype).numpy().dtype,
        )

    def _checked(self, vectors: Tensor, length: int, name: str, of: str) -> Tensor:
        if vectors.dim() != 3 or vectors.shape[1:] != (self.batch, length):
            raise UsageError(
                f"{name} of the shape {tuple(vectors.shape)} do not fit.",
                why=f"They must have the shape (k, batch, {of}) = (k, {self.batch}, {length}).",
            )
        return vectors.to(device=self.device, dtype=self.dtype)
