"""Results of many runs as tidy data frames, one row per run (and step), ready for seaborn and for `Report.table`."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch

from .. import data, recipes
from ..metrics import Estimate, geometric_over_seeds, over_seeds
from ..quantizers import WEIGHT_RULES, weight_rule
from . import results
from .run import Run
from .sources import Control, Source, Walk
from .study import Study

WHOLE = "all"  # the subset of runs on all classes and images


def loss_table(runs: Iterable[Run]) -> pd.DataFrame:
    """Every logged row of every run: net, recipe, subset, seed, lr, and step, loss, sign_flips."""
    return pd.concat([results.loss_log(run).assign(**names(run)) for run in runs], ignore_index=True)


def final_losses(runs: Iterable[Run]) -> pd.DataFrame:
    """Mean training loss over the last tenth of each run's steps, and its ratio to the control of the same seed."""
    log = loss_table(runs)
    arm = ["net", "protocol", "subset", "recipe", "seed"]
    last = log[log.step > 0.9 * log.groupby(arm).step.transform("max")]
    final = last.groupby(arm, sort=False).loss.mean().reset_index()
    keys = ["net", "protocol", "subset", "seed"]
    control = final[final.recipe == "fp16"].set_index(keys).loss.rename("control")
    final = final.join(control, on=keys)
    return final.assign(over_control=final.loss / final.control).drop(columns="control")


def metric_table(study: Study) -> pd.DataFrame:
    """Fréchet distance and judge confidence of every ten-class arm, for its last and its averaged weights.

    `frechet_over_floor` divides by what real test images score against the same reference.
    """
    floor = study.evaluate("headline", study.protocol.control).estimates["frechet"].value
    rows = []
    for run in study.ten_class:
        for average in (False, True) if run.ema and run == run.trained else (False,):
            found = study.evaluate("headline", study.evaluation(run, average)).estimates
            values = {name: found[name].value for name in ("frechet", "judge_confidence")}
            rows.append(names(run) | {"weights": "averaged" if average else "last"} | values
                        | {"frechet_over_floor": values["frechet"] / floor})
    return pd.DataFrame(rows)


def measured(study: Study, family: str, sources: Iterable[Source | Walk]) -> pd.DataFrame:
    """Every estimate of a family on every source, one row each: what it was measured on, metric, value, low, high, n.

    Runs are named by net, recipe, ... as everywhere, controls by `control`, `level` and subset; `arm` names both for
    figures.
    """
    return pd.concat([_measured(study, family, source) for source in sources], ignore_index=True)


def _measured(study: Study, family: str, source: Source | Walk) -> pd.DataFrame:
    found = study.evaluate(family, source).estimates
    rows = [{"metric": name, "value": e.value, "low": e.low, "high": e.high, "n": e.n, "protocol_text": e.protocol}
            for name, e in found.items()]
    if isinstance(source, Control):
        who = {"arm": source.kind + (f" {source.level:g}" if source.level else ""), "control": source.kind,
               "level": source.level, "subset": study.subset(source.dataset).removeprefix(":") or WHOLE}
    else:
        who = names(source.run)
        who |= {"arm": _arm(study, source.run)}
        if isinstance(source, Walk):
            who |= {"path": source.path}
    return pd.DataFrame(rows).assign(**who)


def _arm(study: Study, run: Run) -> str:
    """A run's name in figures, alike for all seeds; with its protocol where the study trains its net by several."""
    if run == study.memorizer:
        return "memorizer"
    who, protocols = names(run), {names(other)["protocol"] for other in study.ten_class if other.net == run.net}
    return f"{run.net} {run.recipe}" + (f" {who['protocol']}" if len(protocols) > 1 else "")


def compare(
    frame: pd.DataFrame, metric: str, net: str, arm: str, control: str = "fp16", ratio: bool = True, subset: str = WHOLE
) -> Estimate:
    """One recipe against another on the same net and images, paired by seed: their ratio, or difference.

    `frame` holds rows of `measured`; of several training protocols the first counts.  A ratio is averaged in
    logarithms, so that a over b is the inverse of b over a.

    Raises    KeyError if an arm has no such metric, ValueError for arms without a seed in common.
    """
    a, b = paired(frame, metric, net, arm, control, subset)
    text = f"{metric}: {net} {arm} {'over' if ratio else 'minus'} {control}, paired by seed"
    if not ratio:
        return over_seeds((a - b).tolist(), text)
    return geometric_over_seeds((a / b).tolist(), text)


def paired(
    frame: pd.DataFrame, metric: str, net: str, arm: str, control: str = "fp16", subset: str = WHOLE
) -> tuple[np.ndarray, np.ndarray]:
    """A metric of one recipe and of another at the seeds that both have, in their order.

    Raises    KeyError if an arm has no such metric, ValueError for arms without a seed in common.
    """
    rows = _rows(frame, metric, net, subset, arm, control)
    shared = sorted(set.intersection(*(set(rows.seed[rows.recipe == one]) for one in (arm, control))))
    if not shared:
        raise ValueError(f"{net} {arm} and {control} have no seed of {metric} in common")
    values = rows.pivot(index="seed", columns="recipe", values="value").loc[shared]
    return values[arm].to_numpy(), values[control].to_numpy()


