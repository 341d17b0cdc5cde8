"""What is random in a training: batch order, noise, timesteps, what layers draw; all functions of (seed, step)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from . import data
from .diffusion import TIMESTEPS

if TYPE_CHECKING:
    from .train import Settings

ORDER, NOISE, STATISTICS, LAYERS = range(4)  # independent random streams of one seed


class Batches:
    """Batch `step` of a run: (x0 in [-1, 1], noise, timestep), the same whenever and for whomever it is drawn.

    The uint8 images lie on the device; an epoch is a permutation of them without its last, short batch.
    """

    def __init__(self, images: Tensor, settings: "Settings", stream: int = NOISE):
        self.images, self.batch, self.seed, self.stream = images, settings.batch, settings.seed, stream
        self.per_epoch, self.steps = len(images) // settings.batch, settings.steps
        self.epoch, self.order = -1, torch.empty(0)

    def _generator(self, place: torch.device, *words: int) -> torch.Generator:
        return torch.Generator(place).manual_seed(_seed(self.seed, *words))

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        epoch, i = divmod(step, self.per_epoch)
        place = self.images.device
        if epoch != self.epoch:
            order = torch.randperm(len(self.images), generator=self._generator(torch.device("cpu"), ORDER, epoch))
            self.epoch, self.order = epoch, order.to(place)
        x0 = data.normalize(self.images[self.order[i * self.batch : (i + 1) * self.batch]])
        generator = self._generator(place, self.stream, step)
        noise = torch.randn(x0.shape, generator=generator, device=place, dtype=torch.float32)
        timestep = torch.randint(0, TIMESTEPS, (len(x0),), generator=generator, device=place)
        layout = torch.channels_last
        return x0.contiguous(memory_format=layout), noise.contiguous(memory_format=layout), timestep


def seeded_randomness(model: nn.Module, seed: int) -> Callable[[int], AbstractContextManager]:
    """step -> a context in which whatever draws torch's random numbers (dropout, rules that round at random) draws
    those that (seed, step) decide.

    The caller's random numbers stay where they are.
    """
    place = next(model.parameters()).device
    return partial(_seeded, [place] if place.type == "cuda" else [], seed)


@contextmanager
def _seeded(devices: list[torch.device], seed: int, step: int) -> Iterator[None]:
    word = _seed(seed, LAYERS, step)
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(word)
        for place in devices:  # no other: torch.manual_seed would leave every device reseeded that was not forked
            with torch.cuda.device(place):
                torch.cuda.manual_seed(word)
        yield


def _seed(*words: int) -> int:
    """63 random bits that the words decide."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) & (2**63 - 1)
