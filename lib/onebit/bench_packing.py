"""Packed files: how small they are, how fast they are written and read, and what it costs to leave weights packed."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from . import data, nets
from .layers import quantized_layers
from .packing import Packed, load_packed, save_packed
from .quantizers import weight_rule
from .recipes import quantize
from .train import save_weights

Interleave = Callable[[Callable, Callable, float], tuple[float, float]]
Measure = Callable[[float], tuple[float, float]]
SIZES = (  # recipe, how its ternary weights are written
    ("strict-1bit", "slots"), ("published-1bit", "slots"), ("binarydm-base-w1a32", "slots"),
    ("bonsai-binary-g128", "slots"), ("bonsai-ternary-g128", "slots"), ("bonsai-ternary-g128", "base3"),
    ("ternary-w1.58a32", "slots"), ("ternary-w1.58a32", "base3"),
)
RECIPE = "strict-1bit"  # of the rows about time
RULE = "centred"  # that recipe's
FLOATS = {"float32": torch.float32, "float16": torch.float16}
BUDGET = 0.005  # seconds to pack a million weights


@dataclass(frozen=True)
class Size:
    """How large the measured things are; tests shrink them.  width: of the `resunet`; weights: of one tensor; batch."""

    width: int = 64
    weights: int = 2**20
    batch: int = 16

    def net(self) -> nn.Module:
        return nets.build("resunet", self.width)


def rows(interleave: Interleave, size: Size = Size()) -> list[tuple[str, str, Measure]]:
    """(name, unit, measure) of every row."""
    net = f"resunet{size.width}"
    written = {"slots": "", "base3": " base3"}
    return [
        *((f"size {recipe}{written[ternary]} {net} against {name}", "bytes",
           partial(file_bytes, size, recipe, ternary, dtype))
          for recipe, ternary in SIZES for name, dtype in FLOATS.items()),
        (f"pack {size.weights} weights", "s", partial(packing_seconds, interleave, size)),
        (f"pack load {net} {RECIPE} against float32", "1/s", partial(loading_rates, interleave, size)),
        (f"pack mapped {net} {RECIPE} against dense, held", "bytes", partial(held_bytes, size)),
        (f"pack mapped {net} {RECIPE} against dense, batch {size.batch}", "images/s",
         partial(mapped_rates, interleave, size)),
    ]


def file_bytes(size: Size, recipe: str, ternary: str, dtype: torch.dtype, seconds: float) -> tuple[int, int]:
    """Bytes of the packed file, and of a float one: whole files, headers and norms' statistics included."""
    with tempfile.TemporaryDirectory() as folder:
        packed, plain = Path(folder, "packed"), Path(folder, "plain")
        save_weights(size.net().to(dtype), plain)
        _pack(size, packed, recipe, ternary)
        return packed.stat().st_size, plain.stat().st_size


def packing_seconds(interleave: Interleave, size: Size, seconds: float) -> tuple[float, float]:
    """Seconds from a latent weight to bytes and scales, its rule included; and what it may take."""
    weight = torch.randn(256, size.weights // 256)
    pack = partial(Packed.of, weight_rule(RULE, weight), weight)
    return 1 / interleave(pack, pack, seconds)[0], BUDGET  # both turns are ours: the other side is a budget


def loading_rates(interleave: Interleave, size: Size, seconds: float) -> tuple[float, float]:
    """Networks per second: from a packed file, and built and filled from the float network's file."""
    with tempfile.TemporaryDirectory() as folder:
        packed, plain = Path(folder, "packed"), Path(folder, "plain")
        save_weights(size.net(), plain)
        _pack(size, packed)
        return interleave(partial(load_packed, packed), lambda: size.net().load_state_dict(load_file(plain)), seconds)


def held_bytes(size: Size, seconds: float) -> tuple[int, int]:
    """Bytes of all weights, packed or not, that a mapped and a dense network keep between two passes."""
    with tempfile.TemporaryDirectory() as folder:
        return tuple(map(_held, _both(size, Path(folder))))


def mapped_rates(interleave: Interleave, size: Size, seconds: float) -> tuple[float, float]:
    """Images per second through a network that unpacks its weights in every pass, and through one that has done so."""
    x, timestep = torch.randn(size.batch, *data.image_shape("mnist")), torch.zeros(size.batch, dtype=torch.long)
    with tempfile.TemporaryDirectory() as folder:
        mapped, dense = _both(size, Path(folder))
        rates = interleave(partial(_predict, mapped, x, timestep), partial(_predict, dense, x, timestep), seconds)
    return rates[0] * size.batch, rates[1] * size.batch


def _pack(size: Size, path: Path, recipe: str = RECIPE, ternary: str = "slots") -> None:
    net = size.net()
    quantize(net, recipe)
    save_packed(net, path, ternary)


def _both(size: Size, folder: Path) -> tuple[nn.Module, nn.Module]:
    _pack(size, folder / "packed")
    return load_packed(folder / "packed", mapped=True), load_packed(folder / "packed")


def _held(model: nn.Module) -> int:
    packed = [layer.rule.packed for layer in quantized_layers(model).values() if layer.weight.is_meta]
    plain = [p for p in (*model.parameters(), *model.buffers()) if not p.is_meta]
    return sum(p.nbytes for p in plain) + sum(one.data.nbytes + one.scales.nbytes for one in packed)


@torch.no_grad()
def _predict(model: nn.Module, x: Tensor, timestep: Tensor) -> Tensor:
    return model(x, timestep)
