"""How large the study is run: profiles, and the grid of runs and results each of them asks for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from .. import data
from ..errors import unknown
from ..metrics import Gaussian
from . import results
from .cache import Entry
from .results import JudgeSpec, SampleSpec
from .run import Run

RESUNET_RECIPES = ("fp16", "published-1bit", "strict-1bit", "ptq-1bit")
UNET_RECIPES = ("fp16", "strict-1bit", "ptq-1bit")
SUBSETS = ("", ":01", ":1")  # ten classes, two, one: the three studies of source 000


@dataclass(frozen=True)
class Profile:
    """A size of the study.

    resunet_epochs   passes over each subset, in the order of SUBSETS
    *_seeds          of the ten-class arms of each net, and of the ResUNet's two- and one-class arms
    protocols        training protocols by name, as changes to a Run; the first is the one the headline arms use
    samples          per arm, for metrics; grid_steps: steps of the published ancestral sampler in the picture grids
    """

    name: str
    resunet_width: int
    unet_width: int
    resunet_epochs: tuple[int, int, int]
    unet_steps: int
    unet_seeds: tuple[int, ...]
    resunet_seeds: tuple[int, ...]
    subset_seeds: tuple[int, ...]
    protocols: dict[str, dict] = field(hash=False)
    samples: int
    sample_steps: int
    grid_steps: int
    judge_images: int
    judge_epochs: int
    reference_images: int
    batch: int = 128


MODERN = {"lr": 2e-3, "warmup": 200, "decay": "cosine", "ema": 0.999}
PUBLISHED = {"lr": 1e-3}  # Adam, constant rate, no averaging

PROFILES = {
    # tests and CI: every line of the study runs, no number means anything
    "smoke": Profile(
        name="smoke", resunet_width=4, unet_width=4, resunet_epochs=(1, 1, 1), unet_steps=40,
        unet_seeds=(0, 1), resunet_seeds=(0, 1), subset_seeds=(0,), protocols={"modern": MODERN},
        samples=200, sample_steps=5, grid_steps=10, judge_images=2_000, judge_epochs=1, reference_images=1_000,
    ),
    # a reader without a GPU
    "laptop": Profile(
        name="laptop", resunet_width=16, unet_width=16, resunet_epochs=(2, 1, 2), unet_steps=6_000,
        unet_seeds=(0,), resunet_seeds=(0,), subset_seeds=(0,), protocols={"modern": MODERN},
        samples=2_000, sample_steps=50, grid_steps=1_000, judge_images=0, judge_epochs=5, reference_images=10_000,
    ),
    # the published net under the published protocol, and under a better one: weak training apart from 1 bit
    "paper": Profile(
        name="paper", resunet_width=64, unet_width=32, resunet_epochs=(20, 20, 20), unet_steps=30_000,
        unet_seeds=(0, 1, 2), resunet_seeds=(0, 1, 2), subset_seeds=(0, 1, 2),
        protocols={"published": PUBLISHED, "modern": MODERN},
        samples=10_000, sample_steps=50, grid_steps=1_000, judge_images=0, judge_epochs=5, reference_images=10_000,
    ),
}
DIGITS = {  # changes for the 1,437 small images of the embedded set, whose epochs are few steps
    "smoke": {"samples": 160, "judge_images": 0, "judge_epochs": 2},
    "laptop": {
        "batch": 64, "resunet_epochs": (10, 15, 20), "unet_steps": 400, "unet_seeds": (0, 1), "resunet_seeds": (0, 1),
        "samples": 300, "sample_steps": 20, "grid_steps": 100, "judge_epochs": 20,
    },
    "paper": {"resunet_epochs": (200, 400, 400), "unet_steps": 6_000, "samples": 2_000, "judge_epochs": 20},
}


@dataclass(frozen=True)
class Job:
    """One result of the study: where it is kept, and the call that makes it."""

    entry: Entry
    compute: Callable[..., object]


@dataclass(frozen=True)
class Study:
    """The runs and results of one profile on one data set."""

    profile: Profile
    dataset: str

    @classmethod
    def named(cls, profile: str, dataset: str) -> "Study":
        """Raises ValueError for an unknown profile, an unknown data set, or a data set with a class subset."""
        if profile not in PROFILES:
            unknown("profile", profile, PROFILES)
        base, _ = data.parse(dataset)
        if base != dataset:
            raise ValueError(f"the study chooses class subsets itself: say {base!r}, not {dataset!r}")
        size = PROFILES[profile]
        return cls(replace(size, **DIGITS[profile]) if base == "digits" else size, dataset)

    def resunet(self, subset: str = "", recipes: tuple[str, ...] = RESUNET_RECIPES) -> list[Run]:
        """The published net's arms on a subset, every protocol, recipe and seed."""
        p = self.profile
        epochs = p.resunet_epochs[SUBSETS.index(subset)]
        name = self.dataset + subset
        steps = max(1, data.train_size(name) // p.batch) * epochs
        base = Run(dataset=name, net="resunet", width=p.resunet_width, steps=steps, batch=p.batch)
        return self._arms(base, recipes, p.subset_seeds if subset else p.resunet_seeds, p.protocols)

    def unet(self, recipes: tuple[str, ...] = UNET_RECIPES) -> list[Run]:
        """The residual U-Net's arms on all ten classes, under the modern protocol."""
        p = self.profile
        base = Run(dataset=self.dataset, net="unet", width=p.unet_width, steps=p.unet_steps, batch=p.batch)
        return self._arms(base, recipes, p.unet_seeds, {"modern": p.protocols["modern"]})

    @property
    def ten_class(self) -> list[Run]:
        """All arms on ten classes: those with metrics."""
        return self.unet() + self.resunet()

    @property
    def all_runs(self) -> list[Run]:
        """Every run, headline arms first, first seeds before second ones."""
        headline = sorted(self.ten_class, key=lambda run: (run.seed, run.net == "resunet"))
        return headline + [run for subset in SUBSETS[1:] for run in self.resunet(subset)]

    @property
    def judge(self) -> JudgeSpec:
        return JudgeSpec(self.dataset, self.profile.judge_images, self.profile.judge_epochs)

    def evaluation(self, average: bool = False) -> SampleSpec:
        """The samples that metrics are computed on."""
        return SampleSpec("ddim", self.profile.sample_steps, self.profile.samples, average=average)

    @property
    def grid(self) -> SampleSpec:
        """The samples of the picture grids: the published ancestral sampler, twenty images."""
        return SampleSpec("ddpm", self.profile.grid_steps, 20)

    def reference(self, wait: bool = True) -> tuple[Gaussian, dict]:
        """Feature statistics of real training images, and the controls on real test images."""
        return results.reference(self.judge, *self._reference_sizes, wait=wait)

    def metrics(self, run: Run, average: bool = False, wait: bool = True) -> dict:
        """Metrics of one arm under this profile's protocol."""
        return results.metrics(run, self.evaluation(average), self.judge, *self._reference_sizes, wait=wait)

    def jobs(self) -> Iterator[Job]:
        """Every result the notebooks show, in the order in which it pays to compute them."""
        yield Job(results.judge_entry(self.judge), partial(results.judge, self.judge))
        yield Job(results.reference_entry(self.judge, *self._reference_sizes), self.reference)
        yield Job(results.pictures_entry(self.dataset), partial(results.pictures, self.dataset))
        for run in self.all_runs:
            if run == run.trained:
                yield Job(results.training_entry(run), partial(results.training, run))
            yield Job(results.samples_entry(run, self.grid), partial(results.samples, run, self.grid))
            if run.dataset == self.dataset:
                yield from self._metric_jobs(run)

    def _metric_jobs(self, run: Run) -> Iterator[Job]:
        for average in (False, True) if run.ema and run == run.trained else (False,):
            spec = self.evaluation(average)
            yield Job(results.samples_entry(run, spec), partial(results.samples, run, spec))
            yield Job(results.metrics_entry(run, spec, self.judge, *self._reference_sizes),
                      partial(self.metrics, run, average))

    @property
    def _reference_sizes(self) -> tuple[int, int]:
        """Real images: training ones for the reference, test ones (as many as samples, or all there are) as control."""
        train = min(self.profile.reference_images, data.train_size(self.dataset))
        return train, self.profile.samples

    @staticmethod
    def _arms(base: Run, recipes: tuple[str, ...], seeds: tuple[int, ...], protocols: dict[str, dict]) -> list[Run]:
        return [replace(base, recipe=recipe, seed=seed, **protocol | {"warmup": warmup})
                for protocol in protocols.values()
                for warmup in [min(protocol.get("warmup", 0), base.steps // 4)]  # a short run is not all warm-up
                for recipe in recipes for seed in seeds]
