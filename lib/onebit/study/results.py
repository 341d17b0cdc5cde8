"""The study's keyed results.  A notebook asks for what it shows and never cares where it comes from.

Each function looks in data/released/, then in data/runs/, then computes (and only then needs the data set).
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import data, nets, recipes, sampling
from ..audit import Audit
from ..audit import audit as audit_of
from ..batches import STATISTICS, Batches
from ..diffusion import TIMESTEPS
from ..distill import distillation
from ..files import replacing
from ..norms import statistics_of
from ..objective import Objective, asked
from ..packing import load_packed
from ..train import Loss, device, reestimate, train
from . import cache
from .arrays import load_arrays, save_arrays
from .cache import Entry
from .post_training import quantize_trained
from .run import Run

if TYPE_CHECKING:  # pandas and scipy take a second to import, for which a `make paper` with nothing to do need not wait
    import pandas as pd

SNAPSHOT_SHARES = (0.01, 0.05, 0.2, 0.5, 1.0)  # of the steps; ten samples are kept at each
PACKED = "model.packed"  # instead of model.safetensors, see `release`
PICTURES = 100
KERNELS_VERSION = 1  # +1 whenever packed networks would draw other samples
STATISTICS_VERSION = 1  # +1 whenever batch-norm statistics estimated anew would be others
FITTED_VERSION = 1  # +1 whenever a network rounded on data would come out with other bits
SAMPLES_VERSION = 1  # +1 whenever the same request would give other samples


@dataclass(frozen=True)
class SampleSpec:
    """Which samples of a run: images 0 .. n-1 of a seed, by which sampler, from which of its two weights."""

    sampler: str = "ddim"
    steps: int = 50
    n: int = 2_000
    seed: int = 0
    average: bool = False  # the exponential moving average instead of the last weights
    reestimated: bool = False  # batch-norm statistics estimated anew, instead of those that training ended with
    precision: str = "float32"  # that the network computes in, see `sampling.sample`

    @property
    def spec(self) -> dict:
        """What results are keyed by."""
        return cache.described(self, "reestimated", "precision")


def new_model(run: Run, wait: bool = True) -> nn.Module:
    """The run's network as it is before training: same seed, same float weights, whatever the recipe.

    With a teacher, its last weights, quantized.
    """
    return _built(run, training(run.teacher, wait) / "model.safetensors" if run.teacher else None)


def _built(run: Run, start: Path | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)  # no other is forked: manual_seed reseeds CUDA's for good
        model = nets.build(run.net, run.width)
        if start is not None:
            model.load_state_dict(load_file(start))
        recipes.quantize(model, run.recipe, _example(run))
    return model


def _example(run: Run) -> tuple[Tensor, Tensor]:
    """An input to size rules by: noise, which is what x_t is at most timesteps; the same for every run."""
    noise = torch.randn(16, *data.image_shape(run.dataset), generator=torch.Generator().manual_seed(0))
    return noise, torch.linspace(0, TIMESTEPS - 1, 16).long()


def objective(run: Run, model: nn.Module, wait: bool = True) -> Loss:
    """The loss a run is trained by: the plain noise loss unless its recipe or its distillation adds something."""
    if run.distill == "none":
        return asked(model)
    teacher, loss = weights(run.teacher, wait=wait), distillation(run.distill).to(device())
    return Objective(teacher, loss, run.distill_weight)


def training(run: Run, wait: bool = True, progress: bool = True) -> Path:
    """Folder of the finished training of `run.trained`: weights, averaged weights, loss.csv, snapshots.npz."""
    run = run.trained
    return cache.get(training_entry(run), lambda work: train_into(work, run, wait, progress), wait)


def train_into(work: Path, run: Run, wait: bool = True, progress: bool = True) -> dict:
    """Train a run into a folder, wherever else its result may already be; returns facts for the manifest."""
    model = new_model(run, wait)
    loss = objective(run, model, wait)
    images = data.load(run.dataset, "train").images
    shares = SNAPSHOT_SHARES if run.teacher is None else ()  # from a trained teacher there is no growth to look at
    steps = tuple(max(1, round(share * run.steps)) for share in shares)
    facts = train(model, images, run.settings, work, _snapshotter(run), steps, progress=progress, objective=loss)
    bits = recipes.audit(model)
    return facts | {"parameters": bits.parameters, "binary_share": bits.binary_share, "images": len(images)}


def training_entry(run: Run) -> Entry:
    """Name and key of a run's training."""
    return Entry("train", run.trained.label, run.trained.spec)


