"""The published MNIST network of source 000: a convolutional U-Net, "ResUNet" by name, without residual additions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embedding import sinusoidal_embedding

TIME_DIM = 32  # fixed in the published code, whatever the width


class ResUNetBlock(nn.Module):
    """conv3x3 - SiLU - batch norm, + time, conv3x3 - SiLU - batch norm, then a learned 4x4 resampling.

    The normalisation stands *after* the activation, as published. An up block takes twice its input width,
    because a skip is concatenated to its input.
    """

    def __init__(self, in_channels: int, out_channels: int, up: bool):
        super().__init__()
        self.time = nn.Linear(TIME_DIM, out_channels)
        self.conv1 = nn.Conv2d(2 * in_channels if up else in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(out_channels)
        resample = nn.ConvTranspose2d if up else nn.Conv2d
        self.resample = resample(out_channels, out_channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.norm1(F.silu(self.conv1(x)))
        h = h + F.silu(self.time(time))[:, :, None, None]
        h = self.norm2(F.silu(self.conv2(h)))
        return self.resample(h)


class ResUNet(nn.Module):
    """The published net, exactly, by base width; it predicts the noise eps.

    Shapes    x (B, 1, H, W) with H and W divisible by 4, timestep (B,) -> (B, 1, H, W).
    Units     x in the units of x_t (data scaled to [-1, 1]); timestep counts 0 .. T-1.
    Size      width 64: 3,690,721 parameters (the control; the published 1-bit net drops 960 biases).
    DIFFERS   nothing. As released, the stored skips are the outputs of the two down blocks, so the first up
              block concatenates its input with itself, and the full-resolution features are never skipped.
    Source    source 000, rigorous_bench_trainer.py 146-186.
    """

    def __init__(self, width: int = 64):
        super().__init__()
        w = width
        self.time_mlp = nn.Linear(TIME_DIM, TIME_DIM)
        self.conv_in = nn.Conv2d(1, w, 3, padding=1)
        self.down = nn.ModuleList([ResUNetBlock(w, 2 * w, up=False), ResUNetBlock(2 * w, 4 * w, up=False)])
        self.up = nn.ModuleList([ResUNetBlock(4 * w, 2 * w, up=True), ResUNetBlock(2 * w, w, up=True)])
        self.conv_out = nn.Conv2d(w, 1, 1)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        time = F.relu(self.time_mlp(sinusoidal_embedding(timestep, TIME_DIM).to(x.dtype)))
        x = self.conv_in(x)
        skips = []
        for block in self.down:
            x = block(x, time)
            skips.append(x)
        for block in self.up:
            x = block(torch.cat([x, skips.pop()], dim=1), time)
        return self.conv_out(x)
