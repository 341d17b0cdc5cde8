"""Layers whose weight, input and output go through quantizers; made out of float layers by changing their class."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .quantizers.fused import scaled


class Quantized:
    """Mixed into a layer class: `weight` becomes the latent weight, `rule` makes the one that is used.

    rule         latent weight -> quantized weight
    activation   None, or input -> quantized input, with an optional map that scales the output before the bias
    outputs      what is applied to the output in turn, each a function of (layer's raw input, output)
    """

    rule: nn.Module
    activation: nn.Module | None
    outputs: nn.ModuleList | None
    image_dims = 0  # of an input without a batch, where the float layer takes one for an image

    def quantized_weight(self) -> Tensor:
        """The weight that is used, laid out in memory as the latent one.

        A rule's arithmetic may forget the stride of an axis of size 1 (one input channel, a 1x1 kernel), which says
        nothing about the values, but by which torch decides whether this layer's output is channels-last.
        """
        weight = self.rule(self.weight)
        if weight.stride() == self.weight.stride():
            return weight
        return torch.empty_like(self.weight, dtype=weight.dtype).copy_(weight)

    def forward(self, input: Tensor, *arguments, **named) -> Tensor:
        """As the float layer's: its input goes by torch's name for it, since callers may give it by name."""
        if self.image_dims and input.ndim == self.image_dims:  # rules reckon with a batch
            return Quantized.forward(self, input.unsqueeze(0), *arguments, **named).squeeze(0)
        weight = self.quantized_weight()
        if self.activation is None:
            y = self.linear_map(input, weight, self.bias, *arguments, **named)
        else:
            y = self._with_quantized_input(input, weight, *arguments, **named)
        for module in self.outputs or ():
            y = module(input, y)
        return y

    def _with_quantized_input(self, x: Tensor, weight: Tensor, *arguments, **named) -> Tensor:
        x, scale = self.activation.with_scale_map(x)
        if scale is None:
            return self.linear_map(x, weight, self.bias, *arguments, **named)
        y = self.linear_map(x, weight, None, *arguments, **named)
        if self.activation.spatial and scale.shape[-2:] not in (y.shape[-2:], (1, 1)):
            raise ValueError(f"outputs of {tuple(y.shape[-2:])} are not of the size of the scale map, "
                             f"{tuple(scale.shape[-2:])}: give images of the size that the layer was quantized with "
                             "(and output_padding in place of output_size), or take a rule without a map ('sign')")
        return scaled(y, scale, self.bias, self.activation.spatial)

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the float layer computes, with the given weight and bias."""
        raise NotImplementedError


class QuantConv2d(Quantized, nn.Conv2d):
    """Conv2d with a quantized weight; everything else, its state's names included, as in the float layer."""

    image_dims = 3

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


class QuantLinear(Quantized, nn.Linear):
    """Linear with a quantized weight."""

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


class QuantConvTranspose2d(Quantized, nn.ConvTranspose2d):
    """ConvTranspose2d with a quantized weight; its output channels are on axis 1."""

    image_dims = 3

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As the float layer's, which lets the size of an output without a batch begin with its channels."""
        if input.ndim == self.image_dims and output_size is not None:
            output_size = output_size[-2:]
        return super().forward(input, output_size)

    def linear_map(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, output_size: list[int] | None = None
    ) -> Tensor:
        padding = self._output_padding(x, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation)
        return F.conv_transpose2d(x, weight, bias, self.stride, self.padding, padding, self.groups, self.dilation)


SWAPS = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear, nn.ConvTranspose2d: QuantConvTranspose2d}


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every Conv2d, ConvTranspose2d and Linear of the model by name, in the order of registration.

    Layers inside a quantized layer (its quantizers' own small networks) do not count.
    """
    if isinstance(model, Quantized):
        return {"": model}
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, tuple(SWAPS))}
    inside = tuple(f"{name}." for name, layer in found.items() if isinstance(layer, Quantized))
    return {name: layer for name, layer in found.items() if not name.startswith(inside)} if inside else found


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have been swapped, by name."""
    return {name: layer for name, layer in weight_layers(model).items() if isinstance(layer, Quantized)}


def tensors_alone(model: nn.Module) -> dict[str, Tensor]:
    """The model's state.

    Raises    ValueError for state that is no tensor, which our files cannot hold.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"state {name} is a {type(value).__name__}, and our files hold tensors alone: let "
                             "get_extra_state return a tensor, or keep it elsewhere")
    return state


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Within it the model is in eval mode, without gradient; then each of its modules is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}  # of each: a frozen norm must stay frozen
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def without_quantizers(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Within it the layers compute as float ones, with their latent weights: no rule takes its start from what runs."""
    quantized = [layer for layer in layers if isinstance(layer, Quantized)]
    own = {layer: vars(layer)["forward"] for layer in quantized if "forward" in vars(layer)}  # a hook's
    for layer in quantized:
        layer.forward = _float_forward(layer)
    try:
        yield
    finally:
        for layer in quantized:
            del layer.forward
        for layer, forward in own.items():
            layer.forward = forward


def _float_forward(layer: Quantized) -> Callable[..., Tensor]:
    return lambda input, *arguments, **named: layer.linear_map(input, layer.weight, layer.bias, *arguments, **named)
