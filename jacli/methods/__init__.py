"""Methods that fill in Jacobians: of a whole network (`fill`), or of one that is cut (`factors_of`)."""

from jacli.methods.chain import factors_of
from jacli.methods.filling import checked_slabs, fill, primitive_map

__all__ = ["checked_slabs", "factors_of", "fill", "primitive_map"]
