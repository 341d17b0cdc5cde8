"""Source 000's two networks as published: width, protocol and sampler."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch

from .. import paths
from . import cache, evaluation, results
from .profiles import PUBLISHED
from .results import SampleSpec
from .run import Run
from .sources import Samples

if TYPE_CHECKING:
    import pandas as pd

    from .study import Job, Study

RECIPES = ("fp16", "published-1bit")
FAMILIES = ("headline", "memorization", "manifold", "distribution", "texture", "legibility")
HOW = "published sampler"  # among the ways to draw


def runs(study: "Study") -> list[Run]:
    """Control and 1-bit net at the published width under the published protocol, every seed."""
    base = study.resunet(recipes=("fp16",))[0]
    plain = Run(dataset=base.dataset, net=base.net, width=study.profile.full_width, steps=base.steps, batch=base.batch)
    return study.arms_of(plain, RECIPES, study.profile.full_seeds, {"published": PUBLISHED})


def sources(study: "Study") -> list[Samples]:
    """As many samples of each as of every arm, by the published ancestral sampler with all its steps."""
    size = study.profile
    return [Samples(run, SampleSpec("ddpm", size.grid_steps, size.samples)) for run in runs(study)]


def ways(study: "Study", run: Run) -> dict[str, Samples]:
    """How a run is drawn from: as published, by the study's sampler, and by that with statistics estimated anew."""
    published = next(source for source in sources(study) if source.run == run)
    return {HOW: published, "study's sampler": study.evaluation(run),
            "study's sampler, new statistics": study.reestimated(run)}


def at_hand(study: "Study") -> bool:
    """Whether these results are part of the study here: computed or released already, or there is a GPU to make them.

    Without one a training of the published width takes hours; a profile may say that it is small enough anyhow.
    """
    if study.profile.full_anywhere or torch.cuda.is_available():
        return True
    entries = [job.entry for job in _jobs(study) if job.shown]
    if not cache.from_scratch() and any((paths.RELEASED / entry.name).is_dir() for entry in entries):
        return True  # a damaged one among them is missing, which is not the same as none
    return all(map(cache.find, entries))


def jobs(study: "Study") -> Iterator["Job"]:
    """Trainings, samples and metrics; none where they are not at hand."""
    if at_hand(study):
        yield from _jobs(study)


def _jobs(study: "Study") -> Iterator["Job"]:
    from .study import Job

    for run in runs(study):
        yield Job(results.training_entry(run), partial(results.training, run), shown=False)
        for how, source in ways(study, run).items():
            shown = how == HOW and run.seed == study.profile.full_seeds[0]
            yield Job(results.samples_entry(run, source.request), partial(results.samples, run, source.request), shown)
            for family in FAMILIES if how == HOW else FAMILIES[:1]:
                entry = evaluation.entry(family, source, study.protocol)
                yield Job(entry, partial(study.evaluate, family, source))


def distances(study: "Study") -> "pd.DataFrame":
    """Fréchet distance of every run by every way to draw from it: recipe, seed, how, frechet."""
    import pandas as pd

    return pd.DataFrame([
        {"recipe": run.recipe, "seed": run.seed, "how": how,
         "frechet": study.evaluate("headline", source).estimates["frechet"].value}
        for run in runs(study) for how, source in ways(study, run).items()])
