"""Speed of space patched distillation beside the released codes' form of it, a loop over blocks and patches."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .distill import SPD
from .train import device

Interleave = Callable[[Callable, Callable, float], tuple[float, float]]


@dataclass(frozen=True)
class Size:
    """How large the measured features are; tests shrink them.

    width, batch   of the `unet` whose six block outputs are compared, on 28 x 28 images
    patches        per side
    """

    width: int = 16
    batch: int = 128
    patches: int = 4

    def features(self) -> list[Tensor]:
        """Random features in the shapes of the network's blocks, in the layout it trains in."""
        shapes = [(self.width * m, 28 // m) for m in (1, 2, 4, 4, 2, 1)]
        made = [torch.randn(self.batch, c, side, side, device=device()) for c, side in shapes]
        return [f.contiguous(memory_format=torch.channels_last) for f in made]


def rows(interleave: Interleave, size: Size = Size()) -> list[tuple[str, str, Callable[[float], tuple[float, float]]]]:
    """(name, unit, measure) of every row: what `bench.Bench` is made of."""
    name = f"spd unet{size.width} batch {size.batch}"
    return [(f"{name} {norm} norm", "1/s", partial(spd_rates, interleave, size, norm)) for norm in ("sample", "batch")]


def spd_rates(interleave: Interleave, size: Size, norm: str, seconds: float) -> tuple[float, float]:
    """Losses with their gradients per second: ours, and the loop's."""
    torch.manual_seed(0)
    student, teacher = size.features(), size.features()
    for feature in student:
        feature.requires_grad_()
    ours = SPD(size.patches, norm=norm)
    return interleave(lambda: torch.autograd.grad(ours(student, teacher), student),
                      lambda: torch.autograd.grad(by_patches(student, teacher, size.patches, norm), student), seconds)


def by_patches(student: list[Tensor], teacher: list[Tensor], p: int, norm: str) -> Tensor:
    """SPD as its definition reads: one patch of one block after the other (row Gram matrices)."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        height, width = s.shape[-2:]
        h, w = height // p, width // p
        for top in (i * height // p for i in range(p)):
            for left in (j * width // p for j in range(p)):
                a, b = (_attention(f[:, :, top : top + h, left : left + w], norm) for f in (s, t))
                total = total + torch.linalg.vector_norm(a - b, dim=1).mean()
    return total / (len(student) * p * p)


def _attention(patch: Tensor, norm: str) -> Tensor:
    """Normalised Gram matrices in rows: one per image, or one for the batch."""
    gram = torch.matmul(patch, patch.mT).flatten(1)
    gram = gram if norm == "sample" else gram.flatten()[None]
    return gram / torch.linalg.vector_norm(gram, dim=1, keepdim=True)
