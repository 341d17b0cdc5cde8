"""How fast this machine is: pairs that take turns within one run, kept as ratios in figures/bench.csv."""

import argparse
import csv
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from . import (
    bench_distill,
    bench_evaluation,
    bench_kernels,
    bench_packing,
    bench_quantized,
    bench_side,
    data,
    nets,
    paths,
)
from .baseline import reference_step
from .batches import Batches
from .files import replacing
from .precision import resolve_precision
from .recipes import quantize
from .train import Settings, device, optimize

COLUMNS = ("name", "ours", "baseline", "ratio", "unit", "machine")
IMAGE = data.image_shape("mnist")
RECIPES = ("fp16", "strict-1bit")  # whose training steps are timed
ROUNDS = 5  # turns of either side
IMPORTS = 5  # fresh processes
IMPORT_BUDGET = 3.0  # seconds to `import onebit`
PAPER_BUDGET = 5.0  # seconds for a `make paper` that has nothing to do
PASSES = 3  # a training step costs three forward passes: forward, gradient by input, gradient by weight

Action = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """How large the measured things are; tests shrink them.

    width, batch     of the network; images per step
    images, matrix   synthetic training images; rows of the square matrices
    """

    width: int = 64
    batch: int = 128
    images: int = 60_000
    matrix: int = 2048

    def net(self, recipe: str = "fp16") -> nn.Module:
        """A new ResUNet, quantized by that recipe."""
        net = nets.build("resunet", self.width)
        quantize(net, recipe)
        return net

    def pictures(self) -> Tensor:
        """Random uint8 images of MNIST's shape: no speed depends on what they show."""
        return torch.randint(0, 256, (self.images, *IMAGE), dtype=torch.uint8)


@dataclass(frozen=True)
class Row:
    """One line of the table; a NaN baseline means that nothing is asked of the number.

    Units     ours and baseline in `unit`.  ratio above 1 is better than the baseline: ours / baseline for rates,
              baseline / ours for times and sizes (units "s", "bytes").
    """

    name: str
    ours: float
    baseline: float
    unit: str

    @property
    def ratio(self) -> float:
        return self.baseline / self.ours if self.unit in ("s", "bytes") else self.ours / self.baseline

    def cells(self) -> dict[str, str]:
        """The line as it stands in the file: unrounded, NaN as nothing."""
        numbers = ("" if math.isnan(x) else repr(x) for x in (self.ours, self.baseline, self.ratio))
        return dict(zip(COLUMNS, (self.name, *numbers, self.unit, machine()), strict=True))


@dataclass(frozen=True)
class Bench:
    """A row to be measured.  `measure` takes the seconds it may spend and returns (ours, baseline) in `unit`."""

    name: str
    unit: str
    measure: Callable[[float], tuple[float, float]]

    def row(self, seconds: float) -> Row:
        return Row(self.name, *self.measure(seconds), self.unit)


def benches(size: Size = Size()) -> list[Bench]:
    """Every row, in the table's order."""
    step = f"train-step resunet{size.width}"
    share = f"{step} share of {resolve_precision('auto')} matrix rate"
    return [
        *(Bench(f"{step} {recipe}", "images/s", partial(train_rates, size, recipe)) for recipe in RECIPES),
        Bench(share, "TFLOP/s", partial(matrix_rates, size)),
        Bench("data-path batches", "images/s", partial(data_rates, size)),
        *evaluation_benches(),
        *(Bench(*row) for part in (bench_quantized, bench_distill, bench_packing, bench_kernels)
          for row in part.rows(interleaved)),
        *(Bench(*row) for row in bench_side.rows()),
        Bench("import onebit", "s", lambda _: (import_seconds("onebit"), IMPORT_BUDGET)),
        Bench("import study", "s", lambda _: (import_seconds("onebit.study"), math.nan)),
        Bench("cached make paper", "s", lambda _: (paper_seconds(), PAPER_BUDGET)),
    ]


