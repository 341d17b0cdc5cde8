"""Few training images: does 1 bit keep a network from learning them by heart, and if so, is that 1 bit's doing?"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from . import evaluation, narrow, results
from .results import SampleSpec
from .run import Run
from .sources import Control, Samples

if TYPE_CHECKING:
    import pandas as pd

    from .study import Job, Study

NOISE = 0.2  # of the noisy copies, and of the noisy held-out images beside them
CONTROLS = (("held-out", 0.0), ("noisy", NOISE), ("training", 0.0), ("noisy-copies", NOISE))
FAMILIES = ("overfitting", "copying", "headline")
COLUMNS = ("training_loss", "held_out_loss", "loss_gap", "nearer_seen", "memorized", "distance_ratio", "frechet")


def arms(study: "Study", images: int, steps: int, seeds: int) -> dict[str, list[Run]]:
    """Networks trained on so many images for so many steps, by name, one per seed: the float U-Net, its strictly
    1-bit twin, and a float one of no more bytes.  Batches and noise are the same for all of a seed."""
    float_wide, one_bit = (study.unet(recipes=(recipe,))[0] for recipe in ("fp16", "strict-1bit"))
    small = narrow.runs(study)[0]
    named = {f"float, width {float_wide.width}": float_wide, f"1 bit, width {one_bit.width}": one_bit,
             f"float, width {small.width}": small}
    changes = {"dataset": f"{study.dataset}@{images}", "steps": steps, "batch": study.profile.scarce_batch}
    return {name: [replace(run, **changes, warmup=min(run.warmup, steps // 4), seed=seed) for seed in range(seeds)]
            for name, run in named.items()}


def runs(study: "Study") -> list[Run]:
    """Every training, in the order of the profile."""
    return [run for case in study.profile.scarce for group in arms(study, *case).values() for run in group]


def sizes(study: "Study") -> list[int]:
    """Numbers of training images, each once."""
    return sorted({images for images, *_ in study.profile.scarce})


def source(study: "Study", run: Run) -> Samples:
    """The samples that copies are looked for among."""
    return Samples(run, SampleSpec("ddim", study.profile.sample_steps, study.profile.solver_samples))


def controls(study: "Study", images: int) -> list[Control]:
    """Held-out images and copies of the training images, as they are and noisy."""
    return [Control(f"{study.dataset}@{images}", kind, study.profile.solver_samples, level) for kind, level in CONTROLS]


def jobs(study: "Study") -> Iterator["Job"]:
    """Trainings, samples and measurements, and the controls."""
    from .study import Job

    for run in runs(study):
        drawn = source(study, run)
        yield Job(results.training_entry(run), partial(results.training, run))
        yield Job(results.samples_entry(run, drawn.request), partial(results.samples, run, drawn.request), shown=False)
        for family in FAMILIES:
            yield _measuring(study, family, drawn)
    for images in sizes(study):
        for control in controls(study, images):
            yield _measuring(study, "copying", control)


def _measuring(study: "Study", family: str, measured: Samples | Control) -> "Job":
    from .study import Job

    return Job(evaluation.entry(family, measured, study.protocol), partial(study.evaluate, family, measured))


def table(study: "Study") -> "pd.DataFrame":
    """One row per training: training images, steps, epochs (how often each image was trained on, in the mean), network,
    seed, the loss on images trained on and on held-out ones, their gap, three measures of copying, and the Fréchet
    distance of as many samples."""
    import pandas as pd

    rows = []
    for images, steps, seeds in study.profile.scarce:
        epochs = steps * study.profile.scarce_batch / images
        for name, group in arms(study, images, steps, seeds).items():
            for run in group:
                found = {}
                for family in FAMILIES:
                    found |= study.evaluate(family, source(study, run)).estimates
                rows.append({"images": images, "steps": steps, "epochs": epochs, "network": name, "net": run.net,
                             "seed": run.seed} | {column: found[column].value for column in COLUMNS})
    return pd.DataFrame(rows)


def control_table(study: "Study") -> "pd.DataFrame":
    """The measures of copying on images of which one knows what they are, one row per control."""
    import pandas as pd

    rows = []
    for images in sizes(study):
        for control in controls(study, images):
            found = study.evaluate("copying", control).estimates
            rows.append({"images": images, "control": control.kind, "noise": control.level}
                        | {name: found[name].value for name in ("nearer_seen", "memorized", "distance_ratio")})
    return pd.DataFrame(rows)
