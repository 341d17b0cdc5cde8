"""As many threads for numba as torch has, and one Python thread at a time in its parallel loops."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numba
import torch

_one = threading.Lock()  # two threads in numba's parallel loops end the process, by some of its layers


@cache
def _launched() -> None:
    """Start numba's threads.  Where they are OpenMP's, that sets the number of torch's too: it is set back."""
    threads = torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(threads)


def use_torchs_threads() -> int:
    """Let the kernels run on torch's number of threads, or on all that numba has if these are fewer; how many."""
    _launched()
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    return threads


@contextmanager
def alone() -> Iterator[None]:
    """Around a call of numba's parallel loops: on torch's number of threads, and in no other Python thread meanwhile.

    Around the loops and nothing else: who is alone and asks for it again waits forever.
    """
    with _one:
        use_torchs_threads()
        yield