def evaluation_benches() -> list[Bench]:
    """The rows of nearest neighbours, Fréchet distance and sampling."""
    size = bench_evaluation.Size()
    found = f"nn {size.queries} x {size.references}"
    search = partial(bench_evaluation.neighbour_rates, interleaved, size)
    sampled = f"sampling unet{size.width} ddim {size.steps}"
    return [
        Bench(f"{found} against scikit-learn", "images/s", partial(search, bench_evaluation.brute_force)),
        Bench(f"{found} against faiss", "images/s", partial(search, bench_evaluation.flat_index)),
        Bench(f"frechet {size.features}", "1/s", partial(bench_evaluation.frechet_rates, interleaved, size)),
        *(Bench(sampled + rounded, "images/s", partial(bench_evaluation.sampling_rates, precision, interleaved, size))
          for precision, rounded in (("float32", ""), ("bfloat16", " in bfloat16"))),
    ]


def machine() -> str:
    """The class of hardware, never the name of a host: the GPU, else the CPU's vector instructions and our threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def in_turns(actions: Sequence[Action], seconds: float) -> list[float]:
    """Calls per second of actions that take turns: medians over the rounds, after one call each to warm up.

    What else the machine does meets all alike, and the order flips every round, so that none always comes first.

    Units     `seconds` for all turns together; a turn is at least one call, so slow actions take longer.
    """
    rates = [[] for _ in actions]
    for action in actions:
        action()
    sides = range(len(actions))
    for i in range(ROUNDS):
        for side in sides if i % 2 == 0 else reversed(sides):
            rates[side].append(_calls_per_second(actions[side], seconds / (len(actions) * ROUNDS)))
    return [median(found) for found in rates]


def interleaved(ours: Action, baseline: Action, seconds: float) -> tuple[float, float]:
    """Calls per second of two actions, as `in_turns`."""
    rates = in_turns((ours, baseline), seconds)
    return rates[0], rates[1]


def _calls_per_second(action: Action, seconds: float) -> float:
    _synchronise()
    began, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - began < seconds:
        action()
        calls += 1
    _synchronise()  # CUDA works behind the caller's back; its time counts too
    return calls / (time.perf_counter() - began)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def train_rates(size: Size, recipe: str, seconds: float) -> tuple[float, float]:
    """Images per second of our training step, and of the reference step.

    The reference trains the float network whatever the recipe, in float32 whatever the machine: against it a 1-bit
    row shows what binarizing costs net of everything else we do, and a bfloat16 machine's rows include that gain.
    """
    images = size.pictures()
    ours = our_step(size.net(recipe), images, Settings(steps=1, batch=size.batch))
    steps = interleaved(ours, reference_step(size.net(), images, size.batch), seconds)
    return steps[0] * size.batch, steps[1] * size.batch


def matrix_rates(size: Size, seconds: float) -> tuple[float, float]:
    """TFLOP/s of our float training step, and of a square matrix product in the precision that the step uses."""
    step = our_step(size.net(), size.pictures(), Settings(steps=1, batch=size.batch))
    steps, products = interleaved(step, _product(size.matrix, getattr(torch, resolve_precision("auto"))), seconds)
    flops = PASSES * 2 * macs(size.width) * size.batch  # a multiply and an add per MAC
    return steps * flops / 1e12, products * 2 * size.matrix**3 / 1e12


def data_rates(size: Size, seconds: float) -> tuple[float, float]:
    """Images per second that `Batches` can deliver, and that our float training step consumes."""
    images, settings = size.pictures(), Settings(steps=1, batch=size.batch)
    batches, steps = Batches(images.to(device()), settings), count()
    draws, trained = interleaved(lambda: batches(next(steps)), our_step(size.net(), images, settings), seconds)
    return draws * size.batch, trained * size.batch


def our_step(net: nn.Module, images: Tensor, settings: Settings) -> Action:
    """One step of `train.train` under the published protocol (no averaging), without log and checkpoints.

    A test holds its weights equal to those of `train.train`.
    """
    place, precision = device(), resolve_precision(settings.precision)
    net.to(place, memory_format=torch.channels_last).train()
    batches, steps = Batches(images.to(place), settings), count()
    optimizer = torch.optim.Adam(net.parameters(), settings.lr, fused=True)

    return lambda: optimize(net, optimizer, batches(next(steps)), settings.lr, precision)


def _product(side: int, dtype: torch.dtype) -> Action:
    a, b = torch.randn(2, side, side, device=device()).to(dtype)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def macs(width: int) -> int:
    """Multiply-accumulates of one image's forward pass through the ResUNet (padding counts; norms and SiLU do not)."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:  # meta: shapes alone, no arithmetic
        nets.build("resunet", width)(torch.empty(1, *IMAGE), torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops() // 2


def import_seconds(module: str) -> float:
    """Median wall time of a fresh Python that imports `module`, its own start included."""
    return median(_seconds([sys.executable, "-c", f"import {module}"]) for _ in range(IMPORTS))


def paper_seconds() -> float:
    """Wall time of the second of two `make paper`; the first may have work to do.

    Raises    FileNotFoundError without notebooks, since an empty paper is no measurement; CalledProcessError if make
              fails.
    """
    if not any((paths.ROOT / "notebooks").glob("[0-9]*.ipynb")):
        raise FileNotFoundError(f"no notebooks in {paths.ROOT / 'notebooks'}")
    command = ["make", "-C", str(paths.ROOT), "paper"]
    _seconds(command)
    return _seconds(command)


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # its stderr stays in sight
    return time.perf_counter() - began


def merge(path: Path, rows: list[Row]) -> None:
    """Put rows into the file at `path`: over their own (name, machine), below all others, which stay as they are."""
    table = {}
    if path.exists():
        with open(path, newline="") as file:
            table = {(cells["name"], cells["machine"]): cells for cells in csv.DictReader(file)}
    table |= {(row.name, machine()): row.cells() for row in rows}
    with replacing(path) as partial_path, open(partial_path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.values())


def record(bench: Bench, seconds: float, path: Path) -> bool:
    """Measure one row and merge it at once, so that an interrupted run keeps what it has; False if it failed.

    A rival that is not installed is no failure: its row is left as it is, and said to be."""
    print(f"measuring {bench.name}", file=sys.stderr, flush=True)
    try:
        row = bench.row(seconds)
    except bench_evaluation.RivalMissing as missing:
        print(f"left as it is: {bench.name} ({missing})", file=sys.stderr, flush=True)
        return True
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        print(f"SKIPPED {bench.name}: {error}", file=sys.stderr, flush=True)
        return False
    merge(path, [row])
    return True


def main(arguments: list[str] | None = None) -> int:
    """Measure the rows asked for and print the whole table.  Returns the number of rows that failed."""
    parser = argparse.ArgumentParser(prog="python -m onebit.bench", description=__doc__)
    parser.add_argument("--only", metavar="PATTERN", default="*", help="rows whose names contain it; * is anything")
    parser.add_argument("--seconds", type=float, default=30.0, help="of turns per row; slow rows take longer")
    options = parser.parse_args(arguments)
    known = benches()
    chosen = [bench for bench in known if fnmatchcase(bench.name, f"*{options.only}*")]
    if not chosen:
        parser.error(f"no row matches {options.only!r}; rows: {', '.join(bench.name for bench in known)}")
    path = paths.FIGURES / "bench.csv"
    failures = sum(not record(bench, options.seconds, path) for bench in chosen)
    if path.exists():
        print(pd.read_csv(path).to_markdown(index=False, floatfmt=".3g"))
    return failures


if __name__ == "__main__":
    sys.exit(main())
