"""The study's keyed results.  A notebook asks for what it shows and never cares where it comes from.

Each function looks in data/released/, then in data/runs/, then computes (and only then needs the data set).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import data, nets, recipes, sampling
from ..audit import Audit
from ..audit import audit as audit_of
from ..batches import STATISTICS, Batches
from ..diffusion import TIMESTEPS
from ..distill import distillation
from ..judge import Judge, accuracy, look, train_judge
from ..objective import Objective, asked
from ..packing import load_packed
from ..train import Loss, device, reestimate, save_weights, train
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
CALIBRATION_VERSION = 2
KERNELS_VERSION = 1  # +1 whenever packed networks would draw other samples
EVALUATION_VERSION = 1  # +1 whenever the same request would give other samples or metrics


@dataclass(frozen=True)
class SampleSpec:
    """Which samples of a run: images 0 .. n-1 of a seed, by which sampler, from which of its two weights."""

    sampler: str = "ddim"
    steps: int = 50
    n: int = 2_000
    seed: int = 0
    average: bool = False  # the exponential moving average instead of the last weights
    reestimated: bool = False  # batch-norm statistics estimated anew, instead of those that training ended with

    @property
    def spec(self) -> dict:
        """What results are keyed by; without `reestimated` it reads as it did before there was any."""
        return {name: value for name, value in asdict(self).items() if name != "reestimated" or value}


@dataclass(frozen=True)
class JudgeSpec:
    """One trained judge: data set, its first `images` training images (0: all), epochs over them, seed."""

    dataset: str = "mnist"
    images: int = 0
    epochs: int = 5
    seed: int = 0


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

    `reestimated`: with batch-norm statistics of the network as it is, see `train.reestimate`; needs the data set.
    A released 1-bit network may come out of a packed file: it computes the same, and has no latent weights.

    Raises    ValueError if averaged weights are asked of a run that keeps none; FileNotFoundError if of one whose
              averaged weights are not released.
    """
    if average and not run.ema:
        raise ValueError(f"{run.label} keeps no averaged weights (ema = 0)")
    folder = training(run, wait)
    packed = folder / PACKED
    model = load_packed(packed) if packed.exists() and not average else _loaded(run, folder, average)
    if run != run.trained:
        quantize_trained(model.eval(), run)
    model.to(device(), memory_format=torch.channels_last)
    if reestimated:
        images = data.load(run.dataset, "train").images.to(device())
        reestimate(model, Batches(images, run.settings, STATISTICS), Objective())
    return model.eval()


def _loaded(run: Run, folder: Path, average: bool) -> nn.Module:
    path = folder / ("ema.safetensors" if average else "model.safetensors")
    if not path.exists():
        raise FileNotFoundError(f"{path.name} of {folder.name} is not released: FROM_SCRATCH=1 trains the run anew")
    model = _built(run.trained)
    model.load_state_dict(load_file(path))  # half precision, as released, becomes float32 here
    return model


def samples_entry(run: Run, spec: SampleSpec, packed: bool = False) -> Entry:
    """Name and key of a set of samples; `packed`: of those that the run's packed network draws."""
    key = {"run": run.spec, "samples": spec.spec, "version": EVALUATION_VERSION}
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
                            progress=progress)
        save_arrays(work / "samples.npz", images=data.to_uint8(x).numpy())
        return {}

    folder = cache.get(samples_entry(run, spec, packed), compute, wait)
    return torch.from_numpy(load_arrays(folder / "samples.npz")["images"])


def judge_entry(spec: JudgeSpec) -> Entry:
    """Name and key of a judge."""
    return Entry("judge", f"{spec.dataset}-s{spec.seed}", asdict(spec) | {"version": EVALUATION_VERSION})


def judge(spec: JudgeSpec, wait: bool = True) -> Judge:
    """The trained judge."""

    def compute(work: Path) -> dict:
        trained = train_judge(data.load(spec.dataset, "train").head(spec.images), spec.epochs, spec.seed)
        save_weights(trained, work / "judge.safetensors")
        return {"test_accuracy": accuracy(trained, data.load(spec.dataset, "test"))}

    folder = cache.get(judge_entry(spec), compute, wait)
    model = Judge(data.image_shape(spec.dataset)[-1])
    model.load_state_dict(load_file(folder / "judge.safetensors"))
    return model.to(device(), memory_format=torch.channels_last).eval()


