"""Binary weights as words, and the constants by which counts of differing bits become products."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .geometry import Phase
from .packing import WORD, words_for
from .vectors import BLOCK


def split(weight: Tensor, out_dim: int) -> tuple[Tensor, Tensor]:
    """Signs (taps, in, out), True for +1, and scales (out,) >= 0 of a weight that is +-s per output channel.

    Shapes    weight (out, in, kh, kw), (in, out, kh, kw) with out_dim=1, or (out, in).
    Raises    ValueError unless all weights of a channel have one magnitude.
    """
    rows = weight.detach().movedim(out_dim, 0)  # (out, in, ...)
    magnitude = rows.flatten(1).abs()
    scale = magnitude[:, 0]
    if not torch.equal(magnitude, scale[:, None].expand_as(magnitude)):
        channel = int((magnitude != scale[:, None]).any(1).nonzero()[0])
        found = magnitude[channel].unique().numel()
        raise ValueError(f"output channel {channel} has weights of {found} magnitudes, where packing needs +-s")
    return (rows >= 0).flatten(2).movedim(0, -1).movedim(1, 0) if rows.ndim > 2 else (rows >= 0).T[None], scale


def pack_bits(bits: np.ndarray) -> np.ndarray:
    """Booleans (..., channels) to words (..., words): channel c is bit c % 64 of word c // 64."""
    channels = bits.shape[-1]
    padded = np.zeros((*bits.shape[:-1], words_for(channels) * WORD), dtype=np.uint64)
    padded[..., :channels] = bits
    return (padded.reshape(*padded.shape[:-1], -1, WORD) << np.arange(WORD, dtype=np.uint64)).sum(-1, dtype=np.uint64)


def pack_weights(positive: Tensor) -> np.ndarray:
    """Signs (taps, in, out) to words (taps, words, out)."""
    return pack_bits(positive.numpy().swapaxes(1, 2)).swapaxes(1, 2)


def unpack_weights(words: np.ndarray, channels: int) -> np.ndarray:
    """The inverse of pack_weights."""
    bits = (words[:, :, None, :] >> np.arange(WORD, dtype=np.uint64)[:, None]) & np.uint64(1)
    return bits.reshape(len(words), -1, words.shape[-1])[:, :channels].astype(bool)


def blocked(words: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """(taps, words, out) to flat (blocks, steps, BLOCK) for the taps of one phase; channels beyond `out` are 0."""
    chosen = words[taps].reshape(-1, words.shape[-1])  # (steps, out)
    blocks = -(-words.shape[-1] // BLOCK)
    padded = np.zeros((len(chosen), blocks * BLOCK), dtype=np.uint64)
    padded[:, : words.shape[-1]] = chosen
    return np.ascontiguousarray(padded.reshape(-1, blocks, BLOCK).swapaxes(0, 1)).ravel()


@dataclass(frozen=True)
class Codes:
    r"""How bit planes b_j in {-1, +1} make an activation:  code = sum_j 2^j (1 + b_j) / 2 - offset,  j < bits.

    For signed k-bit codes offset = 2^(k-1); multiplied out that is BinaryDM's Eq. 19,

        a = sum_j 2^(j-1) b_j - 1/2        (for k = 4:  4 b_3 + 2 b_2 + b_1 + b_0 / 2 - 1/2)

    whose leading plane is the *inverted* sign bit of two's complement.  Unsigned codes have offset 0.

    Source    BinaryDM (arXiv:2404.05662) Eq. 19; the signs, the folded constant and the padding: methods 7.4.
    """

    bits: int
    low: int
    high: int
    offset: int

    @property
    def planes(self) -> int:
        """Planes as the kernels store them: a power of two."""
        return 1 << (self.bits - 1).bit_length()


def sign_constants(words: np.ndarray, channels: int, phase: Phase) -> np.ndarray:
    r"""(kinds, out): what to subtract twice the count from, so that padding is excluded.

        x . w = n - 2 P_valid,    P = P_valid + sum over padded taps of ones(w),    n = channels x valid taps

    since a padded pixel's bits are 0 and differ where the weight has a 1.
    """
    ones = np.bitwise_count(words[phase.taps]).sum(1, dtype=np.int64)  # (taps, out)
    return channels * phase.valid.sum(1)[:, None] + 2 * (~phase.valid).astype(np.int64) @ ones


def code_constants(words: np.ndarray, channels: int, phase: Phase, codes: Codes) -> np.ndarray:
    r"""(kinds, out): what to subtract sum_j 2^j P_j from.

        x . w = (2^k - 1) ones(w) - offset sum w - sum_j 2^j P_j

    summed over *all* taps, since a padded pixel has the planes of code 0; a plane that is stored but not used is all 0,
    so that it counts ones(w), which the constant takes back.
    """
    ones = np.bitwise_count(words[phase.taps]).sum((0, 1), dtype=np.int64)  # (out,)
    n = channels * len(phase.taps)
    constant = (2**codes.planes - 1) * ones - codes.offset * (2 * ones - n)
    return np.repeat(constant[None], len(phase.valid), axis=0)


def spread(values: np.ndarray, dtype: type) -> np.ndarray:
    """(..., out) flat, its last axis filled up to whole blocks with zeros."""
    short = -values.shape[-1] % BLOCK
    return np.ascontiguousarray(np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, short)]).astype(dtype)).ravel()

