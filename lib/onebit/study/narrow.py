"""The fair rival of a 1-bit network: a float one of no more bytes, the same U-Net at fewer channels."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from . import evaluation, results
from .run import Run

if TYPE_CHECKING:
    import pandas as pd

    from .study import Job, Study


def runs(study: "Study") -> list[Run]:
    """The float U-Net at the profile's `narrow_width`: steps, batches, noise and first seeds of the wide one."""
    wide = study.unet(recipes=("fp16",))[: len(study.profile.ablation_rows)]
    return [replace(run, width=study.profile.narrow_width) for run in wide]


def arms(study: "Study") -> dict[str, list[Run]]:
    """What is compared, by name: the float U-Net, its strictly 1-bit twin, and the narrow float one, at its seeds."""
    narrow, width = runs(study), study.profile.unet_width
    wide, one_bit = (study.unet(recipes=(recipe,))[: len(narrow)] for recipe in ("fp16", "strict-1bit"))
    return {f"float, width {width}": wide, f"1 bit, width {width}": one_bit, f"float, width {narrow[0].width}": narrow}


def jobs(study: "Study") -> Iterator["Job"]:
    """The narrow network's trainings, samples with statistics estimated anew, and metrics; the others have theirs."""
    from .study import Job

    for run in runs(study):
        source = study.reestimated(run)
        draw = partial(results.samples, run, source.request)
        yield Job(results.training_entry(run), partial(results.training, run))
        yield Job(results.samples_entry(run, source.request), draw, shown=False)
        yield Job(evaluation.entry("headline", source, study.protocol), partial(study.evaluate, "headline", source))


def table(study: "Study") -> "pd.DataFrame":
    """One row per training: network, seed, parameters, bytes of its file, final loss, Fréchet distance, and the
    judge's confidence.

    `bytes` is the packed file's size, of a float network its 16-bit file's.
    """
    import pandas as pd

    from .ablation_tables import final_terms

    rows = []
    for name, trained in arms(study).items():
        size = _bytes(trained[0])
        for run in trained:
            found = study.evaluate("headline", study.reestimated(run)).estimates
            rows.append({"network": name, "seed": run.seed, **size, "loss": final_terms(run)["loss"],
                         "frechet": found["frechet"].value, "judge_confidence": found["judge_confidence"].value})
    return pd.DataFrame(rows)


def _bytes(run: Run) -> dict[str, int]:
    from .network_costs import file_bytes

    model = results.weights(run)
    found = file_bytes(run, model)
    return {"parameters": sum(p.numel() for p in model.parameters()),
            "bytes": found["float16_bytes" if run.recipe == "fp16" else "packed_bytes"]}
