"""The distance between normalised Gram matrices that SPD is made of, with its gradient, by products or by loops."""

import numpy as np
import torch
from torch import Tensor

EPS = 1e-12  # below any norm; a zero feature has the attention zero


def cut(x: Tensor, p: int) -> Tensor:
    """Patches (B, p^2, C, H // p, W // p) of x (B, C, H, W), row by row; see SPD for where they start."""
    (height, width), (h, w) = x.shape[-2:], (x.shape[-2] // p, x.shape[-1] // p)
    if height % p == 0 and width % p == 0:
        return x.unflatten(2, (p, h)).unflatten(4, (p, w)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    rows, columns = (torch.arange(p)[:, None] * side // p + torch.arange(side // p) for side in (height, width))
    pixels = rows[:, None, :, None] * width + columns[None, :, None, :]  # (p, p, h, w)
    picked = x.flatten(2).index_select(2, pixels.flatten().to(x.device))
    return picked.unflatten(2, (p * p, h, w)).transpose(1, 2)


class Products:
    """Gram matrices of patches that lie in matrices M (B, p^2, ..., rows, columns), by torch's products."""

    @staticmethod
    def grams(m: Tensor) -> tuple[Tensor, Tensor]:
        """A = M M^T, and |A|^2 (B, p^2)."""
        gram = m @ m.mT
        return gram, gram.flatten(2).square().sum(2)

    @staticmethod
    def part(gram: Tensor, other: Tensor, unit: Tensor, other_unit: Tensor) -> tuple[Tensor, Tensor]:
        """D = unit A - other_unit A^fp in the place of `other`, and |D|^2."""
        shape = (*unit.shape, *[1] * (gram.ndim - 2))
        difference = torch.sub(unit.view(shape) * gram, other.mul_(other_unit.view(shape)), out=other)
        return difference, difference.flatten(2).square().sum(2)

    @staticmethod
    def slope(m: Tensor, gram: Tensor, difference: Tensor, along: Tensor, factor: Tensor) -> Tensor:
        """factor (D - along A) M."""
        shape = (*along.shape, *[1] * (gram.ndim - 2))
        return (difference.addcmul_(gram, along.view(shape), value=-1) * factor.view(shape)) @ m


class Loops:
    """The same of p x p patches where they lie in a feature (B, C, H, W), by compiled loops over the diagonals of A:
    see kernels.grams."""

    def __init__(self, p: int, height: int):
        from .kernels import grams, threads

        self.p, self.rows, self.kernels, self.alone = p, height // p, grams, threads.alone

    def grams(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = _pixels(x)
        with self.alone():
            return tuple(map(torch.from_numpy, self.kernels.grams(pixels, self.p)))

    def part(self, gram: Tensor, other: Tensor, unit: Tensor, other_unit: Tensor) -> tuple[Tensor, Tensor]:
        arrays = (t.numpy() for t in (gram, other, unit, other_unit))
        with self.alone():
            return other, torch.from_numpy(self.kernels.part(*arrays, self.rows))

    def slope(self, x: Tensor, gram: Tensor, difference: Tensor, along: Tensor, factor: Tensor) -> Tensor:
        arrays = (t.numpy() for t in (gram, difference, along, factor))
        pixels = _pixels(x)
        with self.alone():
            return torch.from_numpy(self.kernels.slopes(pixels, self.p, *arrays)).permute(0, 3, 1, 2)


def _pixels(x: Tensor) -> np.ndarray:
    """(B, H, W, C), channels next to each other."""
    return x.detach().permute(0, 2, 3, 1).contiguous().numpy()


class GramDistance(torch.autograd.Function):
    """Mean over patches of the distance between normalised Gram matrices: see SPD.

    The gradient is worked out with the value, while the Gram matrices are at hand; autograd would keep six such
    tensors and multiply twice where once does, the Gram matrix being symmetric.
    """

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, by: Products | Loops, batch: bool) -> Tensor:
        def length(square: Tensor) -> Tensor:
            """Lengths (B, p^2): each image's own, or the batch's in every row."""
            return (square.sum(0, keepdim=True).expand(square.shape) if batch else square).sqrt().contiguous()

        (gram, square), (other, other_square) = by.grams(student), by.grams(teacher)
        size, other_size = length(square), length(other_square)
        unit, other_unit = (1 / s.clamp_min(EPS) for s in (size, other_size))
        difference, apart = by.part(gram, other, unit, other_unit)
        distance = length(apart)
        if ctx.needs_input_grad[0]:
            # <S, D> = (|S|^2 - |S^fp|^2 + |D|^2) / 2, with lengths of 1, or nearly 0
            inner = ((size * unit) ** 2 - (other_size * other_unit) ** 2 + distance**2) / 2
            number = distance[0].numel() if batch else distance.numel()
            factor = 2 * unit / (distance.clamp_min(EPS) * number)
            ctx.save_for_backward(by.slope(student, gram, difference, inner * unit, factor))
        return distance.mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        (slope,) = ctx.saved_tensors
        return slope * grad, None, None, None
