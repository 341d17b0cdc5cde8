"""How far quantization gets without training: the teachers of notebook 07, rounded to few bits, blindly or on data."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from . import ablations, evaluation
from .run import Run

if TYPE_CHECKING:
    import pandas as pd

    from .study import Job, Study

METHODS = ("nearest", "calibrated")
READ = (1, 16)  # bits at which the panel is asked whether samples are digits
MEASURED = ("frechet", "judge_confidence", "panel_agreement")
TRAINED = {1: "W1A32 base", 2: "W2A32 LSQ", 4: "W4A32 LSQ"}  # by bits: rows of the grid with these rules


def runs(study: "Study") -> list[tuple[str, int, Run]]:
    """Method, bits per weight, and what is made of each teacher, in the order in which it pays to compute them."""
    return [(method, bits, replace(teacher, recipe=recipe(method, bits)))
            for teacher in ablations.teachers(study) for bits in study.profile.fitted_bits for method in METHODS]


def recipe(method: str, bits: int) -> str:
    """Scales per channel in the layers of BinaryDM's baseline, whose trainings the grid has."""
    weights = "" if bits == 1 else f" weights=lsq:{bits}"
    return f"binarydm-base-w1a32{weights} post_training={method}"


def pictured(study: "Study") -> list[tuple[str, int, Run]]:
    """Those of the first seed, some of whose samples are shown."""
    return [item for item in runs(study) if item[2].seed == study.profile.unet_seeds[0]]


def jobs(study: "Study") -> Iterator["Job"]:
    """Samples, with statistics estimated anew, and metrics; whole sets of samples are not released."""
    from .study import Job

    for _, bits, run in runs(study):
        source = study.reestimated(run)
        yield ablations.drawing(run, source.request, shown=False)
        for family in ("headline", *(("legibility",) if bits in READ else ())):
            yield Job(evaluation.entry(family, source, study.protocol), partial(study.evaluate, family, source))
    for *_, run in pictured(study):
        yield ablations.drawing(run, ablations.pictured(study))


def table(study: "Study") -> "pd.DataFrame":
    """One row per network: method, bits, seed, and MEASURED; panel_agreement at READ bits, elsewhere NaN.

    Methods are those of METHODS, "trained" for rows of the grid (TRAINED), and "float" (16 bits) for their teachers.
    """
    import pandas as pd

    bits_of = {label: bits for bits, label in TRAINED.items() if bits in study.profile.fitted_bits}
    trained = [("trained", bits_of[row.label], run) for row, run in ablations.trained(study) if row.label in bits_of]
    floats = [("float", 16, run) for run in ablations.teachers(study)]
    rows = []
    for method, bits, run in [*runs(study), *trained, *floats]:
        source = study.reestimated(run)
        found = study.evaluate("headline", source).estimates
        if bits in READ:
            found = found | study.evaluate("legibility", source).estimates
        rows.append({"method": method, "bits": bits, "seed": run.seed,
                     **{name: found[name].value for name in MEASURED if name in found}})
    return pd.DataFrame(rows)
