"""What another sampler makes of the float and the strictly 1-bit U-Net, seed by seed: without noise on the way, with
it, and with it in fewer steps."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from . import ablations
from .run import Run
from .sources import Samples

if TYPE_CHECKING:
    import pandas as pd

    from .study import Job, Study

FAST = "sde-dpm-solver++"
MEASURES = {"frechet": "headline", "panel_agreement": "legibility"}  # estimates, and the families they are of


def by_sampler(study: "Study", run: Run) -> dict[str, Samples]:
    """A run's samples from the same starts, with batch-norm statistics estimated anew, by sampler and steps: DDIM, DDIM
    with fresh noise at every step, and the second-order solver of the SDE in the profile's `fast_steps`."""
    usual = study.reestimated(run)
    fast = replace(usual, request=replace(usual.request, sampler=FAST, steps=study.profile.fast_steps))
    return {f"{source.request.sampler}, {source.request.steps}": source
            for source in (usual, study.stochastic(run), fast)}


def jobs(study: "Study") -> Iterator["Job"]:
    """The samples and their measures."""
    for run in study.strict_pair:
        for source in by_sampler(study, run).values():
            yield ablations.drawing(run, source.request, shown=False)
            for family in MEASURES.values():
                yield study.measuring(family, source)


def table(study: "Study") -> "pd.DataFrame":
    """One row per training and sampler: recipe, seed, sampler, and MEASURES."""
    import pandas as pd

    return pd.DataFrame([
        {"recipe": run.recipe, "seed": run.seed, "sampler": sampler,
         **{name: study.evaluate(family, source).estimates[name].value for name, family in MEASURES.items()}}
        for run in study.strict_pair for sampler, source in by_sampler(study, run).items()])


def ratios(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Every measure of `table` by a sampler over that by one before it: ratio and interval, paired by seed."""
    import pandas as pd

    from ..metrics import geometric_over_seeds

    pairs, rows = list(combinations(frame.sampler.unique(), 2)), []
    for (recipe, part), measure in [(group, m) for group in frame.groupby("recipe", sort=False) for m in MEASURES]:
        by_seed = part.pivot(index="seed", columns="sampler", values=measure)
        for before, sampler in pairs:
            found = geometric_over_seeds(by_seed[sampler] / by_seed[before], f"{measure}, {sampler} over {before}")
            rows.append({"recipe": recipe, "measure": measure, "sampler": sampler, "against": before,
                         "ratio": found.value, "low": found.low, "high": found.high, "seeds": found.n})
    return pd.DataFrame(rows)
