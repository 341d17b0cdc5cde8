"""Sign, defined once with sign(0) = +1, and the straight-through estimators (STE) that give it a gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import unknown

ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": torch.ones_like,
    "clipped": lambda x: (x.abs() <= 1).to(x.dtype),  # derivative of hard tanh
}


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, surrogate: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(surrogate(x))
        return torch.where(x < 0, -torch.ones_like(x), torch.ones_like(x))

    @staticmethod
    def backward(ctx, grad: Tensor):
        (factor,) = ctx.saved_tensors
        return grad * factor, None


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, latent: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        return None, grad


def sign(x: Tensor, estimator: str = "clipped") -> Tensor:
    r"""-1 where x < 0, else +1; never 0, so that every weight stays one bit.

    Shapes    as x.
    Backward  "clipped": g 1[|x| <= 1];  "identity": g.
    Raises    ValueError for an unknown estimator.
    Source    BiDM (arXiv:2412.05926) Eq. 6-7 for sign(0) = +1; the released codes use torch.sign, where sign(0) = 0.
              Clipped: BinaryConnect / hard tanh.  Identity: source 000's `w + (q - w).detach()`.
    """
    if estimator not in ESTIMATORS:
        unknown("estimator", estimator, ESTIMATORS)
    return _Sign.apply(x, ESTIMATORS[estimator])


def straight_through(value: Tensor, latent: Tensor) -> Tensor:
    """`value` forward, exactly; backward the whole gradient goes to `latent` and none to `value`.

    The usual `latent + (value - latent).detach()` rounds, so its result takes more values than `value` has.
    """
    return _StraightThrough.apply(value.detach(), latent)
