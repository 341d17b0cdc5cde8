"""The study as a static site: `python -m onebit.site build/mnist/laptop build/site`.

Opened from the file system it needs no network: every script, style and font it uses lies beside it.
"""

from .assemble import build

__all__ = ["build"]
