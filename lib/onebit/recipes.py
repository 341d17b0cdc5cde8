"""What is quantized where: named recipes, and `quantize`, which swaps layers of any torch module in place."""

from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from .errors import unknown
from .quantizers import WEIGHT_RULES, weight_rule

if TYPE_CHECKING:
    import pandas as pd

FLOAT_BITS = 32


@dataclass(frozen=True)
class Recipe:
    """One way to quantize a network.

    weights         name of the weight rule ("none": leave the network alone)
    only            name patterns of the layers to quantize; () means all
    keep            name patterns of layers that stay float whatever `only` says
    keep_ends       keep the first and the last layer (in the order of registration, `keep` set aside) float
    drop_bias       remove the bias of quantized layers, as the published code does
    post_training   train in float and quantize afterwards, without further training
    """

    weights: str = "none"
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    keep_ends: bool = False
    drop_bias: bool = False
    post_training: bool = False

    def __post_init__(self):
        if self.weights != "none" and self.weights not in WEIGHT_RULES:
            unknown("weight rule", self.weights, ["none", *WEIGHT_RULES])


STRICT = Recipe(weights="centred", keep=("*time*",), keep_ends=True)
RECIPES = {
    "fp16": Recipe(),  # the control: float weights, trained under autocast where the machine has it
    "published-1bit": Recipe(  # source 000 as released: 35 % of the ResUNet's parameters
        weights="centred", only=("down.*.conv1", "down.*.conv2", "up.*.conv2"), drop_bias=True
    ),
    "strict-1bit": STRICT,  # everything but the first and last layer and the time embedding
    "ptq-1bit": Recipe(**(asdict(STRICT) | {"post_training": True})),  # strict's layers, without its training
}


def recipe(name: str) -> Recipe:
    """The recipe of that name.  Raises ValueError, listing the valid names, for any other."""
    if name not in RECIPES:
        unknown("recipe", name, RECIPES)
    return RECIPES[name]


class _Quantized:
    """Mixed into a layer class: `weight` becomes the latent weight, `rule` makes the one that is used."""

    def quantized_weight(self) -> Tensor:
        return self.rule(self.weight)


class QuantConv2d(_Quantized, nn.Conv2d):
    """Conv2d with a quantized weight; everything else, its state's names included, as in the float layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.quantized_weight(), self.bias)


class QuantLinear(_Quantized, nn.Linear):
    """Linear with a quantized weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantized_weight(), self.bias)


class QuantConvTranspose2d(_Quantized, nn.ConvTranspose2d):
    """ConvTranspose2d with a quantized weight; its output channels are on axis 1."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        padding = self._output_padding(x, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation)
        return F.conv_transpose2d(
            x, self.quantized_weight(), self.bias, self.stride, self.padding, padding, self.groups, self.dilation
        )


SWAPS = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear, nn.ConvTranspose2d: QuantConvTranspose2d}


@dataclass(frozen=True)
class LayerBits:
    """One layer's row of the audit; bits are per stored weight, `scale_bits` for the whole layer."""

    name: str
    shape: tuple[int, ...]
    weights: int
    weight_bits: int
    activation_bits: int
    scale_bits: int


@dataclass(frozen=True)
class Audit:
    """How binary a model is: one row per layer with weights, and the number of all parameters."""

    layers: tuple[LayerBits, ...]
    parameters: int  # of the whole model: biases, norms and embeddings included, quantizers' own scales excluded

    @property
    def binary_weights(self) -> int:
        return sum(row.weights for row in self.layers if row.weight_bits == 1)

    @property
    def binary_share(self) -> float:
        """1-bit weights over all parameters, 0..1: the honest answer to "how binary is this model?"."""
        return self.binary_weights / self.parameters

    @property
    def stored_bytes(self) -> float:
        """Size on disk with 1-bit weights packed, their scales at 16 bits, and every other parameter at 16 bits."""
        scales = sum(row.scale_bits for row in self.layers)
        return (self.binary_weights + scales + 16 * (self.parameters - self.binary_weights)) / 8

    def table(self) -> "pd.DataFrame":
        """The rows as a DataFrame."""
        import pandas as pd  # slow to import, and training needs no table

        return pd.DataFrame([asdict(row) for row in self.layers])


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every Conv2d, ConvTranspose2d and Linear of the model by name, in the order of registration."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, tuple(SWAPS))}


def quantize(model: nn.Module, how: str | Recipe) -> Audit:
    """Quantize `model` in place by a recipe or its name, and say what became of each layer.

    Raises    ValueError for an unknown recipe, a model without layers to quantize, one that is quantized already,
              or a recipe whose patterns match none of its layers.
    """
    how = recipe(how) if isinstance(how, str) else how
    layers = weight_layers(model)
    if any(isinstance(layer, _Quantized) for layer in layers.values()):
        raise ValueError("the model is quantized already; build a new one for another recipe")
    if how.weights != "none":
        chosen = _choose(list(layers), how)
        for name in chosen:  # all of them before the first swap: a refused model stays as it was
            if type(layers[name]) not in SWAPS:
                kind = type(layers[name]).__name__
                raise ValueError(f"cannot quantize {name}: {kind} is a subclass of a layer type; name it in `keep`")
        for name in chosen:
            _swap(layers[name], how)
    return audit(model)


def audit(model: nn.Module) -> Audit:
    """The per-layer bits of a model as it stands, quantized or not."""
    rows, extra = [], 0
    for name, layer in weight_layers(model).items():
        quantized = isinstance(layer, _Quantized)
        rows.append(LayerBits(
            name=name,
            shape=tuple(layer.weight.shape),
            weights=layer.weight.numel(),
            weight_bits=layer.rule.weight_bits if quantized else FLOAT_BITS,
            activation_bits=FLOAT_BITS,
            scale_bits=layer.rule.scale_bits if quantized else 0,
        ))
        extra += sum(p.numel() for p in layer.rule.parameters()) if quantized else 0
    return Audit(tuple(rows), sum(p.numel() for p in model.parameters()) - extra)


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that `quantize` has swapped, by name."""
    return {name: layer for name, layer in weight_layers(model).items() if isinstance(layer, _Quantized)}


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _choose(names: list[str], how: Recipe) -> list[str]:
    candidates = [name for name in names if not _matches(name, how.keep)]
    if how.keep_ends:
        candidates = candidates[1:-1]
    chosen = [name for name in candidates if not how.only or _matches(name, how.only)]
    if not chosen:
        raise ValueError(f"{how} matches no layer of this model; its layers: {', '.join(names) or 'none'}")
    return chosen


def _swap(layer: nn.Module, how: Recipe) -> None:
    """Change the layer's class in place: parameters, their names, and references to the layer all stay."""
    kind = type(layer)
    layer.__class__ = SWAPS[kind]
    layer.rule = weight_rule(how.weights, layer.weight, out_dim=1 if kind is nn.ConvTranspose2d else 0)
    if how.drop_bias:
        layer.bias = None