def facts(run: Run) -> dict:
    """What the training manifest says: seconds, images per second, peak memory, parameters, binary share, ..."""
    manifest = cache.manifest(training(run))
    return manifest["facts"] | {"processor": manifest["provenance"]["processor"]}


def audit(run: Run) -> Audit:
    """The bits of a trained (or, for post-training recipes, trained and then quantized) network."""
    return audit_of(weights(run))


def loss_log(run: Run) -> "pd.DataFrame":
    """The run's loss.csv: step, loss, lr, sign_flips."""
    import pandas as pd

    return pd.read_csv(training(run) / "loss.csv")


def snapshots(run: Run) -> dict[int, Tensor]:
    """Ten samples at several moments of training, by step; uint8 (10, 1, H, W).  None of a student of a teacher."""
    with np.load(training(run) / "snapshots.npz") as stored:
        return {int(step): torch.from_numpy(stored[step]) for step in sorted(stored, key=int)}


def weights(run: Run, average: bool = False, wait: bool = True, reestimated: bool = False) -> nn.Module:
    """The trained (or, for post-training recipes, trained and then quantized) network, in float32 and eval mode.

    `reestimated`: with batch-norm statistics of the network as it is, see `statistics`.
    A released 1-bit network may come out of a packed file: it computes the same, and has no latent weights.

    Raises    ValueError if averaged weights are asked of a run that keeps none; FileNotFoundError for weights that are
              not released, of a run whose other results are.
    """
    if average and not run.ema:
        raise ValueError(f"{run.label} keeps no averaged weights (ema = 0)")
    folder = _with_weights(run, average, wait)
    packed = folder / PACKED
    model = load_packed(packed) if packed.exists() and not average else _loaded(run, folder, average)
    if run != run.trained:
        _quantize_trained(model.eval(), run, average, wait)
    model.to(device(), memory_format=torch.channels_last)
    if reestimated and (ended := statistics_of(model)):
        found = statistics(run, model, average, wait)
        for name, buffer in ended.items():
            buffer.copy_(found[name])
    return model.eval()


def _with_weights(run: Run, average: bool, wait: bool) -> Path:
    """The run's training; of one that is released without its weights the one that was computed here, if any."""
    folder = training(run, wait)
    names = ("ema.safetensors",) if average else ("model.safetensors", PACKED)
    if any((folder / name).exists() for name in names):
        return folder
    return cache.find(training_entry(run), computed=True) or folder


def _quantize_trained(model: nn.Module, run: Run, average: bool, wait: bool) -> None:
    """What is fitted on data is fitted once, since several sets of samples and several measurements ask for it."""
    if recipes.recipe(run.recipe).post_training != "calibrated":
        quantize_trained(model, run)
        return

    def compute(work: Path) -> None:
        found = deepcopy(model)
        quantize_trained(found, run)
        with replacing(work / "fitted.safetensors") as partial:
            save_file({name: x.contiguous() for name, x in found.state_dict().items()}, partial)

    entry = Entry("fitted", run.label, {"run": run.spec, "average": average, "version": FITTED_VERSION})
    folder = cache.get(entry, compute, wait)
    recipes.quantize(model, run.recipe)
    model.load_state_dict(load_file(folder / "fitted.safetensors"))


