"""How fast a machine is: seconds per unit of `costs`, as recorded in released results or calibrated on this one."""

import json
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median

import torch

from .. import data, nets, paths
from ..train import device
from . import costs
from .cache import MANIFEST, Entry
from .costs import PASSES, Group
from .graph import run_of
from .run import Run
from .study import Job

REFERENCE = Run(dataset="mnist", net="unet", width=16)  # of which many trainings are released
WIDE, SMALL_BATCH = 32, 32  # networks wider than that are timed in small batches, which show their rate as well
ASSUMED = {"train": 2e-11, "samples": 4e-11}  # seconds per operation where nothing is recorded: one core, roughly
UNKNOWN_SECONDS, UNKNOWN_BYTES = 5.0, 50_000  # of a result of whose kind nothing is recorded


@dataclass(frozen=True)
class Speeds:
    """Seconds and bytes per unit by group; the longest known beginning of a group counts."""

    seconds: dict[Group, float]
    bytes: dict[Group, float]

    @classmethod
    def released(cls) -> "Speeds":
        """Of the machines that made the released results: medians over them."""
        return _recorded(paths.RELEASED)

    @classmethod
    def calibrated(cls, jobs: Iterable[Job], budget: float = 20.0) -> "Speeds":
        """Of this machine: training and sampling steps of the float networks that the jobs train, timed now.

        What is not timed is taken from the released results, by how much faster this machine takes a training step
        of a network that they hold (on a GPU as it stands, since most of it is the processor's work).

        Units     budget: seconds in all, about; a few more where a single step is slow.
        """
        runs = {(run.net, run.width, data.image_shape(run.dataset)): run for run in _trained(jobs)}
        recorded = cls.released()
        share = budget / (2 * len(runs) + 1)
        measured = {}
        for run in runs.values():
            measured |= _time_steps(run, share)
        pace = 1.0
        if not torch.cuda.is_available() and (known := recorded.seconds.get(("train", "unet", 16))):
            here = measured.get(("train", "unet", 16)) or _time_training(REFERENCE, share)
            pace = known / here
        others = {group: seconds if group[0] == "timing" else seconds / pace  # timings are given their seconds
                  for group, seconds in recorded.seconds.items() if group[0] not in ("train", "samples")}
        return replace(recorded, seconds=others | measured)

    def estimate(self, entry: Entry) -> float:
        """Seconds to compute a result."""
        group, units = costs.work(entry)
        per_unit = _longest(self.seconds, group)
        if per_unit is None:
            per_unit = ASSUMED.get(group[0])
        return UNKNOWN_SECONDS if per_unit is None else per_unit * units

    def size(self, entry: Entry) -> float:
        """Bytes of a result in data/runs; of weights that is more than in data/released, where they are narrower."""
        if entry.kind == "train":
            return costs.weight_bytes(entry.spec)
        per_unit = _longest(self.bytes, costs.work(entry)[0])
        return UNKNOWN_BYTES if per_unit is None else per_unit * costs.stored(entry)


def _longest(known: dict[Group, float], group: Group) -> float | None:
    for length in range(len(group), 0, -1):
        if group[:length] in known:
            return known[group[:length]]
    return None


@lru_cache(maxsize=4)
def _recorded(folder: Path) -> Speeds:
    seconds: dict[Group, list[float]] = {}
    sizes: dict[Group, list[float]] = {}
    for path in sorted(folder.glob(f"[!.]*/{MANIFEST}")):
        try:
            found = json.loads(path.read_text())
            entry = Entry(found["kind"], "", found["spec"])
            group, units = costs.work(entry)
            took = found["facts"].get("seconds", found["elapsed_seconds"])  # a resumed training's, over all processes
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{path} is unreadable ({error}); ignored (restore it with git checkout)", stacklevel=2)
            continue
        stored = sum(file.stat().st_size for file in path.parent.iterdir()) / costs.stored(entry)
        for length in range(1, len(group) + 1):
            seconds.setdefault(group[:length], []).append(took / units)
            sizes.setdefault(group[:length], []).append(stored)
    return Speeds({group: median(values) for group, values in seconds.items()},
                  {group: median(values) for group, values in sizes.items()})


def _trained(jobs: Iterable[Job]) -> list[Run]:
    """The float networks of every training and sampling."""
    specs = [job.entry.spec.get("run", job.entry.spec) for job in jobs if job.entry.kind in ("train", "samples")]
    return [run_of(spec | {"recipe": "fp16", "teacher": None, "distill": "none", "distill_weight": 0.0})
            for spec in specs]


def _time_steps(run: Run, seconds: float) -> dict[Group, float]:
    """Seconds per operation of a float network's training step, and of its forward pass."""
    return {("train", run.net, run.width): _time_training(run, seconds),
            ("samples", run.net, run.width): _time_forward(run, seconds)}


def _time_training(run: Run, seconds: float) -> float:
    from ..bench import our_step
    from ..train import Settings

    shape, batch = data.image_shape(run.dataset), _batch(run)
    images = torch.randint(0, 256, (4 * batch, *shape), dtype=torch.uint8)
    step = our_step(nets.build(run.net, run.width), images, Settings(steps=1, batch=batch))
    return _seconds(step, seconds) / (PASSES * batch * costs.flops(run.net, run.width, shape))


@torch.inference_mode()
def _time_forward(run: Run, seconds: float) -> float:
    shape, batch = data.image_shape(run.dataset), _batch(run)
    model = nets.build(run.net, run.width).to(device(), memory_format=torch.channels_last).eval()
    x = torch.randn(batch, *shape, device=device()).contiguous(memory_format=torch.channels_last)
    timestep = torch.full((batch,), 500, device=device())
    return _seconds(lambda: model(x, timestep), seconds) / (batch * costs.flops(run.net, run.width, shape))


def _batch(run: Run) -> int:
    return run.batch if run.width <= WIDE else min(run.batch, SMALL_BATCH)


def _seconds(action: Callable[[], object], budget: float) -> float:
    """Of one call: the mean over as many as fit the budget, one at least, after one to warm up."""
    action()
    _synchronise()
    began, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - began < budget:
        action()
        calls += 1
        _synchronise()
    return (time.perf_counter() - began) / calls


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
