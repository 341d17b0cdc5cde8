"""How fast this machine can count: the tightest loops around what a product does per word, xor, count and add."""

from collections.abc import Callable

import numpy as np
from numba import njit, prange

from . import vectors as v
from .threads import use_torchs_threads
from .vectors import BLOCK

TURNS = 10_000  # per thread and call
INNER = 31  # counts of up to 8 that a byte can sum
CHAINS = 4  # independent sums, so that no count waits for the one before


@njit(parallel=True, cache=True)
def _by_vectors(words, sums, turns):
    """BLOCK words at a time, all in registers: what a product would reach if it had nothing to load or store."""
    at, sums_at, one = words.ctypes.data, sums.ctypes.data, words[BLOCK:].ctypes.data
    for job in prange(len(sums) // BLOCK):
        total, mask = v.zero_integers(), v.load_words(at, 0)
        for _ in range(turns):
            a = b = c = d = v.zero_words()
            for _ in range(INNER):
                a = v.add_bytes(a, v.differing(mask, a))
                b = v.add_bytes(b, v.differing(mask, b))
                c = v.add_bytes(c, v.differing(mask, c))
                d = v.add_bytes(d, v.differing(mask, d))
                mask = v.add_bytes(mask, mask)
            total = v.add(total, v.sum_bytes(v.add_bytes(v.add_bytes(a, b), v.add_bytes(c, d))))
        v.store_scaled(sums_at, job * BLOCK, total, one, one, np.float32(1))


@njit(parallel=True, cache=True)
def _by_scalars(words, sums, turns):
    """One word at a time, by the processor's own instruction where it has one."""
    for job in prange(len(sums) // BLOCK):
        a = b = c = d = np.uint64(job)
        mask = words[0]
        for _ in range(turns * INNER):
            a += v.count(mask ^ a)
            b += v.count(mask ^ b)
            c += v.count(mask ^ c)
            d += v.count(mask ^ d)
            mask += mask
        sums[job * BLOCK] = a + b + c + d


def turns() -> dict[str, tuple[Callable[[], None], int]]:
    """Calls that count on all threads torch uses, by "vectors" and "scalars", each with the words that it compares."""
    threads = use_torchs_threads()
    words = np.random.default_rng(0).integers(0, 2**63, 2 * BLOCK, dtype=np.uint64)
    sums, counted = np.empty(threads * BLOCK, np.float32), threads * TURNS * INNER * CHAINS
    return {"vectors": (lambda: _by_vectors(words, sums, TURNS), counted * BLOCK),
            "scalars": (lambda: _by_scalars(words, sums, TURNS), counted)}
