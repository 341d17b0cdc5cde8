"""A network as sampling needs it: no gradient, weights quantized once, batch norms folded into their neighbours."""

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import SWAPS, Quantized, quantized_layers
from .nets.unet import ResBlock, UNet
from .quantizers import ActivationRule

FLOAT = {quantized: kind for kind, quantized in SWAPS.items()}


def frozen(model: nn.Module) -> nn.Module:
    r"""A copy for inference, in eval mode: the same function of images and timesteps, to rounding, in less time.

        s = gamma / sqrt(var + e),  b = beta - s mean         of every batch norm: x s + b
        norm2(conv1(h) + time) = (s2 W1) h + [s2 (b1 + time) + b2]

    Quantized weights are computed once.  A layer that quantizes its weight alone becomes a float layer that holds the
    result; one that quantizes its input stays what it is, with a constant weight.  Batch norms become one multiply-add,
    and in the `unet`'s residual blocks the second one is folded into the convolution before it, bracket included,
    which is a bias where all images of a call share their timestep.  Blocks with hooks inside them, or that share
    such a layer with another, are not folded, and nothing is in a network that quantizes activations, whose codes a
    rounding error could flip: its outputs stay the same bit for bit.

    A copy is no network to audit, see `audit`.

    Shapes    as the model's.  What becomes of the model later, by training or by hooks, its copy does not see.
    Error     a few rounding errors of float32 in the output, relative to its largest value; under autocast those of
              bfloat16, which the network itself makes too.
    Source    this work.
    """
    made = copy.deepcopy(model).eval().requires_grad_(False)
    with torch.no_grad():
        for layer in quantized_layers(made).values():
            _hold_weight(layer)
        if not any(isinstance(module, ActivationRule) for module in made.modules()):
            _fold_norms(made)
    made.is_frozen_copy = True  # `audit` could not tell: layers of a few bits may be plain float ones by now
    return made.requires_grad_(False)


def sharing_weights(model: nn.Module) -> nn.Module:
    """A copy with its own hooks and state of a call, on the same parameters and buffers."""
    kept = {id(tensor): tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
    return copy.deepcopy(model, kept)


def _hold_weight(layer: Quantized) -> None:
    layer.weight = nn.Parameter(layer.quantized_weight())
    layer.rule = nn.Identity().eval()
    if layer.activation is None and not layer.outputs and type(layer) in FLOAT:
        del layer.rule
        layer.__class__ = FLOAT[type(layer)]


def _fold_norms(model: nn.Module) -> None:
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for block in [module for module in model.modules() if _folds(module, uses)]:
        _fold(block)
    for norm in [module for module in model.modules() if _is_fixed(module)]:
        norm.__class__ = FixedNorm
        norm.prepare()
    if type(model) is UNet:
        model.register_forward_pre_hook(_share_time, prepend=True)  # hooks that keep the time see one, too


def _is_fixed(module: nn.Module) -> bool:
    """A batch norm that normalises by running statistics, whose output is therefore affine in its input."""
    return type(module) is nn.BatchNorm2d and module.affine and module.running_var is not None


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class FixedNorm(nn.BatchNorm2d):
    """A batch norm in eval mode as one multiply-add per value."""

    def prepare(self) -> None:
        scale, shift = _affine(self)
        self.register_buffer("scale", scale[:, None, None], persistent=False)  # (C, 1, 1)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift.to(x.dtype), x, self.scale.to(x.dtype))  # under autocast x is bfloat16


def _folds(module: nn.Module, uses: Counter) -> bool:
    """Whether `_fold` can take the block: batch norms, a float first convolution and time layer, nobody looking on, and
    what it changes is in use nowhere else."""
    if type(module) is not ResBlock or (type(module.conv1), type(module.time)) != (nn.Conv2d, nn.Linear):
        return False
    if any(uses[part] > uses[module] for part in (module.conv1, module.time, module.norm2)):
        return False
    inside = [part for part in module.modules() if part is not module]
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in inside)
    return _is_fixed(module.norm1) and _is_fixed(module.norm2) and not hooked


def _fold(block: ResBlock) -> None:
    scale, shift = _affine(block.norm2)
    conv, time = block.conv1, block.time
    time.bias = nn.Parameter((_bias(time) + _bias(conv)) * scale + shift)
    time.weight = nn.Parameter(time.weight * scale[:, None])
    conv.weight = nn.Parameter(conv.weight * scale[:, None, None, None])
    conv.bias = None
    block.norm2 = nn.Identity().eval()
    block.__class__ = FoldedBlock


def _bias(layer: nn.Module) -> Tensor | float:
    return 0.0 if layer.bias is None else layer.bias


class FoldedBlock(ResBlock):
    """A residual block after `_fold`: `time` holds the first convolution's bias and the second norm too."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = F.silu(self.norm1(x), inplace=True)
        offset = self.time(time)  # (1, C), or (B, C)
        if len(offset) == 1:
            h = self.conv1._conv_forward(h, self.conv1.weight, offset[0])
        else:
            h = self.conv1(h).add_(offset[:, :, None, None])
        return self.conv2(F.silu(h, inplace=True)).add_(self.shortcut(x))


def _share_time(net: UNet, inputs: tuple) -> tuple | None:
    """Images of one timestep need its embedding once.  On a GPU the comparison would wait for the device: not there."""
    if len(inputs) < 2 or inputs[1].device.type != "cpu" or not (inputs[1] == inputs[1][:1]).all():
        return None
    return inputs[0], inputs[1][:1], *inputs[2:]
