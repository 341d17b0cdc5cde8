"""The demo as one piece of HTML: page, engine, kernels and networks, with nothing left to fetch."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from torch import nn

from .. import sampling
from ..diffusion import TIMESTEPS
from ..layers import quantized_layers
from ..nets import UNet
from ..packing import Packed, save_packed

if TYPE_CHECKING:
    from IPython.display import HTML

HERE = Path(__file__).parent
ENGINE = ("noise.js", "file.js", "frames.js", "layers.js", "network.js", "sampler.js")  # in the order of their needs
MODULE = HERE / "kernels.wasm"
STEPS = tuple(n for n in range(5, 51) if TIMESTEPS % n == 0)  # the numbers of steps that DDIM takes here
SEED = 0  # of the noise: a visitor's number k is image k of the study's samples
SMALLEST = 16  # pixels: the kernels take four pixels at a time, and the lowest level has a quarter of them
KINDS = {  # recipe's activations and whether weights are binary -> what the arithmetic is
    ("none", False): "float arithmetic",
    ("none", True): "float arithmetic: smaller, not faster",
    ("xnor", True): "XNOR and popcount",
}
FIGURE = Template("""<figure data-name="$name"><canvas width="$side" height="$side" role="img"></canvas>
<figcaption><b>$name</b><span>$size</span><span>$kind</span><span class="speed"></span></figcaption></figure>""")


def page(networks: Mapping[str, nn.Module], shape: tuple[int, int, int]) -> "HTML":
    """A page on which the networks draw, in the reader's browser and from the same noise, an image of that shape.

    Each network travels as its packed file (`save_packed`), and computes with the weights that file holds: half
    precision where they are not 1 bit.  Noise number k is that of image k in `sampling.sample(..., seed=0)`, the steps
    are those of its `ddim`.  The same networks give the same page, byte for byte.

    Shapes    shape (1, H, H) with H divisible by 4 and at least 16.
    Raises    ValueError, naming the network, for one the engine cannot run: it takes a `unet` of a width divisible by 4
              with batch norm and without attention; weights are float or +-s per output channel, inputs float or
              those of the rule `xnor`.
    Source    this work; sizes and times of such pages: notebook 08.
    """
    from IPython.display import HTML

    if not networks:
        raise ValueError("networks is empty: give at least one, by the name it is to be shown under")
    side = shape[-1]
    if tuple(shape) != (1, side, side) or side % 4 or side < SMALLEST:
        raise ValueError(f"shape must be (1, H, H) with H divisible by 4 and at least {SMALLEST}, got {tuple(shape)}")
    for name, network in networks.items():
        check(name, network)
    files = {name: packed_file(network) for name, network in networks.items()}
    figures = "\n".join(_figure(name, network, len(files[name]), side) for name, network in networks.items())
    data = {"module": _text(MODULE.read_bytes()), "arms": [_text(file) for file in files.values()],
            "grids": grids(), "side": side, "seed": SEED}
    key = hashlib.sha256(json.dumps([data, list(files)]).encode()).hexdigest()[:8]
    return HTML(Template(_asset("page.html")).substitute(
        key=key, style=_asset("page.css"), last=len(STEPS) - 1, figures=figures, script=_script(key, data)))


def engine() -> str:
    """The source of everything but the page: classes PackedFile and Network, functions noise and denoise."""
    return "".join(_asset(name) for name in ENGINE)


def grids() -> list[list[tuple[int, float]]]:
    """For each of STEPS the timesteps of `sampling`'s DDIM in turn, each with its alpha_bar."""
    schedulers = [sampling.scheduler("ddim", steps) for steps in STEPS]
    return [[(int(t), float(one.alphas_cumprod[int(t)])) for t in one.timesteps] for one in schedulers]


def check(name: str, network: nn.Module) -> None:
    """Raises ValueError, as `page`, for a network that the engine cannot run."""
    architecture = getattr(network, "architecture", {})
    plain = type(network) is UNet and isinstance(network.attention, nn.Identity)
    if not plain or architecture.get("norm", "batch") != "batch" or architecture.get("width", 1) % 4:
        raise ValueError(f"{name!r} must be a unet of nets.build, of a width divisible by 4, with batch norm and "
                         f"without attention, got {architecture or type(network).__name__}")
    how, layers = getattr(network, "recipe", None), quantized_layers(network)
    signs = all(_is_sign(layer) for layer in layers.values())
    if not signs or (layers and (how.outputs or how.connections != "none" or how.activations not in ("none", "xnor"))):
        raise ValueError(f"{name!r} has recipe {how}: the engine takes weights of +-s per output channel, and inputs "
                         "that are float or those of xnor, with nothing after a layer")


def _is_sign(layer: nn.Module) -> bool:
    packed = Packed.of(layer.rule, layer.weight)
    return len(packed.data) == 1 and packed.coding.levels == range(-1, 2, 2) and packed.scales.size == packed.channels


def packed_file(network: nn.Module) -> bytes:
    """The bytes that `save_packed` writes."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "network")
        save_packed(network, path)
        return path.read_bytes()


def _figure(name: str, network: nn.Module, size: int, side: int) -> str:
    layers = quantized_layers(network)
    kind = KINDS[network.recipe.activations if layers else "none", bool(layers)]
    return FIGURE.substitute(name=html.escape(name), side=side, size=f"{size / 1e3:.0f} kB", kind=kind)


def _script(key: str, data: dict) -> str:
    """Everything in a scope of its own; of a page that is shown twice, each copy is started once."""
    text = json.dumps(data, separators=(",", ":"))
    return (f'(() => {{\n"use strict";\n{engine()}{_asset("page.js")}\nconst data = {text};\n'
            f"for (const root of document.querySelectorAll('[data-demo=\"{key}\"]:not([data-live])')) {{\n"
            '  root.dataset.live = "";\n  startDemo(root, data);\n}\n})();')


def _text(contents: bytes) -> str:
    return base64.b64encode(contents).decode()


@cache
def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
