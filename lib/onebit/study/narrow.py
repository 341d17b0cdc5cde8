"""The fair rivals of a 1-bit network: of no more bytes, the same U-Net at fewer channels, in half precision or in four
bits."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from . import evaluation, fitted, results
from .run import Run
from .sources import Samples

if TYPE_CHECKING:
    import pandas as pd

    from .study import Job, Study


# columns of `table`: family, estimate, and whether its samples are drawn with fresh noise at every step
MEASURES = {
    "held_out_loss": ("denoising", "held_out_loss", False),
    "frechet": ("headline", "frechet", False), "frechet_noised": ("headline", "frechet", True),
    "kid": ("divergence", "kid", False), "kid_noised": ("divergence", "kid", True),
    "panel_agreement": ("legibility", "panel_agreement", False),
    "panel_agreement_noised": ("legibility", "panel_agreement", True),
}
OF_WIDE = ("held_out_loss", "frechet")  # the wide float network is here for comparison alone
BITS = 4  # of the other rival: float while it trains, then rounded on data


def runs(study: "Study") -> list[Run]:
    """The float U-Net at the profile's `narrow_width`: steps, batches, noise and first seeds of the wide one."""
    return _of_width(study, study.profile.narrow_width)


def four_bit(study: "Study") -> list[Run]:
    """The float U-Net at the profile's `four_bit_width`, rounded to BITS on data once it is trained (`fitted.py`)."""
    recipe = fitted.recipe("calibrated", BITS)
    return [replace(run, recipe=recipe) for run in _of_width(study, study.profile.four_bit_width)]


def _of_width(study: "Study", width: int) -> list[Run]:
    wide = study.unet(recipes=("fp16",))[: len(study.profile.ablation_rows)]
    return [replace(run, width=width) for run in wide]


def arms(study: "Study") -> dict[str, list[Run]]:
    """What is compared, by name: the float U-Net, its strictly 1-bit twin, and the twin's rivals, at the same seeds."""
    narrow, four, width = runs(study), four_bit(study), study.profile.unet_width
    wide, one_bit = (study.unet(recipes=(recipe,))[: len(narrow)] for recipe in ("fp16", "strict-1bit"))
    return {f"float, width {width}": wide, f"1 bit, width {width}": one_bit, f"float, width {narrow[0].width}": narrow,
            f"{BITS} bits, width {four[0].width}": four}


def jobs(study: "Study") -> Iterator["Job"]:
    """The rivals' trainings, and what the arms are measured by: samples without and with fresh noise, with batch-norm
    statistics estimated anew."""
    from .study import Job

    for arm, trained in enumerate(arms(study).values()):
        for run in trained:
            yield Job(results.training_entry(run.trained), partial(results.training, run.trained))
            for family, noised in dict.fromkeys((family, noised) for family, _, noised in _of(arm).values()):
                source = _source(study, run, noised)
                draw = partial(results.samples, run, source.request)
                yield Job(results.samples_entry(run, source.request), draw, shown=False)
                yield Job(evaluation.entry(family, source, study.protocol), partial(study.evaluate, family, source))


def _source(study: "Study", run: Run, noised: bool) -> Samples:
    return study.stochastic(run) if noised else study.reestimated(run)


def _of(arm: int) -> dict[str, tuple[str, str, bool]]:
    """What an arm is measured by: the first, the wide float network, by less."""
    return MEASURES if arm else {column: MEASURES[column] for column in OF_WIDE}


def table(study: "Study") -> "pd.DataFrame":
    """One row per training: network, seed, parameters, bytes of its file, the loss it ended with, and MEASURES; of the
    wide float network OF_WIDE alone, and no loss of what was rounded once it was trained.

    `bytes` is the packed file's size, of a float network its 16-bit file's.
    """
    import pandas as pd

    from .ablation_tables import final_terms

    rows = []
    for arm, (name, trained) in enumerate(arms(study).items()):
        size = _bytes(trained[0])
        for run in trained:
            found = {column: study.evaluate(family, _source(study, run, noised)).estimates[estimate].value
                     for column, (family, estimate, noised) in _of(arm).items()}
            loss = final_terms(run)["loss"] if run == run.trained else np.nan
            rows.append({"network": name, "seed": run.seed, **size, "loss": loss, **found})
    return pd.DataFrame(rows)


def ratios(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Every measure of `table`, 1 bit over each network of no more bytes: ratio and interval, paired by seed."""
    import pandas as pd

    from ..metrics import geometric_over_seeds

    _, one_bit, *rivals = frame.network.unique()
    rows = []
    for rival, measure in product(rivals, ("loss", *MEASURES)):
        by_seed = frame.pivot(index="seed", columns="network", values=measure)
        if by_seed[rival].isna().all():
            continue
        found = geometric_over_seeds(by_seed[one_bit] / by_seed[rival], f"{measure}, {one_bit} over {rival}")
        rows.append({"rival": rival, "measure": measure, "ratio": found.value, "low": found.low, "high": found.high,
                     "seeds": found.n})
    return pd.DataFrame(rows)


def loss_ratios(study: "Study") -> dict[int, float]:
    """The loss on held-out images by timestep, 1 bit over the narrow float network: geometric mean of the ratio over
    seeds."""
    found = [[study.evaluate("denoising", study.reestimated(run)).arrays for run in pair]
             for pair in zip(*list(arms(study).values())[1:3], strict=True)]
    logs = np.mean([np.log(one_bit["losses"] / narrow["losses"]) for one_bit, narrow in found], axis=0)
    return dict(zip(found[0][0]["timesteps"].tolist(), np.exp(logs).tolist(), strict=True))


def _bytes(run: Run) -> dict[str, int]:
    from .network_costs import file_bytes

    if run != run.trained:  # which code a weight takes does not change the file's size
        run = replace(run, recipe=fitted.recipe("nearest", BITS))
    model = results.weights(run)
    found = file_bytes(run, model)
    return {"parameters": sum(p.numel() for p in model.parameters()),
            "bytes": found["float16_bytes" if run.recipe == "fp16" else "packed_bytes"]}
