"""The grid of notebook 07: quantization-aware trainings that start from one float teacher per seed."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import unknown
from ..nets import NETS
from . import evaluation, results
from .results import SampleSpec
from .run import Run

if TYPE_CHECKING:
    from .sources import Samples
    from .study import Job, Study

GRID = Path(__file__).with_name("ablations.toml")
TABLES = ("binarydm", "ebb", "lrm", "bidm", "bits", "beyond")
PRIORITIES = (1, 2, 3, 4, 5, 6, 7)
HEADLINE = 2  # up to this priority
FAMILIES = ("headline", "manifold", "divergence", "denoising")
SAMPLERS = ("ddim", "pndm", "dpm-solver++")  # BinaryDM's table 3: DDIM, PLMS, DPM-Solver
STRIDED = ("W1A1 XNOR", "W1A1 XNOR +TBS", "W1A1 BiDM", "W1A1 no connections", "W1A1 connections 20 apart")
SAMPLED = ("W1A4 base", "W1A4 +EBB +LRM")  # the rows of that table
# one training under two names, since EBB that goes over to one basis at the first step is the plain rule
TWINS = {"W1A32 +LRM": "EBB transition 0"}
# whose first samples notebook 07 shows
PICTURED = ("float, trained on", "W1A32 base", "W1A32 +EBB +LRM", "GroupNorm W1A32 base", "W1A1 XNOR++", "W1A1 XNOR",
            "W1A1 BiDM")
PICTURED_NOISED = ("GroupNorm W1A32 base", "W1A1 XNOR", "W1A1 BiDM")  # of those, with noise at every step as well
# which finish noised images, by either kind of sampler
FINISHING = ("float, trained on", "W1A32 base", "GroupNorm W1A32 base", "W1A1 XNOR", "W1A1 XNOR +TBS", "W1A1 DoReFa",
             "W1A1 BiDM")


@dataclass(frozen=True)
class Ablation:
    """One row of the grid; see the head of ablations.toml for what the fields mean."""

    label: str
    recipe: str
    tables: tuple[str, ...]
    first: int
    distill: str = "none"
    weight: float = 0.0
    net: str = "unet"
    start: str = "teacher"
    lr: float = 1.0
    steps: float = 1.0
    published: dict[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        for table in self.tables:
            if table not in TABLES:
                unknown(f"table of {self.label!r}", table, TABLES)
        if self.first not in PRIORITIES:
            unknown(f"priority of {self.label!r}", self.first, map(str, PRIORITIES))
        if self.net not in NETS:
            unknown(f"net of {self.label!r}", self.net, NETS)
        if self.start not in ("teacher", "scratch"):
            unknown(f"start of {self.label!r}", self.start, ["teacher", "scratch"])

    def run(self, teacher: Run, budget: Run) -> Run:
        """The training of this row: `budget` says steps, rate and batch, `teacher` the seed and where to start."""
        run = replace(budget, recipe=self.recipe, seed=teacher.seed, lr=budget.lr * self.lr,
                      steps=round(budget.steps * self.steps))
        if self.start == "scratch":
            return replace(run, steps=teacher.steps + run.steps, lr=teacher.lr * self.lr)
        return replace(run, teacher=teacher, distill=self.distill, distill_weight=self.weight)


@lru_cache(maxsize=4)
def grid(path: Path = GRID) -> tuple[Ablation, ...]:
    """Every row, in the order of the file.

    Raises    ValueError for an unknown key, table, priority or start, naming the row.
    """
    rows = []
    for label, entry in tomllib.loads(path.read_text()).items():
        for key in entry:
            if key not in Ablation.__dataclass_fields__:
                unknown(f"key of {label!r} in {path.name}", key, Ablation.__dataclass_fields__)
        rows.append(Ablation(label, **entry | {"tables": tuple(entry["tables"])}))
    return tuple(rows)


def teachers(study: "Study", net: str = "unet") -> list[Run]:
    """The float networks that rows start from, one per seed."""
    runs = study.resunet(recipes=("fp16",)) if net == "resunet" else study.unet(recipes=("fp16",))
    modern = [run for run in runs if run.ema]  # not those trained as weakly as published
    return [replace(run, net=net) for run in modern[: len(study.profile.ablation_rows)]]


def own_teachers(study: "Study") -> list[Run]:
    """Those float networks that no other notebook trains: with group norm, one for each seed that has such rows."""
    found = dict.fromkeys(run.teacher for _, run in trained(study) if run.teacher is not None)
    return [teacher for teacher in found if teacher not in study.ten_class]


def budget(study: "Study", net: str = "unet") -> Run:
    """What all rows of a net share: steps, batch, and the teacher's own peak rate, which beat half of it in a trial.

    No averaged weights are kept: signs of averaged latent weights were never trained.
    """
    steps = study.profile.ablation_steps
    return replace(teachers(study, net)[0], steps=steps, warmup=min(100, steps // 4), ema=0.0)


def trained(study: "Study") -> list[tuple[Ablation, Run]]:
    """Every training of the grid, in the order in which it pays to compute them: headline rows of all seeds first.

    The profile says up to which priority rows are trained, seed by seed.
    """
    nets = {row.net for row in grid()}
    starts = {net: list(zip(study.profile.ablation_rows, teachers(study, net), strict=True)) for net in nets}
    budgets = {net: budget(study, net) for net in nets}
    found = [(row, seed, row.run(teacher, budgets[row.net]))
             for row in grid() for seed, (last, teacher) in enumerate(starts[row.net]) if row.first <= last]
    return [(row, run) for row, _, run in sorted(found, key=lambda item: (item[0].first, item[1]))]


def of_table(study: "Study", table: str) -> Iterator[tuple[Ablation, Run]]:
    """The trainings shown in a table, in the order of the grid's file, seed by seed."""
    order = {row.label: i for i, row in enumerate(grid())}
    chosen = [(row, run) for row, run in trained(study) if table in row.tables]
    yield from sorted(chosen, key=lambda item: (order[item[0].label], item[1].seed))


