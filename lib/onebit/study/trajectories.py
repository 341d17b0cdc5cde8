"""Errors that a sampling trajectory gathers: images that a network finishes from real ones, noised to some timestep."""

import numpy as np
import torch
from torch import Tensor

from .. import data, metrics, sampling
from ..diffusion import add_noise
from ..judge import look
from ..metrics import Gaussian
from . import judging, results
from .evaluation import Measured, Protocol, real_features
from .sources import Samples

IMAGES = 500
SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the sampler's steps that are left to the network


def handover(source: Samples, protocol: Protocol, wait: bool) -> Measured:
    """Held-out images, noised exactly to one of the sampler's timesteps, from which the network takes the last steps.

    Where the distance grows with the timestep, steps of the network before it lead to where training never was: what
    one calls exposure bias.  Steps, sampler and batch-norm statistics are those of the source.

    Estimates  frechet_from_{timestep}: distance of 500 finished images to training images, by timestep handed over at;
               frechet_from_0: of the same 500 images as they are.
    Arrays     timesteps (7,), frechet (7,), from nothing left to do to all of it.
    Source     the start of SDEdit (arXiv:2108.01073), as a measure; exposure bias: arXiv:2301.11706, arXiv:2308.15321.
    """
    model = results.weights(source.run, wait=wait, reestimated=source.request.reestimated)
    judge = judging.judge(protocol.judge, wait)
    real = Gaussian.fit(real_features(protocol.judge, protocol.dataset, protocol.reference, wait=wait))
    images = data.load(protocol.dataset, "test").draw(min(IMAGES, protocol.held_out)).images
    finished = {0: images} | {timestep: finish(model, images, source, left)
                              for left, timestep in _handed_over(source.request)}
    found = {timestep: metrics.frechet(look(judge, x)[0].numpy(), real) for timestep, x in finished.items()}
    return Measured({f"frechet_from_{timestep}": e for timestep, e in found.items()},
                    {"timesteps": np.array(list(found)), "frechet": np.array([e.value for e in found.values()])})


def finish(model: torch.nn.Module, images: Tensor, source: Samples, left: int) -> Tensor:
    """Images (N, 1, H, W) uint8, noised to where the source's sampler has `left` steps to go, and sampled from there.

    The noise of image i is what its sample i would have started from.
    """
    request, shape = source.request, tuple(images.shape[1:])
    timestep = int(sampling.scheduler(request.sampler, request.steps).timesteps[-left])
    own = sampling.generators(request.seed, range(len(images)))
    noise = torch.stack([torch.randn(shape, generator=g) for g in own])
    start = add_noise(data.normalize(images), noise, torch.full((len(images),), timestep))
    # other generators on the way: with its own, an image's first noise would be that of its start once more
    return data.to_uint8(sampling.sample(model, len(images), shape=shape, sampler=request.sampler, steps=request.steps,
                                         seed=request.seed + 1, start=start, remaining=left))


def _handed_over(request: results.SampleSpec) -> list[tuple[int, int]]:
    """(steps left, the first of their timesteps) for every share, each once."""
    visited = sampling.scheduler(request.sampler, request.steps).timesteps.tolist()
    return [(left, visited[-left]) for left in dict.fromkeys(max(1, round(s * request.steps)) for s in SHARES)]
