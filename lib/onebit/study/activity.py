"""What goes on inside a network: ranges and likeness of features along a sampling trajectory, distance to a teacher."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from .. import data, sampling
from ..diffusion import TIMESTEPS, add_noise
from ..layers import weight_layers
from ..metrics import bootstrap
from ..taps import Taps
from ..train import device
from . import results
from .evaluation import Measured, Protocol
from .sources import Samples

IMAGES = 32  # of a trajectory
PAIRS = 256  # noisy images on which teacher and student are compared


class _Trace:
    """Hooks of one model: at every call the spread of each layer's input, how alike block outputs stayed, and how alike
    those of different images are."""

    def __init__(self, model: nn.Module):
        self.ranges: dict[str, list[float]] = {name: [] for name in weight_layers(model)}
        self.alike: dict[str, list[float]] = {}
        self.between: dict[str, list[float]] = {}
        self.timesteps: list[int] = []
        self._before: dict[str, Tensor] = {}

    def input_of(self, name: str):
        def record(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            low, high = torch.quantile(inputs[0].flatten()[:: max(1, inputs[0].numel() // 100_000)].float(),
                                       torch.tensor([0.01, 0.99], device=inputs[0].device))
            self.ranges[name].append((high - low).item())

        return record

    def called(self, taps: Taps, timestep: Tensor) -> None:
        self.timesteps.append(int(timestep.flatten()[0]))
        for name, feature in zip(taps.names, taps.features, strict=True):
            if name in self._before:
                self.alike.setdefault(name, []).append(_cosine(feature, self._before[name]))
            self.between.setdefault(name, []).append(_cosine(feature, feature.roll(1, 0)))
            self._before[name] = feature


def _cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(1), b.flatten(1), dim=1).mean().item()


@contextlib.contextmanager
def _tracing(model: nn.Module) -> Iterator[_Trace]:
    trace = _Trace(model)
    with Taps(model) as taps:
        handles = [layer.register_forward_pre_hook(trace.input_of(name)) for name, layer in weight_layers(model).items()
                   if not name.startswith("time_mlp")]  # of the timestep alone
        handles.append(model.register_forward_hook(lambda m, args, y: trace.called(taps, args[1])))
        try:
            yield trace
        finally:
            for handle in handles:
                handle.remove()


def activity(source: Samples, protocol: Protocol, wait: bool) -> Measured:
    """Ranges of layer inputs and likeness of consecutive block outputs along a DDIM trajectory of 32 images.

    Estimates  range_ratio: largest over smallest range (1st to 99th percentile) of a layer's input over timesteps, mean
               over layers;  similarity: cosine of block outputs at consecutive sampler steps, mean over blocks;
               between_images: that of two different images at one step, what similarity has to be set against.
    Arrays     timesteps (S,), ranges (layers, S), similarity (blocks, S - 1), between (blocks, S), layers, blocks
               (names).
    Source     the motivation figures of BiDM (arXiv:2412.05926), figure 3.
    """
    run = source.run
    model = results.weights(run, wait=wait)
    with _tracing(model) as trace, torch.inference_mode():
        asked = source.request
        sampling.sample_batch(model, range(IMAGES), data.image_shape(run.dataset), asked.sampler, asked.steps)
    layers = [name for name, values in trace.ranges.items() if values]
    ranges = np.array([trace.ranges[name] for name in layers])
    similarity, between = (np.array(list(found.values())) for found in (trace.alike, trace.between))
    ratio = ranges.max(1) / np.maximum(ranges.min(1), 1e-12)
    text = f"DDIM {source.request.steps} steps, {IMAGES} images"
    over_blocks = f"{text}, mean and interval over blocks"
    estimates = {"range_ratio": bootstrap(ratio, f"{text}, mean and interval over layers"),
                 "similarity": bootstrap(similarity.mean(1), over_blocks),
                 "between_images": bootstrap(between.mean(1), over_blocks)}
    return Measured(estimates, {"timesteps": np.array(trace.timesteps), "ranges": ranges, "similarity": similarity,
                                "between": between, "layers": np.array(layers), "blocks": np.array(list(trace.alike))})


def mimicry(source: Samples, protocol: Protocol, wait: bool) -> Measured:
    """Squared distance of a student's block outputs to its teacher's, over the teacher's own squared size.

    On 256 noisy test images, each at a timestep of its own; the same for every run.  The student has the batch-norm
    statistics that the source's samples are drawn with; the teacher's were as they are when it was imitated.

    Estimates  feature_distance: mean over blocks, with its bootstrap interval over images.
    Arrays     distance (blocks,), blocks (names).
    Raises     ValueError for a run without a teacher.
    """
    run = source.run
    if run.teacher is None:
        raise ValueError(f"{run.label} has no teacher to be compared with")
    x, timestep = _noisy(run.dataset)
    features, names = [], []
    for one in (run, run.teacher):
        model = results.weights(one, wait=wait, reestimated=source.request.reestimated and one == run)
        with torch.inference_mode(), Taps(model) as taps:
            model(x.to(device()), timestep.to(device()))
        features.append([f.flatten(1).cpu() for f in taps.features])
        names = taps.names
    pairs = zip(*features, strict=True)
    relative = np.array([((s - t).square().mean(1) / t.square().mean()).numpy() for s, t in pairs])  # (blocks, images)
    text = f"{PAIRS} noisy test images, mean over {len(names)} blocks"
    estimate = bootstrap(relative.mean(0), text)
    return Measured({"feature_distance": estimate}, {"distance": relative.mean(1), "blocks": np.array(names)})


def _noisy(dataset: str) -> tuple[Tensor, Tensor]:
    images = data.load(dataset, "test").draw(PAIRS).images
    g = torch.Generator().manual_seed(0)
    x0 = data.normalize(images)
    noise = torch.randn(x0.shape, generator=g)
    timestep = torch.randint(0, TIMESTEPS, (len(x0),), generator=g)
    return add_noise(x0, noise, timestep), timestep