def jobs(study: "Study") -> Iterator["Job"]:
    """Every training of the grid, its samples and its metrics.

    Whole sets of samples are not shown, and so not released: they would be too many bytes.
    """
    from .study import Job

    first = study.profile.unet_seeds[0]
    for teacher in own_teachers(study):
        source = study.reestimated(teacher)
        yield Job(results.training_entry(teacher), partial(results.training, teacher))
        yield drawing(teacher, source.request, shown=False)
        for family in ("headline", "denoising"):
            yield Job(evaluation.entry(family, source, study.protocol), partial(study.evaluate, family, source))
        yield from _noised(study, teacher)
    for row, run in trained(study):
        source = study.reestimated(run)
        yield Job(results.training_entry(run), partial(results.training, run))
        yield drawing(run, source.request, shown=False)
        if row.label in PICTURED and run.seed == first:
            yield drawing(run, pictured(study))
        if row.label in PICTURED_NOISED and run.seed == first:
            yield drawing(run, pictured(study, study.stochastic(run).request.sampler))
        for family in families_of(row, run):
            entry = evaluation.entry(family, source, study.protocol)
            yield Job(entry, partial(study.evaluate, family, source))
        yield from _noised(study, run)
    others = [source for _, _, source in [*by_sampler(study), *by_stride(study)]]
    for source in others + [source for _, run in renormed(study) for source in both(study, run)]:
        yield drawing(source.run, source.request, shown=False)
        yield Job(evaluation.entry("headline", source, study.protocol), partial(study.evaluate, "headline", source))
    for source in finishing(study).values():
        yield Job(evaluation.entry("handover", source, study.protocol), partial(study.evaluate, "handover", source))
    for source in map(study.evaluation, teachers(study)):
        yield Job(evaluation.entry("activity", source, study.protocol), partial(study.evaluate, "activity", source))


