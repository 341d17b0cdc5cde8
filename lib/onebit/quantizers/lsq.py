"""Learned step size quantization (LSQ): the function that weights and activations share."""

import math

import torch
from torch import Tensor


def levels(bits: int, signed: bool = True) -> tuple[int, int]:
    """Lowest and highest code of a k-bit quantizer: -2^(k-1) .. 2^(k-1) - 1, or 0 .. 2^k - 1.

    Raises    ValueError for bits that are no whole number in 2..16 (one bit has no positive signed code: use a binary
              rule).
    """
    if not 2 <= bits <= 16 or bits != int(bits):
        raise ValueError(f"bits must be in 2..16, got {bits}")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def initial_step(x: Tensor, high: int, dtype: torch.dtype, dims: tuple[int, ...] | None = None) -> Tensor:
    r"""s = 2 mean|x| / sqrt(Q_P), over `dims` (kept) or over everything, and at least 1e-8.  LSQ section 2.1.

    Where that is 0 in `dtype`, as in half precision, s is the dtype's smallest normal number.
    """
    mean = x.detach().abs().float().mean() if dims is None else x.detach().abs().float().mean(dims, keepdim=True)
    step = (2 * mean / math.sqrt(high)).clamp_min(1e-8).to(dtype)
    return torch.where(step == 0, torch.finfo(dtype).tiny, step)


def smallest_step(dtype: torch.dtype) -> float:
    """What a step is at least: 1e-9, or the smallest number of a dtype in which that is 0.

    Less than any `initial_step`: in some versions of torch the gradient of clamp is 0 on its very bound.
    """
    limits = torch.finfo(dtype)
    return max(1e-9, limits.tiny * limits.eps)


def positive(step: Tensor) -> Tensor:
    """|s|, at least `smallest_step`: an optimiser may step across 0, and a clamp alone would hold it there."""
    return step.abs().clamp_min(smallest_step(step.dtype))


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, step: Tensor, low: int, high: int, gradient_scale: float) -> Tensor:
        ratio, used = _ratio(x, step.to(x.dtype))
        codes = ratio.clamp(low, high).round_()
        ctx.save_for_backward(ratio, codes)
        ctx.low, ctx.high, ctx.gradient_scale, ctx.step = low, high, gradient_scale, (step.shape, step.dtype)
        return codes * used

    @staticmethod
    def backward(ctx, grad: Tensor):
        ratio, codes = ctx.saved_tensors
        shape, dtype = ctx.step
        inside = _within(grad, ratio, ctx.low, ctx.high)  # the gradient to x: grad inside, else 0
        by_step = (codes - ratio).mul_(inside).to(dtype).sum_to_size(shape)
        by_step = by_step + (grad - inside).mul_(codes).to(dtype).sum_to_size(shape)  # beyond the range
        return inside, by_step * ctx.gradient_scale, None, None, None


def _ratio(x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """x / s, and s; under half precision a small step must not be 0, nor a large ratio infinite."""
    if x.dtype != torch.float16:
        return x / step, step
    step, largest = step.clamp_min(smallest_step(x.dtype)), torch.finfo(x.dtype).max
    return (x / step).clamp_(-largest, largest), step


def _within(grad: Tensor, x: Tensor, low: int, high: int) -> Tensor:
    """grad 1[low <= x <= high] in one pass; hard tanh's own backward leaves its bounds out, so they are moved."""
    ends = torch.tensor([low, high], dtype=x.dtype)
    below, above = torch.nextafter(ends, ends.new_tensor([-math.inf, math.inf])).tolist()
    return torch.ops.aten.hardtanh_backward(grad, x, below, above)


def lsq(x: Tensor, step: Tensor, low: int, high: int, gradient_scale: float = 1.0) -> Tensor:
    r"""Quantize to `high - low + 1` uniform levels whose step is learned.

        v = x / s,    Q(x) = s round(clip(v, Q_N, Q_P))

    Shapes    x any; step broadcasts over x, > 0.  Q(x): as x.
    Units     as x; codes Q(x) / s are integers in low .. high.
    Error     at most s / 2 inside the range.
    Backward  dQ/dx = 1[Q_N <= v <= Q_P];  dQ/ds = round(v) - v inside, Q_N below, Q_P above, summed over what shares
              s and multiplied by `gradient_scale` (1 / sqrt(N Q_P), N values per step, in the paper).
    Source    LSQ (arXiv:1902.08153) Eq. 1-3 and section 2.2.
    """
    return _LSQ.apply(x, step, low, high, gradient_scale)
