"""The grid of notebook 07 as data frames: one row per training, or one per label with its spread over seeds.

Metrics are of samples drawn with batch-norm statistics estimated anew; `renormed` sets the others beside them.  The
sampler is DDIM, without noise on its way; with it for `frechet_noised` alone.

Most rows have few seeds, so intervals take the spread over seeds from all rows together (`metrics.common_spread`): rows
are compared in logarithms, paired by seed, with the standard deviation that every row of more than one seed tells of.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from ..diffusion import TIMESTEPS
from ..metrics import Estimate, Spread, common_spread, equal_spreads, over_seeds, spread_power
from . import ablations, results
from .run import Run
from .sources import Samples
from .study import Study

METRICS = {  # column -> (family, name there)
    "frechet": ("headline", "frechet"),
    "confidence": ("headline", "judge_confidence"),
    "precision": ("manifold", "precision"),
    "recall": ("manifold", "recall"),
    "kid": ("divergence", "kid"),
    "inception_score": ("divergence", "inception_score"),
    "held_out_loss": ("denoising", "held_out_loss"),
}
NOISED = {"frechet_noised": ("headline", "frechet")}  # of samples with fresh noise at every step, `Study.stochastic`
PANEL = {"panel_agreement": ("legibility", "panel_agreement")}
ADDED = ("penalty", "distillation")  # columns of a log: terms of the objective beside the noise loss
FINAL_SHARE = 0.1  # of the steps, over which a final loss is averaged
TRANSITION = 0.5  # of the steps, after which EBB goes over from two bases to one


def trainings(study: Study, table: str | None = None) -> pd.DataFrame:
    """One row per training: label, seed, every metric, final loss, bits per weight, binary share.

    `table` limits it to the rows of one table.
    """
    chosen = ablations.trained(study) if table is None else ablations.of_table(study, table)
    return pd.DataFrame([_training(study, row, run) for row, run in chosen])


def legibility(study: Study) -> pd.DataFrame:
    """Agreement of the panel of judges on the samples of the headline rows: label, seed, panel_agreement."""
    return pd.DataFrame([{"label": row.label, "seed": run.seed, **_values(study, study.reestimated(run), PANEL)}
                         for row, run in ablations.trained(study) if row.first <= ablations.HEADLINE])


def _training(study: Study, row: ablations.Ablation, run: Run) -> dict:
    return {"label": row.label, "seed": run.seed, **_values(study, study.reestimated(run), METRICS),
            **_values(study, study.stochastic(run), NOISED), **final_terms(run),
            "recipe": run.recipe, "distill": run.distill}


def _values(study: Study, source: Samples, columns: dict[str, tuple[str, str]]) -> dict[str, float]:
    return {column: study.evaluate(family, source).estimates[name].value for column, (family, name) in columns.items()}


def final_terms(run: Run) -> dict[str, float]:
    """Mean over the last tenth of training of the noise loss, and of what was added to it; and `loss_before`, the noise
    loss over the tenth before the step at which EBB goes over to one basis (NaN if none was logged there)."""
    log = results.loss_log(run)
    last = log[log.step > (1 - FINAL_SHARE) * run.steps]
    before = log[log.step.between((TRANSITION - FINAL_SHARE) * run.steps, TRANSITION * run.steps)]
    return {"loss": noise_loss(last).mean(), "loss_before": noise_loss(before).mean(),
            **{name: last[name].mean() for name in ADDED if name in last}}


def noise_loss(log: pd.DataFrame) -> pd.Series:
    """The logged loss less what was added to it.  (The log's `noise_loss` is of one batch, its `loss` of twenty.)"""
    return log.loss - sum(log[name].fillna(0) for name in ADDED if name in log)


def table(study: Study, name: str) -> pd.DataFrame:
    """One row per label of a table: seeds, mean of every metric (of Fréchet distances the geometric one, with its
    interval from the spread of all rows of the grid), and the published distances."""
    spread = common_spread(_witnesses(_by_seed(trainings(study), "frechet")), paired=False)
    published = {row.label: row.published for row in ablations.grid()}
    rows = []
    for label, group in trainings(study, name).groupby("label", sort=False):
        n = len(group)
        frechet = spread.interval(np.log(group.frechet).mean(), 1 / n, n, f"frechet: {label}")
        rows.append({"label": label, "seeds": n, "frechet": frechet.value, "frechet_low": frechet.low,
                     "frechet_high": frechet.high,
                     "published_cifar10": published[label].get("cifar10", np.nan),
                     "published_bedrooms": published[label].get("bedrooms", np.nan),
                     **{c: group[c].mean() for c in [*METRICS, "loss"] if c != "frechet"},
                     **{c: np.exp(np.log(group[c]).mean()) for c in NOISED}})
    return pd.DataFrame(rows)


def spread(frame: pd.DataFrame, metric: str) -> tuple[Spread, float]:
    """What another seed does to a metric, in logarithms, over all rows of a frame, less what it does to all of them
    alike; and Bartlett's p value of the hypothesis that this is as large in each row."""
    values = _witnesses(_by_seed(frame, metric))
    return common_spread(values), equal_spreads(values)


def power(frame: pd.DataFrame, metric: str) -> float:
    """How often that p value would be 0.05 or less if a quarter of the rows scattered three times as much."""
    return spread_power(_witnesses(_by_seed(frame, metric)))


def rulers(frame: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """How well each metric tells the rows of a frame apart, one row per metric.

    Columns    seed    one standard deviation between seeds, as a factor (`spread`)
               row     one between rows, as a factor: the variance of their mean logarithms, less what seeds add to it
               times   log row / log seed: how much louder rows are than seeds
               order   Spearman's correlation, over rows, with the Fréchet distance
    Source     variance components by the method of moments; Cochran & Cox 1957, chapter 4
    """
    found, distance = [], np.log(_by_seed(frame, "frechet")).mean()
    for metric in metrics:
        values = _by_seed(frame, metric)
        means, scatter = np.log(values).mean(), common_spread(_witnesses(values))
        added = scatter.sd**2 * (1 / values.count()).mean()
        between = np.sqrt(max(means.var() - added, 0))
        found.append({"metric": metric, "rows": len(means), "seed": np.exp(scatter.sd), "row": np.exp(between),
                      "times": between / scatter.sd, "order": means.corr(distance, method="spearman")})
    return pd.DataFrame(found)


def compare(frame: pd.DataFrame, metric: str, label: str, control: str) -> Estimate:
    """One label over another, paired by the seeds both have: the geometric mean of the ratio, and its interval from the
    spread of all rows of the frame.

    Raises    KeyError for a label that is not in the frame, ValueError for two labels without a seed in common.
    """
    return _ratio(_by_seed(frame, metric), label, control, f"{metric}: {label} over {control}, paired by seed")


def gains(frame: pd.DataFrame, metric: str, pairs: dict[str, str]) -> pd.DataFrame:
    """One row per pair of labels that the frame has, of a row and what it is set against: the ratio of the metric as
    `compare` has it, with its interval, and every seed's.

    `q` is the false discovery rate (Benjamini & Hochberg 1995): if every row of this q or less is called a finding,
    that share of them is expected to be none.
    """
    values, rows = _by_seed(frame, metric), []
    scatter = common_spread(_witnesses(values))
    for label, base in ((label, base) for label, base in pairs.items() if {label, base} <= set(values)):
        ratio, by_seed = compare(frame, metric, label, base), (values[label] / values[base]).dropna()
        rows.append({"row": label, "against": base, "seeds": ratio.n, "ratio": ratio.value, "low": ratio.low,
                     "high": ratio.high, "q": scatter.p_value(np.log(ratio.value), 2 / ratio.n),
                     **{f"ratio_seed{seed}": r for seed, r in by_seed.items()}})
    found = pd.DataFrame(rows)
    if rows and scatter.degrees:
        found["q"] = false_discovery_control(found.q)
    return found


def worst(frame: pd.DataFrame, metric: str, labels: Sequence[str], control: str) -> Estimate:
    """The highest ratio of several labels over one, as `compare`; its interval is widened for having been picked."""
    values = _by_seed(frame, metric)
    found = [_ratio(values, label, control, f"{metric}: worst of {', '.join(labels)} over {control}, paired by seed",
                    len(labels)) for label in labels]
    return max(found, key=lambda e: e.value)


def over_best(frame: pd.DataFrame, metric: str, label: str, controls: Sequence[str]) -> Estimate:
    """The ratio of a label over the lowest of several others, as `compare`; its interval is widened for the choice."""
    values = _by_seed(frame, metric)
    found = [_ratio(values, label, control, f"{metric}: {label} over the best of {', '.join(controls)}, paired by seed",
                    len(controls)) for control in controls]
    return max(found, key=lambda e: e.value)


def _by_seed(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    return frame.pivot(index="seed", columns="label", values=metric)


def _witnesses(values: pd.DataFrame) -> pd.DataFrame:
    """The rows that tell of the spread: without those that are another one under a second name."""
    return values[[label for label in values if ablations.TWINS.get(label) not in values]]


def _ratio(values: pd.DataFrame, label: str, control: str, text: str, comparisons: int = 1) -> Estimate:
    logs = np.log(values[label] / values[control]).dropna()
    if not len(logs):
        raise ValueError(f"{label!r} and {control!r} have no seed in common")
    return common_spread(_witnesses(values)).interval(logs.mean(), 2 / len(logs), len(logs), text, comparisons)


def seeds_of(study: Study, labels: Iterable[str]) -> list[Run]:
    """The trainings that a comparison of labels rests on: those of the seeds that all of them have."""
    wanted = set(labels)
    chosen = [(row.label, run) for row, run in ablations.trained(study) if row.label in wanted]
    shared = set.intersection(*({run.seed for label, run in chosen if label == one} for one in wanted))
    return [run for _, run in chosen if run.seed in shared]


def lowest(frame: pd.DataFrame, metric: str, settings: dict[str, float]) -> Estimate:
    """The setting whose label has the lowest metric, at every seed that has them all, then over seeds.

    `settings` maps a label to the number that was varied.  Raises KeyError for a label that is not in the frame.
    """
    values = _by_seed(frame, metric)[list(settings)].dropna()
    found = [settings[label] for label in values.idxmin(axis=1)]
    return over_seeds(found, f"setting with the lowest {metric} of {sorted(settings.values())}")


def samplers(study: Study) -> pd.DataFrame:
    """Fréchet distance of some rows by sampler, one row per training: label, seed, sampler, frechet."""
    return pd.DataFrame([
        {"label": row.label, "seed": source.run.seed, "sampler": sampler,
         "frechet": study.evaluate("headline", source).estimates["frechet"].value}
        for row, sampler, source in ablations.by_sampler(study)])


def strides(study: Study) -> pd.DataFrame:
    """Fréchet distance of some rows by number of sampler steps, one row per set of samples: label, seed, steps, stride
    (timesteps between two steps), frechet with its interval over images (low, high)."""
    rows = []
    for row, steps, source in ablations.by_stride(study):
        found = study.evaluate("headline", source).estimates["frechet"]
        rows.append({"label": row.label, "seed": source.run.seed, "steps": steps, "stride": TIMESTEPS // steps,
                     "frechet": found.value, "low": found.low, "high": found.high})
    return pd.DataFrame(rows)


def handovers(study: Study) -> pd.DataFrame:
    """Fréchet distance of what networks finish from noised images, one row per network, sampler and timestep at which
    they take over: label, seed, sampler, timestep, frechet with its interval over images (low, high)."""
    rows = []
    for (label, seed, sampler), source in ablations.finishing(study).items():
        estimates = study.evaluate("handover", source).estimates
        rows += [{"label": label, "seed": seed, "sampler": sampler, "timestep": int(name.rpartition("_")[2]),
                  "frechet": e.value, "low": e.low, "high": e.high} for name, e in estimates.items()]
    return pd.DataFrame(rows)


def wins(frame: pd.DataFrame, label: str, control: str) -> Estimate:
    """Share of samplers by which a label has a lower distance than a control, at every seed, then over seeds."""
    values = frame.pivot(index=["seed", "sampler"], columns="label", values="frechet").dropna()
    shares = (values[label] < values[control]).groupby("seed").mean()
    return over_seeds(shares.tolist(), f"share of samplers by which {label} is ahead of {control}")


def renormed(study: Study) -> pd.DataFrame:
    """Fréchet distance with the batch-norm statistics that training ended with, and with better ones, one row per
    training: label, seed, trained, reestimated, ratio."""
    rows = []
    for label, run in ablations.renormed(study):
        trained, anew = (study.evaluate("headline", source).estimates["frechet"].value
                         for source in ablations.both(study, run))
        rows.append({"label": label, "seed": run.seed, "trained": trained, "reestimated": anew,
                     "ratio": anew / trained})
    return pd.DataFrame(rows)


def curves(study: Study, labels: Iterable[str]) -> pd.DataFrame:
    """The logged losses of some labels, at every seed: label, seed, step, noise (the noise loss), loss, its parts."""
    wanted = set(labels)
    logs = [results.loss_log(run).assign(label=row.label, seed=run.seed, noise=noise_loss)
            for row, run in ablations.trained(study) if row.label in wanted]
    return pd.concat(logs, ignore_index=True)
