"""Do both arms walk between the same digits?  Walks of networks with batch-norm statistics of their own, pair by pair.

A network whose statistics are those that training ended with may draw rough images, and other classes than its control
from the same latents; a path between other or rougher ends differs without being of another kind.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from . import evaluation
from .run import Run
from .sources import Walk

if TYPE_CHECKING:
    import pandas as pd

    from .study import Job, Study

SCALES = ("the residual itself", "own ends", "the float network's ends")


def walk(study: "Study", run: Run, path: str = "latent") -> Walk:
    """The walk of a run with batch-norm statistics estimated anew, or an artificial path between the same ends."""
    size = study.profile
    return Walk(run, size.matched_pairs, size.matched_frames, size.sample_steps, path=path, reestimated=True)


def jobs(study: "Study") -> Iterator["Job"]:
    """The walks of every arm, and morphs of their ends."""
    from .study import Job

    for run in study.walkers:
        for family, path in (("crossing", "latent"), ("calibrator", "transport")):
            source = walk(study, run, path)
            yield Job(evaluation.entry(family, source, study.protocol), partial(study.evaluate, family, source))


def table(study: "Study") -> "pd.DataFrame":
    """Both arms' residuals over all pairs of latents, and over those whose two ends are judged alike in both arms.

    One row per 1-bit network and choice of pairs: net, recipe, seed, pairs ("first": those that `Study.walk` walks too,
    "all" or "matched"), how many, and for each of SCALES the 16-bit paths, the 1-bit ones and their difference.  A
    scale divides by the mean residual of the morphs (a cross-fade has none, so that 0 is a fade and 1 a morph).
    Networks without a matched pair have no such row.
    """
    import pandas as pd

    float_of = {(run.net, run.seed): run for run in study.walkers if run.recipe == "fp16"}
    rows = []
    for run in study.walkers:
        if run.recipe == "fp16":
            continue
        arms = float_of[run.net, run.seed], run
        control, one_bit = (study.evaluate("crossing", walk(study, arm)).arrays for arm in arms)
        morphs = [study.evaluate("calibrator", walk(study, arm, "transport")).arrays["fade_residual"] for arm in arms]
        alike = (control["ends"] == one_bit["ends"]).all(1)
        first = np.arange(len(alike)) < study.profile.walk_pairs
        for pairs, kept in {"first": first, "all": first | True, "matched": alike}.items():
            if kept.any():
                who = {"net": run.net, "recipe": run.recipe, "seed": run.seed, "pairs": pairs, "paths": int(kept.sum())}
                paths = [arrays["fade_residual"][kept].mean() for arrays in (control, one_bit)]
                rows.append(who | _on_scales(paths, [morph[kept].mean() for morph in morphs]))
    return pd.DataFrame(rows)


def _on_scales(paths: list[float], morphs: list[float]) -> dict[str, float]:
    found = {}
    for scale, (of_control, of_one_bit) in zip(SCALES, ((1, 1), morphs, (morphs[0], morphs[0])), strict=True):
        control, one_bit = paths[0] / of_control, paths[1] / of_one_bit
        found |= {f"16 bit, {scale}": control, f"1 bit, {scale}": one_bit, scale: one_bit - control}
    return found
