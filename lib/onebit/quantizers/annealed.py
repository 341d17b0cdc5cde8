"""W7, ReSTE: a straight-through estimator that moves from the identity towards sign while training goes on."""

import math

import torch
from torch import Tensor

from .estimators import Surrogate, sign
from .weights import SCALE_BITS, WeightRule, magnitude


def annealed_power(share: float, end: float = 3.0) -> float:
    """o = 1 + (end - 1) (1 - cos(pi/2 share)): 1 before training, `end` after it, slow at first.

    Raises    ValueError for an `end` below 1 or a `share` outside 0..1.
    Source    ReSTE, released code main.py 189-196, per epoch there and per step here.
    """
    if end < 1:
        raise ValueError(f"end must be >= 1 (1 is the identity estimator), got {end}")
    if not 0 <= share <= 1:
        raise ValueError(f"share is the part of training that is done, in 0..1; got {share}")
    return 1 + (end - 1) * (1 - math.cos(math.pi / 2 * share))


def power_surrogate(power: float | Tensor, clip: float = 1.5, interval: float = 0.1) -> Surrogate:
    r"""Derivative of f(z) = sign(z) |z|^(1/o), o = `power`, for `estimators.sign`.

        f'(z) = |z|^((1-o)/o) / o     for m < |z| <= t,    m = interval, t = clip
              = m^(1/o) / m           for |z| <= m: the slope of the chord, since f' has no bound at 0
              = 0                     for |z| > t

    f is continuous at m, f' is not: at o = 3 it steps from 4.64 down to 1.55.

    Shapes    any; a power that is a tensor has no dimensions (read without waiting for the device).
    Raises    ValueError unless 0 < interval < clip.
    Source    ReSTE, "Estimator Meets Equilibrium Perspective" (ICCV 2023), released code binarized_modules.py.
    """
    if not 0 < interval < clip:
        raise ValueError(f"need 0 < interval < clip, got interval={interval}, clip={clip}")

    def slope(z: Tensor) -> Tensor:
        size = z.abs()
        outer = size.clamp_min(interval) ** ((1 - power) / power) / power
        inner = interval ** (1 / power) / interval
        return torch.where(size <= interval, inner, outer).to(z.dtype) * (size <= clip)

    return slope


class Annealed:
    """Mixed into a rule: the power of its surrogate, in a buffer that `advance` sets."""

    def start(self, end: float, clip: float, interval: float) -> None:
        power_surrogate(1.0, clip, interval)  # bad options are refused when the rule is built
        self.end, self.clip, self.interval = end, clip, interval
        self.register_buffer("power", torch.tensor(annealed_power(0.0, end), dtype=torch.float64))

    def advance(self, share: float) -> None:
        self.power.fill_(annealed_power(share, self.end))

    @property
    def surrogate(self) -> Surrogate:
        return power_surrogate(self.power, self.clip, self.interval)


class ReSTE(Annealed, WeightRule):
    r"""W7, sign with one scale per layer and the annealed power surrogate.

        w_bin = s sign(w),    s = mean |w| over the whole tensor

    Shapes    w any, two dimensions or more; w_bin: as w.
    Units     same as w; s >= 0.  Stored size 1 + 16/N bits per weight, N weights in the layer.
    Error     |w - w_bin|^2 = |w|^2 - N s^2, the least for one scale per layer.
    Backward  exact through s, power surrogate through sign:
              dL/dw_i = s g_i f'(w_i) + sign(w_i)/N sum_j g_j sign(w_j).
    Raises    as WeightRule, annealed_power and power_surrogate.
    Source    ReSTE (ICCV 2023), released code binarized_modules.py, where the scale is not detached either.
    """

    def __init__(
        self, weight: Tensor, out_dim: int = 0, end: float = 3.0, clip: float = 1.5, interval: float = 0.1
    ):
        super().__init__(weight, out_dim)
        self.start(end, clip, interval)

    @property
    def scale_bits(self) -> int:
        return SCALE_BITS

    def forward(self, w: Tensor) -> Tensor:
        return magnitude(w).mean() * sign(w, self.surrogate)

    def stored_scales(self, w: Tensor) -> Tensor:
        return w.detach().abs().mean().view(1, 1, 1)
