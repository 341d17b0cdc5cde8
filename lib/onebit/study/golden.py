"""A short 1-bit training on the embedded digits, committed with its losses: any machine can run it again in seconds."""

from . import results
from .cache import Entry
from .run import Run

RUN = Run(dataset="digits", net="unet", width=4, recipe="strict-1bit", steps=40, batch=32, lr=2e-3, warmup=10,
          precision="float32")


def entry() -> Entry:
    """Name and key of its training."""
    return results.training_entry(RUN)
