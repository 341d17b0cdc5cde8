"""A small DDPM-style residual U-Net: the family that sources 001 and 003 quantize."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import unknown
from .embedding import sinusoidal_embedding

EMBEDDING_DIM = 32
TIME_DIM = 64
MULTIPLIERS = (1, 2, 4)
NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(math.gcd(8, channels), channels),  # twice the CPU time of batch norm
}


class ResBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x))) + time))), with a 1x1 convolution on the shortcut where widths differ.

    The second convolution starts at zero, so that a new block is its shortcut (Ho et al. 2020, released code).
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__()
        self.norm1 = NORMS[norm](in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(TIME_DIM, out_channels)
        self.norm2 = NORMS[norm](out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Single-head self-attention over pixels, added to its input; its output projection starts at zero."""

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.norm = NORMS[norm](channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)  # each (B, H W, C)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj(h)


class UNet(nn.Module):
    """Residual U-Net over three resolutions with widths w, 2w, 4w; it predicts the noise eps.

    One residual block per resolution on the way down (at the lowest it is the middle block, with optional
    attention after it) and one on the way up, with a skip around them at every resolution; time enters every block.

    Shapes    x (B, 1, H, W) with H and W divisible by 4, timestep (B,) -> (B, 1, H, W).
    Units     x in the units of x_t (data scaled to [-1, 1]); timestep counts 0 .. T-1.
    Raises    ValueError for an unknown norm.
    Source    the family of DDPM (arXiv:2006.11239), which BinaryDM and BiDM quantize; sizes are this work's.
    """

    def __init__(self, width: int = 16, norm: str = "batch", attention: bool = False):
        super().__init__()
        if norm not in NORMS:
            unknown("norm", norm, NORMS)
        widths = [width * m for m in MULTIPLIERS]
        self.time_mlp = nn.Sequential(
            nn.Linear(EMBEDDING_DIM, TIME_DIM), nn.SiLU(), nn.Linear(TIME_DIM, TIME_DIM), nn.SiLU()
        )
        self.conv_in = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.ModuleList(ResBlock(c, c, norm) for c in widths[:-1])
        pairs = list(pairwise(widths))
        self.downsample = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairs)
        self.mid = ResBlock(widths[-1], widths[-1], norm)
        self.attention = Attention(widths[-1], norm) if attention else nn.Identity()
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(b, a, 4, stride=2, padding=1) for a, b in reversed(pairs))
        self.up = nn.ModuleList(ResBlock(2 * c, c, norm) for c in reversed(widths))
        self.norm_out = NORMS[norm](width)
        self.conv_out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        time = self.time_mlp(sinusoidal_embedding(timestep, EMBEDDING_DIM).to(x.dtype))
        x = self.conv_in(x)
        skips = []
        for block, downsample in zip(self.down, self.downsample, strict=True):
            x = block(x, time)
            skips.append(x)
            x = downsample(x)
        skips.append(x)
        x = self.attention(self.mid(x, time))
        for level, block in enumerate(self.up):
            x = block(torch.cat([self.upsample[level - 1](x) if level else x, skips.pop()], dim=1), time)
        return self.conv_out(F.silu(self.norm_out(x)))
