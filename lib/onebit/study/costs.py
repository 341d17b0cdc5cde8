"""How much work a result is, counted in units that are proportional to time, read from what its key is a hash of.

Seconds per unit are in `speeds`.  A training's or a sampling's unit is a floating-point operation of the float
network; how much longer a quantized step takes is the ratio to the float step in `figures/bench.csv`, where the two
took turns in one process.  The times in released manifests would be the less sound source of it: they were recorded on
several machines, under different loads, in two precisions.
"""

import csv
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from .. import data, nets, paths, recipes
from ..bench_quantized import STEPS
from .cache import Entry
from .graph import OF_THE_NETWORK, run_of
from .run import Run

Group = tuple  # what shares seconds per unit: a kind, and what tells its members apart, the less important the later

PASSES = 3  # a training step costs three forward passes: forward, gradient by input, gradient by weight
PACK, BASES, LEVELS, BITS, BIDM = STEPS  # the rows of bench.csv
SEARCHING = ("neighbours", "memorization", "legibility")  # families that compare every image with every training image
LOSSES = 2 * 10 * 1_000  # forward passes of "overfitting": both sets, ten timesteps, images
HANDED_OVER = 3.1 * 500  # of "handover", per step: six shares of the steps, images
DENOISED = 10 * 500  # of "denoising": ten timesteps, images
MIMICS, TRACED = 2 * 256, 32  # of "mimicry"; images of "activity", at every step


def work(entry: Entry) -> tuple[Group, float]:
    """Which group a result belongs to, and its units; one for a kind that nobody has thought of here."""
    return WORK[entry.kind](entry.spec) if entry.kind in WORK else ((entry.kind,), 1.0)


def weight_bytes(spec: dict) -> int:
    """Of a training's result: its weights in float32, and their average if it keeps one."""
    return 4 * parameters(spec["net"], spec["width"]) * (2 if spec["ema"] else 1)


def stored(entry: Entry) -> float:
    """What the bytes of any other result are proportional to, within its kind."""
    return entry.spec["samples"]["n"] * _pixels(entry.spec["run"]["dataset"]) if entry.kind == "samples" else 1.0


def over_float(run: Run, training: bool = True) -> float:
    """How many times as long as the float network's a step takes.

    A teacher adds its forward pass where the row of bench.csv has none: a third of the float step.
    """
    row = _bench_row(run, training)
    ratio = 1.0 if row is None else _bench_ratios(paths.FIGURES / "bench.csv").get(row, 1.0)
    teacher = training and run.distill != "none" and row != BIDM
    return ratio + teacher / PASSES


@lru_cache(maxsize=64)
def flops(net: str, width: int, shape: tuple[int, int, int]) -> int:
    """Of one image's forward pass through the float network: two for each multiply-accumulate of its layers."""
    counts = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sites = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        counts.append(2 * sites.numel() * layer.weight[0].numel())

    model = _float_net(net, width)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, *shape), torch.zeros(1, dtype=torch.long))
    return sum(counts)


@lru_cache(maxsize=64)
def parameters(net: str, width: int) -> int:
    """Of the float network."""
    return sum(p.numel() for p in _float_net(net, width).parameters())


def _float_net(net: str, width: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # nobody's random stream moves on because of an estimate
        return nets.build(net, width).eval()


def _bench_row(run: Run, training: bool) -> str | None:
    """The row of bench.csv whose step is most like this run's; None: the float step."""
    recipe = recipes.recipe(run.trained.recipe if training else run.recipe)
    if recipe.weights == "none":
        return None
    if training and (run.distill.startswith("spd") or recipe.connections != "none"):
        return BIDM
    if recipe.activations == "none":
        return BASES if {"ebb", "residual"} & {rule.partition(":")[0] for rule in _weight_rules(recipe)} else PACK
    return LEVELS if recipe.activations.partition(":")[0] in ("lsq", "insta", "tdq", "absmax") else BITS


def _weight_rules(recipe: recipes.Recipe) -> list[str]:
    return [recipe.weights, *(rule for _, rule in recipe.at)]


@lru_cache(maxsize=4)
def _bench_ratios(path: Path) -> dict[str, float]:
    """Times as long as the float step, by row: on processors like this one if they are in the file, else on any."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["name"].startswith("quantized-step")]
    here = "cuda" if torch.cuda.is_available() else f"{torch.backends.cpu.get_cpu_capability()},"
    rows = [row for row in rows if row["machine"].startswith(here)] or rows
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["name"].split(" ", 2)[2], []).append(1 / float(row["ratio"]))
    return {name: median(ratios) for name, ratios in found.items()}


# units by kind -------------------------------------------------------------------------------------------------------


def _pixels(dataset: str) -> int:
    return math.prod(data.image_shape(dataset))


def _forward(run: Run) -> float:
    return flops(run.net, run.width, data.image_shape(run.dataset)) * over_float(run, training=False)


def _training(spec: dict) -> tuple[Group, float]:
    run = run_of(spec)
    step = PASSES * flops(run.net, run.width, data.image_shape(run.dataset)) * over_float(run)
    return ("train", run.net, run.width), run.steps * run.batch * step


def _sampling(spec: dict) -> tuple[Group, float]:
    run, request = run_of(spec["run"]), spec["samples"]
    return ("samples", run.net, run.width), request["n"] * request["steps"] * _forward(run)


def _judging(spec: dict) -> tuple[Group, float]:
    images = spec["images"] or data.train_size(spec["dataset"])
    return ("judge",), images * spec["epochs"] * _pixels(spec["dataset"])


def _fitting(kind: str) -> Callable[[dict], tuple[Group, float]]:
    return lambda spec: ((kind,), data.train_size(spec["dataset"]) * _pixels(spec["dataset"]))


def _timing(spec: dict) -> tuple[Group, float]:
    return ("timing", spec["kind_of_table"]), spec["effort"]["seconds"]


def _evaluation(spec: dict) -> tuple[Group, float]:
    family, source, protocol = spec["family"], spec["source"], spec["protocol"]
    if family in OF_THE_NETWORK:
        return _network_family(family, source)
    n = source["samples"]["n"] if "run" in source else source["control"]["n"]
    compared = protocol.get("against") or protocol["judge"]["dataset"]
    if family in SEARCHING:
        return ("evaluation", "pairs", family), n * data.train_size(compared) * _pixels(compared)
    if family == "manifold":
        return ("evaluation", "pairs of samples", family), n * n
    return ("evaluation", "images", family), (n + protocol["reference"]) * _pixels(compared)


def _network_family(family: str, source: dict) -> tuple[Group, float]:
    run = run_of(source["run"])
    if family in ("walking", "crossing", "calibrator"):
        frames = source["frames"] if source["path"] == "latent" else 2
        images = source["pairs"] * frames
        return ("evaluation", "passes", family, source["path"]), images * source["steps"] * _forward(run)
    passes = {"overfitting": LOSSES, "denoising": DENOISED, "mimicry": MIMICS,
              "handover": HANDED_OVER * source["samples"]["steps"],
              "activity": TRACED * source["samples"]["steps"]}[family]
    return ("evaluation", "passes", family), passes * _forward(run)


WORK: dict[str, Callable[[dict], tuple[Group, float]]] = {
    "train": _training, "samples": _sampling, "evaluation": _evaluation, "judge": _judging, "timing": _timing,
    "calibration": _fitting("calibration"), "logistic": _fitting("logistic"),
    "pictures": lambda spec: (("pictures",), 1.0),
}
