"""Ternary rules and rules with one scale per group of weights: W14 (BitNet b1.58), W15 and W16 (Bonsai-style groups).

What is known of Bonsai Image is its format: how it is trained is not disclosed, so the training side of W15 and W16 is
this work's, and "Bonsai-style" is as far as the name goes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .estimators import sign, stochastic_round, straight_through
from .weights import SCALE_BITS, WeightRule, at_least, magnitude

TERNARY_BITS = math.log2(3)


def stochastic_codes(w: Tensor, scale: Tensor) -> Tensor:
    """-1, 0 or +1, at random so that the expectation is w / scale clipped to [-1, 1]."""
    ratio = (w / scale.clamp_min(torch.finfo(scale.dtype).tiny)).clamp(-1, 1)
    return stochastic_round(ratio).clamp(-1, 1)  # 1 + noise may round up to 2


class Ternary(WeightRule):
    r"""W14, the weights of BitNet b1.58: three values, one scale for the whole tensor.

        Q(w) = s clip(round(w / s), -1, 1),    s = max(mean |w|, 1e-5)

    Shapes    w any, two dimensions or more; Q(w): as w.
    Units     same as w.  Stored size log2(3) = 1.585 bits per weight at best and 2 as packed, + 16/N, N weights in all.
    Error     0.264 of |w|^2 for Gaussian w (the least-squares scale of these codes would give 0.214).
    Backward  dL/dw = g (identity), nothing through s.  `stochastic`: while training, w / s clipped to [-1, 1] is
              rounded at random, so that the expectation of Q(w) is w clipped to [-s, s]; nearest in eval().
    Raises    as WeightRule.
    Source    BitNet b1.58 (arXiv:2402.17764), released code gpu/convert_checkpoint.py 23-32.  Stochastic rounding:
              source 002 names it, without a formula.
    """

    weight_bits = TERNARY_BITS
    packed_bits = 2
    levels = range(-1, 2)
    shown = ("out_dim", "stochastic")

    def __init__(self, weight: Tensor, out_dim: int = 0, stochastic: bool = False):
        super().__init__(weight, out_dim)
        self.stochastic = stochastic

    @property
    def scale_bits(self) -> int:
        return SCALE_BITS

    def scale(self, w: Tensor) -> Tensor:
        return w.detach().abs().mean().clamp_min(1e-5)

    def forward(self, w: Tensor) -> Tensor:
        scale = self.scale(w)
        codes = stochastic_codes(w, scale) if self.stochastic and self.training else self.codes(w)
        return straight_through(scale * codes, w)

    def codes(self, w: Tensor) -> Tensor:
        """-1, 0 or +1: the nearest, also where training rounds at random."""
        return (w.detach() / self.scale(w)).round().clamp(-1, 1)

    def stored_scales(self, w: Tensor) -> Tensor:
        return self.scale(w).view(1, 1, 1)


class Grouped(WeightRule):
    """What W15 and W16 share: `group` consecutive weights of one output channel have one half-precision scale.

    A weight is read as (out, n), n = in kh kw in the order of its axes; a group never spans two output channels, and a
    channel's last group is short where `group` does not divide n.

    Raises    as WeightRule; ValueError for a group below 1.
    """

    shown = ("out_dim", "group")

    def __init__(self, weight: Tensor, out_dim: int = 0, group: int = 128):
        super().__init__(weight, out_dim)
        self.inputs = weight.numel() // self.channels
        self.group = min(at_least("group", group, 1), self.inputs)
        self.groups = math.ceil(self.inputs / self.group)

    @property
    def scale_bits(self) -> int:
        return SCALE_BITS * self.channels * self.groups

    def split(self, w: Tensor) -> Tensor:
        """(out, groups, group), the short last group filled up with zeros."""
        rows = w.movedim(self.out_dim, 0).reshape(self.channels, -1)
        return F.pad(rows, (0, self.groups * self.group - self.inputs)).unflatten(1, (self.groups, self.group))

    def spread(self, per_group: Tensor, w: Tensor) -> Tensor:
        """One value per group, (out, groups), as one per weight in the shape of w."""
        rows = per_group[..., None].expand(-1, -1, self.group).flatten(1)[:, : self.inputs]
        return rows.reshape(w.movedim(self.out_dim, 0).shape).movedim(0, self.out_dim)

    def group_mean(self, w: Tensor) -> Tensor:
        before = self.group * torch.arange(self.groups, device=w.device)  # no buffer, which would stay on meta
        return self.split(w).sum(-1) / (self.inputs - before).clamp_max(self.group)


def half(scale: Tensor) -> Tensor:
    """Rounded to what half precision holds, so that the bits counted are the bits used; identity backward."""
    return straight_through(scale.half().to(scale.dtype), scale)


class GroupBinary(Grouped):
    r"""W15, sign with one scale per group of weights.

        w_bin = s[g] sign(w),    s[g] = mean of |w| over the group, rounded to half precision

    Shapes    w (out, in, kh, kw) or (out, in); `out_dim=1` for ConvTranspose2d.  s (out, groups).
    Units     same as w; s >= 0.  Stored size 1 + 16 ceil(n/group)/n bits per weight: 1.125 for groups of 128 that
              divide n.
    Error     |w|^2 - m s^2 per group of m weights, plus the rounding of s; 0.363 of |w|^2 for Gaussian w.
    Backward  as XNOR with groups in place of channels; rounding of s is the identity.  `learned`: s is trained from
              that start, dL/ds = sum_i g_i sign(w_i), dL/dw = s g 1[|w| <= 1].
    Raises    as Grouped.
    Source    the format: Bonsai Image white paper 4.1-4.3.  Scale and backward: this work (not disclosed there).
    """

    def __init__(self, weight: Tensor, out_dim: int = 0, group: int = 128, learned: bool = False):
        super().__init__(weight, out_dim, group)
        self.register_parameter("scale", nn.Parameter(self.group_mean(weight.detach().abs())) if learned else None)

    def forward(self, w: Tensor) -> Tensor:
        scale = self.group_mean(magnitude(w)) if self.scale is None else self.scale
        return sign(w) * self.spread(half(scale), w)

    def stored_scales(self, w: Tensor) -> Tensor:
        scale = self.group_mean(w.detach().abs()) if self.scale is None else self.scale.detach()
        return half(scale)[None]


class GroupTernary(Grouped):
    r"""W16, three values with one scale per group of weights.

        Q(w) = s[g] t,    t = sign(w) 1[|w| > d mean_g |w|],    s[g] = mean of |w| over the group's t != 0, in half
        precision (least squares for these codes)

    Shapes    as GroupBinary.
    Units     same as w; s >= 0.  Stored size log2(3) + 16 ceil(n/group)/n bits per weight, 1.710 for groups of 128 that
              divide n; 2.125 packed.
    Error     of |w|^2 for Gaussian w: 0.214 with d = `threshold` = 0.5 (31 % zeros), 0.193 with 0.7 (42 % zeros).
    Backward  dL/dw = g (identity), nothing through s.  `stochastic` as in Ternary, with this s.
    Raises    as Grouped; ValueError for a threshold outside [0, 1), where a group could lose all its weights.
    Source    as GroupBinary.  d = 0.5 is BitNet's rounding, 0.7 that of TWN (arXiv:1605.04711).
    """

    weight_bits = TERNARY_BITS
    packed_bits = 2
    levels = range(-1, 2)
    shown = ("out_dim", "group", "threshold", "stochastic")

    def __init__(
        self, weight: Tensor, out_dim: int = 0, group: int = 128, threshold: float = 0.5, stochastic: bool = False
    ):
        super().__init__(weight, out_dim, group)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold is a share of the mean magnitude, in [0, 1); got {threshold}")
        self.threshold, self.stochastic = threshold, stochastic

    def forward(self, w: Tensor) -> Tensor:
        codes = self.codes(w)
        scale = self.spread(self._scale(w.detach(), codes), w)
        if self.stochastic and self.training:
            codes = stochastic_codes(w.detach(), scale)
        return straight_through(codes * scale, w)

    def codes(self, w: Tensor) -> Tensor:
        """-1, 0 or +1: the nearest, also where training rounds at random."""
        w = w.detach()
        kept = w.abs() > self.spread(self.threshold * self.group_mean(w.abs()), w)
        return sign(w) * kept

    def stored(self, w: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.codes(w)
        return codes[None], self._scale(w.detach(), codes)[None]

    def _scale(self, w: Tensor, codes: Tensor) -> Tensor:
        kept = self.split(codes.abs()).sum(-1).clamp_min(1)  # a group of zeros keeps none
        return half(self.split(w * codes).sum(-1) / kept)  # (out, groups)
