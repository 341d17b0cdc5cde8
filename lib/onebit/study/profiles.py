"""How large the study is run: profiles, and the grid of runs and results each of them asks for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from .. import data
from ..errors import unknown
from . import ablations, agreement, evaluation, results, timings
from .cache import Entry
from .evaluation import Measured, Protocol
from .results import JudgeSpec, SampleSpec
from .run import Run
from .sources import Control, Samples, Source, Walk

RESUNET_RECIPES = ("fp16", "published-1bit", "strict-1bit", "ptq-1bit")
UNET_RECIPES = ("fp16", "strict-1bit", "ptq-1bit")
SUBSETS = ("", ":01", ":1")  # ten classes, two, one: the three studies of source 000
JUDGE_SEEDS = (0, 1, 2)  # the first is the study's judge, the others show what hangs on it
NOISE_LEVELS = (0.05, 0.1, 0.15, 0.2, 0.3)  # of the range of grey levels
SMOOTH_LEVELS = (0.1, 0.2)  # cut-offs in cycles per pixel
FAMILIES = ("memorization", "manifold", "distribution", "texture", "legibility")
SOLVERS = ("ddim", "pndm", "dpm-solver++")


@dataclass(frozen=True)
class Profile:
    """A size of the study.

    resunet_epochs   passes over each subset, in the order of SUBSETS; not always whole ones
    *_seeds          of the ten-class arms of each net, and of the ResUNet's two- and one-class arms
    protocols        training protocols by name, as changes to a Run; the first is the one the headline arms use
    samples          per arm, for metrics; subset_samples: per arm on fewer classes
    grid_steps       steps of the published ancestral sampler, in the picture grids and among the samplers compared
    train_limit      training images that samples are compared with (0: all of them)
    few              training images of the positive control of memorization
    walk_*           pairs of latents, and frames between each pair, of the interpolation study
    solver_*         samples and numbers of steps at which samplers are compared
    ablation_*       steps and seeds of notebook 07's grid; up to which priority of its rows every seed is trained
                     (`repeated`), and up to which the first (`rows`)
    """

    name: str
    resunet_width: int
    unet_width: int
    resunet_epochs: tuple[float, float, float]
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
    few: int
    walk_pairs: int
    walk_frames: int
    solver_samples: int
    solver_steps: tuple[int, ...]
    ablation_steps: int
    ablation_seeds: int
    ablation_repeated: int
    ablation_rows: int
    batch: int = 128
    subset_samples: int = 500
    train_limit: int = 0


MODERN = {"lr": 2e-3, "warmup": 200, "decay": "cosine", "ema": 0.999}
PUBLISHED = {"lr": 1e-3}  # Adam, constant rate, no averaging

PROFILES = {
    # tests and CI: every line of the study runs, no number means anything
    "smoke": Profile(
        name="smoke", resunet_width=4, unet_width=4, resunet_epochs=(0.025, 0.08, 0.15), unet_steps=40,
        unet_seeds=(0, 1), resunet_seeds=(0, 1), subset_seeds=(0,), protocols={"modern": MODERN},
        samples=160, sample_steps=5, grid_steps=10, judge_images=1_000, judge_epochs=1, reference_images=300,
        few=200, walk_pairs=4, walk_frames=9, solver_samples=150, solver_steps=(2, 5),
        ablation_steps=10, ablation_seeds=1, ablation_repeated=3, ablation_rows=3,
        batch=32, subset_samples=150, train_limit=2_000,
    ),
    # a reader without a GPU
    "laptop": Profile(
        name="laptop", resunet_width=16, unet_width=16, resunet_epochs=(20, 20, 20), unet_steps=6_000,
        unet_seeds=(0, 1), resunet_seeds=(0, 1), subset_seeds=(0, 1), protocols={"modern": MODERN},
        samples=2_000, sample_steps=50, grid_steps=1_000, judge_images=0, judge_epochs=5, reference_images=10_000,
        few=200, walk_pairs=10, walk_frames=120, solver_samples=500, solver_steps=(5, 10, 20, 50),
        ablation_steps=2_000, ablation_seeds=2, ablation_repeated=1, ablation_rows=2,
    ),
    # the published net under the published protocol, and under a better one: weak training apart from 1 bit
    "paper": Profile(
        name="paper", resunet_width=64, unet_width=32, resunet_epochs=(20, 20, 20), unet_steps=30_000,
        unet_seeds=(0, 1, 2), resunet_seeds=(0, 1, 2), subset_seeds=(0, 1, 2),
        protocols={"published": PUBLISHED, "modern": MODERN},
        samples=10_000, sample_steps=50, grid_steps=1_000, judge_images=0, judge_epochs=5, reference_images=10_000,
        few=200, walk_pairs=100, walk_frames=120, solver_samples=2_000, solver_steps=(5, 10, 20, 50, 100),
        ablation_steps=10_000, ablation_seeds=3, ablation_repeated=4, ablation_rows=4,
        subset_samples=2_000,
    ),
}
DIGITS = {  # changes for the 1,437 small images of the embedded set, whose epochs are few steps
    "smoke": {"resunet_epochs": (1, 1, 1), "judge_images": 0, "judge_epochs": 2},
    "laptop": {
        "batch": 64, "resunet_epochs": (10, 15, 20), "unet_steps": 400, "unet_seeds": (0, 1), "resunet_seeds": (0, 1),
        "samples": 300, "sample_steps": 20, "grid_steps": 100, "judge_epochs": 20, "few": 64, "walk_pairs": 12,
        "walk_frames": 40, "solver_samples": 200, "solver_steps": (5, 10, 20), "subset_samples": 200,
        "ablation_steps": 100, "ablation_rows": 2,
    },
    "paper": {"resunet_epochs": (200, 400, 400), "unet_steps": 6_000, "samples": 2_000, "judge_epochs": 20, "few": 128},
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
        base = data.parse(dataset).base
        if base != dataset:
            raise ValueError(f"the study chooses class subsets itself: say {base!r}, not {dataset!r}")
        size = PROFILES[profile]
        return cls(replace(size, **DIGITS[profile]) if base == "digits" else size, dataset)

    def resunet(self, subset: str = "", recipes: tuple[str, ...] = RESUNET_RECIPES) -> list[Run]:
        """The published net's arms on a subset, every protocol, recipe and seed."""
        p = self.profile
        epochs = p.resunet_epochs[SUBSETS.index(subset)]
        name = self.dataset + subset
        steps = max(1, int(max(1, data.train_size(name) // p.batch) * epochs))
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
    def memorizer(self) -> Run:
        """The positive control of memorization: the float U-Net with the same budget on a few training images."""
        float_unet = self.unet(recipes=("fp16",))[0]
        return replace(float_unet, dataset=f"{self.dataset}@{self.profile.few}")

    @property
    def all_runs(self) -> list[Run]:
        """Every run, headline arms first, first seeds before second ones."""
        headline = sorted(self.ten_class, key=lambda run: (run.seed, run.net == "resunet"))
        return headline + [self.memorizer] + [run for subset in SUBSETS[1:] for run in self.resunet(subset)]

    @property
    def judges(self) -> list[JudgeSpec]:
        """The study's judge, and the same trained from other seeds."""
        size = self.profile
        return [JudgeSpec(self.dataset, size.judge_images, size.judge_epochs, seed) for seed in JUDGE_SEEDS]

    def compared(self, subset: str = "") -> str:
        """Name of the training images that samples are compared with: no more than the profile allows."""
        name, limit = self.dataset + subset, self.profile.train_limit
        return f"{name}@{limit}" if 0 < limit < data.train_size(name) else name

    def subset(self, dataset: str) -> str:
        """The one of SUBSETS that a data set's name holds."""
        return dataset.partition("@")[0].removeprefix(self.dataset)

    @property
    def protocol(self) -> Protocol:
        """How the profile measures."""
        return self.subset_protocol("")

    def subset_protocol(self, subset: str) -> Protocol:
        """The same against the images of a class subset, judged by the judge of all classes."""
        size, against = self.profile, self.compared(subset)
        return Protocol(
            self.judges[0], () if subset else tuple(self.judges[1:]),
            min(size.reference_images, data.train_size(against)), size.subset_samples if subset else size.samples,
            against if against != self.dataset else "")

    def evaluation(self, run: Run, average: bool = False) -> Samples:
        """The samples of a run that metrics are computed on."""
        n = self.profile.subset_samples if self.subset(run.dataset) else self.profile.samples
        return Samples(run, SampleSpec("ddim", self.profile.sample_steps, n, average=average))

    @property
    def grid(self) -> SampleSpec:
        """The samples of the picture grids: the published ancestral sampler, twenty images."""
        return SampleSpec("ddpm", self.profile.grid_steps, 20)

    def control(self, kind: str, level: float = 0.0) -> Control:
        """A control of as many images as every arm has samples."""
        return Control(self.compared(), kind, self.profile.samples, level)

    def subset_controls(self, subset: str) -> list[Control]:
        """Images of a class subset that nobody learned from, and images that samples are compared with."""
        return [Control(self.compared(subset), kind, self.profile.subset_samples) for kind in ("held-out", "training")]

    @property
    def controls(self) -> list[Control]:
        """Every control: what a perfect, a copying, a collapsed, a blurring and a raving generator would score."""
        plain = [self.control(kind) for kind in ("held-out", "file-order", "training", "repeated", "blend", "noise")]
        return (plain + [self.control("noisy", level) for level in NOISE_LEVELS]
                + [self.control("smooth", level) for level in SMOOTH_LEVELS])

    @property
    def arms(self) -> list[Run]:
        """The runs that notebooks 03 to 05 measure: all on ten classes, and the memorizer."""
        return [*self.ten_class, self.memorizer]

    @property
    def solver_runs(self) -> list[Run]:
        """The runs on which samplers and numbers of steps are compared."""
        return [run for run in self.unet(recipes=("fp16", "strict-1bit")) if run.seed == 0]

    def solver(self, run: Run, sampler: str, steps: int) -> Samples:
        """The samples of a run by another sampler or number of steps."""
        return Samples(run, SampleSpec(sampler, steps, self.profile.solver_samples))

    def ancestral(self, run: Run) -> Samples:
        """As many samples by the published sampler, with all its steps: what the others are measured by."""
        return self.solver(run, "ddpm", self.profile.grid_steps)

    @property
    def walkers(self) -> list[Run]:
        """The runs whose latent walks are measured: the trained ones on ten classes."""
        return [run for run in self.ten_class if run == run.trained and run.ema]

    def walk(self, run: Run, path: str = "latent") -> Walk:
        """The latent walk of a run, or an artificial path between the same end images."""
        size = self.profile
        return Walk(run, size.walk_pairs, size.walk_frames, size.sample_steps, path=path)

    def evaluate(self, family: str, source: Source | Walk, wait: bool = True) -> Measured:
        """A family of metrics on a source, under this profile's protocol for the source's classes."""
        return evaluation.evaluate(family, source, self.subset_protocol(self.subset(source.dataset)), wait)

    def jobs(self) -> list[Job]:
        """Every result the notebooks show, once, in the order in which it pays to compute them."""
        return list({job.entry.name: job for job in self._jobs()}.values())

    def _jobs(self) -> Iterator[Job]:
        for spec in self.judges:
            yield Job(results.judge_entry(spec), partial(results.judge, spec))
        yield Job(results.pictures_entry(self.dataset), partial(results.pictures, self.dataset))
        yield Job(results.logistic_entry(self.compared()), partial(results.logistic, self.compared()))
        yield Job(results.calibration_entry(self.judges[0]), partial(results.calibration, self.judges[0]))
        yield self._measuring("neighbours", self.protocol.control)
        for control in self.controls:
            for family in ("headline", *FAMILIES):
                yield self._measuring(family, control)
        for control in [control for subset in SUBSETS[1:] for control in self.subset_controls(subset)]:
            yield self._measuring("subset", control)
        for run in self.all_runs:
            yield from self._run_jobs(run)
        for run in self.solver_runs:
            for steps in self.profile.solver_steps:
                yield self._sampling(run, self.solver(run, "ddim", steps).request)  # notebook 06 compares the images
            for sampler in SOLVERS:
                for steps in self.profile.solver_steps:
                    yield self._measuring("headline", self.solver(run, sampler, steps))
            yield self._sampling(run, self.ancestral(run).request)
            yield self._measuring("headline", self.ancestral(run))
        yield from ablations.jobs(self)
        yield from agreement.jobs(self)
        yield from timings.jobs(self)

    def _run_jobs(self, run: Run) -> Iterator[Job]:
        if run == run.trained:
            yield Job(results.training_entry(run), partial(results.training, run))
        if run != self.memorizer:
            yield self._sampling(run, self.grid)
        if self.subset(run.dataset):
            yield self._sampling(run, self.evaluation(run).request)
            yield self._measuring("subset", self.evaluation(run))
        if run not in self.arms:
            return
        averaged = run.ema and run == run.trained and run != self.memorizer
        for average in (False, True) if averaged else (False,):
            source = self.evaluation(run, average)
            yield self._sampling(run, source.request)
            yield self._measuring("headline", source)
        for family in FAMILIES:
            yield self._measuring(family, self.evaluation(run))
        if run == run.trained:
            yield self._measuring("overfitting", self.evaluation(run))
        if run in self.walkers:
            yield self._measuring("walking", self.walk(run))
            if run.recipe == "fp16":
                yield self._measuring("walking", self.walk(run, "cross-fade"))
                yield self._measuring("walking", self.walk(run, "transport"))

    def _sampling(self, run: Run, request: SampleSpec) -> Job:
        return Job(results.samples_entry(run, request), partial(results.samples, run, request))

    def _measuring(self, family: str, source: Source | Walk) -> Job:
        protocol = self.subset_protocol(self.subset(source.dataset))
        return Job(evaluation.entry(family, source, protocol), partial(self.evaluate, family, source))

    @staticmethod
    def _arms(base: Run, recipes: tuple[str, ...], seeds: tuple[int, ...], protocols: dict[str, dict]) -> list[Run]:
        return [replace(base, recipe=recipe, seed=seed, **protocol | {"warmup": warmup})
                for protocol in protocols.values()
                for warmup in [min(protocol.get("warmup", 0), base.steps // 4)]  # a short run is not all warm-up
                for recipe in recipes for seed in seeds]
