"""What quantizers cost in training: steps of quantized networks beside those of the float one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor

from . import data, nets
from .batches import Batches
from .distill import distillation
from .objective import Objective
from .precision import resolve_precision
from .recipes import quantize
from .train import Loss, Settings, device, noise_loss, optimize

Interleave = Callable[[Callable, Callable, float], tuple[float, float]]
STEPS = {  # row -> recipe, distillation
    "weights only": ("binarydm-base-w1a32", None),
    "weights only, two bases": ("binarydm-w1a32", None),
    "W1A4 LSQ": ("binarydm-base-w1a4", None),
    "W1A1 XNOR": ("xnor-w1a1", None),
    "W1A1 BiDM, connections and SPD": ("bidm-w1a1", "spd"),
}


@dataclass(frozen=True)
class Size:
    """How large the measured network is; tests shrink it.  width, batch: of the `unet`; images: synthetic ones."""

    width: int = 16
    batch: int = 128
    images: int = 4_096


def rows(interleave: Interleave, size: Size = Size()) -> list[tuple[str, str, Callable[[float], tuple[float, float]]]]:
    """(name, unit, measure) of every row: images per second of the quantized step, and of the float one."""
    name = f"quantized-step unet{size.width}"
    return [(f"{name} {what}", "images/s", partial(step_rates, interleave, size, *how)) for what, how in STEPS.items()]


def step_rates(
    interleave: Interleave, size: Size, recipe: str, loss: str | None, seconds: float
) -> tuple[float, float]:
    """Images per second of a training step with the recipe (teacher and second pass included), and without."""
    shape = data.image_shape("mnist")
    images = torch.randint(0, 256, (size.images, *shape), dtype=torch.uint8)
    quantized = _step(size, images, recipe, loss)
    steps = interleave(quantized, _step(size, images, "fp16", None), seconds)
    return steps[0] * size.batch, steps[1] * size.batch


def _step(size: Size, images: Tensor, recipe: str, loss: str | None) -> Callable[[], Tensor]:
    settings = Settings(steps=1, batch=size.batch)
    place, precision = device(), resolve_precision(settings.precision)
    net = nets.build("unet", size.width)
    quantize(net, recipe)
    net.to(place, memory_format=torch.channels_last).train()
    batches, steps = Batches(images.to(place), settings), count()
    optimizer = torch.optim.Adam(net.parameters(), settings.lr, fused=True)
    objective = _objective(size, recipe, loss)
    return lambda: optimize(net, optimizer, batches(next(steps)), settings.lr, precision, objective)


def _objective(size: Size, recipe: str, loss: str | None) -> Loss:
    if loss is None:
        return noise_loss if recipe == "fp16" else Objective()
    teacher = nets.build("unet", size.width).to(device(), memory_format=torch.channels_last)
    return Objective(teacher, distillation(loss), 0.01)
