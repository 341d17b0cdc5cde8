"""The study: the grid of runs and results that a profile asks for on a data set."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from .. import data
from ..errors import unknown
from . import (
    ablations,
    agreement,
    evaluation,
    fitted,
    judging,
    longer,
    matched,
    narrow,
    published,
    results,
    samplers,
    scaling,
    scarce,
    timings,
)
from .cache import Entry
from .evaluation import Measured, Protocol
from .judging import JudgeSpec
from .profiles import (
    DIGITS,
    FAMILIES,
    HEADLINE,
    JUDGE_SEEDS,
    NOISE_LEVELS,
    PROFILES,
    RESUNET_RECIPES,
    SMOOTH_LEVELS,
    SOLVERS,
    SUBSETS,
    UNET_RECIPES,
    Profile,
)
from .results import SampleSpec
from .run import Run
from .sources import Control, Samples, Source, Walk


@dataclass(frozen=True)
class Job:
    """One result of the study: where it is kept, and the call that makes it.

    shown    whether a notebook reads it; the others serve results made from them alone, and are not released
    """

    entry: Entry
    compute: Callable[..., object]
    shown: bool = True


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
        if subset:
            return self.arms_of(base, recipes, p.subset_seeds, p.protocols)
        arms = self.arms_of(base, recipes, p.headline_seeds, p.protocols)
        return [run for run in arms if run.recipe in HEADLINE or run.seed in p.resunet_seeds]

    def unet(self, recipes: tuple[str, ...] = UNET_RECIPES) -> list[Run]:
        """The residual U-Net's arms on all ten classes, under the modern protocol."""
        p = self.profile
        base = Run(dataset=self.dataset, net="unet", width=p.unet_width, steps=p.unet_steps, batch=p.batch)
        return self.arms_of(base, recipes, p.unet_seeds, {"modern": p.protocols["modern"]})

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

    def reestimated(self, run: Run) -> Samples:
        """The same with batch-norm statistics estimated anew, which no longer hang on the last batches of training."""
        source = self.evaluation(run)
        return replace(source, request=replace(source.request, reestimated=True))

    def stochastic(self, run: Run) -> Samples:
        """The same again from the same starts, with fresh noise at every step of the sampler: DDIM with eta = 1."""
        source = self.reestimated(run)
        return replace(source, request=replace(source.request, sampler="ddim-eta1"))

    def control(self, kind: str, level: float = 0.0) -> Control:
        """A control of as many images as every arm has samples."""
        return Control(self.compared(), kind, self.profile.samples, level)

    def subset_controls(self, subset: str) -> list[Control]:
        """Images of a class subset that nobody learned from, and images that samples are compared with."""
        return [Control(self.compared(subset), kind, self.profile.subset_samples) for kind in ("held-out", "training")]

    @property
    def controls(self) -> list[Control]:
        """Every control: real images, and what a copying, a collapsed, a blurring and a raving generator would draw."""
        plain = [self.control(kind) for kind in ("held-out", "file-order", "training", "repeated", "blend", "noise")]
        return (plain + [self.control("noisy", level) for level in NOISE_LEVELS]
                + [self.control("smooth", level) for level in SMOOTH_LEVELS])

    @property
    def noisy_copies(self) -> list[Control]:
        """Training images with noise: does what tells copies from unseen images still do so?"""
        return [self.control("noisy-copies", level) for level in NOISE_LEVELS]

    @property
    def arms(self) -> list[Run]:
        """The runs that notebooks 03 to 05 measure: all on ten classes, and the memorizer."""
        return [*self.ten_class, self.memorizer]

    @property
    def solver_runs(self) -> list[Run]:
        """The runs on which samplers and numbers of steps are compared."""
        return [run for run in self.strict_pair if run.seed == 0]

    @property
    def strict_pair(self) -> list[Run]:
        """The residual U-Net in float and strictly 1-bit, at every seed: what "1 bit draws digits" is decided on."""
        return self.unet(recipes=("fp16", "strict-1bit"))

    def solver(self, run: Run, sampler: str, steps: int) -> Samples:
        """The samples of a run by another sampler or number of steps."""
        return Samples(run, SampleSpec(sampler, steps, self.profile.solver_samples))

    def ancestral(self, run: Run) -> Samples:
        """As many samples by the published sampler, with all its steps: what the others are measured by."""
        return self.solver(run, "ddpm", self.profile.grid_steps)

    def solved(self, run: Run) -> list[Samples]:
        """All that notebook 04 compares: deterministic samplers at few steps, DDIM with noise on the way at these and
        at more, the published sampler at fewer steps and at all."""
        size = self.profile
        noised = sorted({*size.solver_steps, *size.ancestral_steps})
        return [*(self.solver(run, sampler, steps) for sampler in SOLVERS for steps in size.solver_steps),
                *(self.solver(run, "ddim-eta1", steps) for steps in noised),
                *(self.solver(run, "ddpm", steps) for steps in size.ancestral_steps), self.ancestral(run)]

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
        found: dict[str, Job] = {}
        for job in self._jobs():
            before = found.get(job.entry.name)
            found[job.entry.name] = before if before and before.shown else job
        return list(found.values())

    def _jobs(self) -> Iterator[Job]:
        for spec in self.judges:
            yield Job(judging.judge_entry(spec), partial(judging.judge, spec))
        yield Job(results.pictures_entry(self.dataset), partial(results.pictures, self.dataset))
        yield Job(judging.logistic_entry(self.compared()), partial(judging.logistic, self.compared()))
        yield Job(judging.calibration_entry(self.judges[0]), partial(judging.calibration, self.judges[0]))
        yield self.measuring("neighbours", self.protocol.control)
        for control in self.controls:
            for family in ("headline", *FAMILIES):
                yield self.measuring(family, control)
        for control in self.noisy_copies:
            yield self.measuring("memorization", control)
        for control in [control for subset in SUBSETS[1:] for control in self.subset_controls(subset)]:
            yield self.measuring("subset", control)
        for run in self.all_runs:
            yield from self._run_jobs(run)
        for run in self.solver_runs:
            for steps in self.profile.solver_steps:
                yield self._sampling(run, self.solver(run, "ddim", steps).request)  # notebook 06 compares the images
            yield self._sampling(run, self.ancestral(run).request)
            for source in self.solved(run):
                yield self.measuring("headline", source)
        yield from samplers.jobs(self)
        yield from longer.jobs(self)
        yield from published.jobs(self)
        yield from ablations.jobs(self)
        yield from narrow.jobs(self)
        yield from scaling.jobs(self)
        yield from scarce.jobs(self)
        yield from fitted.jobs(self)
        yield from agreement.jobs(self)
        yield from matched.jobs(self)
        yield from timings.jobs(self)

    def _run_jobs(self, run: Run) -> Iterator[Job]:
        if run == run.trained:
            yield Job(results.training_entry(run), partial(results.training, run))
        if run != self.memorizer:
            yield self._sampling(run, self.grid)
        if self.subset(run.dataset):
            yield self._sampling(run, self.evaluation(run).request)
            yield self.measuring("subset", self.evaluation(run))
        if run not in self.arms:
            return
        averaged = run.ema and run == run.trained and run != self.memorizer
        for average in (False, True) if averaged else (False,):
            source = self.evaluation(run, average)
            yield self._sampling(run, source.request, shown=not average)
            yield self.measuring("headline", source)
        for family in FAMILIES:
            yield self.measuring(family, self.evaluation(run))
        if run == run.trained:
            yield self.measuring("overfitting", self.evaluation(run))
        if run in self.walkers:
            yield self.measuring("walking", self.walk(run))
            for path in ("cross-fade", "transport"):
                yield self.measuring("walking" if run.recipe == "fp16" else "calibrator", self.walk(run, path))

    def _sampling(self, run: Run, request: SampleSpec, shown: bool = True) -> Job:
        return Job(results.samples_entry(run, request), partial(results.samples, run, request), shown)

    def measuring(self, family: str, source: Source | Walk) -> Job:
        """The job of a family of metrics on a source."""
        protocol = self.subset_protocol(self.subset(source.dataset))
        return Job(evaluation.entry(family, source, protocol), partial(self.evaluate, family, source))

    @staticmethod
    def arms_of(base: Run, recipes: tuple[str, ...], seeds: tuple[int, ...], protocols: dict[str, dict]) -> list[Run]:
        """A run under every protocol, by every recipe, at every seed."""
        return [replace(base, recipe=recipe, seed=seed, **protocol | {"warmup": warmup})
                for protocol in protocols.values()
                for warmup in [min(protocol.get("warmup", 0), base.steps // 4)]  # a short run is not all warm-up
                for recipe in recipes for seed in seeds]
