"""The float and the strictly 1-bit U-Net at several widths: how far apart they are at each, and how wide a float
network is as good as a 1-bit one."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np

from . import ablations, narrow, results
from .run import Run

if TYPE_CHECKING:
    import pandas as pd

    from .study import Job, Study

FLOAT, ONE_BIT = RECIPES = ("fp16", "strict-1bit")
# columns of `table`, of those that networks of equal bytes are measured by: a KID near its floor has no logarithm
MEASURES = {column: of for column, of in narrow.MEASURES.items() if of[1] != "kid"}
COMPARED = ("compared", "ratio", "low", "high", "seeds")
SIZES = ("width", "parameters", "bytes")  # what `equals` compares two networks by


def runs(study: "Study") -> list[Run]:
    """Both networks at the profile's `float_widths` and `one_bit_widths`, each at its first seeds: the same steps,
    batches and noise at every width."""
    widths = zip(RECIPES, (study.profile.float_widths, study.profile.one_bit_widths), strict=True)
    return [replace(run, width=width) for recipe, sizes in widths for width, seeds in sizes
            for run in study.unet(recipes=(recipe,))[:seeds]]


def jobs(study: "Study") -> Iterator["Job"]:
    """The trainings, and what they are measured by, with batch-norm statistics estimated anew."""
    from .study import Job

    for run in runs(study):
        yield Job(results.training_entry(run), partial(results.training, run))
        for family, noised in dict.fromkeys((family, noised) for family, _, noised in MEASURES.values()):
            source = narrow.source(study, run, noised)
            yield ablations.drawing(run, source.request, shown=False)
            yield study.measuring(family, source)


def table(study: "Study") -> "pd.DataFrame":
    """One row per training: recipe, width, seed, parameters, bytes of its file (packed, or of a float network in 16
    bits), and MEASURES."""
    import pandas as pd

    rows, files = [], {}
    for run in runs(study):
        kind = (run.recipe, run.width)
        files[kind] = files.get(kind) or narrow.sizes(run, results.new_model(run))  # no training changes them
        found = {column: study.evaluate(family, narrow.source(study, run, noised)).estimates[name].value
                 for column, (family, name, noised) in MEASURES.items()}
        rows.append({"recipe": run.recipe, "width": run.width, "seed": run.seed, **files[kind], **found})
    return pd.DataFrame(rows)


def gaps(frame: "pd.DataFrame") -> "pd.DataFrame":
    """1 bit over float at every width that both have, and that ratio over the one at the width before: geometric means
    and intervals, paired by seed.  Of a single seed there is no interval.

    Here and in `equals` a measure that is not above zero everywhere has no logarithm and is left out.
    """
    import pandas as pd

    wide = frame.pivot(index=["width", "seed"], columns="recipe", values=list(MEASURES))
    rows = []
    for measure in _measures(frame):
        gap = (wide[measure][ONE_BIT] / wide[measure][FLOAT]).dropna().unstack("seed")
        rows += [_row(measure, f"1 bit over float, width {width}", gap.loc[width]) for width in gap.index]
        rows += [_row(measure, f"that at width {width} over that at {before}", gap.loc[width] / gap.loc[before])
                 for before, width in pairwise(gap.index)]
    return pd.DataFrame(rows, columns=["measure", *COMPARED])


def equals(frame: "pd.DataFrame") -> "pd.DataFrame":
    """How wide a float network is as good as a 1-bit one, seed by seed: by every measure the 1-bit network's size over
    that of the smallest float one that comes to its value (`reached`), in SIZES; geometric means and intervals.

    A 1-bit network that is beyond the float ones at some seed has no row: the other seeds alone would flatter one side.

    Source    the effective number of parameters of Kumar et al. 2024 (Scaling Laws for Precision), here read off
              between trained networks where they fit a law.
    """
    import pandas as pd

    rows = []
    one_bit = frame[frame.recipe == ONE_BIT]
    for (width, trained), measure, size in product(one_bit.groupby("width"), _measures(frame), SIZES):
        found = [run[size] / _float_size(frame, run, measure, size) for _, run in trained.iterrows()]
        if np.isfinite(found).all():
            rows.append({"width": width, "size": size} | _row(measure, f"1 bit of width {width}", pd.Series(found)))
    return pd.DataFrame(rows, columns=["width", "size", "measure", *COMPARED])


def _measures(frame: "pd.DataFrame") -> list[str]:
    return [measure for measure in MEASURES if (frame[measure] > 0).all()]


def _float_size(frame: "pd.DataFrame", run: "pd.Series", measure: str, size: str) -> float:
    rivals = frame[(frame.recipe == FLOAT) & (frame.seed == run.seed)].sort_values("width")
    return reached(rivals[size].to_numpy(float), rivals[measure].to_numpy(float), run[measure])


def reached(sizes: Sequence[float], values: Sequence[float], wanted: float) -> float:
    """The smallest size at which the curve through (size, value), straight between points in logarithms of both, comes
    to a value; NaN where it does not.

    Shapes    sizes (N,), rising; values (N,); all above zero.
    """
    x, y = np.log(sizes), np.log(values) - np.log(wanted)
    for i in range(len(x)):
        if y[i] == 0:
            return float(sizes[i])
        if i + 1 < len(x) and y[i] * y[i + 1] < 0:
            return float(np.exp(x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1])))
    return np.nan


def _row(measure: str, compared: str, ratios: "pd.Series") -> dict:
    from ..metrics import geometric_over_seeds

    found = geometric_over_seeds(ratios.dropna(), f"{measure}, {compared}")
    return {"measure": measure, "compared": compared, "ratio": found.value, "low": found.low, "high": found.high,
            "seeds": found.n}
