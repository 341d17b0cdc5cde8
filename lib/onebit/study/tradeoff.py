"""Quality against what it costs: every timed network with its metrics, the front of those that nothing beats."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from . import ablations, timings

if TYPE_CHECKING:
    import pandas as pd

    from .sources import Samples
    from .study import Study


def tradeoff(study: "Study") -> "pd.DataFrame":
    """The table `networks` of `timings`, with seeds and the Fréchet distance: the geometric mean over all seeds, of
    samples drawn with batch-norm statistics estimated anew.

    `bytes` is the packed file's size, of a float control its 16-bit file's.  `seconds_batch*` is of a denoising step,
    with packed kernels where the network has any, as torch computes it where not: the ratio to the float network's that
    took turns with it, times the median of those, since a machine's speed drifts from one row to the next.
    """
    import pandas as pd

    frame = timings.table(study, "networks").set_index("label")
    quality = pd.DataFrame({label: _quality(study, sources) for label, sources in _sources(study).items()
                            if label in frame.index}).T
    frame = frame.join(quality)
    control = frame.recipe == "fp16"
    frame["bytes"] = np.where(control, frame.float16_bytes, frame.packed_bytes)
    for batch in timings.effort(study).batches:
        own = frame[f"packed_seconds_batch{batch}"].fillna(frame[f"dense_seconds_batch{batch}"])
        rival = frame[f"float_seconds_batch{batch}"]  # took turns with it
        frame[f"seconds_batch{batch}"] = own / rival * rival.groupby(frame.net).transform("median")
    return frame.reset_index()


def _sources(study: "Study") -> dict[str, list["Samples"]]:
    """Every seed of what `timings.measured_runs` has one seed of."""
    timed = timings.measured_runs(study)
    arms = [(f"{run.net} {run.recipe}", run) for run in study.ten_class]
    arms = [(label, run) for label, run in arms if run == replace(timed[label], seed=run.seed)]  # of the first protocol
    rows = [(row.label, run) for row, run in ablations.trained(study) if row.label in timed]
    found: dict[str, list[Samples]] = {}
    for label, run in arms + rows:
        found.setdefault(label, []).append(study.reestimated(run))
    return found


def _quality(study: "Study", sources: list["Samples"]) -> dict[str, float]:
    distances = [study.evaluate("headline", source).estimates["frechet"].value for source in sources]
    return {"seeds": len(sources), "frechet": float(np.exp(np.mean(np.log(distances))))}


def front(cost: NDArray, loss: NDArray) -> NDArray:
    """Which points nothing beats: no other one costs no more and loses no more, one of them less.

    Shapes    cost, loss (n,) -> booleans (n,); a point with NaN is never one.
    """
    cost, loss = np.asarray(cost, float), np.asarray(loss, float)
    no_worse = (cost[:, None] <= cost) & (loss[:, None] <= loss)  # [i, j]: i costs and loses no more than j
    better = (cost[:, None] < cost) | (loss[:, None] < loss)
    return ~(no_worse & better).any(axis=0) & ~np.isnan(cost + loss)


def best_within(frame: "pd.DataFrame", budget: float) -> "pd.Series | None":
    """The row of least Fréchet distance whose bytes keep the budget; None if there is none."""
    affordable = frame[frame["bytes"] <= budget]
    return None if affordable.empty else affordable.loc[affordable["frechet"].idxmin()]
