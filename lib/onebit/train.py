"""One training loop for every network, recipe and profile."""

import copy
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import checkpoint
from ._log import LOG_EVERY, Log
from ._told import told
from .batches import STATISTICS, Batches, seeded_randomness
from .checkpoint import State
from .connections import connections_of
from .diffusion import noise_loss
from .errors import Diverged, unknown
from .files import replacing
from .layers import tensors_alone
from .norms import batch_norms, reestimating
from .objective import Objective, asked
from .precision import PRECISIONS, resolve_precision
from .recipes import Recipe, schedules

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # of (model, x0, noise, timestep)

VERSION = 1  # +1 whenever the same settings would give other weights; tests/test_train.py pins three losses
CHECKPOINT_SECONDS = 60.0  # between checkpoints, which are possible where a row of the log ends
BATCH_NORM_BATCHES = 100  # over which batch-norm statistics are estimated anew
DECAYS = ("constant", "cosine")


@dataclass(frozen=True)
class Settings:
    """What decides the trained weights besides net, recipe and data.

    steps, batch     optimiser steps; images per step (epochs drop their last, short batch)
    lr, warmup       Adam's peak learning rate; steps over which it rises linearly
    decay            "constant", or "cosine" down to zero at the last step
    ema              decay per step of the averaged weights kept beside the last ones; 0 switches averaging off
    precision        of the arithmetic: "auto" is bfloat16 autocast where that is the faster one, else float32

    Raises    ValueError, naming the field, for a word or a number that it cannot be.
    """

    steps: int
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 0
    decay: str = "constant"
    ema: float = 0.0
    seed: int = 0
    precision: str = "auto"

    def __post_init__(self):
        if self.decay not in DECAYS:
            unknown("decay", self.decay, DECAYS)
        if self.precision not in PRECISIONS:
            unknown("precision", self.precision, PRECISIONS)
        for name, least in (("steps", 1), ("batch", 1), ("warmup", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
        if not isinstance(self.lr, Real) or not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be a finite number > 0, got {self.lr!r}")
        if not isinstance(self.ema, Real) or not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in 0 .. 1, 1 excluded, got {self.ema!r}")

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0 .. steps-1."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = (1 + math.cos(math.pi * step / self.steps)) / 2 if self.decay == "cosine" else 1.0
        return self.lr * rise * fall


def device() -> torch.device:
    """CUDA where it is found, else the CPU.  (Apple's MPS is left out: its results are not repeatable.)"""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    model: nn.Module, images: Tensor, settings: Settings, folder: Path | str,
    snapshot: Callable[[nn.Module], Tensor] | None = None, snapshot_steps: tuple[int, ...] = (),
    on_log: Callable[[dict], None] | None = None, checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: bool = True, objective: Loss | None = None,
) -> dict:
    """Train `model` in place on uint8 `images`; write model.safetensors, ema.safetensors, loss.csv, snapshots.npz.

    The loss is `objective`; None stands for what the model asks for (`objective.asked`).
    Batch order, noise and timesteps are functions of (seed, step), so two arms of a comparison see the same ones.
    So are the numbers that dropout and rules that round at random draw.
    A run that was killed resumes from `folder`'s checkpoint, in the arithmetic it began in, and ends with the weights
    of an uninterrupted one.
    loss.csv has a row every 20 steps: step, mean loss since the row before, learning rate, and, of the codes of all
    quantized layers, however many bits they have, the share that turned positive or ceased to be since the row before;
    an `Objective` adds a column for each part of its last loss.

    Shapes    images (N, C, H, W) uint8.
    Returns   step count, seconds, images per second, peak memory in MiB, precision and device, for the manifest.
    Raises    ValueError for images that are not uint8 (N, C, H, W) or fewer than one batch, a network whose state is
              not all tensors or of which no parameter wants a gradient, or for a checkpoint of other settings, another
              network, recipe or objective, or other images; Diverged at the first step whose loss is not finite, or
              where the last one's weights are not, with the last checkpoint kept.
    """
    _check_images(images, settings.batch)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    batches = Batches(images.to(device()), settings)
    state = _began(model, images, settings, objective)
    scheduled = schedules(model)
    checkpoint.restore(folder, state)
    log = Log(state, settings.batch, progress, settings.steps, on_log)
    saved, seeded = time.monotonic(), seeded_randomness(model, settings.seed)
    for step in range(state.step, settings.steps):
        for rule in scheduled:
            rule.advance(step / settings.steps)
        with seeded(step):
            loss = optimize(
                model, state.optimizer, batches(step), settings.lr_at(step), state.precision, state.objective)
        _ema_update(state, settings)
        state.step = step + 1
        log.add(loss, settings.lr_at(step))
        if state.step in snapshot_steps and snapshot is not None:
            state.snapshots[str(state.step)] = snapshot(model)
            model.train()  # whatever mode it is left in
        if state.step % LOG_EVERY == 0 and time.monotonic() - saved >= checkpoint_seconds and _finite(model):
            checkpoint.save(folder, state)
            saved = time.monotonic()
    log.close()
    if not _finite(model):  # the loss of the last step was, and no other step shows what it has made
        raise Diverged(f"weights not finite after step {state.step}, the last; the last checkpoint is kept; lower the "
                       "learning rate")
    _write_results(folder, state, batches, settings)
    return log.summary() | {"precision": state.precision, "device": device().type}


def optimize(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor, Tensor], lr: float, precision: str,
    objective: Loss = noise_loss,
) -> Tensor:
    """One optimiser step on (x0, noise, timestep); returns the loss, detached and still on the device."""
    with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        loss = objective(model, *batch)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _check_images(images: Tensor, batch: int) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
        got = f"{images.dtype} {tuple(images.shape)}" if hasattr(images, "dtype") else type(images).__name__
        raise ValueError(f"train needs a tensor of uint8 grey levels 0..255, (N, C, H, W), got {got}; data.to_uint8 "
                         "makes one of images in [-1, 1]")
    if len(images) < batch:
        raise ValueError(f"{len(images)} training images are fewer than one batch of {batch}")


