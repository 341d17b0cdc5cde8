"""What packed bits gain: XNOR-popcount layers and networks beside torch's float ones, at the same shapes in one run."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import nan

import torch
from torch import Tensor, nn

from . import data, nets
from .recipes import Recipe, quantize

Interleave = Callable[[Callable, Callable, float], tuple[float, float]]
Measure = Callable[[float], tuple[float, float]]
CONVOLUTIONS = ((64, 28), (128, 28), (128, 14), (256, 7))  # channels in and out, rows and columns
INPUTS = {"w1a1": "sign", "w1a4": "lsq:4"}
STRICT = "weights=xnor activations=sign keep=*time* ends=float"  # all but the first, last and time layers W1A1
NETWORKS = {"": STRICT, " with scale maps": "xnor-w1a1"}
POPCOUNT_SHARE = 0.45  # of the machine's popcount peak, asked of a 3x3 convolution


@dataclass(frozen=True)
class Size:
    """How large the measured things are; tests shrink them.

    convolutions     (channels, rows) of the 3x3 convolutions;  batches: images at once;  width: of the network
    """

    convolutions: tuple[tuple[int, int], ...] = CONVOLUTIONS
    batches: tuple[int, ...] = (128, 1)
    width: int = 64


def rows(interleave: Interleave, size: Size = Size()) -> list[tuple[str, str, Measure]]:
    """(name, unit, measure) of every row.

    conv ...    images per second of a 3x3 convolution, packing of its input included, and of torch's
    net ...     of one denoising step, and of the float network's
    kernels ... words per second that the machine can count by vectors, beside by scalars; that a convolution counts,
                beside 45 % of that peak; seconds to compile the kernels, and to load them from the cache
    """
    shapes = [(batch, c, n) for batch in size.batches for c, n in size.convolutions]
    convolutions = [
        (f"conv {name} {c}x{n}x{n} batch {batch}{'' if dtype is torch.float32 else ' against bfloat16'}", "images/s",
         partial(convolution_rates, interleave, name, (batch, c, n), dtype))
        for name in INPUTS for batch, c, n in shapes for dtype in (torch.float32, torch.bfloat16)
        if dtype is torch.float32 or (name == "w1a1" and batch > 1)
    ]
    networks = [(f"net w1a1 resunet{size.width}{name} batch {batch}", "images/s",
                 partial(network_rates, interleave, recipe, size.width, batch))
                for name, recipe in NETWORKS.items() for batch in size.batches]
    return [
        *convolutions, *networks,
        ("kernels popcount peak", "Gwords/s", partial(peak_rates, interleave)),
        ("kernels conv share of 45 % of the popcount peak", "Gwords/s",
         partial(share_rates, interleave, (max(size.batches), *size.convolutions[-1]))),
        ("kernels compile", "s", lambda _: (first_call_seconds(cached=False), nan)),
        ("kernels cached load", "s", lambda _: (first_call_seconds(cached=True), nan)),
    ]


def convolution_rates(
    interleave: Interleave, name: str, shape: tuple[int, int, int], dtype: torch.dtype, seconds: float
) -> tuple[float, float]:
    """Images per second of the packed convolution of shape (batch, channels, rows), and of torch's in that type."""
    ours, x = packed_convolution(INPUTS[name], *shape)
    rival = nn.Conv2d(shape[1], shape[1], 3, padding=1).to(dtype=dtype, memory_format=torch.channels_last)
    rates = interleave(_inferring(ours, x), _inferring(rival, x.to(dtype)), seconds)
    return rates[0] * shape[0], rates[1] * shape[0]


def packed_convolution(activations: str, batch: int, channels: int, rows: int) -> tuple[nn.Module, Tensor]:
    """A packed 3x3 convolution, and an input for it."""
    from .kernels import packed

    model = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1))
    quantize(model, Recipe(weights="xnor", activations=activations))
    x = torch.randn(batch, channels, rows, rows).to(memory_format=torch.channels_last)
    model(x[:1])  # a step size comes from the first batch
    return packed(model.eval()[0]), x


def network_rates(interleave: Interleave, recipe: str, width: int, batch: int, seconds: float) -> tuple[float, float]:
    """Images per second of one denoising step of the packed ResUNet, and of the float one."""
    from .kernels import to_packed

    quantized, rival = nets.build("resunet", width), nets.build("resunet", width)
    quantize(quantized, recipe)
    rival.eval().to(memory_format=torch.channels_last)
    x = torch.randn(batch, *data.image_shape("mnist")).to(memory_format=torch.channels_last)
    timestep = torch.full((batch,), 500)
    rates = interleave(_inferring(to_packed(quantized), x, timestep), _inferring(rival, x, timestep), seconds)
    return rates[0] * batch, rates[1] * batch


def _inferring(model: nn.Module, *arguments: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return model(*arguments)
    return call


def peak_rates(interleave: Interleave, seconds: float) -> tuple[float, float]:
    """Billions of 64-bit words whose bits all our threads can compare and count per second: by vectors, by scalars."""
    from .kernels.peak import turns

    (vectors, more), (scalars, fewer) = (turns()[by] for by in ("vectors", "scalars"))
    rates = interleave(vectors, scalars, seconds)
    return rates[0] * more / 1e9, rates[1] * fewer / 1e9


def share_rates(interleave: Interleave, shape: tuple[int, int, int], seconds: float) -> tuple[float, float]:
    """Billions of words that the packed convolution compares per second, packing included, and 45 % of the peak."""
    from .kernels.peak import turns

    ours, x = packed_convolution("sign", *shape)
    batch, channels, n = shape
    compared = batch * n * n * channels * 9 * -(-channels // 64)
    turn, words = turns()["vectors"]
    rates = interleave(_inferring(ours, x), turn, seconds)
    return rates[0] * compared / 1e9, POPCOUNT_SHARE * rates[1] * words / 1e9


FIRST_CALL = """
import time, torch
from onebit.bench_kernels import packed_convolution
layers = [packed_convolution(activations, 1, 64, 4) for activations in ("sign", "lsq:4")]
began = time.perf_counter()
for layer, x in layers:
    layer(x)
print(time.perf_counter() - began)
"""


def first_call_seconds(cached: bool) -> float:
    """Seconds that a fresh process takes for its first packed layers, sign and 4 bits, beyond importing numba: to
    compile the kernels into an empty cache, or to load them from one that such a process has filled."""
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2 if cached else 1):
            ran = subprocess.run([sys.executable, "-c", FIRST_CALL], check=True, text=True, stdout=subprocess.PIPE,
                                 env=os.environ | {"NUMBA_CACHE_DIR": cache})
    return float(ran.stdout)
