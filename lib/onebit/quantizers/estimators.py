"""Sign and rounding, each defined once, and the straight-through estimators (STE) that give them a gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import unknown

Surrogate = Callable[[Tensor], Tensor]  # derivative of the smooth stand-in for sign, as a function of sign's argument

ESTIMATORS: dict[str, Surrogate] = {
    "identity": torch.ones_like,
    "clipped": lambda x: (x.abs() <= 1).to(x.dtype),  # derivative of hard tanh
    "polynomial": lambda x: (2 - 2 * x.abs()).clamp_min(0),  # of 2x + x^2 on [-1, 0), 2x - x^2 on [0, 1]
}


def _clipped(grad: Tensor, x: Tensor) -> Tensor:
    """grad 1[|x| <= 1] in one pass; hard tanh's own backward leaves its bounds out, so they are moved by a rounding."""
    bound = 1 + torch.finfo(x.dtype).eps
    return torch.ops.aten.hardtanh_backward(grad, x, -bound, bound)


# grad times ESTIMATORS[name](x), in as few passes; an estimator that is not here goes by its derivative alone
BACKWARDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": lambda grad, x: grad,
    "clipped": _clipped,
    "polynomial": lambda grad, x: x.abs().mul_(-2).add_(2).clamp_min_(0).mul_(grad),
}


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, backward: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.by_surrogate = backward
        return x.sign().add_(0.5).sign_()  # sign(0) = 0 becomes +1; several times faster than `where`

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.by_surrogate(grad, *ctx.saved_tensors), None


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, latent: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        return None, grad


def sign(x: Tensor, estimator: str | Surrogate = "clipped") -> Tensor:
    r"""-1 where x < 0, else +1; never 0, so that every weight stays one bit.

    Shapes    as x.
    Backward  g times the surrogate's derivative at x.  "clipped": 1[|x| <= 1];  "identity": 1;
              "polynomial": max(0, 2 - 2|x|);  or any function that gives one, for estimators with a state.
    Raises    ValueError for an unknown estimator.
    Source    BiDM (arXiv:2412.05926) Eq. 6-7 for sign(0) = +1; the released codes use torch.sign, where sign(0) = 0.
              Clipped: BinaryConnect / hard tanh.  Identity: source 000's `w + (q - w).detach()`.
              Polynomial: Bi-Real Net (arXiv:1808.00278) section 3.3.
    """
    if isinstance(estimator, str):
        if estimator not in ESTIMATORS:
            unknown("estimator", estimator, ESTIMATORS)
        if estimator in BACKWARDS:
            return _Sign.apply(x, BACKWARDS[estimator])
        estimator = ESTIMATORS[estimator]
    return _Sign.apply(x, lambda grad, x: grad * estimator(x))


def straight_through(value: Tensor, latent: Tensor) -> Tensor:
    """`value` forward, exactly; backward the whole gradient goes to `latent` and none to `value`.

    The usual `latent + (value - latent).detach()` rounds, so its result takes more values than `value` has.
    """
    return _StraightThrough.apply(value.detach(), latent)


def round_through(x: Tensor) -> Tensor:
    """Nearest integer (ties to even) forward, identity backward."""
    return straight_through(x.round(), x)


def stochastic_round(x: Tensor) -> Tensor:
    r"""floor(x) or ceil(x), at random so that the expectation is x; identity backward.

        P[Q(x) = ceil(x)] = x - floor(x)

    Shapes    as x.
    Source    Gupta et al. 2015 (arXiv:1502.02551) section 3; source 002 names it without a formula.
    """
    wide = torch.promote_types(x.dtype, torch.float32)  # in bfloat16 x + noise would be rounded, and 1 become 2
    noise = torch.rand(x.shape, device=x.device, dtype=wide)
    return straight_through((x.to(wide) + noise).floor().to(x.dtype), x)
