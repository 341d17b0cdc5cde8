"""Two 1-bit networks and their fair rivals: of no more bytes, the same U-Net at fewer channels, in half precision or in
three or four bits; and what makes the smaller of the two the better one."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from .. import recipes
from ..audit import audit
from . import ablations, fitted, results
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
BITS = 4  # of the other rivals: float while they train, then rounded on data
PLAIN = "binarydm-base-w1a32"  # its time projections are 1-bit too, its ends 8-bit: three quarters of strict's bytes
SCALED = "strict-1bit weights=learned-scale"  # the strict network with the plain one's rule for its weights


def runs(study: "Study") -> list[Run]:
    """The float U-Net at the profile's `narrow_width`: steps, batches, noise and first seeds of the wide one."""
    return _of_width(study, study.profile.narrow_width)


def four_bit(study: "Study") -> list[list[Run]]:
    """The float U-Net at the profile's `four_bit_widths`, rounded to BITS on data once it is trained (`fitted.py`): the
    rivals of the strictly 1-bit network and of the plain one."""
    return [_rounded(study, BITS, width) for width in study.profile.four_bit_widths]


def three_bit(study: "Study") -> list[Run]:
    """A further rival of the plain one: the same of three bits, at the profile's `three_bit_width`."""
    return _rounded(study, 3, study.profile.three_bit_width)


def plain(study: "Study") -> list[Run]:
    """The 1-bit U-Net by the plain rule of notebook 07, trained as the strictly 1-bit one is: from nothing, as long."""
    return _in_one_bit(study, PLAIN)


def scaled(study: "Study") -> list[Run]:
    """The 1-bit U-Net that takes from the plain rule its weight rule alone, trained likewise."""
    return _in_one_bit(study, SCALED)


def _in_one_bit(study: "Study", recipe: str) -> list[Run]:
    return [replace(run, recipe=recipe) for run in _seeds(study, "fp16")]


def _rounded(study: "Study", bits: int, width: int) -> list[Run]:
    return [replace(run, recipe=fitted.recipe("calibrated", bits)) for run in _of_width(study, width)]


def _of_width(study: "Study", width: int) -> list[Run]:
    return [replace(run, width=width) for run in _seeds(study, "fp16")]


def _seeds(study: "Study", recipe: str) -> list[Run]:
    return study.unet(recipes=(recipe,))[: len(study.profile.ablation_rows)]


def arms(study: "Study") -> dict[str, list[Run]]:
    """What is compared, by name, at the same first seeds: the float U-Net, its two 1-bit twins, and their rivals."""
    width, narrow = study.profile.unet_width, runs(study)
    return {f"float, width {width}": _seeds(study, "fp16"),
            f"1 bit (strict), width {width}": _seeds(study, "strict-1bit"),
            f"1 bit (plain), width {width}": plain(study),
            f"float, width {narrow[0].width}": narrow,
            **{_name(rounded): rounded for rounded in four_bit(study)}}


def by_bits(study: "Study") -> dict[str, list[Run]]:
    """The plain 1-bit U-Net, and what takes no more bytes at three and at four bits, by name."""
    rounded = [three_bit(study), four_bit(study)[1]]
    return {f"1 bit (plain), width {study.profile.unet_width}": plain(study), **{_name(runs): runs for runs in rounded}}


def _name(rounded: list[Run]) -> str:
    return f"{_bits(rounded[0])} bits, width {rounded[0].width}"


def parts(study: "Study") -> dict[str, list[Run]]:
    """From the strictly 1-bit network to the plain one, by name: first its weight rule becomes the plain one's, then
    which layers it quantizes and its ends."""
    width = study.profile.unet_width
    return {f"1 bit (strict), width {width}": _seeds(study, "strict-1bit"),
            f"1 bit (strict, learned-scale), width {width}": scaled(study),
            f"1 bit (plain), width {width}": plain(study)}


def jobs(study: "Study") -> Iterator["Job"]:
    """The rivals' trainings, and what the arms are measured by: samples without and with fresh noise, with batch-norm
    statistics estimated anew."""
    from .study import Job

    for trained in (*arms(study).values(), scaled(study), three_bit(study)):
        for run in trained:
            yield Job(results.training_entry(run.trained), partial(results.training, run.trained))
            for family, noised in dict.fromkeys((family, noised) for family, _, noised in _of(study, run).values()):
                drawn = source(study, run, noised)
                yield ablations.drawing(run, drawn.request, shown=False)
                yield study.measuring(family, drawn)


def source(study: "Study", run: Run, noised: bool) -> Samples:
    """A run's samples, without or with fresh noise at every step, batch-norm statistics estimated anew."""
    return study.stochastic(run) if noised else study.reestimated(run)


def _of(study: "Study", run: Run) -> dict[str, tuple[str, str, bool]]:
    """What a run is measured by: the wide float network by less."""
    wide = run.recipe == "fp16" and run.width == study.profile.unet_width
    return {column: MEASURES[column] for column in OF_WIDE} if wide else MEASURES