def judge_accuracy(spec: JudgeSpec) -> float:
    """The judge's accuracy on the test split, 0..1."""
    judge(spec)
    return cache.manifest(cache.find(judge_entry(spec)))["facts"]["test_accuracy"]


def pictures_entry(dataset: str) -> Entry:
    """Name and key of the real images that figures show."""
    return Entry("pictures", dataset, {"dataset": dataset, "n": PICTURES})


def pictures(dataset: str, wait: bool = True) -> Tensor:
    """The first 100 test images, uint8: real digits to set generated ones beside."""

    def compute(work: Path) -> dict:
        save_arrays(work / "pictures.npz", images=data.load(dataset, "test").images[:PICTURES].numpy())
        return {}

    return torch.from_numpy(load_arrays(cache.get(pictures_entry(dataset), compute, wait) / "pictures.npz")["images"])


def logistic_entry(dataset: str) -> Entry:
    """Name and key of the panel's logistic regression."""
    return Entry("logistic", dataset, {"dataset": dataset, "version": EVALUATION_VERSION})


def logistic(dataset: str, wait: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (10, H W) and intercepts (10,) of a logistic regression on all training images."""

    def compute(work: Path) -> dict:
        from ..panel import fit_logistic

        coefficients, intercepts = fit_logistic(data.load(dataset, "train"))
        save_arrays(work / "logistic.npz", coefficients=coefficients, intercepts=intercepts)
        return {}

    arrays = load_arrays(cache.get(logistic_entry(dataset), compute, wait) / "logistic.npz")
    return arrays["coefficients"], arrays["intercepts"]


def calibration_entry(spec: JudgeSpec) -> Entry:
    """Name and key of a judge's calibration."""
    return Entry("calibration", f"{spec.dataset}-s{spec.seed}", asdict(spec) | {"version": CALIBRATION_VERSION})


def calibration(spec: JudgeSpec, wait: bool = True) -> dict[str, np.ndarray]:
    """A judge's temperature, fitted on one random half of the test split, and how it does on the other half.

    Returns   "temperature"; "before" and "after": reliability tables (bins, [low, high, count, confidence, accuracy]);
              "error_before" and "error_after": expected calibration error with its interval (value, low, high);
              "floor_before" and "floor_after": what a judge as sure as this, and right as often, would score.
    """

    def compute(work: Path) -> dict:
        from .. import metrics

        test = data.load(spec.dataset, "test")
        test = test.draw(len(test))  # shuffled: the file is ordered by writer
        seer = judge(spec, wait)
        features, _ = look(seer, test.images)
        logits, labels = _logits(seer, features).numpy(), test.labels.numpy()
        half = len(labels) // 2
        temperature = metrics.fit_temperature(logits[:half], labels[:half])
        arrays = {"temperature": np.array(temperature)}
        for name, t in (("before", 1.0), ("after", temperature)):
            p = metrics.softmax(logits[half:], t)
            arrays[name] = metrics.reliability(p, labels[half:])
            measured = {"error": metrics.calibration_error(p, labels[half:]), "floor": metrics.calibration_floor(p)}
            arrays |= {f"{what}_{name}": np.array([e.value, e.low, e.high]) for what, e in measured.items()}
        save_arrays(work / "calibration.npz", **arrays)
        return {}

    return load_arrays(cache.get(calibration_entry(spec), compute, wait) / "calibration.npz")


def calibrated(spec: JudgeSpec, features: Tensor | np.ndarray, wait: bool = True) -> np.ndarray:
    """The judge's probabilities (N, 10) at its fitted temperature, from its features (N, 128)."""
    from .. import metrics

    logits = _logits(judge(spec, wait), torch.as_tensor(features))
    return metrics.softmax(logits.numpy(), float(calibration(spec, wait)["temperature"]))


@torch.inference_mode()
def _logits(seer: Judge, features: Tensor) -> Tensor:
    return seer.classify(features.to(next(seer.parameters()).device)).cpu()


def _snapshotter(run: Run):
    shape = data.image_shape(run.dataset)
    return lambda model: data.to_uint8(sampling.sample(model, 10, shape=shape, sampler="ddim", steps=20))