def counted(frame: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Rows of `measured` with two images more for these shares, one counted and one not: a share of none then has a
    ratio too (Laplace's rule of succession).  Other metrics stay as they are.
    """
    share = frame.metric.isin(metrics)
    return frame.assign(value=frame.value.where(~share, (frame.value * frame.n + 1) / (frame.n + 2)))


def tally(parts: Iterable[Iterable[tuple[Estimate, float]]], protocol: str) -> Estimate:
    """How many parts keep all their lower bounds: by value, and, as an interval, for sure and possibly.

    `parts` holds (estimate, lower bound) pairs, some for each part.  Without an interval in one of them there is none
    for the count, and its n is the smallest of theirs, so that a rule can say why.
    """
    parts = [list(part) for part in parts]
    value, low, high = (sum(all(getattr(e, end) >= bound for e, bound in part) for part in parts)
                        for end in ("value", "low", "high"))
    estimates = [e for part in parts for e, _ in part]
    if any(math.isnan(e.low) for e in estimates):
        low = high = math.nan
    return Estimate(value, low, high, min(e.n for e in estimates), protocol)


def seed_values(frame: pd.DataFrame, metric: str, net: str, arm: str, subset: str = WHOLE) -> np.ndarray:
    """One recipe's metric by training seed, in their order; of several training protocols the first counts.

    Raises    KeyError if the arm has no such metric.
    """
    return _rows(frame[frame.recipe == arm], metric, net, subset, arm).sort_values("seed").value.to_numpy()


def _rows(frame: pd.DataFrame, metric: str, net: str, subset: str, *arms: str) -> pd.DataFrame:
    """A net's rows of a metric, those of the first training protocol in them."""
    rows = frame[(frame.net == net) & (frame.subset == subset) & (frame.metric == metric)]
    rows = rows[rows.protocol.isin(rows.protocol[:1])]
    for arm in arms:
        if arm not in rows.recipe.values:
            raise KeyError(f"no {metric} of {net} {arm} on subset {subset}: measure it, or check the names")
    return rows


def arm_mean(
    frame: pd.DataFrame, metric: str, net: str, arm: str, subset: str = WHOLE, geometric: bool = False
) -> Estimate:
    """Mean and interval over training seeds of `seed_values`; `geometric`: of what scatters by factors."""
    mean = geometric_over_seeds if geometric else over_seeds
    return mean(seed_values(frame, metric, net, arm, subset), f"{metric}: {net} {arm}")


def ranges(frame: pd.DataFrame, keys: list[str], value: str) -> str:
    """Least and largest value of each group, as text: "unet strict-1bit **1.43** to **1.48**; ..."."""
    found = frame.groupby(keys, sort=False)[value].agg(["min", "max"])
    return "; ".join(f"{' '.join(map(str, np.atleast_1d(names)))} **{low:.2f}** to **{high:.2f}**"
                     for names, (low, high) in zip(found.index, found.to_numpy(), strict=True))


def cost_table(runs: Iterable[Run]) -> pd.DataFrame:
    """What each training cost: images/s, seconds, memory, parameters, binary share, precision and processor."""
    columns = ["images_per_second", "seconds", "peak_memory_mib", "parameters", "binary_share", "precision",
               "processor"]
    rows = []
    for run in runs:
        facts = results.facts(run)
        rows.append(names(run) | {"steps": run.steps} | {name: facts[name] for name in columns})
    return pd.DataFrame(rows)


def rule_table(tensors: dict[str, torch.Tensor], rules: Iterable[str] = tuple(WEIGHT_RULES)) -> pd.DataFrame:
    """Weight rules, by name or spec, on every tensor: bits per weight, error |w - q|^2 / |w|^2, cosine of w and q."""
    rows = []
    for name, w in tensors.items():
        for label in rules:
            rule = weight_rule(label, w)
            q = rule(w).detach()
            rows.append({
                "tensor": name, "rule": label, "bits_per_weight": rule.weight_bits + rule.scale_bits / w.numel(),
                "relative_error": ((w - q).square().sum() / w.square().sum()).item(),
                "cosine": torch.cosine_similarity(w.flatten(), q.flatten(), dim=0).item(),
            })
    return pd.DataFrame(rows)


def latent_weights(run: Run) -> dict[str, torch.Tensor]:
    """The trained weights, latent where quantized, of the layers that `strict-1bit` would binarize.

    Shapes    output channels first, also for transposed convolutions.
    """
    model = results.weights(run)
    strict = results.new_model(Run(net=run.net, width=run.width, recipe="strict-1bit"))
    names = recipes.quantized_layers(strict)
    return {
        name: (w.transpose(0, 1) if isinstance(layer, torch.nn.ConvTranspose2d) else w).detach().cpu().contiguous()
        for name, layer in recipes.weight_layers(model).items() if name in names for w in [layer.weight]
    }


def names(run: Run) -> dict:
    """What tells a run apart in a table: net, recipe, protocol, subset, seed."""
    subset = run.dataset.removeprefix(data.parse(run.dataset).base).removeprefix(":")
    protocol = "modern" if run.ema else "published"
    return {"net": run.net, "recipe": run.recipe, "protocol": protocol, "subset": subset or WHOLE, "seed": run.seed}
