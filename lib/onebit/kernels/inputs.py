"""Activation rules as the kernels run them: which threshold, step and output factor a rule asks for."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..quantizers.activations import DoReFaActivation, Insta, LSQActivation, ReSTESign, RSign, Sign
from ..quantizers.scale_maps import BiDMMap, MapRule, RankOneMap, XNORMap
from ..quantizers.timed import TDQ, ActivationRule, DataInitialised
from .packing import filled_words, pack_codes, pack_signs
from .threads import alone
from .weights import Codes

MOST_BITS = 8  # of codes
SIGNS = (Sign, RSign, ReSTESign, XNORMap, BiDMMap, RankOneMap)


class NotPackable(ValueError):
    """The kernels have no form for this layer; it stays as it is."""


def codes_of(rule: ActivationRule) -> Codes | None:
    """The codes of a multi-bit rule, None for one of signs.

    Raises    NotPackable for a rule that the kernels do not know, a subclass of one they know among them.
    """
    if type(rule) in SIGNS or (type(rule) is Insta and type(rule.quantizer) is Sign):
        return None
    bits = rule.activation_bits
    if bits > MOST_BITS:
        raise NotPackable(f"{bits}-bit inputs: bit planes pay up to {MOST_BITS}")
    inner = rule.quantizer if isinstance(rule, Insta) else rule
    if type(inner) is LSQActivation and not inner.shift:
        return Codes(bits, inner.low, inner.high, -inner.low)
    if type(inner) is TDQ:
        return Codes(bits, -inner.high, inner.high, 2 ** (bits - 1))
    if type(inner) is DoReFaActivation:
        return Codes(bits, 0, 2**bits - 1, 0)
    raise NotPackable(f"no kernel for the activation rule {type(inner).__name__}")


ONE, NONE, NO_BIAS = np.ones(1, dtype=np.float32), np.zeros(0, dtype=np.float32), np.float32(0)


@dataclass
class Packed:
    """Packed inputs, and what outputs are multiplied with besides the weight's scale: see `product`."""

    frame: np.ndarray
    factor: np.ndarray = field(default_factory=lambda: ONE)
    strides: tuple[int, int] = (0, 0)
    magnitude: np.ndarray = field(default_factory=lambda: NONE)
    kernel: np.ndarray = field(default_factory=lambda: NONE)  # (kh kw,), or empty where there is no map
    map_bias: np.float32 = NO_BIAS
    lost: Tensor | None = None  # samples (N,) whose codes would be those of NaN, if there are any


def flat(values: Tensor) -> np.ndarray:
    """A tensor's values as flat float32."""
    return values.detach().float().contiguous().numpy().reshape(-1)


def _lost(image: Tensor, before: np.ndarray, thresholds: np.ndarray) -> Tensor | None:
    """Samples (N,) whose input is NaN somewhere, or infinite before a SiLU, which may make it NaN; None: no sample.

    There is no code for NaN, and any other would make plausible outputs of a broken network's.  A sum tells at hardly
    any cost that there is none; from an image it may overflow.
    """
    if math.isfinite(image.sum().item()) and np.isfinite(before).all() and np.isfinite(thresholds).all():
        return None
    channels, lost = image.shape[-1], torch.zeros(len(image), dtype=torch.bool)
    for values, size in ((image, image[0].numel()), (before, 4 * channels), (thresholds, channels)):
        if len(values):
            values = torch.as_tensor(values).reshape(-1, size)  # of each sample, or for all
            lost |= (~values.isfinite() if len(before) else values.isnan()).any(1)
    return lost


class Before(nn.Module):
    r"""What stands between the last layer and this one and is computed while packing:  z = c SiLU(a x + b) + d.

    values    (4, in): a, b, c, d
    late      whether a `shift` per sample and channel, as a time embedding adds it, is added to z or to x
    """

    def __init__(self, values: Tensor, late: bool):
        super().__init__()
        self.late = late
        self.register_buffer("values", values)

    def forward(self, shift: Tensor | None) -> Tensor:
        """(1, 4, in), or with a shift (N, in) one set per sample."""
        if shift is None:
            return self.values[None]
        values = self.values.expand(len(shift), -1, -1).clone()
        values[:, 3 if self.late else 1] += shift if self.late else shift * self.values[0]
        return values


