"""The loss log of a training: rows for loss.csv, and what the manifest says of speed and memory."""

import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from .checkpoint import State
from .errors import Diverged
from .layers import quantized_layers

LOG_EVERY = 20  # steps


class Log:
    """Collects losses on the device and turns every 20 of them into a row, so that no step waits for its loss.

    A layer whose rule has gone over to fewer bases since the row before counts as one without flips.

    Raises    Diverged, naming the step, for a loss that is not finite.
    """

    def __init__(self, state: State, batch: int, progress: bool, steps: int, on_log: Callable[[dict], None] | None):
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
