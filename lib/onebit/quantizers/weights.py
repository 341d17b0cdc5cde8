"""What weight rules share, and the binary rules W1-W4 and W6: latent weight in, quantized weight of the same shape out.

Every rule is built for one weight tensor (`Rule(weight, out_dim)`), which initialises what it learns from that tensor
there and then, so that saving and loading needs no "first forward" flag.
"""

from torch import Tensor, nn

from .estimators import sign, straight_through

SCALE_BITS = 16  # a stored scale counts as half precision (methods: 1 + 16 / n bits per weight)


def magnitude(w: Tensor) -> Tensor:
    """|w| with slope sign(w), +1 at 0, where abs has slope 0: a layer that starts at zero could not leave it."""
    return w * sign(w.detach())


def at_least(name: str, value: int, low: int) -> int:
    """`value` itself, or ValueError unless it is an integer >= `low`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")
    return value


class WeightRule(nn.Module):
    """What all rules share: the output-channel axis, and how many bits the result takes to store.

    Raises    ValueError for an integer tensor, one with fewer than two dimensions, or an `out_dim` it does not have.
    """

    weight_bits: float = 1  # ideal: log2 of the number of codes, summed over the planes
    scales_per_channel = 1
    levels = range(-1, 2, 2)  # the integers that `stored` gives
    group: int | None = None  # consecutive weights of a channel that share a scale; None: all of them
    shown = ("out_dim",)  # attributes that print(model) shows

    def __init__(self, weight: Tensor, out_dim: int = 0):
        super().__init__()
        if not weight.is_floating_point() or weight.ndim < 2:
            raise ValueError(f"need a float weight with >= 2 dims, got {weight.dtype} {tuple(weight.shape)}")
        if not 0 <= out_dim < weight.ndim:
            raise ValueError(f"out_dim must be in 0..{weight.ndim - 1} for {tuple(weight.shape)}, got {out_dim}")
        self.out_dim = out_dim
        self.channels = weight.shape[out_dim]

    @property
    def packed_bits(self) -> float:
        """Bits that a weight's codes take in a file or in memory; more than `weight_bits` where codes fill no word."""
        return self.weight_bits

    @property
    def scale_bits(self) -> int:
        """Bits needed to store the scales of the whole tensor."""
        return SCALE_BITS * self.scales_per_channel * self.channels

    def per_channel_mean(self, w: Tensor) -> Tensor:
        """Mean over all axes but the output channel, kept for broadcasting."""
        return w.mean([d for d in range(w.ndim) if d != self.out_dim], keepdim=True)

    def codes(self, w: Tensor) -> Tensor:
        """The stored codes, without gradient: -1 / +1 for binary rules.  What a weight's flips are counted on."""
        return sign(w.detach())

    def stored_scales(self, w: Tensor) -> Tensor:
        """What `stored` multiplies its integers by, without gradient: (planes, out, groups), or 1 for a shared axis."""
        raise NotImplementedError(f"{type(self).__name__} has no `stored_scales`: say what its codes are multiplied by")

    def stored(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Integers (planes, *w.shape), each in `levels`, and scales (planes, out or 1, groups or 1), without gradient.

        Their products, summed over the planes, are the quantized weight in eval mode, up to float rounding.
        """
        return self.codes(w).view(-1, *w.shape), self.stored_scales(w)

    def advance(self, share: float) -> None:
        """Told before every step which share of training, 0..1, is done.  Rules with a schedule keep what follows
        from it in buffers, so that a saved network stays in the stage it was saved in."""

    def penalty(self) -> Tensor | None:
        """What the rule adds to the training loss, a scalar; None for most.  Averaged over the layers that have one."""
        return None

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.shown)


class PlainSign(WeightRule):
    r"""W1, sign without a scale.

        w_bin = sign(w)

    Shapes    w (out, in, kh, kw) or (out, in); `out_dim=1` for ConvTranspose2d.  w_bin: as w.
    Units     dimensionless; stored size 1 bit per weight.
    Error     |w - w_bin|^2 = |w|^2 - 2 sum|w| + n: large unless |w| is near 1.
    Backward  d w_bin / d w = 1[|w| <= 1] (clipped STE).
    Raises    as WeightRule.
    Source    BinaryConnect (arXiv:1511.00363) Eq. 1; BinaryDM B.1 reports that diffusion collapses with it.
    """

    scales_per_channel = 0

    def forward(self, w: Tensor) -> Tensor:
        return sign(w)

    def stored_scales(self, w: Tensor) -> Tensor:
        return w.new_ones(1, 1, 1)


class XNOR(WeightRule):
    r"""W2, least-squares binary weight: the mean magnitude per output channel.

        w_bin[o] = s[o] sign(w[o]),    s[o] = mean |w[o]|

    Shapes    as PlainSign.
    Units     same as w; s >= 0.  Stored size 1 + 16/n bits per weight, n weights per channel.
    Error     |w - w_bin|^2 = |w|^2 - n s^2 per channel (no smaller is possible): 1 - 2/pi = 0.363 of |w|^2
              for Gaussian w.
    Backward  exact through s, clipped STE through sign:
              dL/dw_i = s g_i 1[|w_i| <= 1] + sign(w_i)/n sum_j g_j sign(w_j); detach_scale drops the second term.
    Raises    as WeightRule.
    Source    XNOR-Net (arXiv:1603.05279) Eq. 6.
    """

    def __init__(self, weight: Tensor, out_dim: int = 0, detach_scale: bool = False):
        super().__init__(weight, out_dim)
        self.detach_scale = detach_scale

    def forward(self, w: Tensor) -> Tensor:
        scale = self.per_channel_mean(magnitude(w))
        return (scale.detach() if self.detach_scale else scale) * sign(w)

    def stored_scales(self, w: Tensor) -> Tensor:
        return self.per_channel_mean(w.detach().abs()).view(1, -1, 1)


class LearnedScale(WeightRule):
    r"""W3, the BinaryDM baseline: sign times a learned scale per output channel.

        w_bin[o] = s[o] sign(w[o]),    s[o] trained, initially mean |w[o]|

    Shapes    as PlainSign; s broadcasts over w.
    Units     same as w.  Stored size 1 + 16/n bits per weight.
    Error     at the start that of XNOR; afterwards whatever serves the loss.
    Backward  dL/ds[o] = sum_i g_i sign(w_i),  dL/dw = s g 1[|w| <= 1].
    Raises    as WeightRule.
    Source    BinaryDM (arXiv:2404.05662) Eq. 3-4, ours_util.py 93-96.
    DIFFERS   the paper prints an l2 norm over n for the start; its code, and we, take the l1 norm over n.
    """

    def __init__(self, weight: Tensor, out_dim: int = 0):
        super().__init__(weight, out_dim)
        self.scale = nn.Parameter(self.per_channel_mean(weight.detach().abs()))

    def forward(self, w: Tensor) -> Tensor:
        return self.scale * sign(w)

    def stored_scales(self, w: Tensor) -> Tensor:
        return self.scale.detach().view(1, -1, 1)


class Centred(WeightRule):
    r"""W4, the rule of the MNIST study: the channel mean is removed (and not added back) before the sign.

        w_bin[o] = s[o] sign(c[o]),    c[o] = w[o] - mean w[o],    s[o] = mean |c[o]|

    Shapes    as PlainSign.
    Units     same as w; s >= 0.  Stored size 1 + 16/n bits per weight.
    Error     |c - w_bin|^2 = |c|^2 - n s^2 per channel; against w itself n m^2 - 2 m s sum sign(c) more, m = mean w.
    Backward  dL/dw = g, exactly: no clip, no scale factor, nothing through mean or scale (identity STE).
    Raises    as WeightRule.
    Source    source 000, rigorous_bench_trainer.py 135-144 (BitConv2d).
    """

    def forward(self, w: Tensor) -> Tensor:
        centred = w - self.per_channel_mean(w)
        return straight_through(self.per_channel_mean(centred.abs()) * sign(centred), w)

    def codes(self, w: Tensor) -> Tensor:
        return sign((w - self.per_channel_mean(w)).detach())

    def stored(self, w: Tensor) -> tuple[Tensor, Tensor]:
        centred = w.detach() - self.per_channel_mean(w.detach())
        signs = (centred >= 0).char().mul_(2).sub_(1)  # in bytes: memory takes longer than the arithmetic
        return signs[None], self.per_channel_mean(centred.abs_()).view(1, -1, 1)


class ReActNet(WeightRule):
    r"""W6, XNOR's weight with a gradient that does not know its scale.

        w_bin[o] = s[o] sign(w[o]),    s[o] = mean |w[o]|

    Shapes    as PlainSign.
    Units     same as w; s >= 0.  Stored size 1 + 16/n bits per weight.
    Error     as XNOR.
    Backward  dL/dw = g 1[|w| <= 1]: without the factor s of XNOR and LearnedScale, and nothing through s.  Adam
              normalises most of the difference away, SGD and weight decay do not.
    Raises    as WeightRule.
    Source    ReActNet (arXiv:2003.03488), released code HardBinaryConv; also BiDM's code, util_ours.py 66-71.
    """

    def forward(self, w: Tensor) -> Tensor:
        binary = sign(w)
        return straight_through(self.per_channel_mean(w.abs()) * binary, binary)  # then through sign's own estimator

    def stored_scales(self, w: Tensor) -> Tensor:
        return self.per_channel_mean(w.detach().abs()).view(1, -1, 1)