class InputPacker(nn.Module):
    """Packs the inputs of one layer by its activation rule.

    before       a `Before`, or None
    threshold    a tensor (in,) that takes the place of the rule's own, or None: how a norm is folded into a sign
    """

    def __init__(self, rule: ActivationRule):
        super().__init__()
        self.rule, self.codes, self.before = rule, codes_of(rule), None
        inner = rule.quantizer if isinstance(rule, Insta) else rule
        if isinstance(inner, DataInitialised) and not inner.initialised:
            raise ValueError(f"its {type(inner).__name__} has no step yet: run one training step first, or load the "
                             "state of a trained model")
        self.register_buffer("threshold", None)
        self.filled = filled_words(rule.channels)

    @property
    def planes(self) -> int:
        """Bit planes per pixel of the frame."""
        return 1 if self.codes is None else self.codes.planes

    def pack(self, image: Tensor, x: Tensor, margins: tuple[int, int, int, int], shift: Tensor | None) -> Packed:
        """The layer's input x, also given as image (N, H, W, C) contiguous float32; shift (N, C) is added to x."""
        n, h, w, c = image.shape
        pixels = n * (h + margins[0] + margins[1]) * (w + margins[2] + margins[3])
        frame = np.empty(pixels * self.planes * len(self.filled), np.uint64)
        before = NONE if self.before is None else flat(self.before(shift))
        thresholds = self._thresholds(x, c, shift)
        per_sample = int(len(before) > 4 * c), int(len(thresholds) > c)
        if self.codes is None:
            magnitude = np.empty(pixels, np.float32)
            with alone():
                pack_signs(flat(image), (n, h, w, c), margins, before, thresholds, per_sample, self.filled, frame,
                           magnitude)
            return self._with_map(frame, magnitude)
        (steps, times), codes = self._steps(x), self.codes
        with alone():
            pack_codes(flat(image), (n, h, w, c), margins, before, thresholds, steps,
                       (*per_sample, int(len(steps) > 1)), np.float32(times), np.float32(codes.low),
                       np.float32(codes.high), codes.offset, codes.bits, codes.planes, self.filled, frame)
        return Packed(frame, steps / np.float32(times), (int(len(steps) > 1), 0),
                      lost=_lost(image, before, thresholds))

    def _thresholds(self, x: Tensor, channels: int, shift: Tensor | None) -> np.ndarray:
        """Flat (in,), or (N, in) where every sample has its own."""
        rule = self.rule
        if self.threshold is not None:
            return flat(self.threshold if shift is None else self.threshold - shift)
        if isinstance(rule, Insta):
            return flat(rule.threshold(x))
        if isinstance(rule, (RSign, BiDMMap)) and rule.threshold is not None:
            return flat(rule.threshold)
        return np.zeros(channels, np.float32)

    def _steps(self, x: Tensor) -> tuple[np.ndarray, int]:
        """Step per sample (or one for all), and what inputs are multiplied with before they are divided by it."""
        rule = self.rule.quantizer if isinstance(self.rule, Insta) else self.rule
        if isinstance(rule, DoReFaActivation):
            return ONE, self.codes.high
        return flat(rule.steps_for(x) if isinstance(rule, TDQ) else rule.positive_step()), 1

    def _with_map(self, frame: np.ndarray, magnitude: np.ndarray) -> Packed:
        rule = self.rule
        if isinstance(rule, RankOneMap):  # its alpha is in the weight's scale
            return Packed(frame, flat(rule.beta * rule.gamma), (0, 1)) if rule.spatial else Packed(frame)
        if isinstance(rule, XNORMap) and not rule.spatial:
            return Packed(frame, magnitude=magnitude, kernel=ONE)
        if isinstance(rule, MapRule) and rule.spatial:
            bias = getattr(rule, "bias", None)
            return Packed(frame, magnitude=magnitude, kernel=flat(rule.kernel_for(torch.from_numpy(magnitude))),
                          map_bias=NO_BIAS if bias is None else np.float32(bias.item()))
        return Packed(frame)
