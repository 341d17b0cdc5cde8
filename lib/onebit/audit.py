"""How binary a network is: bits of every layer, and what the whole takes to store."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from torch import nn

from .layers import Quantized, weight_layers

if TYPE_CHECKING:
    import pandas as pd

FLOAT_BITS = 32
KERNELS = f"{__package__}.kernels."  # its modules, by name: importing them compiles


@dataclass(frozen=True)
class LayerBits:
    """One layer's row of the audit; bits are per stored weight, `scale_bits` for the whole layer."""

    name: str
    shape: tuple[int, ...]
    weights: int
    weight_bits: float
    activation_bits: int
    scale_bits: int


@dataclass(frozen=True)
class Audit:
    """How binary a model is: one row per layer with weights, and the number of all parameters."""

    layers: tuple[LayerBits, ...]
    parameters: int  # of the whole model: biases, norms and embeddings included, quantizers' own state excluded

    @property
    def binary_weights(self) -> int:
        return sum(row.weights for row in self.layers if row.weight_bits == 1)

    @property
    def binary_share(self) -> float:
        """1-bit weights over all parameters, 0..1: the honest answer to "how binary is this model?"."""
        return self.binary_weights / self.parameters

    @property
    def stored_bytes(self) -> float:
        """Size with quantized weights at their ideal bits, their scales at 16, and every other parameter at 16."""
        low = [row for row in self.layers if row.weight_bits < FLOAT_BITS]
        bits = sum(row.weights * row.weight_bits + row.scale_bits for row in low)
        return (bits + 16 * (self.parameters - sum(row.weights for row in low))) / 8

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of the quantized layers, scales included; 32 for a network that has none."""
        low = [row for row in self.layers if row.weight_bits < FLOAT_BITS]
        if not low:
            return float(FLOAT_BITS)
        return sum(row.weights * row.weight_bits + row.scale_bits for row in low) / sum(row.weights for row in low)

    def table(self) -> "pd.DataFrame":
        """The rows as a DataFrame."""
        import pandas as pd  # slow to import, and training needs no table

        return pd.DataFrame([asdict(row) for row in self.layers])


def check_countable(model: nn.Module) -> None:
    """Raise ValueError for a model made for inference alone: its layers do not say what they are stored in."""
    for module in model.modules():
        kernels = type(module).__module__.startswith(KERNELS)
        if kernels or getattr(module, "is_frozen_copy", False):
            made = "packed for the kernels (to_packed)" if kernels else "frozen (frozen.frozen)"
            raise ValueError(f"{type(model).__name__} is {made}: its bits can no longer be read off its layers; audit "
                             "the network that it was made from, before `frozen` or `to_packed`")


def audit(model: nn.Module) -> Audit:
    """The per-layer bits of a model as it stands, quantized or not.

    Raises    ValueError for a copy that `frozen` or `kernels.to_packed` made.
    """
    check_countable(model)
    rows, own = [], 0
    for name, layer in weight_layers(model).items():
        quantized = isinstance(layer, Quantized)
        rows.append(LayerBits(
            name=name,
            shape=tuple(layer.weight.shape),
            weights=layer.weight.numel(),
            weight_bits=layer.rule.weight_bits if quantized else FLOAT_BITS,
            activation_bits=layer.activation.activation_bits if quantized and layer.activation else FLOAT_BITS,
            scale_bits=layer.rule.scale_bits if quantized else 0,
        ))
        own += sum(p.numel() for p in layer.parameters()) - sum(
            p.numel() for p in layer.parameters(recurse=False)) if quantized else 0
    connections = getattr(model, "connections", None)
    own += sum(p.numel() for p in connections.parameters()) if connections is not None else 0
    return Audit(tuple(rows), sum(p.numel() for p in model.parameters()) - own)
