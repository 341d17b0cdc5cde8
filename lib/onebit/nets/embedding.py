"""Sinusoidal timestep embedding, shared by all nets."""

import math

import torch
from torch import Tensor


def sinusoidal_embedding(timestep: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of the timestep at geometrically spaced frequencies.

        e[i] = sin(t f_i),  e[half + i] = cos(t f_i),  f_i = 10000^(-i / (half - 1)),  half = dim / 2

    Shapes    timestep (B,) -> (B, dim), float32.
    Raises    ValueError for an odd `dim` or one below 4.
    Source    source 000 (SinusoidalPositionEmbeddings); the form of Vaswani et al. 2017 with half - 1.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"dim must be even and >= 4, got {dim}")
    half = dim // 2
    number = torch.arange(half, device=timestep.device, dtype=torch.float32)
    frequency = torch.exp(number * (-math.log(10_000) / (half - 1)))
    angle = timestep.float()[:, None] * frequency  # (B, half)
    return torch.cat([angle.sin(), angle.cos()], dim=1)
