"""Speed of the evaluation: neighbours, Fréchet distance, sampling, each beside what users would take instead."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import scipy.linalg
import torch
from torch import Tensor, nn

from . import nets
from .diffusion import SCHEDULE
from .metrics import Gaussian, frechet_distance, nearest
from .sampling import sample
from .train import device


class RivalMissing(RuntimeError):
    """What a row is measured against is not installed, and is no requirement of the study."""


Interleave = Callable[[Callable, Callable, float], tuple[float, float]]


@dataclass(frozen=True)
class Size:
    """How large the measured things are; tests shrink them.

    queries, references   uint8 images of 28 x 28 for nearest neighbours;  features: dimensions of the Fréchet distance
    width, images, steps  of the sampled network, its images, and DDIM steps
    """

    queries: int = 10_000
    references: int = 60_000
    features: int = 128
    width: int = 16
    images: int = 250
    steps: int = 50


def neighbour_rates(interleave: Interleave, size: Size, rival: Callable, seconds: float) -> tuple[float, float]:
    """Queries per second of our exact search, and of a rival's: `rival(references)` returns a search of queries."""
    rng = np.random.default_rng(0)
    references, queries = (rng.integers(0, 256, (n, 784), dtype=np.uint8) for n in (size.references, size.queries))
    theirs = rival(references.astype(np.float32))
    floats = queries.astype(np.float32)
    ours, other = interleave(lambda: nearest(queries, references, device=device()), lambda: theirs(floats), seconds)
    return ours * size.queries, other * size.queries


def brute_force(references: np.ndarray) -> Callable[[np.ndarray], object]:
    """scikit-learn's exact search."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=1, algorithm="brute").fit(references).kneighbors


def flat_index(references: np.ndarray) -> Callable[[np.ndarray], object]:
    """faiss's exact search.  Raises RivalMissing without faiss-cpu."""
    try:
        import faiss
    except ImportError as error:
        raise RivalMissing("faiss-cpu is not installed: pip install faiss-cpu") from error
    index = faiss.IndexFlatL2(references.shape[1])
    index.add(references)
    return lambda queries: index.search(queries, 1)


def frechet_rates(interleave: Interleave, size: Size, seconds: float) -> tuple[float, float]:
    """Distances per second between two fitted Gaussians: our symmetric form, and the usual square root of a product."""
    rng = np.random.default_rng(0)
    a, b = (Gaussian.fit(rng.normal(size=(10 * size.features, size.features)) ** 2) for _ in range(2))
    return interleave(lambda: frechet_distance(a, replace(b)),  # a copy, whose root is to be found anew
                      lambda: by_matrix_root(a, b), seconds)


def by_matrix_root(a: Gaussian, b: Gaussian) -> float:
    """The Fréchet distance as usually coded: scipy's sqrtm of the product of covariances."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    shift = np.sum((a.mean - b.mean) ** 2)
    return float(shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root).real)


def sampling_rates(
    precision: str, interleave: Interleave, size: Size, seconds: float,
) -> tuple[float, float]:
    """Images per second of our DDIM sampler, and of a plain float32 loop on a network in the default layout."""
    torch.manual_seed(0)
    plain = nets.build("unet", size.width).to(device()).eval()
    ours = nets.build("unet", size.width).to(device(), memory_format=torch.channels_last).eval()
    how = {"shape": (1, 28, 28), "sampler": "ddim", "steps": size.steps, "precision": precision}
    rates = interleave(lambda: sample(ours, size.images, **how),
                       lambda: plain_ddim(plain, size.images, size.steps), seconds)
    return rates[0] * size.images, rates[1] * size.images


@torch.no_grad()
def plain_ddim(net: nn.Module, n: int, steps: int) -> Tensor:
    """The textbook loop (arXiv:2010.02502 Eq. 12, eta = 0) on one batch."""
    place = next(net.parameters()).device
    alpha_bar = torch.cat([SCHEDULE.alpha_bar, torch.ones(1, dtype=torch.float64)]).float()  # [-1] is the clean image
    grid = [*range(SCHEDULE.timesteps - 1, -1, -(SCHEDULE.timesteps // steps)), -1]
    x = torch.randn(n, 1, 28, 28, device=place)
    for now, after in pairwise(grid):
        noise = net(x, torch.full((n,), now, device=place))
        x0 = (x - (1 - alpha_bar[now]).sqrt() * noise) / alpha_bar[now].sqrt()
        x = alpha_bar[after].sqrt() * x0 + (1 - alpha_bar[after]).sqrt() * noise
    return x.clamp(-1, 1)
