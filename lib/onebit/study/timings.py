"""What low bits cost and save on a machine, measured: convolutions, whole networks, training steps; keyed tables."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock
from torch import Tensor, nn

from .. import paths
from ..files import replacing
from . import ablations, cache
from .cache import Entry
from .run import Run

if TYPE_CHECKING:
    import pandas as pd

    from .study import Study

VERSION = 1  # +1 whenever the same request would time other things


@dataclass(frozen=True)
class Effort:
    """How much is timed, and how long.

    shapes     (channels, side) of the 3 x 3 convolutions;  batches: images at once, of convolutions and networks
    seconds    per group of things that take turns
    """

    shapes: tuple[tuple[int, int], ...] = ((64, 28), (128, 28), (128, 14), (256, 14), (256, 7))
    batches: tuple[int, ...] = (1, 128)
    seconds: float = 4.0


WORD = 64  # channels in one word
IMAGES = 128  # drawn from start to end
STEPS = ("W2A32 LSQ", "W1A4 +EBB +LRM", "W1A1 XNOR +SPD", "W1A1 BiDM")  # training steps timed besides the headline's
SMALL = Effort(((16, 7),), (1, 4), 0.05)


def effort(study: "Study") -> Effort:
    """The profile's: `smoke` shows that every line runs; the small embedded set gets its tables in minutes."""
    if study.profile.name == "smoke":
        return SMALL
    return Effort(seconds=0.5) if study.dataset == "digits" else Effort()


def measured_runs(study: "Study") -> dict[str, Run]:
    """What is set against quality, by label: the first seed of every ten-class arm, and of every headline row."""
    first = study.profile.unet_seeds[0]
    arms = {f"{run.net} {run.recipe}": run for run in reversed(study.ten_class) if run.seed == first}  # first protocol
    return arms | {row.label: run for row, run in ablations.trained(study)
                   if run.seed == first and row.first <= ablations.HEADLINE}


def entry(study: "Study", kind: str) -> Entry:
    """Name and key of a table.  The machine is not part of the key: it is provenance, and the notebook prints it."""
    spec = {"kind_of_table": kind, "version": VERSION, "effort": asdict(effort(study))}
    if kind in ("networks", "sampling"):
        spec["runs"] = {label: run.spec for label, run in measured_runs(study).items()}
    if kind == "training":
        spec["steps"] = _steps(study) | {"width": study.profile.unet_width, "batch": study.profile.batch}
    if kind == "wide":
        spec["width"] = _wide_width(study)
    return Entry("timing", f"{kind}-{study.dataset}", spec)


def table(study: "Study", kind: str, wait: bool = True) -> "pd.DataFrame":
    """One of MEASURES as a data frame, measured on this machine unless a result is released or cached.

    convolutions  seconds per call of a 3 x 3 convolution by `kind` of arithmetic, inputs packed within, and packing
                  alone;  networks: files in bytes, seconds per denoising step, peak memory in MiB, by label
    training      seconds per optimiser step, and over the float step's;  peak: words per second, and how many a
                  convolution gets through
    sampling      seconds to draw images from start to end, by label
    wide          seconds per denoising step of an untrained network of width 64, float and packed
    """
    import pandas as pd

    def compute(work: Path) -> dict:
        with FileLock(paths.RUNS / ".partial" / "timing.lock"):  # two at once would time each other
            frame = pd.DataFrame(MEASURES[kind](study))
        with replacing(work / "table.csv") as partial_path:
            frame.to_csv(partial_path, index=False)
        return {"threads": torch.get_num_threads()}

    return pd.read_csv(cache.get(entry(study, kind), compute, wait) / "table.csv")


def machine(study: "Study", kind: str) -> str:
    """Which class of machine a table was measured on: the processor's vector instructions and our threads."""
    table(study, kind)
    found = cache.manifest(cache.find(entry(study, kind)))["provenance"]
    return f"{found['processor']}, {found['threads']} thread{'s' if found['threads'] != 1 else ''}"


def jobs(study: "Study") -> list:
    """Every table."""
    from .study import Job

    return [Job(entry(study, kind), partial(table, study, kind)) for kind in MEASURES]


# convolutions --------------------------------------------------------------------------------------------------------


def _convolutions(study: "Study") -> list[dict]:
    how = effort(study)
    return [row for channels, side in how.shapes for batch in how.batches
            for row in _convolution(channels, side, batch, how.seconds)]


def _convolution(channels: int, side: int, batch: int, seconds: float) -> list[dict]:
    from ..bench import in_turns

    x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    actions = _variants(channels, x)
    with torch.inference_mode():
        rates = in_turns(list(actions.values()), seconds)
    return [{"channels": channels, "side": side, "batch": batch, "kind": kind, "seconds": 1 / rate}
            for kind, rate in zip(actions, rates, strict=True)]


