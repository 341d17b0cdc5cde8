"""A live demo: the study's U-Net, packed, drawing in the reader's browser beside its float control.

`page` puts it all into one piece of HTML.  The engine is JavaScript (noise, packed files, the network as a list of
calls, DDIM) on one small WebAssembly module (kernels.ts, compiled by `make demo`).
"""

from .document import page

__all__ = ["page"]
