"""Arrays in compressed files."""

from pathlib import Path

import numpy as np

from ..files import replacing


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write a compressed .npz atomically."""
    with replacing(path) as partial:
        np.savez_compressed(partial, **arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz."""
    with np.load(path) as stored:
        return dict(stored)