def _variants(channels: int, x: Tensor) -> dict[str, Callable[[], object]]:
    """The same convolution in every arithmetic; of the packed ones, what packing takes of it."""
    from ..bench_kernels import packed_convolution

    conv = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)
    half, wide = nn.Conv2d(channels, channels, 3, padding=1).to(torch.bfloat16), x.bfloat16()
    half = half.to(memory_format=torch.channels_last)
    sizes, rules = (len(x), channels, x.shape[2]), ("sign", "xnor", "lsq:4", "sign")
    one, xnor, four, second = (packed_convolution(rule, *sizes)[0] for rule in rules)
    return {
        "float32": lambda: conv(x),
        "bfloat16": lambda: half(wide),
        "W1A1": lambda: one(x),
        "W1A1, XNOR map": lambda: xnor(x),
        "W1A4": lambda: four(x),
        "W1A1, two bases": lambda: one(x) + second(x),
        "packing of W1A1": _packing(one, x),
        "packing of W1A4": _packing(four, x),
    }


def _packing(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    """What a packed layer does with its input before the product."""
    from ..kernels.geometry import plan

    image = layer.image(x).contiguous()
    return partial(layer.packer.pack, image, x, plan(layer.sliding, *image.shape[1:3]).margins, None)


# training and peak ---------------------------------------------------------------------------------------------------


def _steps(study: "Study") -> dict[str, tuple[str, str]]:
    """Recipe and distillation of what is timed, trained or not: the grid's headline and STEPS."""
    return {row.label: (row.recipe, row.distill) for row in ablations.grid()
            if row.first <= ablations.HEADLINE or row.label in STEPS}


def _training(study: "Study") -> list[dict]:
    from ..bench import interleaved
    from ..bench_quantized import Size, step_rates

    size = Size(study.profile.unet_width, study.profile.batch, 4 * study.profile.batch)
    rows = []
    for label, (recipe, distill) in _steps(study).items():
        loss = None if distill == "none" else distill
        rate, float_rate = step_rates(interleaved, size, recipe, loss, effort(study).seconds)
        rows.append({"label": label, "recipe": recipe, "distill": distill, "seconds": size.batch / rate,
                     "over_float": float_rate / rate})
    return rows


def _peak(study: "Study") -> list[dict]:
    """Words of 64 bits compared per second: by loops that do nothing else, and by W1A1 convolutions, packing included.

    A convolution's share is of the faster loop."""
    from ..bench import in_turns
    from ..bench_kernels import packed_convolution
    from ..kernels.peak import turns

    how, loops = effort(study), turns()
    rows = []
    for channels, side in how.shapes:
        layer, x = packed_convolution("sign", how.batches[-1], channels, side)
        words = x[:, 0].numel() * channels * 9 * -(-channels // 64)
        with torch.inference_mode():
            rates = in_turns([*(call for call, _ in loops.values()), partial(layer, x)], how.seconds)
        ceiling = {name: rate * count / 1e9 for (name, (_, count)), rate in zip(loops.items(), rates, strict=False)}
        reached = rates[-1] * words / 1e9
        rows.append({"channels": channels, "side": side, "batch": len(x), "convolution_gwords": reached,
                     **{f"{name}_gwords": rate for name, rate in ceiling.items()},
                     "share_of_peak": reached / max(ceiling.values())})
    return rows


def _networks(study: "Study") -> list[dict]:
    from .network_costs import costs

    how = effort(study)
    return [{"label": label} | costs(run, how.batches, how.seconds) for label, run in measured_runs(study).items()]


def _wide(study: "Study") -> list[dict]:
    """An untrained ResUNet whose channels fill a word, W1A1, with and without scale maps."""
    from ..bench import interleaved
    from ..bench_kernels import NETWORKS, network_rates

    how, width = effort(study), _wide_width(study)
    rows = []
    for name, recipe in NETWORKS.items():
        for batch in how.batches:
            packed, plain = network_rates(interleaved, recipe, width, batch, how.seconds)
            rows.append({"network": f"resunet{width} W1A1{name}", "batch": batch, "float_seconds": batch / plain,
                         "packed_seconds": batch / packed, "times_faster": packed / plain})
    return rows


def _sampling(study: "Study") -> list[dict]:
    from .network_costs import sampling_seconds

    n = 32 * effort(study).batches[0] if study.profile.name == "smoke" else IMAGES
    return [{"label": label, "images": n, "steps": study.profile.sample_steps,
             **{f"{form}_seconds": s for form, s in sampling_seconds(run, n, study.profile.sample_steps).items()}}
            for label, run in measured_runs(study).items()]


def _wide_width(study: "Study") -> int:
    return min(WORD, 4 * study.profile.resunet_width)


MEASURES = {"convolutions": _convolutions, "networks": _networks, "training": _training, "peak": _peak, "wide": _wide,
            "sampling": _sampling}
