"""Small integers in bytes: digits of one base, several to a byte, the least significant first.  Numpy alone."""

from dataclasses import dataclass
from functools import cache

import numpy as np

CACHED = 2**18  # numbers; a megabyte of float32
DIGITS = {2: 8, 3: 5, 4: 4}  # base -> digits in a byte: 2^8 = 4^4 = 256, 3^5 = 243


@dataclass(frozen=True)
class Coding:
    r"""How integers out of `levels` are written: as indices into it, each one or more digits of `base`.

        index = (integer - levels.start) / levels.step = sum_j base^j d_j,    byte = sum_i base^i d(i)

    Base 2 has a plane of bits for every binary place of the index (little bit order, as np.packbits); base 4 is the
    2-bit slot of a ternary weight, base 3 puts five of them into a byte (1.6 bits each).

    Raises    ValueError for a base that is not 2, 3 or 4, or levels that do not fit it: 2, 4, ... 65536 of them for
              base 2, three for the others.
    """

    levels: range = range(-1, 2, 2)
    base: int = 2

    def __post_init__(self):
        if self.base not in DIGITS:
            raise ValueError(f"base must be one of {', '.join(map(str, DIGITS))}, got {self.base!r}")
        fits = len(self.levels) in (2**k for k in range(1, 17)) if self.base == 2 else len(self.levels) == 3
        if not fits:
            raise ValueError(f"{len(self.levels)} levels cannot be written in base {self.base}: base 2 takes a power "
                             "of two up to 65536, bases 3 and 4 take three")

    @property
    def places(self) -> int:
        """Digits of an index."""
        return (len(self.levels) - 1).bit_length() if self.base == 2 else 1

    @property
    def per_byte(self) -> int:
        return DIGITS[self.base]

    def bytes_for(self, n: int) -> int:
        """Bytes that n digits take; the last may have room left, filled with zeros."""
        return -(-n // self.per_byte)

    def encode(self, integers: np.ndarray) -> np.ndarray:
        """(..., n) numbers, whole and in `levels`, as bytes (..., places, bytes).

        Raises    ValueError for a number that is not a level.
        """
        n = integers.shape[-1]
        rows, block = integers.reshape(-1, n), max(1, CACHED // n)  # block by block: temporaries stay in the cache
        packed = np.empty((len(rows), self.places, self.bytes_for(n)), np.uint8)
        for i in range(0, len(rows), block):
            packed[i : i + block] = self._packed(self._index(rows[i : i + block]))
        return packed.reshape(*integers.shape[:-1], *packed.shape[1:])

    def _packed(self, index: np.ndarray) -> np.ndarray:
        if self.base > 2:
            return _horner(index, self.base)[:, None]
        if index.dtype == bool:
            return np.packbits(index, axis=-1, bitorder="little")[:, None]
        places = [index & (1 << place) for place in range(self.places)]
        return np.stack([np.packbits(place > 0, axis=-1, bitorder="little") for place in places], axis=-2)

    def _index(self, integers: np.ndarray) -> np.ndarray:
        """Which level each number is: bool for two levels, else uint8 where that is enough."""
        if len(self.levels) == 2:  # the common case, in as few passes as there are
            index = integers == self.levels[1]
            sound = (index | (integers == self.levels[0])).all()
        else:
            exact = (integers - self.levels.start) / self.levels.step
            with np.errstate(invalid="ignore"):  # of NaN, which the next line finds
                index = exact.astype(np.uint8 if len(self.levels) <= 256 else np.uint16)
            sound = (index == exact).all() and index.max() < len(self.levels)
        if not sound:
            raise ValueError(f"some codes are not among the levels {self.levels}")
        return index

    def sound(self, packed: np.ndarray) -> bool:
        """Whether every byte could have come from `encode`; slot 3 of base 4 and 243 .. 255 of base 3 could not."""
        if self.base == 2:
            return True
        return bool((packed < 3**5).all() if self.base == 3 else not (packed & packed >> 1 & 0x55).any())

    def decode(self, packed: np.ndarray, n: int) -> np.ndarray:
        """The integers as float32 (..., n), from bytes (..., places, bytes); exact, since they are below 2^24."""
        total = self._looked_up(packed, 0)
        for place in range(1, self.places):
            total += self._looked_up(packed, place)
        return total[..., :n]

    def _looked_up(self, packed: np.ndarray, place: int) -> np.ndarray:
        table = _table(self.levels.start if place == 0 else 0, self.levels.step << place, self.base)
        values = np.take(table, packed[..., place, :], axis=0)  # (..., bytes, per_byte): one row of floats per byte
        return values.reshape(*values.shape[:-2], -1)


def _horner(digits: np.ndarray, base: int) -> np.ndarray:
    """uint8 (..., n) of digits -> uint8 (..., bytes), d0 + base (d1 + base (d2 + ...))."""
    per_byte = DIGITS[base]
    padded = np.pad(digits, [(0, 0)] * (digits.ndim - 1) + [(0, -digits.shape[-1] % per_byte)])
    digits = padded.reshape(*digits.shape[:-1], -1, per_byte)
    packed = digits[..., -1].copy()
    for i in reversed(range(per_byte - 1)):
        packed *= base
        packed += digits[..., i]
    return packed


@cache
def _table(start: int, step: int, base: int) -> np.ndarray:
    """start + step * digit for every byte and each of its digits, float32 (256, per_byte)."""
    powers = base ** np.arange(DIGITS[base])
    digits = np.arange(256)[:, None] // powers % base
    return (start + step * digits).astype(np.float32)
