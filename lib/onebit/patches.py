"""A convolution as a matrix product: what each output value is a weighted sum of."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def weight_matrix(layer: nn.Module) -> Tensor:
    """The layer's weight as (out, n): n weights for each output channel."""
    weight = layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight
    return weight.reshape(len(weight), -1)


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """The rows (positions, n) that the layer multiplies its weights with: patches @ weight_matrix.T + bias = output.

    Shapes    x as the layer takes it: (B, in, H, W) or (in, H, W), or (..., in) for Linear.  Positions
              run over the batch, and rows and columns of the output.
    Raises    ValueError for groups other than 1, and for a layer that is no Conv2d, ConvTranspose2d or Linear.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, layer.in_features)
    if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) or layer.groups != 1:
        raise ValueError(f"patches are of Conv2d, ConvTranspose2d (groups=1) and Linear layers, got {layer}")
    x = x if x.ndim == 4 else x.unsqueeze(0)
    size, channels = layer.kernel_size[0] * layer.kernel_size[1], layer.in_channels
    one_each = torch.eye(size, dtype=x.dtype, device=x.device).view(size, 1, *layer.kernel_size)
    if isinstance(layer, nn.ConvTranspose2d):
        rows = F.conv_transpose2d(x, one_each.transpose(0, 1).repeat(channels, 1, 1, 1), None, layer.stride,
                                  layer.padding, layer.output_padding, channels, layer.dilation)
    else:
        x, padding = _padded(layer, x)
        rows = F.conv2d(x, one_each.repeat(channels, 1, 1, 1), None, layer.stride, padding, layer.dilation, channels)
    return rows.permute(0, 2, 3, 1).reshape(-1, channels * size)


def _padded(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, tuple[int, int] | str | int]:
    if layer.padding_mode == "zeros":
        return x, layer.padding
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