def _noised(study: "Study", run: Run) -> Iterator["Job"]:
    """The jobs of a network's samples with fresh noise at every step, and of their distance."""
    from .study import Job

    source = study.stochastic(run)
    yield drawing(run, source.request, shown=False)
    yield Job(evaluation.entry("headline", source, study.protocol), partial(study.evaluate, "headline", source))


def finishing(study: "Study") -> dict[tuple[str, int, str], "Samples"]:
    """What finishes noised images, by row, seed and sampler: rows of FINISHING at the first two seeds, and the float
    network with group norms; without noise on the way and with it."""
    runs = {(row.label, run.seed): run for row, run in trained(study)
            if row.label in FINISHING and run.seed in study.profile.unet_seeds[:2]}
    runs |= {("GroupNorm float", seed): run.teacher for (label, seed), run in runs.items()
             if label == "GroupNorm W1A32 base"}
    return {(*key, source.request.sampler): source for key, run in runs.items()
            for source in (study.reestimated(run), study.stochastic(run))}


def drawing(run: Run, request: SampleSpec, shown: bool = True) -> "Job":
    """The job of a set of samples."""
    from .study import Job

    return Job(results.samples_entry(run, request), partial(results.samples, run, request), shown)


def by_sampler(study: "Study") -> list[tuple[Ablation, str, "Samples"]]:
    """The rows of SAMPLED at the first seed, by each of SAMPLERS, with the steps and the noise of other evaluations."""
    sources = [(row, study.reestimated(run)) for row, run in trained(study)
               if row.label in SAMPLED and run.seed == study.profile.unet_seeds[0]]
    return [(row, sampler, replace(source, request=replace(source.request, sampler=sampler)))
            for row, source in sources for sampler in SAMPLERS]


def by_stride(study: "Study") -> list[tuple[Ablation, int, "Samples"]]:
    """The rows of STRIDED at the first seed: fewer samples, of the usual steps and of finer ones, from the same noise.

    Connections are trained on the next timestep, in one row on that 20 away, and used on whatever the sampler visited
    before.
    """
    size = study.profile
    requests = [SampleSpec("ddim", steps, size.solver_samples, reestimated=True)
                for steps in (size.sample_steps, size.fine_steps)]
    return [(row, request.steps, replace(study.reestimated(run), request=request))
            for row, run in trained(study) if row.label in STRIDED and run.seed == size.unet_seeds[0]
            for request in requests]


def renormed(study: "Study") -> list[tuple[str, Run]]:
    """What is drawn with either batch-norm statistics: arms of ten classes, and rows as the profile says.

    Networks binarized after training have those of their float network first, which are of no use to them.
    """
    kept = [run for run in study.ten_class if run.ema]  # not those trained as weakly as published
    arms = [(f"{run.net} {run.recipe}" + ", from scratch" * (run == run.trained), run) for run in kept]
    return arms + [(row.label, run) for row, run in trained(study) if row.first <= study.profile.ablation_renormed]


def both(study: "Study", run: Run) -> tuple["Samples", "Samples"]:
    """A run's samples with the batch-norm statistics that training ended with, and with those estimated anew."""
    return study.evaluation(run), study.reestimated(run)


def pictured(study: "Study", sampler: str = "ddim") -> SampleSpec:
    """The first samples of those that metrics are computed on, to be looked at."""
    return SampleSpec(sampler, study.profile.sample_steps, 16, reestimated=True)


def families_of(row: Ablation, run: Run) -> tuple[str, ...]:
    """The families of metrics a row is measured by.

    The panel of judges sees the headline rows alone; only quantized students are compared with a teacher.
    """
    students = run.teacher is not None and run.recipe != "fp16"
    return FAMILIES + ("legibility",) * (row.first <= HEADLINE) + ("mimicry",) * students
