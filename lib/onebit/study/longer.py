"""Does the gap close with time?  The float and the strictly 1-bit U-Net, trained several times as long."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

from . import ablations, results, samplers
from .run import Run
from .sources import Samples

if TYPE_CHECKING:
    import pandas as pd

    from .study import Job, Study

# columns of `table`: family, estimate, and whether its samples are drawn by the second-order solver or by DDIM
MEASURES = {
    "held_out_loss": ("denoising", "held_out_loss", False),
    "frechet": ("headline", "frechet", False), "frechet_fast": ("headline", "frechet", True),
    "panel_agreement": ("legibility", "panel_agreement", False),
    "panel_agreement_fast": ("legibility", "panel_agreement", True),
}


def runs(study: "Study") -> list[Run]:
    """The pair at the profile's first seeds with `long_steps`: the same first batches and noise, and a decay of the
    learning rate that is stretched to the new length."""
    seeds = study.profile.unet_seeds[: study.profile.long_seeds]
    return [replace(run, steps=study.profile.long_steps) for run in study.strict_pair if run.seed in seeds]


def jobs(study: "Study") -> Iterator["Job"]:
    """The long trainings, and what both lengths are measured by, with batch-norm statistics estimated anew."""
    from .study import Job

    for run in runs(study):
        yield Job(results.training_entry(run), partial(results.training, run))
    for run in (*study.strict_pair, *runs(study)):
        for family, fast in dict.fromkeys((family, fast) for family, _, fast in MEASURES.values()):
            source = _source(study, run, fast)
            yield ablations.drawing(run, source.request, shown=False)
            yield study.measuring(family, source)


def table(study: "Study") -> "pd.DataFrame":
    """One row per training of either length: recipe, seed, steps, and MEASURES."""
    import pandas as pd

    return pd.DataFrame([
        {"recipe": run.recipe, "seed": run.seed, "steps": run.steps,
         **{column: study.evaluate(family, _source(study, run, fast)).estimates[name].value
            for column, (family, name, fast) in MEASURES.items()}}
        for run in (*study.strict_pair, *runs(study))])


def ratios(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Every measure of `table`, 1 bit over float at either length, and the longer training over the shorter: ratio and
    interval, paired by seed, over the seeds that both have; no interval from a single one."""
    import pandas as pd

    from ..metrics import geometric_over_seeds

    short, long = sorted(frame.steps.unique())
    one_bit, control = "strict-1bit", "fp16"
    compared = [((one_bit, short), (control, short)), ((one_bit, long), (control, long)),
                ((control, long), (control, short)), ((one_bit, long), (one_bit, short))]
    rows = []
    for measure, (network, against) in product(MEASURES, compared):
        by_seed = frame.pivot(index="seed", columns=["recipe", "steps"], values=measure)
        names = {"network": _name(*network), "against": _name(*against)}
        found = geometric_over_seeds((by_seed[network] / by_seed[against]).dropna(), f"{measure}, {names}")
        rows.append({"measure": measure, **names, "ratio": found.value, "low": found.low, "high": found.high,
                     "seeds": found.n})
    return pd.DataFrame(rows)


def _name(recipe: str, steps: int) -> str:
    return f"{recipe}, {steps:,} steps"


def _source(study: "Study", run: Run, fast: bool) -> Samples:
    usual, *_, second_order = samplers.by_sampler(study, run).values()
    return second_order if fast else usual
