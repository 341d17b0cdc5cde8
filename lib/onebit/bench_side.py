"""How many small trainings an hour of one GPU holds, one after the other and side by side."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import torch

from . import data, nets
from .batches import Batches
from .precision import resolve_precision
from .recipes import quantize
from .train import Settings, device, optimize

WARM_UP = 20  # steps


@dataclass(frozen=True)
class Size:
    """What is trained: a U-Net of this width by this recipe, a run of so many steps; so many processes."""

    width: int = 16
    recipe: str = "strict-1bit"
    batch: int = 128
    steps: int = 6_000
    processes: int = 8


def rows(size: Size = Size()) -> list[tuple[str, str, Callable[[float], tuple[float, float]]]]:
    """(name, unit, measure) of the row that a GPU adds; none without one, where processes share nothing but cores."""
    if not torch.cuda.is_available():
        return []
    name = f"side by side unet{size.width} {size.recipe}, {size.processes} processes against one"
    return [(name, "runs/h", partial(run_rates, size))]


def run_rates(size: Size, seconds: float) -> tuple[float, float]:
    """Trainings per hour of all processes together, and of one that has the device for itself."""
    together, alone = (3600 / size.steps * steps_per_second(size, n, seconds / 2) for n in (size.processes, 1))
    return together, alone


def steps_per_second(size: Size, processes: int, seconds: float) -> float:
    """The sum over processes that begin together, each warm.

    Raises    RuntimeError if one of them fails.
    """
    context = multiprocessing.get_context("spawn")  # a forked process cannot use a device that its parent has used
    ready, results = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=_train, args=(size, seconds, ready, results)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError(f"{sum(bool(w.exitcode) for w in workers)} of {processes} trainings side by side failed")
    return sum(results.get() for _ in workers)


def _train(size: Size, seconds: float, ready: Barrier, results: Queue) -> None:
    try:
        torch.set_num_threads(1)
        step = _steps(size)
        for i in range(WARM_UP):
            step(i)
        _finish()
        ready.wait()
        began, done = time.perf_counter(), 0
        while not done or time.perf_counter() - began < seconds:
            step(done)
            done += 1
        _finish()
        results.put(done / (time.perf_counter() - began))
    except BaseException:
        ready.abort()  # or the others would wait for ever
        raise


def _steps(size: Size) -> Callable[[int], object]:
    net = nets.build("unet", size.width)
    quantize(net, size.recipe)
    net.to(device(), memory_format=torch.channels_last).train()
    settings, shape = Settings(steps=size.steps, batch=size.batch), data.image_shape("mnist")
    batches = Batches(torch.randint(0, 256, (10 * size.batch, *shape), dtype=torch.uint8).to(device()), settings)
    optimizer = torch.optim.Adam(net.parameters(), settings.lr, fused=True)
    return lambda i: optimize(net, optimizer, batches(i), settings.lr, resolve_precision(settings.precision))


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
