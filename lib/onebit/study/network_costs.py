"""What one trained network costs: bytes on disk, seconds per denoising step, memory of a step."""

import contextlib
import ctypes
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from .. import data, nets
from . import results
from .run import Run

FORMS = ("float", "dense", "packed")  # the float network; this one as torch computes it; this one packed


def costs(run: Run, batches: tuple[int, ...], seconds: float) -> dict[str, str | float]:
    """Files in bytes, seconds of a denoising step by form and batch, and the memory of a step of the largest batch."""
    model = results.weights(run)
    steps = {batch: _step_seconds(run, model, batch, seconds) for batch in batches}
    return {
        "net": run.net, "recipe": run.recipe, **file_bytes(run, model),
        **{f"{form}_seconds_batch{batch}": found[form] for batch, found in steps.items() for form in FORMS},
        **{f"{form}_step_mib": mib for form, mib in _memory(run, model, batches[-1]).items()},
    }


def sampling_seconds(run: Run, n: int, steps: int) -> dict[str, float]:
    """Seconds to draw n images by DDIM from start to end, by form, once each; NaN where nothing is packed."""
    from .. import sampling

    found = dict.fromkeys(FORMS, math.nan)
    for form, net in _forms(run, results.weights(run)).items():
        draw = partial(sampling.sample, net, shape=data.image_shape(run.dataset))
        draw(2, steps=2)  # what a first call sets up is no part of it
        began = time.perf_counter()
        draw(n, steps=steps)
        found[form] = time.perf_counter() - began
    return found


def file_bytes(run: Run, model: nn.Module) -> dict[str, int]:
    """Bytes of the files of the float network in 32 and 16 bits, and of this one packed."""
    from ..packing import save_packed
    from ..train import save_weights

    control = nets.build(run.net, run.width)
    with TemporaryDirectory() as folder:
        names = [Path(folder, name) for name in ("packed", "float32", "float16")]
        save_packed(model, names[0])
        save_weights(control, names[1])
        save_weights(control.half(), names[2])
        return {f"{path.name}_bytes": path.stat().st_size for path in names}


def _forms(run: Run, model: nn.Module) -> dict[str, nn.Module]:
    """The networks that are compared, as sampling runs them; packed only where there is something to pack."""
    from ..frozen import frozen
    from ..kernels import to_packed

    found = {"float": frozen(nets.build(run.net, run.width)), "dense": frozen(model)}
    found = {form: net.to(memory_format=torch.channels_last) for form, net in found.items()}
    if any(getattr(layer, "activation", None) is not None for layer in model.modules()):
        found["packed"] = to_packed(model)
    return found


def _step(run: Run, net: nn.Module, batch: int) -> Callable[[], object]:
    x = torch.randn(batch, *data.image_shape(run.dataset)).contiguous(memory_format=torch.channels_last)
    timestep = torch.full((batch,), 500)
    return lambda: net(x, timestep)


def _step_seconds(run: Run, model: nn.Module, batch: int, seconds: float) -> dict[str, float]:
    """By form; NaN for a network that nothing is packed in."""
    from ..bench import in_turns

    forms = _forms(run, model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for net in forms.values():
            if hasattr(net, "connections"):
                stack.enter_context(net.connections.following())  # they mix, as along a trajectory
        rates = in_turns([_step(run, net, batch) for net in forms.values()], seconds)
    return dict.fromkeys(FORMS, math.nan) | {form: 1 / rate for form, rate in zip(forms, rates, strict=True)}


def _memory(run: Run, model: nn.Module, batch: int) -> dict[str, float]:
    """MiB by which a step raises the process's memory, by form; NaN where the system does not tell."""
    with torch.inference_mode():
        return dict.fromkeys(FORMS, math.nan) | {
            form: raised_by(_step(run, net, batch)) for form, net in _forms(run, model).items()}


def raised_by(action: Callable[[], object]) -> float:
    """MiB by which the peak of resident memory during an action exceeds what the process held before it.

    The action runs once before, so that what a first call sets up does not count.  Linux alone keeps a peak that can
    be reset; elsewhere the answer is NaN.
    """
    action()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed and not yet given back would hide the rise
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _resident("VmRSS")
        action()
        return _resident("VmHWM") - before
    except (OSError, AttributeError):
        return math.nan


def _resident(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"no {field} in the process's status")
