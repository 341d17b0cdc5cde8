"""Activation rules: what a layer does to its input before the product, one class per published rule."""

import math

import torch
from torch import Tensor, nn

from ..errors import unknown
from . import spec
from .annealed import Annealed
from .estimators import ESTIMATORS, sign, straight_through
from .lsq import initial_step, levels, lsq, positive
from .scale_maps import BiDMMap, RankOneMap, XNORMap
from .timed import TDQ, ActivationRule, Clock, DataInitialised, gradient_scale

SILU_SHIFT = 0.2785  # SiLU's minimum is -0.2785, so that what is shifted by this is never negative
OFFSETS = {"none": 0.0, "silu": SILU_SHIFT}


class LSQActivation(DataInitialised):
    r"""A1, learned step size: one step per layer.

        Q(x) = s round(clip((x + d) / s, Q_N, Q_P)) - d,    d = 0, or 0.2785 with `offset="silu"`

    Codes are signed, -2^(k-1) .. 2^(k-1) - 1; with `signed=False` or the SiLU offset they are 0 .. 2^k - 1.

    Shapes    x any; s a scalar, from the first training batch 2 mean|x + d| / sqrt(Q_P).
    Units     as x; s > 0.  k bits.
    Error     at most s / 2 inside the range.
    Backward  as lsq, with gradient scale 1/sqrt(N Q_P), N features of one sample.
    Raises    RuntimeError as DataInitialised; ValueError for bits outside 2..16 or an unknown offset.
    Source    LSQ (arXiv:1902.08153) Eq. 1-3 and section 2.2; the offset is TDQ's for inputs that come out of a SiLU.
    DIFFERS   released codes (LSQuantization, BinaryDM) count the batch in N, so that the speed of s depends on it.
    """

    def __init__(self, layer: nn.Module, clock: Clock | None, bits: int = 4, signed: bool = True,
                 offset: str = "none"):
        super().__init__(layer, clock)
        if offset not in OFFSETS:
            unknown("offset", offset, OFFSETS)
        self.low, self.high = levels(bits, signed and offset == "none")
        self.activation_bits, self.shift = bits, OFFSETS[offset]
        self.step = nn.Parameter(layer.weight.new_ones(()))

    def initialise(self, x: Tensor) -> None:
        self.step.copy_(initial_step(x + self.shift, self.high, self.step.dtype))

    def positive_step(self) -> Tensor:
        return positive(self.step)

    def quantized(self, x: Tensor) -> Tensor:
        step = self.positive_step()
        shifted = x + self.shift if self.shift else x
        q = lsq(shifted, step, self.low, self.high, gradient_scale(x, self.high))
        return q - self.shift if self.shift else q


class Sign(ActivationRule):
    r"""A2 (clipped) and A3 (polynomial), sign without a threshold.

        x_bin = sign(x)

    Shapes    as x.
    Units     dimensionless.  1 bit.
    Backward  the estimator's: see estimators.sign.
    Raises    ValueError for an unknown estimator.
    Source    A2: BinaryConnect (arXiv:1511.00363); A3: Bi-Real Net (arXiv:1808.00278) section 3.3.
    """

    def __init__(self, layer: nn.Module, clock: Clock | None, estimator: str = "clipped"):
        super().__init__(layer, clock)
        if estimator not in ESTIMATORS:
            unknown("estimator", estimator, ESTIMATORS)
        self.estimator = estimator

    def forward(self, x: Tensor) -> Tensor:
        return sign(x, self.estimator)


class RSign(Sign):
    r"""A5, sign with a learned threshold per input channel.

        x_bin = sign(x - th[c])

    Shapes    x (B, C, H, W) or (..., C); th (C,), at first 0.
    Units     th as x; x_bin dimensionless.  1 bit.
    Backward  the estimator's at x - th to x; minus its sum over batch and space to th.
    Raises    as Sign.
    Source    ReActNet (arXiv:2003.03488); released codes learn -th.
    """

    def __init__(self, layer: nn.Module, clock: Clock | None, estimator: str = "polynomial"):
        super().__init__(layer, clock, estimator)
        self.threshold = nn.Parameter(layer.weight.new_zeros(self.channels))

    def forward(self, x: Tensor) -> Tensor:
        return sign(x - self.per_channel(self.threshold), self.estimator)


class ReSTESign(Annealed, ActivationRule):
    r"""Sign with ReSTE's annealed power surrogate, which its authors use for weights and activations alike.

        x_bin = sign(x)

    Shapes    as x.
    Units     dimensionless.  1 bit.
    Backward  annealed.power_surrogate, with a power that `advance` moves from 1 to `end`.
    Raises    ValueError as power_surrogate and annealed_power.
    Source    ReSTE (ICCV 2023), released code binarized_modules.py.
    """

    def __init__(self, layer: nn.Module, clock: Clock | None, end: float = 3.0, clip: float = 1.5,
                 interval: float = 0.1):
        super().__init__(layer, clock)
        self.start(end, clip, interval)

    def forward(self, x: Tensor) -> Tensor:
        return sign(x, self.surrogate)


