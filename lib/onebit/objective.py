"""The training loss: the noise loss, and what quantizers, distillation and connections add to it."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import recipes
from .connections import connections_of, neighbour
from .diffusion import add_noise, noise_loss
from .frozen import frozen
from .taps import BLOCKS, Taps

if TYPE_CHECKING:
    from .distill import Distillation


class Objective(nn.Module):
    r"""The loss of one training step.

        L = L_simple + L_quantizers + lambda L_distillation

    L_simple is DDPM's noise loss; L_quantizers what the weight rules ask for (EBB's regulariser); L_distillation
    compares block outputs with those of a frozen teacher on the same x_t and timestep.  A model with cross-timestep
    connections first runs on the neighbouring, noisier timestep, whose block outputs are then mixed in.

    It is called with (model, x0, noise, timestep).  Its state (a basis found on the first batch) belongs into a
    checkpoint.  `terms` holds the parts of the last loss, detached.

    `blocks` are name patterns of the blocks that are compared, in both networks.

    Shapes    as `diffusion.noise_loss` -> scalar.
    Raises    ValueError for a teacher without a loss or the other way round, a loss without a weight above 0, and as
              `distill.Taps`.
    Source    BinaryDM Eq. 15, BiDM Eq. 16; methods 3.3 for the order of the passes.
    """

    def __init__(self, teacher: nn.Module | None = None, loss: "Distillation | None" = None, weight: float = 0.0,
                 blocks: Iterable[str] = BLOCKS):
        super().__init__()
        if (teacher is None) != (loss is None):
            raise ValueError("distillation needs both a teacher and a loss")
        if loss is not None and not weight > 0:
            raise ValueError(f"weight must be > 0 for a loss to count, got {weight!r}")
        self.loss, self.weight, self.blocks = loss, weight, tuple(blocks)
        self._teacher = [frozen(teacher)] if teacher is not None else []  # in a list: no part of our state
        self.terms: dict[str, Tensor] = {}
        self.told = "Objective" if loss is None else f"{loss} x {weight}, teacher {_digest(teacher)}"  # for checkpoints
        if loss is not None and self.blocks != BLOCKS:
            self.told += f", blocks {' '.join(self.blocks)}"

    def forward(self, model: nn.Module, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        with ExitStack() as stack:
            connections = connections_of(model)
            if connections is not None:
                stack.enter_context(connections.mixing(neighbour(model, x0, noise, timestep)))
            taps = stack.enter_context(Taps(model, self.blocks)) if self.loss is not None else None
            total = noise_loss(model, x0, noise, timestep)
        self.terms = {"noise_loss": total.detach()}
        asked = recipes.penalty(model)
        if asked is not None:
            total = self._add(total, "penalty", asked)
        if taps is not None:
            distance = self.loss(taps.features, self._teacher_features(x0, noise, timestep))
            total = self._add(total, "distillation", self.weight * distance)
        return total

    def _add(self, total: Tensor, name: str, term: Tensor) -> Tensor:
        self.terms[name] = term.detach()
        return total + term

    @torch.no_grad()
    def _teacher_features(self, x0: Tensor, noise: Tensor, timestep: Tensor) -> list[Tensor]:
        teacher = self._teacher[0]
        with Taps(teacher, self.blocks) as taps:
            teacher(add_noise(x0, noise, timestep), timestep)
        return taps.features


def _digest(teacher: nn.Module) -> str:
    content = hashlib.sha256()
    for name, tensor in teacher.state_dict().items():
        content.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:12]


def asked(model: nn.Module) -> Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]:
    """The loss a model asks to be trained by: the noise loss, unless its connections or weight rules add to it."""
    if connections_of(model) is None and recipes.penalty(model) is None:
        return noise_loss
    return Objective()
