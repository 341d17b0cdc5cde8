"""What the source calls legibility: how sure the judge is, which is not how right it is."""

import numpy as np
from numpy.typing import ArrayLike


def judge_confidence(probabilities: ArrayLike) -> float:
    """Mean over images of the judge's largest class probability.

    Shapes    probabilities (N, K), rows summing to 1 -> a number in [1/K, 1].
    Raises    ValueError if there are no rows or they are not distributions.
    Source    source 000, legibility_evaluation.py 213-221 ("Legibility Score").
              A confident wrong class counts in full.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or not len(p) or (p < 0).any() or not np.allclose(p.sum(axis=1), 1, atol=1e-4):
        raise ValueError(f"need probabilities (N, K) whose rows sum to 1, got shape {p.shape}")
    return float(p.max(axis=1).mean())