def _began(model: nn.Module, images: Tensor, settings: Settings, objective: Loss | None) -> State:
    """A run before its first step, the model where it will be trained."""
    tensors_alone(model)  # files hold nothing else, and are written when it has been trained
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"no parameter of this {type(model).__name__} wants a gradient, so there is nothing to train: "
                         "model.requires_grad_(True)")
    model.to(device(), memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(model.parameters(), settings.lr, fused=True)
    average = [p.detach().clone() for p in model.parameters()] if settings.ema else []
    objective = asked(model) if objective is None else objective
    return State(model, optimizer, average, objective, resolve_precision(settings.precision),
                 settings=_noted(model, images, settings, objective))


def _noted(model: nn.Module, images: Tensor, settings: Settings, objective: Loss) -> dict:
    """What a checkpoint's JSON says of its run: settings, numpy's numbers as Python's, recipe, objective, and which
    images."""
    values = {name: value.item() if hasattr(value, "item") else value for name, value in asdict(settings).items()}
    content = hashlib.sha256(images.cpu().contiguous().numpy()).hexdigest()[:12]
    return values | {"recipe": str(getattr(model, "recipe", Recipe())), "objective": told(objective),
                     "images": f"{tuple(images.shape)} {content}"}


def _finite(model: nn.Module) -> bool:
    """A finite loss may already have made weights that are not; such weights are no good checkpoint."""
    return all(bool(p.isfinite().all()) for p in model.parameters())


def _ema_update(state: State, settings: Settings) -> None:
    if settings.ema:
        decay = min(settings.ema, (1 + state.step) / (10 + state.step))  # young averages follow faster
        torch._foreach_lerp_(state.ema, [p.detach() for p in state.model.parameters()], 1 - decay)


def averaged(model: nn.Module, ema: list[Tensor], batches: Batches) -> nn.Module:
    """A copy of `model` with the averaged weights and batch-norm statistics estimated anew for them.

    Averaged buffers would not do: the statistics of averaged weights are not the averaged statistics, least of all
    when the signs of averaged latent weights are signs that were never trained.  Cross-timestep connections mix, as
    they do in training and in sampling.
    """
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, value in zip(twin.parameters(), ema, strict=True):
            parameter.copy_(value)
    reestimate(twin, batches, Objective() if connections_of(model) is not None else noise_loss)
    return twin


@torch.no_grad()
def reestimate(model: nn.Module, batches: Batches, objective: Loss = noise_loss) -> None:
    """Give the model's batch norms the plain mean of their statistics over the first BATCH_NORM_BATCHES batches.

    `objective` makes the pass; a run of fewer steps has as many batches.  See `norms.reestimating`.
    """
    if not batch_norms(model):
        return  # and no batch is wanted
    seeded = seeded_randomness(model, batches.seed)
    with reestimating(model):
        for step in range(min(BATCH_NORM_BATCHES, batches.steps)):
            with seeded(step):
                objective(model, *batches(step))


def save_weights(model: nn.Module, path: Path) -> None:
    """All parameters and buffers as one safetensors file, written atomically."""
    with replacing(path) as partial:
        save_file(checkpoint.separate({k: v.cpu() for k, v in model.state_dict().items()}), partial)


def _write_results(folder: Path, state: State, batches: Batches, settings: Settings) -> None:
    save_weights(state.model, folder / "model.safetensors")
    if settings.ema:
        own = Batches(batches.images, settings, stream=STATISTICS)
        save_weights(averaged(state.model, state.ema, own), folder / "ema.safetensors")
    import pandas as pd  # slow to import, and `prepare` imports this module

    with replacing(folder / "loss.csv") as partial:
        pd.DataFrame(state.log).to_csv(partial, index=False)
    with replacing(folder / "snapshots.npz") as partial:
        np.savez_compressed(partial, **{k: v.cpu().numpy() for k, v in state.snapshots.items()})
    checkpoint.clear(folder)