def table(study: "Study", compared: dict[str, list[Run]]) -> "pd.DataFrame":
    """One row per training of `arms`, `parts` or `by_bits`: network, bits per weight, seed, parameters, bytes of its
    file, the loss it ended with, and MEASURES; of the wide float network OF_WIDE alone, and no loss of what was rounded
    once it was trained.

    `bytes` is the packed file's size, of a float network its 16-bit file's.
    """
    import pandas as pd

    from .ablation_tables import final_terms

    rows = []
    for name, trained in compared.items():
        size = _bytes(trained[0])
        for run in trained:
            found = {column: study.evaluate(family, source(study, run, noised)).estimates[estimate].value
                     for column, (family, estimate, noised) in _of(study, run).items()}
            loss = final_terms(run)["loss"] if run == run.trained else np.nan
            rows.append({"network": name, "bits": _bits(run), "seed": run.seed, **size, "loss": loss, **found})
    return pd.DataFrame(rows)


def pairs(frame: "pd.DataFrame") -> list[tuple[str, str]]:
    """1-bit networks of `table`, each with its rivals: of every number of bits the largest that is no larger."""
    networks = frame.groupby("network", sort=False)[["bits", "bytes"]].first()
    found = []
    for network, size in networks[networks.bits == 1].bytes.items():
        smaller = networks[(networks.bytes <= size) & (networks.index != network)]
        found += [(network, rival) for rival in smaller.groupby("bits").bytes.idxmax()]
    return found


def in_turn(frame: "pd.DataFrame") -> list[tuple[str, str]]:
    """Networks of `table`, each with the one before it."""
    networks = list(frame.network.unique())
    return list(zip(networks[1:], networks, strict=False))


def over_first(frame: "pd.DataFrame") -> list[tuple[str, str]]:
    """The first network of `table` with each of the others as its rival."""
    first, *others = frame.network.unique()
    return [(first, other) for other in others]


def ratios(frame: "pd.DataFrame", compared: list[tuple[str, str]]) -> "pd.DataFrame":
    """Every measure of `table`, of networks over the rivals they are `compared` with: ratio and interval, paired by
    seed; `bytes`: the ratio of the files' sizes; q: the p-value of a ratio of 1, by Student's t of the logarithms,
    with the number of ratios allowed for (Benjamini and Hochberg), not a number where the seeds do not scatter.  A
    measure that is not above zero at every seed has no logarithm and is left out: near the floor, a KID is such."""
    import pandas as pd
    from scipy.stats import false_discovery_control

    from ..metrics import geometric_over_seeds

    rows, size = [], frame.groupby("network").bytes.first()
    for (network, rival), measure in product(compared, ("loss", *MEASURES)):
        by_seed = frame.pivot(index="seed", columns="network", values=measure)[[network, rival]].dropna()
        if by_seed.empty or not (by_seed > 0).all(axis=None):
            continue
        ratio = by_seed[network] / by_seed[rival]
        found = geometric_over_seeds(ratio, f"{measure}, {network} over {rival}")
        rows.append({"network": network, "rival": rival, "bytes": size[network] / size[rival], "measure": measure,
                     "ratio": found.value, "low": found.low, "high": found.high, "seeds": found.n,
                     "q": _p_of_one(np.log(ratio))})
    frame = pd.DataFrame(rows)
    known = frame.q.notna()
    frame.loc[known, "q"] = false_discovery_control(frame.q[known]) if known.any() else np.nan
    return frame


def _p_of_one(logs: "pd.Series") -> float:
    """Student's p-value of logarithms that are zero in the mean; NaN for one seed, or seeds that do not scatter."""
    if len(logs) < 2 or not logs.std():
        return np.nan
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(logs, 0).pvalue)


def loss_ratios(study: "Study") -> dict[int, float]:
    """The loss on held-out images by timestep, strictly 1 bit over the narrow float network: the geometric mean over
    seeds of the ratio."""
    found = [[study.evaluate("denoising", study.reestimated(run)).arrays for run in pair]
             for pair in zip(_seeds(study, "strict-1bit"), runs(study), strict=True)]
    logs = np.mean([np.log(one_bit["losses"] / narrow["losses"]) for one_bit, narrow in found], axis=0)
    return dict(zip(found[0][0]["timesteps"].tolist(), np.exp(logs).tolist(), strict=True))


def _bits(run: Run) -> int:
    if run.recipe == "fp16":
        return 16
    rule, _, bits = recipes.recipe(run.recipe).weights.partition(":")
    return int(bits) if rule == "lsq" else 1


def _bytes(run: Run) -> dict[str, int]:
    if run != run.trained:  # which code a weight takes does not change the file's size
        run = replace(run, recipe=fitted.recipe("nearest", _bits(run)))
    return sizes(run, results.weights(run))


def sizes(run: Run, model: nn.Module) -> dict[str, int]:
    """Parameters of a run's network, and bytes of its file: packed, or of a float network in 16 bits."""
    from .network_costs import file_bytes

    found = file_bytes(run, model)
    return {"parameters": audit(model).parameters,  # without what rules learn, of which a packed file keeps the scales
            "bytes": found["float16_bytes" if run.recipe == "fp16" else "packed_bytes"]}
