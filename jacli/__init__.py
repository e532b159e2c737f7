"""jacli: what does a trained network's output do when its input moves?

Jacobians of a network's outputs with respect to its inputs, for every sample: from files
(`compute`), or of a model in memory (`jacobian`, `singular_values`, `svd`, `linear_map`).  Nothing heavy is
imported before it is used.  From here on, importing a torchvision that does not fit its torch works too
(`jacli.models.torchvision_import`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jacli.models.torchvision_import import repair_imports

if TYPE_CHECKING:
    from jacli.api import jacobian as jacobian
    from jacli.api import linear_map as linear_map
    from jacli.api import singular_values as singular_values
    from jacli.api import svd as svd
    from jacli.commands.compute import compute as compute
    from jacli.commands.opened import open_with_columns as open
    from jacli.errors import JacliError as JacliError

__version__ = "0.1.0"

_PUBLIC = {
    "JacliError": ("jacli.errors", "JacliError"),
    "jacobian": ("jacli.api", "jacobian"),
    "linear_map": ("jacli.api", "linear_map"),
    "singular_values": ("jacli.api", "singular_values"),
    "svd": ("jacli.api", "svd"),
    "compute": ("jacli.commands.compute", "compute"),
    "open": ("jacli.commands.opened", "open_with_columns"),
}

__all__ = ["JacliError", "__version__", "compute", "jacobian", "linear_map", "open", "singular_values", "svd"]

repair_imports()


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'jacli' has no attribute {name!r}")
