"""XNOR-popcount layers on packed bits, for inference on the CPU.

`to_packed(model)` is all that most need.  Importing this package imports numba; `import onebit` does not.  The kernels
are compiled when first called and cached beside their source (or where NUMBA_CACHE_DIR says).
"""

from .inputs import NotPackable
from .modules import PackedConv2d, PackedConvTranspose2d, PackedLinear, packed
from .network import LayerReport, to_packed

__all__ = ["LayerReport", "NotPackable", "PackedConv2d", "PackedConvTranspose2d", "PackedLinear", "packed",
           "to_packed"]
