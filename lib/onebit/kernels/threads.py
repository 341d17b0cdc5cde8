"""As many threads for numba as torch has."""

from functools import cache

import numba
import torch


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
