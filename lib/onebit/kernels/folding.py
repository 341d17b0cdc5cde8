r"""Batch norm, SiLU and the time embedding's sum, computed where the next packed layer reads its input.

Where nothing but the sign of an activation is used, a norm and a SiLU in front of it become a threshold,

    sign(SiLU(BN(x))) = sign(BN(x)) = sign(gamma) sign(x - th),    th = mean - beta sqrt(var + eps) / gamma

since SiLU(z) < 0 exactly where z < 0.  sign(gamma) = -1 goes into the weights of that input channel, which with
padding excluded changes nothing else; gamma = 0 leaves the sign of beta, a threshold at infinity.  A time embedding t
that is added to x makes it th - t.

A scale map, codes of several bits or a threshold of the rule's own need the value itself.  There the norm's factor and
shift, the SiLU and t are computed on the way into the bits, so that no pass over the memory is theirs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nets.resunet import ResUNetBlock
from ..nets.unet import ResBlock
from ..quantizers.activations import Insta, ReSTESign, Sign
from .inputs import Before
from .modules import PackedConv2d


class FoldedResBlock(ResBlock):
    """A ResBlock whose norms, SiLUs and time live in its two packed convolutions."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv2(self.conv1(x), shift=self.time(time))


class FoldedResUNetBlock(ResUNetBlock):
    """A ResUNetBlock whose norms, SiLUs and time live in its second packed convolution and its resampling."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.resample(self.conv2(self.conv1(x), shift=F.silu(self.time(time))))


# block -> its folded form, (norm, the layer that takes it up) pairs, whether the norm follows the SiLU
BLOCKS = {
    ResBlock: (FoldedResBlock, (("norm1", "conv1"), ("norm2", "conv2")), False),
    ResUNetBlock: (FoldedResUNetBlock, (("norm1", "conv2"), ("norm2", "resample")), True),
}


def fold_norms(model: nn.Module) -> list[str]:
    """Fold, in place, the norms of every block of our two nets that allows it; the names of the folded norms."""
    folded = []
    for name, block in list(model.named_modules()):
        form, pairs, after = BLOCKS.get(type(block), (None, (), False))
        if form and _foldable(block, pairs):
            for norm, layer in pairs:
                fold(getattr(block, norm), getattr(block, layer), after)
                setattr(block, norm, nn.Identity())
                folded.append(f"{name}.{norm}")
            block.__class__ = form
    return folded


def _foldable(block: nn.Module, pairs: tuple[tuple[str, str], ...]) -> bool:
    """Whether all norms of a block can be, and nobody looks at what is in it."""
    watched = any(part._forward_hooks or part._forward_pre_hooks for part in block.modules() if part is not block)
    return not watched and all(_fits(getattr(block, norm), getattr(block, layer)) for norm, layer in pairs)


def _fits(norm: nn.Module, layer: nn.Module) -> bool:
    """Outputs such as a shortcut would need the layer's own input, and INSTA's thresholds its statistics; a broken norm
    has to put out NaN, which no threshold does."""
    return (type(norm) is nn.BatchNorm2d and norm.track_running_stats and isinstance(layer, PackedConv2d)
            and not layer.outputs and not isinstance(layer.packer.rule, Insta)
            and all(value.isfinite().all() for value in norm.state_dict().values()))


@torch.no_grad()
def fold(norm: nn.BatchNorm2d, layer: PackedConv2d, after: bool) -> None:
    """Make `layer` compute, from x, what it computed from SiLU(norm(x)), or with `after` from norm(SiLU(x))."""
    gamma, beta, mean = norm.weight.double(), norm.bias.double(), norm.running_mean.double()
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    if type(layer.packer.rule) in (Sign, ReSTESign) and not after:
        constant = torch.where(beta < 0, torch.inf, -torch.inf)  # every x is below it, or none
        layer.packer.threshold = torch.where(gamma == 0, constant, mean - beta * deviation / gamma).float()
        layer.flip((gamma < 0).numpy())
        return
    factor = gamma / deviation
    affine, none = [factor, beta - mean * factor], [torch.ones_like(gamma), torch.zeros_like(gamma)]
    layer.packer.before = Before(torch.stack([*none, *affine] if after else [*affine, *none]).float(), late=after)
