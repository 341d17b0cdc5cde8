"""Sums of binary bases: W11, BinaryDM's EBB, which trains with two and ends with one; W12, residuals of any order."""

import torch
from torch import Tensor, nn

from .estimators import sign
from .weights import SCALE_BITS, WeightRule, at_least, magnitude


class EBB(WeightRule):
    r"""W11, Evolvable-Basis Binarizer: two learned bases at first, one after the transition.

        stage 1:  Q(w) = sI sign(w) + sII sign(r),    r = w - sI sign(w)
        stage 2:  Q(w) = sI sign(w)

    sI (`scale`) starts at mean |w|, sII (`scale2`) at mean |r|, per output channel.  `stage` is a buffer; `advance`
    sets it to 2 once `transition` (a share of the training) is reached: 0 means from the start, None never.

    Shapes    w (out, in, kh, kw) or (out, in); `out_dim=1` for ConvTranspose2d.  Scales broadcast over w.
    Units     same as w.  Stored size 2 + 32/n bits per weight in stage 1, 1 + 16/n in stage 2.
    Error     0.132 of |w|^2 for Gaussian w at the start (sII = 0.603 sI), 0.363 with one basis.
    Backward  clipped STE on both signs, M1 = 1[|w| <= 1], M2 = 1[|r| <= 1]:
              dQ/dsI = sign(w) (1 - sII M2),    dQ/dsII = sign(r),    dQ/dw = sI M1 + sII M2 (1 - sI M1).
              penalty() = tau mean |sII| in stage 1, to be averaged over layers.
    Raises    as WeightRule; ValueError for a negative tau or transition.
    Source    BinaryDM (arXiv:2404.05662) Eq. 5-10.
    DIFFERS   Eq. 7 prints sign(w) (1 - sII sign(w)), the wrong sign of the correction where w < 0: the chain rule is
              used.  Eq. 9 has sII without its absolute value, which would push it below zero for ever.  Scales start at
              l1 norms over n, as in LearnedScale.  The released code has neither penalty nor stage 2 (tau=0,
              transition=None).
    """

    shown = ("out_dim", "tau", "transition")

    def __init__(self, weight: Tensor, out_dim: int = 0, tau: float = 0.09, transition: float | None = 0.5):
        super().__init__(weight, out_dim)
        if tau < 0:
            raise ValueError(f"tau must be >= 0, got {tau}")
        if transition is not None and not (isinstance(transition, (int, float)) and transition >= 0):
            raise ValueError(f"transition must be a share of training >= 0, or None for never; got {transition!r}")
        self.tau, self.transition = tau, transition
        w = weight.detach()
        self.scale = nn.Parameter(self.per_channel_mean(w.abs()))
        self.scale2 = nn.Parameter(self.per_channel_mean((w - self.scale.detach() * sign(w)).abs()))
        self.register_buffer("stage", torch.tensor(2 if transition == 0 else 1))  # to be copied, not averaged

    @property
    def weight_bits(self) -> int:
        return 2 if self.stage == 1 else 1

    @property
    def scale_bits(self) -> int:
        return SCALE_BITS * self.channels * self.weight_bits

    def forward(self, w: Tensor) -> Tensor:
        second = self.scale2 * (self.stage == 1)  # 0 in stage 2; a branch would wait for the device in every layer
        first = self.scale * sign(w)
        return first + second * sign(w - first)

    def advance(self, share: float) -> None:
        if self.transition is not None and share >= self.transition:
            self.stage.fill_(2)

    def penalty(self) -> Tensor | None:
        return self.tau * self.scale2.abs().mean() if self.tau and self.stage == 1 else None

    def codes(self, w: Tensor) -> Tensor:
        """Stage 1: the planes sign(w) and sign(r), stacked on a new first axis; stage 2: sign(w)."""
        w, first = w.detach(), sign(w.detach())
        return torch.stack([first, sign(w - self.scale.detach() * first)]) if self.stage == 1 else first

    def stored_scales(self, w: Tensor) -> Tensor:
        both = torch.stack([self.scale.detach(), self.scale2.detach()])
        return both[: self.weight_bits].flatten(1)[..., None]


class Residual(WeightRule):
    r"""W12, high-order residual binarization: every basis takes up what the ones before it left.

        Q(w) = sum_k s_k sign(r_k),    r_0 = w,    r_(k+1) = r_k - s_k sign(r_k),    s_k = mean |r_k|,    k < K = order

    Shapes    w as in EBB; s_k per output channel, recomputed from w, or with `learned` trained from that start.
    Units     same as w.  Stored size K (1 + 16/n) bits per weight.
    Error     0.363, 0.132 of |w|^2 for Gaussian w and K = 1, 2; no larger with every further basis.
    Backward  the chain rule with a clipped STE in every sign; exact through s_k, or to s_k where it is learned.
    Raises    as WeightRule; ValueError for an order below 1.
    Source    High-order residual quantization (arXiv:1708.08687); K = 2, learned, is EBB that stays in stage 1.
    """

    shown = ("out_dim", "order")

    def __init__(self, weight: Tensor, out_dim: int = 0, order: int = 2, learned: bool = False):
        super().__init__(weight, out_dim)
        self.order = self.weight_bits = self.scales_per_channel = at_least("order", order, 1)
        self.register_parameter("scales", None)
        if learned:
            scales = [scale.flatten() for scale, _ in self.bases(weight.detach())]
            self.scales = nn.Parameter(torch.stack(scales))  # (order, out): of 5 axes none has a channels-last layout

    def bases(self, w: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(s_k, sign(r_k)) for k = 0 .. K - 1."""
        found, rest, shape = [], w, [-1 if d == self.out_dim else 1 for d in range(w.ndim)]
        for k in range(self.order):
            scale = self.per_channel_mean(magnitude(rest)) if self.scales is None else self.scales[k].view(shape)
            found.append((scale, sign(rest)))
            rest = rest - scale * found[-1][1]
        return found

    def forward(self, w: Tensor) -> Tensor:
        return sum(scale * basis for scale, basis in self.bases(w))

    def codes(self, w: Tensor) -> Tensor:
        """The planes sign(r_k), stacked on a new first axis of length K."""
        return torch.stack([basis.detach() for _, basis in self.bases(w.detach())])

    def stored(self, w: Tensor) -> tuple[Tensor, Tensor]:
        scales, bases = (torch.stack(part).detach() for part in zip(*self.bases(w.detach()), strict=True))
        return bases, scales.flatten(1)[..., None]
