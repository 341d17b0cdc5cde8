r"""Both ends of a binary layer whose output is scaled, as one function each, with its gradient, in one pass on a CPU.

    x_bin = sign(x - th[c]),  A = mean_c |x|          y = S z + bias[o]        z = x_bin * w_bin, S a map made from A

Step by step these are some twenty passes over features that do not fit into a cache; in one each, BiDM's training step
takes a quarter less time (two AVX2 cores).
"""

import numpy as np
import torch
from torch import Tensor

STORED = {torch.float32: torch.float32, torch.bfloat16: torch.uint16}  # as the loops of `kernels.binary` see it
POLYNOMIAL = {"clipped": False, "polynomial": True}  # estimators that the loops know


def in_one_pass(x: Tensor) -> bool:
    """Whether there are loops for this feature: (B, C, H, W), channels-last, float32 or bfloat16, on a CPU."""
    if torch.compiler.is_compiling():  # or exporting: the loops cannot be traced
        return False
    return (x.device.type == "cpu" and x.ndim == 4 and x.dtype in STORED and x.numel() > 0
            and x.is_contiguous(memory_format=torch.channels_last))


class Binarize(torch.autograd.Function):
    r"""(x_bin, A) of x and th, or of x alone where th is None.

    Shapes    x (B, C, H, W) for which `in_one_pass` holds, th (C,) -> x_bin as x, A (B, 1, H, W).
    Units     th, A as x; x_bin dimensionless.
    Error     A is summed in float32 whatever x's type.
    Backward  dL/dx = g_bin e(x - th) + g_A sgn(x) / C,  dL/dth = -sum over batch and space of g_bin e(x - th),
              e the estimator's derivative: estimators.sign.  dL/dth is rounded in float32 sums.
    """

    @staticmethod
    def forward(ctx, x: Tensor, threshold: Tensor | None, estimator: str) -> tuple[Tensor, Tensor]:
        from ..kernels import binary

        signs, magnitude = torch.empty_like(x), x.new_empty(len(x), 1, *x.shape[2:])
        binary.binarize(_elements(x), _per_channel(threshold, x.shape[1]), _elements(signs), _elements(magnitude))
        ctx.save_for_backward(x, threshold)
        ctx.polynomial = POLYNOMIAL[estimator]
        return signs, magnitude

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, to_signs: Tensor, to_magnitude: Tensor) -> tuple[Tensor, Tensor | None, None]:
        from ..kernels import binary

        x, threshold = ctx.saved_tensors
        to_x, to_threshold = torch.empty_like(x), torch.empty(x.shape[:2], dtype=torch.float32)
        binary.binarize_backward(
            _elements(x), _per_channel(threshold, x.shape[1]), ctx.polynomial,
            _elements(to_signs), _elements(to_magnitude), _elements(to_x), to_threshold.numpy())
        return to_x, None if threshold is None else to_threshold.sum(0).to(threshold.dtype), None


def scaled(y: Tensor, scale: Tensor, bias: Tensor | None, spatial: bool = True) -> Tensor:
    r"""scale y + bias[o], of y's type.

    Shapes    y (B, O, H', W') and scale (B, 1, H', W'), or any scale that broadcasts; bias (O,).  Not `spatial`, a
              Linear's: y (..., O), of whatever number of axes.
    Error     one rounding where `spatial`, `in_one_pass(y)` and the scale is a map of each image, else that of
              torch.addcmul.
    Backward  exact: dL/dy = g scale, dL/dscale = sum_o g y, dL/dbias = sum over batch and space of g.
    """
    if spatial and in_one_pass(y) and scale.dtype == y.dtype and scale.shape == (len(y), 1, *y.shape[2:]):
        return _Scaled.apply(y, scale, bias)
    if bias is None:
        return y * scale.to(y.dtype)
    return torch.addcmul((bias[:, None, None] if spatial else bias).to(y.dtype), y, scale.to(y.dtype))


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        from ..kernels import binary

        output = torch.empty_like(y)
        binary.scaled(_elements(y), _elements(scale), _per_channel(bias, y.shape[1]), _elements(output))
        ctx.save_for_backward(y, scale)
        ctx.bias_type = None if bias is None else bias.dtype
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        from ..kernels import binary

        y, scale = ctx.saved_tensors
        to_y, to_scale = torch.empty_like(y), torch.empty_like(scale)
        to_bias = torch.empty(y.shape[:2], dtype=torch.float32)
        binary.scaled_backward(_elements(y), _elements(scale), _elements(gradient),
                               _elements(to_y), _elements(to_scale), to_bias.numpy())
        return to_y, to_scale, None if ctx.bias_type is None else to_bias.sum(0).to(ctx.bias_type)


def _elements(x: Tensor) -> np.ndarray:
    """x (B, C, H, W) as the loops see it, (B, H W, C): where it lies, if it is channels-last."""
    lying = x.detach().contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    return lying.view(len(x), -1, x.shape[1]).view(STORED[x.dtype]).numpy()


def _per_channel(values: Tensor | None, channels: int) -> np.ndarray:
    """Float32 values, zeros for None."""
    return np.zeros(channels, np.float32) if values is None else values.detach().float().contiguous().numpy()