def statistics(run: Run, model: nn.Module, average: bool = False, wait: bool = True) -> dict[str, Tensor]:
    """Batch-norm statistics of `model`, the run's network, estimated anew (`train.reestimate`): its buffers, by name.

    Estimated once, since several sets of samples and several measurements ask for them; that needs the data set.
    """

    def compute(work: Path) -> None:
        images = data.load(run.dataset, "train").images.to(device())
        reestimate(model, Batches(images, run.settings, STATISTICS), Objective())
        with replacing(work / "statistics.safetensors") as partial:
            save_file({name: buffer.cpu() for name, buffer in statistics_of(model).items()}, partial)

    key = {"run": run.spec, "average": average, "version": STATISTICS_VERSION}
    entry = Entry("statistics", run.label, key | cache.made_from(**versions(run)))
    return load_file(cache.get(entry, compute, wait) / "statistics.safetensors")


def versions(run: Run, reestimated: bool = False) -> dict[str, int]:
    """Of what makes a run's network, as `weights` gives it, out of its training: for the keys of what it gives."""
    fitted = recipes.recipe(run.recipe).post_training == "calibrated"
    return ({"fitted": FITTED_VERSION} if fitted else {}) | ({"statistics": STATISTICS_VERSION} if reestimated else {})


def _loaded(run: Run, folder: Path, average: bool) -> nn.Module:
    path = folder / ("ema.safetensors" if average else "model.safetensors")
    if not path.exists():
        raise FileNotFoundError(f"{path.name} of {folder.name} is not released: FROM_SCRATCH=1 trains the run anew")
    model = _built(run.trained)
    model.load_state_dict(load_file(path))  # half precision, as released, becomes float32 here
    return model


def samples_entry(run: Run, spec: SampleSpec, packed: bool = False) -> Entry:
    """Name and key of a set of samples; `packed`: of those that the run's packed network draws."""
    key = {"run": run.spec, "samples": spec.spec, "version": SAMPLES_VERSION}
    key |= cache.made_from(**versions(run, spec.reestimated))
    if packed:
        return Entry("samples", f"{run.label}-packed", key | {"kernels": KERNELS_VERSION})
    return Entry("samples", run.label, key)


def samples(run: Run, spec: SampleSpec, wait: bool = True, progress: bool = True, packed: bool = False) -> Tensor:
    """Images generated by a run, uint8 (n, 1, H, W); `packed`: by its packed network, on the CPU."""

    def compute(work: Path) -> dict:
        shape = data.image_shape(run.dataset)
        model = weights(run, spec.average, wait, spec.reestimated)
        if packed:
            from ..kernels import to_packed

            model = to_packed(model.cpu())
        x = sampling.sample(model, spec.n, shape=shape, sampler=spec.sampler, steps=spec.steps, seed=spec.seed,
                            progress=progress, precision=spec.precision)
        save_arrays(work / "samples.npz", images=data.to_uint8(x).numpy())
        return {}

    folder = cache.get(samples_entry(run, spec, packed), compute, wait)
    return torch.from_numpy(load_arrays(folder / "samples.npz")["images"])


def pictures_entry(dataset: str) -> Entry:
    """Name and key of the real images that figures show."""
    return Entry("pictures", dataset, {"dataset": dataset, "n": PICTURES})


def pictures(dataset: str, wait: bool = True) -> Tensor:
    """The first 100 test images, uint8: real digits to set generated ones beside."""

    def compute(work: Path) -> dict:
        save_arrays(work / "pictures.npz", images=data.load(dataset, "test").images[:PICTURES].numpy())
        return {}

    return torch.from_numpy(load_arrays(cache.get(pictures_entry(dataset), compute, wait) / "pictures.npz")["images"])


def _snapshotter(run: Run):
    shape = data.image_shape(run.dataset)
    return lambda model: data.to_uint8(sampling.sample(model, 10, shape=shape, sampler="ddim", steps=20))
