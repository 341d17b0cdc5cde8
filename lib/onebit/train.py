"""One training loop for every network, recipe and profile."""

import copy
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from . import checkpoint
from .batches import STATISTICS, Batches, seeded_randomness
from .checkpoint import State
from .diffusion import noise_loss
from .errors import Diverged, unknown
from .files import replacing
from .objective import Objective
from .recipes import quantized_layers, schedules

Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # of (model, x0, noise, timestep)

VERSION = 1  # +1 whenever the same settings would give other weights; tests/test_train.py pins three losses
LOG_EVERY = 20  # steps; also the grid on which checkpoints are possible
CHECKPOINT_SECONDS = 60.0
BATCH_NORM_BATCHES = 100  # over which batch-norm statistics are estimated anew
DECAYS = ("constant", "cosine")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """What decides the trained weights besides net, recipe and data.

    steps, batch     optimiser steps; images per step (epochs drop their last, short batch)
    lr, warmup       Adam's peak learning rate; steps over which it rises linearly
    decay            "constant", or "cosine" down to zero at the last step
    ema              decay per step of the averaged weights kept beside the last ones; 0 switches averaging off
    precision        of the arithmetic: "auto" is bfloat16 autocast where the processor computes in it, else float32
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
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps and batch must be positive, got {self.steps} and {self.batch}")

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0 .. steps-1."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = (1 + math.cos(math.pi * step / self.steps)) / 2 if self.decay == "cosine" else 1.0
        return self.lr * rise * fall


def device() -> torch.device:
    """CUDA where it is found, else the CPU.  (Apple's MPS is left out: its results are not repeatable.)"""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: str) -> str:
    """What "auto" means on this machine: bfloat16 only where instructions for it exist (emulation is far slower)."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


def train(
    model: nn.Module,
    images: Tensor,
    settings: Settings,
    folder: Path,
    snapshot: Callable[[nn.Module], Tensor] | None = None,
    snapshot_steps: tuple[int, ...] = (),
    on_log: Callable[[dict], None] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    progress: bool = True,
    objective: Loss = noise_loss,
) -> dict:
    """Train `model` in place on uint8 `images`; write model.safetensors, ema.safetensors, loss.csv, snapshots.npz.

    Batch order, noise and timesteps are functions of (seed, step), so two arms of a comparison see the same ones.
    So are the numbers that dropout and rules that round at random draw.
    A run that was killed resumes from `folder`'s checkpoint and ends with the weights of an uninterrupted one.
    loss.csv has a row every 20 steps: step, mean loss since the row before, learning rate, and the share of 1-bit
    weights whose sign differs from the row before; an `Objective` adds a column for each part of its last loss.

    Shapes    images (N, C, H, W) uint8.
    Returns   step count, seconds, images per second, peak memory in MiB, precision and device, for the manifest.
    Raises    ValueError for images that are not uint8 (N, C, H, W) or fewer than one batch, or for a checkpoint of
              other settings; Diverged at the first step whose loss is not finite, with the last checkpoint kept.
    """
    _check_images(images)
    if len(images) < settings.batch:
        raise ValueError(f"{len(images)} training images are fewer than one batch of {settings.batch}")
    folder.mkdir(parents=True, exist_ok=True)
    place, precision = device(), resolve_precision(settings.precision)
    model.to(place, memory_format=torch.channels_last).train()
    batches = Batches(images.to(place), settings)
    optimizer = torch.optim.Adam(model.parameters(), settings.lr, fused=True)
    state = State(model, optimizer, _ema_start(model, settings), objective, settings=_noted(settings))
    scheduled = schedules(model)
    checkpoint.restore(folder, state)
    log = _Log(state, settings.batch, progress, settings.steps, on_log)
    saved, seeded = time.monotonic(), seeded_randomness(model, settings.seed)
    for step in range(state.step, settings.steps):
        for rule in scheduled:
            rule.advance(step / settings.steps)
        with seeded(step):
            loss = optimize(model, state.optimizer, batches(step), settings.lr_at(step), precision, objective)
        _ema_update(state, settings)
        state.step = step + 1
        log.add(loss, settings.lr_at(step))
        if state.step in snapshot_steps and snapshot is not None:
            state.snapshots[str(state.step)] = snapshot(model)
        if state.step % LOG_EVERY == 0 and time.monotonic() - saved >= checkpoint_seconds and _finite(model):
            checkpoint.save(folder, state)
            saved = time.monotonic()
    log.close()
    _write_results(folder, state, batches, settings)
    return log.summary() | {"precision": precision, "device": place.type}


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


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
        got = f"{images.dtype} {tuple(images.shape)}" if hasattr(images, "dtype") else type(images).__name__
        raise ValueError(f"train needs a tensor of uint8 grey levels 0..255, (N, C, H, W), got {got}; data.to_uint8 "
                         "makes one of images in [-1, 1]")


def _noted(settings: Settings) -> dict:
    """The settings as a checkpoint's JSON holds them: numpy's numbers as Python's."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in asdict(settings).items()}


def _finite(model: nn.Module) -> bool:
    """A finite loss may already have made weights that are not; such weights are no good checkpoint."""
    return all(bool(p.isfinite().all()) for p in model.parameters())


def _ema_start(model: nn.Module, settings: Settings) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()] if settings.ema else []


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
    connected = getattr(model, "connections", None) is not None
    reestimate(twin, batches, Objective() if connected else noise_loss)
    return twin


