"""How binary a network is: bits of every layer, and what the whole takes to store."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from torch import nn

from .connections import connections_of
from .layers import Quantized, weight_layers
from .quantizers.outputs import Shortcut

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
    shared: bool = False  # its weight is that of a layer above, whose row counts it


@dataclass(frozen=True)
class Audit:
    """How binary a model is: one row per layer with weights, and the number of all parameters."""

    layers: tuple[LayerBits, ...]
    parameters: int  # of the whole model: biases, norms, embeddings and shortcuts' convolutions included, quantizers'
    #                  other state excluded

    @property
    def binary_weights(self) -> int:
        return sum(row.weights for row in self._low if row.weight_bits == 1 and not row.shared)

    @property
    def _low(self) -> list[LayerBits]:
        """The rows of quantized layers."""
        return [row for row in self.layers if row.weight_bits < FLOAT_BITS]

    @property
    def _low_bits(self) -> float:
        """What they are stored in: a shared weight once, and every layer's own scales."""
        return sum(row.scale_bits + (0 if row.shared else row.weights * row.weight_bits) for row in self._low)

    @property
    def _low_weights(self) -> int:
        return sum(row.weights for row in self._low if not row.shared)

    @property
    def binary_share(self) -> float:
        """1-bit weights over all parameters, 0..1: the honest answer to "how binary is this model?"."""
        return self.binary_weights / self.parameters

    @property
    def stored_bytes(self) -> float:
        """Size with quantized weights at their ideal bits, their scales at 16, and every other parameter at 16."""
        return (self._low_bits + 16 * (self.parameters - self._low_weights)) / 8

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of the quantized layers, scales included; 32 for a network that has none."""
        return self._low_bits / self._low_weights if self._low else float(FLOAT_BITS)

    def table(self) -> "pd.DataFrame":
        """The rows as a DataFrame; `shared` is a column where any is."""
        import pandas as pd  # slow to import, and training needs no table

        frame = pd.DataFrame([asdict(row) for row in self.layers])
        return frame if any(row.shared for row in self.layers) else frame.drop(columns="shared", errors="ignore")


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
    rows, own, seen = [], 0, set()
    for name, layer in weight_layers(model).items():
        quantized = isinstance(layer, Quantized)
        weight = layer._parameters.get("weight")  # None where a parametrization makes it anew for who looks
        rows.append(LayerBits(
            name=name,
            shape=tuple(layer.weight.shape),
            weights=layer.weight.numel(),
            weight_bits=layer.rule.weight_bits if quantized else FLOAT_BITS,
            activation_bits=layer.activation.activation_bits if quantized and layer.activation else FLOAT_BITS,
            scale_bits=layer.rule.scale_bits if quantized else 0,
            shared=weight is not None and id(weight) in seen,
        ))
        seen.add(id(weight))
        own += _own(layer) if quantized else 0
    connections = connections_of(model)
    own += sum(p.numel() for p in connections.parameters()) if connections is not None else 0
    return Audit(tuple(rows), sum(p.numel() for p in model.parameters()) - own)


def _own(layer: nn.Module) -> int:
    """Parameters of a layer's quantizers, without a shortcut's convolution: that is one more float layer."""
    inside = sum(p.numel() for p in layer.parameters()) - sum(p.numel() for p in layer.parameters(recurse=False))
    shortcuts = [module.convolution for module in layer.outputs or () if isinstance(module, Shortcut)]
    return inside - sum(p.numel() for convolution in shortcuts if convolution is not None
                        for p in convolution.parameters())