class DoReFaActivation(ActivationRule):
    r"""DoReFa's k-bit activation on [0, 1]; with one bit it is {0, 1}, not {-1, +1}.

        Q(x) = round((2^k - 1) clip(x, 0, 1)) / (2^k - 1)

    Shapes    as x.
    Units     dimensionless: inputs are taken to lie in [0, 1].  k bits.
    Error     at most 1 / (2 (2^k - 1)) inside [0, 1].
    Backward  1[0 <= x <= 1].
    Raises    ValueError for bits outside 1..16.
    Source    DoReFa-Net (arXiv:1606.06160).
    """

    def __init__(self, layer: nn.Module, clock: Clock | None, bits: int = 1):
        super().__init__(layer, clock)
        if not 1 <= bits <= 16 or bits != int(bits):
            raise ValueError(f"bits must be in 1..16, got {bits}")
        self.activation_bits = bits

    def forward(self, x: Tensor) -> Tensor:
        top = 2**self.activation_bits - 1
        inside = (x >= 0) & (x <= 1)  # spelt out: at its bounds the gradient of clamp differs between torch versions
        return straight_through((x.clamp(0, 1) * top).round() / top, torch.where(inside, x, x.detach()))


class AbsMax(ActivationRule):
    r"""BitNet's activation: the largest magnitude becomes the largest code, anew for every token.

        Q(x) = round(x / s), times s,    s = max |x| / (2^(k-1) - 1)

    Shapes    as x.  A token is a vector along the last axis of a Linear's input, a whole sample of a convolution's.
    Units     as x.  k bits.
    Error     at most s / 2.
    Backward  dQ/dx = 1 (identity).
    Raises    ValueError for bits outside 2..16.
    Source    BitNet b1.58 (arXiv:2402.17764), released code gpu/model.py 70.
    """

    def __init__(self, layer: nn.Module, clock: Clock | None, bits: int = 8):
        super().__init__(layer, clock)
        self.high = levels(bits)[1]
        self.activation_bits = bits

    def forward(self, x: Tensor) -> Tensor:
        largest = x.detach().abs().amax((1, 2, 3) if self.spatial else -1, keepdim=True)
        step = largest.clamp_min(1e-5) / self.high  # 1e-5 as released: a token of zeros stays zeros
        return straight_through((x / step).round().clamp(-self.high, self.high) * step, x)


class Insta(ActivationRule):
    r"""A7, a threshold that follows each sample's third moment, then sign (one bit) or LSQ (more).

        Q(x - th[n,c]),    th[n,c] = b[c] + a[c] mean_hw z^3,    z = (x - mean[c]) / sd[c]

    mean and sd are a batch norm's: of the batch in training, running ones in eval mode, where a sample must not
    depend on its batch.  mean z^3 mixes the sample's own mean, spread and skewness.

    Shapes    x (B, C, H, W), (B, L, C) with the mean over L, or (B, C) with none; a, b (C,), at first 0.
    Units     a, b as x.  1 bit, or k.
    Backward  polynomial STE (one bit) or as LSQ; exact through th to a, b, and through z to x.
    Raises    as LSQActivation.
    Source    INSTA-BNN (arXiv:2204.07439).
    DIFFERS   our reading: the paper's exact parametrisation was not at hand; no INSTA-PReLU, no gate (INSTA-Th+).
    """

    def __init__(self, layer: nn.Module, clock: Clock | None, bits: int = 1):
        super().__init__(layer, clock)
        self.activation_bits = bits
        self.quantizer = LSQActivation(layer, clock, bits) if bits != 1 else Sign(layer, clock, "polynomial")
        self.norm = nn.BatchNorm2d(self.channels, affine=False).to(layer.weight)
        self.gain = nn.Parameter(layer.weight.new_zeros(self.channels))
        self.bias = nn.Parameter(layer.weight.new_zeros(self.channels))

    def threshold(self, x: Tensor) -> Tensor:
        """th, (B, C, 1, 1), (B, 1, C), (B, C) or (C,)."""
        if x.ndim == 1:
            return self.threshold(x[None])[0]
        places = math.prod(x.shape[1:-1])  # of a Linear; -1 would not do for an empty batch
        image = x if self.spatial else x.reshape(len(x), places, self.channels).transpose(1, 2)[..., None]
        z = self.norm(image.to(self.norm.running_mean.dtype))
        threshold = self.bias + self.gain * (z**3).mean((2, 3))  # (B, C)
        if self.spatial:
            return threshold[:, :, None, None]
        return threshold.reshape(len(x), *[1] * (x.ndim - 2), self.channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(x - self.threshold(x))


ACTIVATION_RULES: dict[str, type[ActivationRule]] = {
    "lsq": LSQActivation,
    "sign": Sign,
    "rsign": RSign,
    "reste": ReSTESign,
    "dorefa": DoReFaActivation,
    "xnor": XNORMap,
    "xnor++": RankOneMap,
    "bidm": BiDMMap,
    "insta": Insta,
    "tdq": TDQ,
    "absmax": AbsMax,
}


def activation_rule(text: str, layer: nn.Module, clock: Clock | None) -> ActivationRule:
    """The rule of that name, with options if it has some ("lsq:4", "bidm:learn=False"), built for `layer`.

    Raises    ValueError for an unknown name or option, and as ActivationRule.
    """
    with torch.no_grad():
        return spec.build("activation rule", ACTIVATION_RULES, text, layer, clock).to(layer.weight.device)
