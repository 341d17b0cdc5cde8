"""The two networks in which the papers count: LDM-4's U-Net for LSUN-Bedrooms, and DDPM's for CIFAR-10."""

from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import unknown
from ..recipes import quantize, schedules
from ..recipes import recipe as parse
from .account import Account, account
from .costs import LayerCost
from .trace import Trace, trace

if TYPE_CHECKING:
    import pandas as pd

NETS = {
    "ldm-4": {  # latent-diffusion, configs/latent-diffusion/lsun_bedrooms-ldm-vq-4.yaml: attention at factors 2, 4, 8
        "sample_size": 64, "block_out_channels": (224, 448, 672, 896), "attention_head_dim": 32,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "ddpm-cifar10": {  # Ho et al. 2020: 128 channels, multipliers 1, 2, 2, 2, attention at 16 x 16
        "sample_size": 32, "block_out_channels": (128, 256, 256, 256), "attention_head_dim": None,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
}
CHANNELS = 3
ENDS = "first and last convolution"
PARTS = {  # substring of a layer's name in diffusers -> the part it belongs to; the first that fits
    "time_embedding": "time MLP",
    "time_emb_proj": "embedding linears",
    "conv_shortcut": "1x1 skips",
    "attentions": "attention qkv + proj",
    "conv_in": ENDS,
    "conv_out": ENDS,
    "conv": "3x3 convs",
}
ORDER = ("3x3 convs", "attention qkv + proj", "embedding linears", "1x1 skips", ENDS, "time MLP")
EBB_PLACE = ("down_blocks.0.*", "down_blocks.1.resnets.*", "down_blocks.1.attentions.*", "up_blocks.[23].*")


def published_net(name: str, device: str = "meta") -> nn.Module:
    """A published U-Net as diffusers' UNet2DModel, freshly initialised; on "meta" without memory.

    Parameters: "ldm-4" 274,056,163 and "ddpm-cifar10" 35,746,307, as the original code.  (diffusers has queries, keys
    and values as three linear layers, where CompVis has one convolution: the same weights, products and biases.)

    Raises    ValueError for an unknown name.
    """
    if name not in NETS:
        unknown("published network", name, NETS)
    from diffusers.models.unets.unet_2d import UNet2DModel  # seconds to import

    with torch.device(device):
        return UNet2DModel(in_channels=CHANNELS, out_channels=CHANNELS, layers_per_block=2, norm_num_groups=32,
                           **NETS[name])


def published_example(name: str, device: str = "meta") -> tuple[Tensor, Tensor]:
    """One input of that network: an image (or latent) and its timestep."""
    size = NETS[name]["sample_size"]
    return torch.zeros(1, CHANNELS, size, size, device=device), torch.zeros(1, device=device)


@cache
def _trace(name: str, connections: str) -> Trace:
    """What all recipes with these cross-timestep connections have in common, whatever their quantizers."""
    model = published_net(name)
    quantize(model, f"weights=sign connections={connections}")
    return trace(model, published_example(name))


@cache
def published_account(name: str, recipe: str = "fp16") -> Account:
    """The account of that network under a recipe, as training leaves it: counted on the meta device, and kept."""
    model = published_net(name)
    quantize(model, recipe, published_example(name))
    for rule in schedules(model):
        rule.advance(1.0)
    return account(model, published_example(name), found=_trace(name, parse(recipe).connections))


def part(row: LayerCost) -> str:
    """The part of the network that a layer belongs to, by its name."""
    return next(found for piece, found in PARTS.items() if piece in row.name)


def parts(name: str) -> "pd.DataFrame":
    """Parameters and GMACs by part of the float network, as in methods 7.2; the last row is outside the papers' total.

    `channels` counts output channels, each of which has a scale once the layer is binary.
    """
    import pandas as pd

    counted = published_account(name)
    rows = {label: [row for row in counted.layers if part(row) == label] for label in ORDER}
    found = {label: {"parameters": sum(row.weights for row in group), "GMACs": sum(row.macs for row in group) / 1e9,
                     "channels": sum(row.shape[0] for row in group)} for label, group in rows.items()}
    weights = sum(row.weights for row in counted.layers)
    found["biases, norms"] = {"parameters": counted.parameters - weights, "GMACs": 0.0}
    found["total"] = {"parameters": counted.parameters, "GMACs": counted.network.macs / 1e9,
                      "channels": sum(f["channels"] for f in found.values() if "channels" in f)}
    found["attention matmuls"] = {"parameters": 0, "GMACs": counted.attention_macs / 1e9}
    frame = pd.DataFrame(found).T.fillna(0)
    return frame.astype({"parameters": "int64", "channels": "int64"})


def ebb_share(name: str = "ldm-4") -> float:
    """Share of all parameters in BinaryDM's place for EBB: input blocks 0-5 and output blocks 6-11, 0..1.

    In diffusers' names these are the first convolution and `EBB_PLACE`; the second downsampling is input block 6.
    """
    sizes = {key: p.numel() for key, p in published_net(name).named_parameters()}
    inside = sum(n for key, n in sizes.items() if in_ebb_place(key) or key.startswith("conv_in."))
    return inside / sum(sizes.values())


def in_ebb_place(name: str) -> bool:
    """Whether a layer or parameter of that name lies in the twelve blocks to which BinaryDM gives two bases."""
    return any(fnmatchcase(name, pattern) for pattern in EBB_PLACE)
