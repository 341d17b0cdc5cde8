"""What one layer costs to compute (BinaryDM's equations 16 and 17) and to store."""

from dataclasses import dataclass, field

from ..audit import FLOAT_BITS

WORD = 64  # one-bit products that count as one operation


@dataclass(frozen=True)
class LayerCost:
    r"""One layer's row of the account, for one pass on the example.

        BOPs = MACs b_a b_w        (eq. 16)
        OPs  = BOPs / 64 + FLOPs   (eq. 17)

    Units     macs, flops: multiply-accumulates, as the papers' "FLOPs" are.  b_a = `activation_bits`, 32 where inputs
              stay float; b_w = `product_bits`: a ternary weight is two bits to a multiplier, whatever it takes to store
              (`weight_bits`).  `overheads`: operations of the quantizers by kind, in neither bops nor flops.
              weight_bytes at the ideal bits; packed_bytes as codes lie in a file; both 0 for a float layer.
              float_bytes: bias, and the weight of a float layer.  quantizer_bytes: parameters of activation rules and
              shortcuts.
    Source    BinaryDM (arXiv:2404.05662) Eq. 16-17; for a Linear at every position, methods 7.1.
    DIFFERS   where b_a b_w > 64, eq. 17 would charge more than for the float product (4 operations at W8A32): such
              products count as float, one operation each.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    weights: int
    macs: int
    weight_bits: float
    product_bits: int
    activation_bits: int
    weight_bytes: float
    packed_bytes: float
    scale_bytes: float
    float_bytes: float
    quantizer_bytes: float
    overheads: dict[str, int] = field(default_factory=dict)

    @property
    def quantized(self) -> bool:
        return self.weight_bits < FLOAT_BITS

    @property
    def bops(self) -> int:
        width = self.activation_bits * self.product_bits
        return self.macs * width if width <= WORD else 0

    @property
    def flops(self) -> int:
        return self.macs if self.activation_bits * self.product_bits > WORD else 0

    @property
    def ops(self) -> float:
        return self.bops / WORD + self.flops

    @property
    def overhead_flops(self) -> int:
        return sum(self.overheads.values())

    @property
    def note(self) -> str:
        """What has to be said beside the numbers.  No paper defines the operations of W1A32: b_a = 32 is ours."""
        return "no multiplication saving claimed" if self.quantized and self.activation_bits == FLOAT_BITS else ""


@dataclass(frozen=True)
class Total:
    """A sum over layers and what lies beside them, in the units of `LayerCost`."""

    bytes: float
    macs: int
    bops: int
    flops: int

    @property
    def ops(self) -> float:
        return self.bops / WORD + self.flops

    @property
    def mebibytes(self) -> float:
        """2^20 bytes: what the papers print as MB."""
        return self.bytes / 2**20
