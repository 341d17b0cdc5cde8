"""Metrics as keyed results: a family of them, on samples or a control, under a protocol."""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from numpy.typing import NDArray

from .. import data
from ..errors import unknown
from ..files import write_json
from . import cache, judging
from .arrays import load_arrays, save_arrays
from .cache import Entry
from .judging import JudgeSpec
from .sources import Control, Source


@dataclass(frozen=True)
class Protocol:
    """How things are measured, whatever they are measured on.

    judge       the feature network;  more_judges: the same trained from other seeds
    reference   training images, drawn at random, that distributions are compared with
    held_out    test images, drawn at random, of the control that shows what real images score which nobody trained on
    against     the data set of all these images, where it is not the judge's whole one: some of its classes, or images

    Raises      ValueError for judges or images of different data sets.
    """

    judge: JudgeSpec
    more_judges: tuple[JudgeSpec, ...] = ()
    reference: int = 10_000
    held_out: int = 2_000
    against: str = ""

    def __post_init__(self):
        if data.parse(self.dataset).base != self.judge.dataset:
            raise ValueError(f"the judge is of {self.judge.dataset}, against is {self.against!r}: name a part of "
                             f"{self.judge.dataset}, or nothing")
        for other in self.more_judges:
            if other.dataset != self.judge.dataset:
                raise ValueError(f"more_judges: one is of {other.dataset}, the judge of {self.judge.dataset}: name "
                                 f"judges of one data set")

    @property
    def dataset(self) -> str:
        """What samples are compared with, as a name for `data.load`."""
        return self.against or self.judge.dataset

    @property
    def spec(self) -> dict:
        """What results are keyed by."""
        return cache.described(self, "against")

    @property
    def control(self) -> Control:
        """Held-out images: the floor or ceiling of every metric."""
        return Control(self.dataset, "held-out", self.held_out)


class Measured(NamedTuple):
    """What a family measured: numbers with intervals by name, and arrays to draw."""

    estimates: dict  # name -> metrics.Estimate
    arrays: dict[str, NDArray]


# families of metrics, functions in families.py; +1 whenever the same request would give other numbers
VERSIONS = {"headline": 1, "neighbours": 1, "memorization": 1, "manifold": 1, "overfitting": 1, "distribution": 2,
            "texture": 1, "legibility": 1, "walking": 2, "calibrator": 2, "subset": 1, "activity": 2,
            "mimicry": 1, "packing": 1, "rounding": 1, "divergence": 1, "denoising": 1,
            "handover": 1, "copying": 1, "crossing": 1}


def entry(name: str, source, protocol: Protocol) -> Entry:
    """Name and key of a family's measurements.

    Raises    ValueError for an unknown family, or a source of another data set or other classes than the protocol's.
    """
    if name not in VERSIONS:
        unknown("family of metrics", name, VERSIONS)
    theirs, ours = data.parse(source.dataset), data.parse(protocol.dataset)
    if theirs.base != ours.base:
        raise ValueError(f"{source.label} is of {source.dataset}, the judge of {protocol.dataset}: train one for it")
    if theirs.classes != ours.classes:
        raise ValueError(f"{source.label} is of {source.dataset}, the protocol of {protocol.dataset}: compare like "
                         f"with like, against={source.dataset!r}")
    return Entry("evaluation", f"{name}-{source.label}", {
        "family": name, "version": VERSIONS[name], "source": source.spec, "protocol": protocol.spec,
    } | cache.made_from(**_read_by(name)))


def _read_by(name: str) -> dict[str, int]:
    """Versions of what a family reads beside its source's images: when they change, its numbers do."""
    more = {"memorization": {"neighbours": VERSIONS["neighbours"]},
            "legibility": {"calibration": judging.CALIBRATION_VERSION - 1}}  # 2 was the first that it was measured by
    return {"judge": judging.JUDGE_VERSION} | more.get(name, {})


def evaluate(name: str, source, protocol: Protocol, wait: bool = True) -> Measured:
    """A family's measurements on a source, from the cache or computed."""

    def compute(work: Path) -> dict:
        from . import families  # brings scipy and scikit-learn, which take seconds to import

        measured = getattr(families, name)(source, protocol, wait)
        write_json(work / "estimates.json", {key: asdict(value) for key, value in measured.estimates.items()})
        save_arrays(work / "arrays.npz", **measured.arrays)
        return {}

    return read(cache.get(entry(name, source, protocol), compute, wait))


def read(folder: Path) -> Measured:
    """What `evaluate` stored."""
    from ..metrics import Estimate

    estimates = json.loads((folder / "estimates.json").read_text())
    return Measured({key: Estimate(**value) for key, value in estimates.items()},
                    load_arrays(folder / "arrays.npz"))


@lru_cache(maxsize=16)
def real_features(
    judge: JudgeSpec, dataset: str, n: int, seed: int = 0, cutoff: float = 0.0, wait: bool = True
) -> NDArray:
    """The judge's features (n, 128) of training images drawn at random, low-passed first if there is a cut-off."""
    from ..judge import look
    from ..metrics import low_pass

    images = data.load(dataset, "train").draw(n, seed).images
    features, _ = look(judging.judge(judge, wait), low_pass(images, cutoff) if cutoff else images)
    return features.numpy()


def seen(source: Source, judge: JudgeSpec, wait: bool) -> tuple[NDArray, NDArray]:
    """The judge's features (n, 128) and probabilities (n, 10) of a source's images."""
    from ..judge import look

    features, probabilities = look(judging.judge(judge, wait), source.images(wait))
    return features.numpy(), probabilities.numpy()
