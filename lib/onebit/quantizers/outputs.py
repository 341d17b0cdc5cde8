"""What follows a binary layer: a shortcut around it, and a PReLU with learned shifts."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import spec


class RPReLU(nn.Module):
    r"""PReLU with a learned shift before and after, per channel.

        f(y) = y - g[c] + z[c]           where y > g[c]
             = b[c] (y - g[c]) + z[c]    elsewhere

    Shapes    y with `channels` on `axis` (1 for images, -1 for a Linear's output) -> as y.
    Units     g, z as y, at first 0; b dimensionless, at first 0.25.
    Backward  exact.
    Source    ReActNet (arXiv:2003.03488), released code.
    """

    def __init__(self, channels: int, axis: int = 1):
        super().__init__()
        self.axis = axis
        self.before = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.after = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Applied to the layer's output y; its input x plays no part."""
        shape = [1] * y.ndim
        shape[self.axis] = -1
        before, slope, after = (p.view(shape) for p in (self.before, self.slope, self.after))
        shifted = y - before
        return torch.where(shifted > 0, shifted, slope * shifted) + after


class Shortcut(nn.Module):
    r"""The layer's raw input, added to its output at the output's size.

        y + c shortcut(x)

    shortcut(x) is x where input and output channels agree, averaged to a smaller output or repeated (nearest) to a
    larger one.  Where they differ there is none, or with `convolve=True` a full-precision 1x1 convolution (a Linear for
    a Linear), which then counts among the full-precision parameters.

    Shapes    x the layer's input, y its output -> as y.
    Units     as y; c dimensionless, a constant, or with `learn=True` a parameter that starts there.
    Backward  exact.
    Source    Bi-Real Net (arXiv:1808.00278), ReActNet (arXiv:2003.03488) with c = 1.
    DIFFERS   BiDM's released codes: `convolve=True,learn=True` with coefficient=0.3, of which the LDM code takes the
              absolute value, or coefficient=0 (CIFAR); the LDM code has no shortcut around its linear layers.
    """

    def __init__(self, layer: nn.Module, convolve: bool = False, coefficient: float = 1.0, learn: bool = False):
        super().__init__()
        self.linear = isinstance(layer, nn.Linear)
        sizes = (layer.in_features, layer.out_features) if self.linear else (layer.in_channels, layer.out_channels)
        self.applies = convolve or sizes[0] == sizes[1]
        self.convolution = None
        if sizes[0] != sizes[1] and convolve:
            self.convolution = (nn.Linear(*sizes) if self.linear else nn.Conv2d(*sizes, 1)).to(layer.weight)
        start = layer.weight.new_tensor(float(coefficient))
        self.coefficient = nn.Parameter(start) if learn and self.applies else float(coefficient)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.applies:
            return y
        if not self.linear and x.shape[2:] != y.shape[2:]:
            x = _resized(x, y.shape[2:])
        x = x if self.convolution is None else self.convolution(x)
        plain = isinstance(self.coefficient, float) and self.coefficient == 1  # spares a pass over x
        return y + (x if plain else self.coefficient * x)

    def extra_repr(self) -> str:
        return "" if self.applies else "none: channels differ"


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    smaller = size[0] < x.shape[2] or size[1] < x.shape[3]
    return F.adaptive_avg_pool2d(x, size) if smaller else F.interpolate(x, size=size, mode="nearest")


def _rprelu(layer: nn.Module) -> RPReLU:
    if isinstance(layer, nn.Linear):
        return RPReLU(layer.out_features, axis=-1).to(layer.weight)
    return RPReLU(layer.out_channels, axis=-3).to(layer.weight)  # an image may come without a batch


OUTPUT_RULES = {"shortcut": Shortcut, "rprelu": _rprelu}


def output_rule(text: str, layer: nn.Module) -> nn.Module:
    """The module of that name, with options if it has some ("shortcut:convolve=True"), built for `layer`.

    It is called with the layer's raw input and its output, and returns the new output.

    Raises    ValueError for an unknown name or option.
    """
    return spec.build("output rule", OUTPUT_RULES, text, layer)
