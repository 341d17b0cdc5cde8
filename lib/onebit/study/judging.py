"""The judges as keyed results: trained, calibrated, and the panel's logistic regression beside them."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from .. import data
from ..judge import Judge, accuracy, look, train_judge
from ..train import device, save_weights
from . import cache
from .arrays import load_arrays, save_arrays
from .cache import Entry

JUDGE_VERSION = 1  # +1 whenever the same training would give another judge, network or regression
CALIBRATION_VERSION = 2


@dataclass(frozen=True)
class JudgeSpec:
    """One trained judge: data set, its first `images` training images (0: all), epochs over them, seed."""

    dataset: str = "mnist"
    images: int = 0
    epochs: int = 5
    seed: int = 0


def judge_entry(spec: JudgeSpec) -> Entry:
    """Name and key of a judge."""
    return Entry("judge", f"{spec.dataset}-s{spec.seed}", asdict(spec) | {"version": JUDGE_VERSION})


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


def logistic_entry(dataset: str) -> Entry:
    """Name and key of the panel's logistic regression."""
    return Entry("logistic", dataset, {"dataset": dataset, "version": JUDGE_VERSION})


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
    key = asdict(spec) | {"version": CALIBRATION_VERSION} | cache.made_from(judge=JUDGE_VERSION)
    return Entry("calibration", f"{spec.dataset}-s{spec.seed}", key)


def calibration(spec: JudgeSpec, wait: bool = True) -> dict[str, np.ndarray]:
    """A judge's temperature, fitted on one random half of the test split, and how it does on the other half.

    Returns   "temperature"; "before" and "after": reliability tables (bins, [low, high, count, confidence, accuracy]);
              "error_before" and "error_after": expected calibration error with its interval (value, low, high);
              "floor_before" and "floor_after": what a judge as sure as this, and right as often, would score.

    Held-out images of `sources` are the first ones of the same shuffled split: among those that it is fitted on.
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
