"""Weight rules with a chosen number of bits: W8 and W9 (DoReFa), W10 (LSQ)."""

import math

import torch
from torch import Tensor, nn

from .estimators import round_through, sign, straight_through
from .lsq import initial_step, levels, lsq, positive
from .weights import SCALE_BITS, WeightRule, at_least

FLOOR = 1e-3  # about one step of Adam; DoReFa divides by max |tanh w|, and a layer that starts at zero would explode


class DoReFa(WeightRule):
    r"""W8 (bits = 1): sign with one scale per layer.  W9 (bits = k > 1): 2^k even levels in the range of tanh.

        k = 1:  w_bin = s sign(w),    s = mean |w| over the whole tensor
        k > 1:  Q(w) = c (2 q(u) - 1),    u = tanh(w) / (2 max |tanh w|) + 1/2,    q(u) = round((2^k - 1) u) / (2^k - 1)

    Shapes    w any, two dimensions or more; Q(w): as w.
    Units     k = 1, or with `rescale`: as w, c = max |w| at the start (a buffer).  Without `rescale` c = 1 and Q(w)
              fills [-1, 1] whatever the size of w, so a normalisation has to follow.  Stored size k + 16/N bits per
              weight, N weights in the layer; k for k > 1 without `rescale`.
    Error     k = 1: |w|^2 - N s^2.  k > 1: at most 1/(2^k - 1) from tanh(w) / max |tanh w|, times c.
    Backward  k = 1: dL/dw = g (identity).  k > 1: identity through round, exact through tanh and the maximum.
    Raises    as WeightRule; ValueError for bits outside 1..16.
    Source    DoReFa-Net (arXiv:1606.06160); W9 also micronet, dorefa/quantize.py.
    DIFFERS   `rescale` is ours: the paper's form loses the magnitude.  max |tanh w| counts as at least 1e-3, and c of a
              layer that starts at zero is 1/sqrt(n), the bound of PyTorch's usual start for n inputs.
    """

    shown = ("out_dim", "bits")

    def __init__(self, weight: Tensor, out_dim: int = 0, bits: int = 1, rescale: bool = True):
        super().__init__(weight, out_dim)
        if at_least("bits", bits, 1) > 16:
            raise ValueError(f"bits must be in 1..16, got {bits}")
        self.bits = self.weight_bits = bits
        self.steps = 2**bits - 1
        self.levels = range(-self.steps, self.steps + 1, 2)
        self.rescale = rescale and bits > 1
        if self.rescale:
            largest = weight.detach().abs().max()
            usual = 1 / math.sqrt(weight.numel() / self.channels)
            self.register_buffer("top", torch.where(largest > 0, largest, usual))

    @property
    def scale_bits(self) -> int:
        return SCALE_BITS if self.bits == 1 or self.rescale else 0

    def forward(self, w: Tensor) -> Tensor:
        if self.bits == 1:
            return straight_through(w.abs().mean() * sign(w), w)
        q = 2 * round_through(self.steps * self.normalised(w)) / self.steps - 1
        return self.top * q if self.rescale else q

    def normalised(self, w: Tensor) -> Tensor:
        """u: tanh(w) moved into [0, 1]."""
        t = w.tanh()
        return t / (2 * t.abs().max().clamp_min(FLOOR)) + 0.5

    def codes(self, w: Tensor) -> Tensor:
        """-1 / +1 for one bit, else 0 .. 2^k - 1."""
        return sign(w.detach()) if self.bits == 1 else (self.steps * self.normalised(w.detach())).round()

    def stored_scales(self, w: Tensor) -> Tensor:
        if self.bits == 1:
            return w.detach().abs().mean().view(1, 1, 1)
        return (self.top if self.rescale else w.new_ones(())).view(1, 1, 1) / self.steps

    def stored(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """As for every rule; k > 1: 2 q - 1 = (2 code - steps) / steps."""
        codes, scales = super().stored(w)
        return (codes if self.bits == 1 else 2 * codes - self.steps), scales


class LSQ(WeightRule):
    r"""W10, uniform levels whose step is learned.

        Q(w) = s round(clip(w / s, Q_N, Q_P)),    Q_N = -2^(k-1),  Q_P = 2^(k-1) - 1,
        s initially 2 mean |w| / sqrt(Q_P)

    Shapes    w (out, in, kh, kw) or (out, in); `out_dim=1` for ConvTranspose2d.  s per output channel, or one for the
              layer with `per_channel=False`.
    Units     same as w; s > 0 (its absolute value is used, and at least `smallest_step`).  Stored size k + 16/n bits
              per weight, n weights per step.  Two bits have the levels -2s, -s, 0, s: one more below zero than above.
    Error     at most s/2 inside the range.
    Backward  as lsq.lsq; the gradient of s is multiplied by 1 / sqrt(n Q_P).
    Raises    as WeightRule; ValueError for bits outside 2..16.
    Source    LSQ (arXiv:1902.08153) Eq. 1-3, sections 2.1 and 2.2; per channel as BinaryDM's "LSQ 2/x" rows.
    """

    shown = ("out_dim", "bits", "per_channel")

    def __init__(self, weight: Tensor, out_dim: int = 0, bits: int = 2, per_channel: bool = True):
        super().__init__(weight, out_dim)
        self.low, self.high = levels(at_least("bits", bits, 2))
        self.levels = range(self.low, self.high + 1)
        self.bits = self.weight_bits = bits
        self.per_channel = per_channel
        dims = tuple(d for d in range(weight.ndim) if d != out_dim) if per_channel else None
        self.step = nn.Parameter(initial_step(weight, self.high, weight.dtype, dims))
        self.gradient_scale = 1 / math.sqrt(weight.numel() / self.step.numel() * self.high)

    @property
    def scale_bits(self) -> int:
        return SCALE_BITS * self.step.numel()

    def positive_step(self) -> Tensor:
        return positive(self.step)

    def forward(self, w: Tensor) -> Tensor:
        return lsq(w, self.positive_step(), self.low, self.high, self.gradient_scale)

    def codes(self, w: Tensor) -> Tensor:
        """The integers Q_N .. Q_P."""
        return (w.detach() / self.positive_step().detach()).clamp(self.low, self.high).round()

    def stored_scales(self, w: Tensor) -> Tensor:
        return self.positive_step().detach().view(1, -1, 1)
