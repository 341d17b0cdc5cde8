"""Results of many runs as tidy data frames, one row per run (and step), ready for seaborn and for `Report.table`."""

from collections.abc import Iterable

import pandas as pd
import torch

from .. import recipes
from ..quantizers import WEIGHT_RULES, weight_rule
from . import results
from .profiles import Study
from .run import Run


def loss_table(runs: Iterable[Run]) -> pd.DataFrame:
    """Every logged row of every run: net, recipe, subset, seed, lr, and step, loss, sign_flips."""
    return pd.concat([results.loss_log(run).assign(**_names(run)) for run in runs], ignore_index=True)


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
    _, controls = study.reference()
    rows = []
    for run in study.ten_class:
        for average in (False, True) if run.ema and run == run.trained else (False,):
            measured = study.metrics(run, average)
            rows.append(_names(run) | {"weights": "averaged" if average else "last"} | measured
                        | {"frechet_over_floor": measured["frechet"] / controls["frechet_floor"]})
    return pd.DataFrame(rows)


def cost_table(runs: Iterable[Run]) -> pd.DataFrame:
    """What each training cost: images/s, seconds, memory, parameters, binary share, precision and processor."""
    columns = ["images_per_second", "seconds", "peak_memory_mib", "parameters", "binary_share", "precision",
               "processor"]
    rows = []
    for run in runs:
        facts = results.facts(run)
        rows.append(_names(run) | {"steps": run.steps} | {name: facts[name] for name in columns})
    return pd.DataFrame(rows)


def rule_table(tensors: dict[str, torch.Tensor]) -> pd.DataFrame:
    """Every weight rule on every tensor: bits per weight, error |w - q|^2 / |w|^2, cosine of w and q."""
    rows = []
    for name, w in tensors.items():
        for label in WEIGHT_RULES:
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


def _names(run: Run) -> dict:
    _, _, subset = run.dataset.partition(":")
    protocol = "modern" if run.ema else "published"
    return {"net": run.net, "recipe": run.recipe, "protocol": protocol, "subset": subset or "all", "seed": run.seed}
