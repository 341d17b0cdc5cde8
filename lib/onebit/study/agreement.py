"""Do packed networks draw what the dense ones draw, pixel by pixel, and by every metric of notebooks 03 to 05?  And
networks that compute in bfloat16 what they draw in float32?"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from .. import recipes
from . import ablations, evaluation, results
from .run import Run
from .sources import PackedSamples, Samples

if TYPE_CHECKING:
    import pandas as pd

    from .study import Job, Study

FAMILIES = ("headline", "memorization", "manifold", "distribution", "legibility")


def packed_rows(study: "Study") -> dict[str, Run]:
    """The first seed of every trained headline row that quantizes activations, by label."""
    return {row.label: run for row, run in ablations.trained(study)
            if row.first <= ablations.HEADLINE and run.seed == study.profile.unet_seeds[0]
            and recipes.recipe(run.recipe).activations != "none"}


def pair(study: "Study", run: Run) -> tuple[Samples, PackedSamples]:
    """The samples that a run's metrics are computed on, dense and packed."""
    dense = study.evaluation(run)
    return dense, PackedSamples(run, dense.request)


def jobs(study: "Study") -> Iterator["Job"]:
    """Both sides' samples and metrics, and how far apart the samples are."""
    from .study import Job

    for run in packed_rows(study).values():
        for source in pair(study, run):
            packed = isinstance(source, PackedSamples)
            yield Job(results.samples_entry(run, source.request, packed),
                      partial(results.samples, run, source.request, packed=packed), shown=False)
            for family in FAMILIES + ("packing",) * packed:
                yield Job(evaluation.entry(family, source, study.protocol), partial(study.evaluate, family, source))
    for run in study.strict_pair:
        for source, families in zip(precisions(study, run), (("headline",), ("headline", "rounding")), strict=True):
            yield ablations.drawing(run, source.request, shown=False)
            yield from (study.measuring(family, source) for family in families)


def precisions(study: "Study", run: Run) -> tuple[Samples, Samples]:
    """Samples of a run in float32, with batch-norm statistics estimated anew, and in bfloat16 from the same noise."""
    usual = study.reestimated(run)
    return usual, replace(usual, request=replace(usual.request, precision="bfloat16"))


def metrics(study: "Study") -> "pd.DataFrame":
    """One row per network and metric: dense and packed, and how many half-widths of the dense interval lie between.

    Metrics without an interval are left out.
    """
    import pandas as pd

    rows = []
    for label, run in packed_rows(study).items():
        for family in FAMILIES:
            dense, packed = (study.evaluate(family, source).estimates for source in pair(study, run))
            rows += [{"label": label, "family": family, "metric": name, "dense": e.value, "packed": packed[name].value,
                      "half_widths_apart": abs(packed[name].value - e.value) / ((e.high - e.low) / 2)}
                     for name, e in dense.items() if e.high > e.low]
    return pd.DataFrame(rows)


def pixels(study: "Study") -> "pd.DataFrame":
    """One row per network: how far packed samples are from dense ones of the same noise, in grey levels of 255."""
    import pandas as pd

    found = {label: study.evaluate("packing", pair(study, run)[1]).estimates
             for label, run in packed_rows(study).items()}
    return pd.DataFrame([{"label": label, "images": e["images_equal"].n} | {name: e[name].value for name in e}
                         for label, e in found.items()])


def in_bfloat16(study: "Study") -> "pd.DataFrame":
    """One row per training of the float and the strictly 1-bit U-Net: its distance in float32 and in bfloat16, and of
    the two images of a noise how far apart they are (`metrics.paired_distance`) and how often judged as one class."""
    import pandas as pd

    rows = []
    for run in study.strict_pair:
        usual, rounded = precisions(study, run)
        distances = {source.request.precision: study.evaluate("headline", source).estimates["frechet"].value
                     for source in (usual, rounded)}
        apart = study.evaluate("rounding", rounded).estimates
        rows.append({"recipe": run.recipe, "seed": run.seed, **distances,
                     **{name: e.value for name, e in apart.items()}})
    return pd.DataFrame(rows)
