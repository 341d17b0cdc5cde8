"""A quantized weight as it is stored, integers and half-precision scales, and the rule that plays it back."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..quantizers import WeightRule
from .digits import Coding

HALF_ERROR = 2.0**-11  # of a number that half precision rounds, relative to it
TERNARY = {"slots": 4, "base3": 3}  # how three levels may be written -> base


def half(x: Tensor, each: bool = False) -> Tensor:
    """x in half precision where that keeps it, else as it is.

    Kept means: what is finite stays so, and no value moves by more than 2^-11 of the largest, or of itself with `each`.
    """
    narrow = x.half()
    size = x.abs().double()
    allowed = HALF_ERROR * (size if each or not x.numel() else size.max())
    moved = (narrow.double() - x.double()).abs()
    return narrow if ((moved <= allowed) | ~x.isfinite()).all() else x


@dataclass(frozen=True)
class Packed:
    r"""One layer's weight as integers times scales.

        w[o, i] = sum_p scales[p, o, i // group] c[p, o, i],    c[p] in coding.levels

    Each output channel begins on a byte of its own; i counts its weights in the order of the remaining axes.

    Shapes    shape: the weight's, output channels on `axis`; data uint8 (planes, out, places, bytes); scales
              (planes, out or 1, groups), float16, or float32 where half precision cannot hold one of them.
    Error     of a scale at most 2^-11 of it (float16's rounding); the integers are exact.
    Raises    ValueError for data or scales of another shape or type than the rest asks for.
    """

    shape: tuple[int, ...]
    axis: int
    group: int | None
    coding: Coding
    data: np.ndarray
    scales: np.ndarray

    def __post_init__(self):
        planes, groups = self.data.shape[0] if self.data.ndim else 0, math.ceil(self.inputs / self.of_a_scale)
        wanted = (planes, self.channels, self.coding.places, self.coding.bytes_for(self.inputs))
        if self.data.shape != wanted or self.data.dtype != np.uint8 or not planes:
            raise ValueError(f"packed weights must be uint8 {wanted}, got {self.data.dtype} {self.data.shape}")
        if not self.coding.sound(self.data):
            raise ValueError(f"packed weights hold bytes that are no digits of base {self.coding.base}")
        fits = [(planes, channels, groups) for channels in (1, self.channels)]
        if self.scales.shape not in fits or self.scales.dtype not in (np.float16, np.float32):
            raise ValueError(f"scales must be float16 or float32 {fits[1]}, or one channel of it, got "
                             f"{self.scales.dtype} {self.scales.shape}")

    @classmethod
    def of(cls, rule: WeightRule, weight: Tensor, ternary: str = "slots", exact: bool = False) -> "Packed":
        """What the rule makes of a latent weight; `exact`: with its scales in float32.

        Raises    ValueError for weights or scales that are not finite, or integers outside the rule's levels.
        """
        integers, scales = rule.stored(weight.detach())
        total = weight.detach().sum(dtype=torch.float64)  # finite only if all are, unless it overflows
        finite = weight.is_meta or total.isfinite()  # a mapped layer's fit
        if not (finite and scales.isfinite().all()):
            raise ValueError("its weights or scales are not finite; train it again with a lower learning rate")
        rows = integers.float().movedim(rule.out_dim + 1, 1).reshape(len(integers), rule.channels, -1).cpu().numpy()
        coding = Coding(rule.levels, TERNARY[ternary] if len(rule.levels) == 3 else 2)
        narrow = (scales if exact else half(scales, each=True)).cpu()
        narrow = narrow if narrow.dtype == torch.float16 else narrow.float()
        return cls(tuple(weight.shape), rule.out_dim, rule.group, coding, coding.encode(rows), narrow.numpy())

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def inputs(self) -> int:
        """Weights of one output channel."""
        return math.prod(self.shape) // self.channels

    @property
    def of_a_scale(self) -> int:
        """Consecutive weights that share a scale."""
        return self.group or self.inputs

    @property
    def bits(self) -> float:
        """Ideal bits per weight, as WeightRule.weight_bits."""
        return len(self.data) * math.log2(len(self.coding.levels))

    def integers(self) -> Tensor:
        """c as float32, (planes, *shape)."""
        rows = torch.from_numpy(self.coding.decode(self.data, self.inputs))  # (planes, out, inputs)
        return rows.reshape(-1, *self._rows_first).movedim(1, self.axis + 1)

    def weight(self) -> Tensor:
        """w as float32, contiguous: every product and sum rounded once, in the order of the planes."""
        total = self._plane(0)
        for plane in range(1, len(self.data)):
            total += self._plane(plane)
        return torch.from_numpy(total).reshape(self._rows_first).movedim(0, self.axis).contiguous()

    @property
    def _rows_first(self) -> tuple[int, ...]:
        return (self.channels, *(n for d, n in enumerate(self.shape) if d != self.axis))

    def _plane(self, plane: int) -> np.ndarray:
        """scales[p] c[p], (out, inputs)."""
        values, scales = self.coding.decode(self.data[plane], self.inputs), self.scales[plane].astype(np.float32)
        if scales.shape[1] > 1:
            scales = np.repeat(scales, self.group, axis=1)[:, : self.inputs]
        return np.multiply(values, scales, out=values)


class Stored(WeightRule):
    """The rule of a layer that was loaded: its quantized weight is what the file holds, whatever the latent one was.

    Latent weights are not stored, so there is nothing to train: no gradient reaches the weight.  A layer's weight is
    the quantized one itself, and passes as it is; or it lies on the meta device, a mere shape, and is decoded anew in
    every forward pass.

    Source    this work.
    """

    shown = ("out_dim", "levels", "group")

    def __init__(self, packed: Packed):
        nn.Module.__init__(self)  # not WeightRule's, which wants a weight
        self.packed = packed
        self.out_dim, self.channels = packed.axis, packed.channels
        self.levels, self.group = packed.coding.levels, packed.group

    @property
    def weight_bits(self) -> float:
        return self.packed.bits

    @property
    def packed_bits(self) -> float:
        """Bits of a weight's digits in the file, a channel's last byte not counted."""
        coding = self.packed.coding
        return len(self.packed.data) * coding.places * 8 / coding.per_byte

    @property
    def scale_bits(self) -> int:
        """As of the packed rule: in half precision wherever that holds the scales, nothing for a plain sign."""
        scales = torch.from_numpy(self.packed.scales)
        return 0 if (scales == 1).all() else 8 * half(scales, each=True).nbytes

    def forward(self, w: Tensor) -> Tensor:
        if not w.is_meta:
            return w.detach()
        return torch.empty_strided(w.shape, w.stride(), dtype=w.dtype).copy_(self.packed.weight())

    def codes(self, w: Tensor) -> Tensor:
        """The stored integers, whatever w: (planes, *shape), or without planes where there is one."""
        integers = self.packed.integers()
        return integers[0] if len(integers) == 1 else integers

    def stored_scales(self, w: Tensor) -> Tensor:
        return torch.from_numpy(self.packed.scales).float()