@torch.no_grad()
def reestimate(model: nn.Module, batches: Batches, objective: Loss = noise_loss) -> None:
    """Give the model's batch norms the plain mean of their statistics over the first BATCH_NORM_BATCHES batches.

    Those that training leaves are moving averages over its last ten batches or so.  `objective` makes the pass; a run
    of fewer steps has as many batches.  Every module is left in the mode, of training or of evaluation, it was in.

    Source    Nagel et al. 2022, Overcoming Oscillations in Quantization-Aware Training (arXiv:2203.11086).
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return
    momenta, modes = [m.momentum for m in norms], {m: m.training for m in model.modules()}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches that follow
    seeded = seeded_randomness(model, batches.seed)
    try:
        for step in range(min(BATCH_NORM_BATCHES, batches.steps)):
            with seeded(step):
                objective(model.train(), *batches(step))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def save_weights(model: nn.Module, path: Path) -> None:
    """All parameters and buffers as one safetensors file, written atomically."""
    with replacing(path) as partial:
        save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, partial)


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


class _Log:
    """Collects losses on the device and turns every 20 of them into a row, so that no step waits for its loss."""

    def __init__(self, state: State, batch: int, progress: bool, steps: int, on_log):
        self.state, self.batch, self.on_log = state, batch, on_log
        self.losses: list[Tensor] = []
        self.layers = list(quantized_layers(state.model).values())
        self.codes = self._codes()
        self.bar = tqdm(total=steps, initial=state.step, desc="training", disable=not progress)
        self.first, self.began, self.before = state.step, time.monotonic(), state.seconds
        self.lr = 0.0

    def add(self, loss: Tensor, lr: float) -> None:
        self.losses.append(loss)
        self.lr = lr
        self.bar.update()
        if self.state.step % LOG_EVERY == 0:
            self.flush()

    def flush(self) -> None:
        if not self.losses:
            return
        losses = torch.stack(self.losses).double().cpu()
        if not torch.isfinite(losses).all():
            first = self.state.step - len(losses) + int((~torch.isfinite(losses)).nonzero()[0]) + 1
            raise Diverged(f"loss not finite at step {first}; the last checkpoint is kept; lower the learning rate")
        codes, n = self._codes(), sum(c.numel() for c in self.codes)
        same = [(a, b) for a, b in zip(self.codes, codes, strict=True) if a.shape == b.shape]  # not across a transition
        flips = sum(int((a != b).sum()) for a, b in same) / n if n else 0.0
        row = {"step": self.state.step, "loss": losses.mean().item(), "lr": self.lr, "sign_flips": flips}
        row |= {name: float(term) for name, term in getattr(self.state.objective, "terms", {}).items()}
        self.state.log.append(row)
        self.state.seconds = self.before + time.monotonic() - self.began
        self.codes, self.losses = codes, []
        self.bar.set_postfix_str(f"loss {row['loss']:.4f}")
        if self.on_log:
            self.on_log(row)

    def close(self) -> None:
        self.flush()
        self.bar.close()

    def summary(self) -> dict:
        """Speed counts this process's steps alone; seconds add up over all processes that worked on the run."""
        elapsed = self.state.seconds - self.before
        rate = (self.state.step - self.first) * self.batch / elapsed if elapsed else 0.0
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_memory()
        return {"steps": self.state.step, "seconds": round(self.state.seconds, 1), "images_per_second": round(rate, 1),
                "peak_memory_mib": round(peak / 2**20, 1)}

    def _codes(self) -> list[Tensor]:
        return [layer.rule.codes(layer.weight) > 0 for layer in self.layers]


def _peak_memory() -> int:
    """Largest resident size of this process so far, bytes (Linux counts KiB, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
