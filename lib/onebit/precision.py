"""In which arithmetic networks are trained where nobody says: the faster one of this machine."""

import time
from functools import cache

import torch

PRECISIONS = ("auto", "float32", "bfloat16")
SIDE = 512  # of the matrices that are timed
TURNS = 7  # the best of them counts, so that what else the machine does is no part of it
PAYS = 1.2  # times as fast: processors were met whose bfloat16 takes half the time, and ones where it takes twice


def resolve_precision(precision: str) -> str:
    """What "auto" means on this machine: "bfloat16" where it has instructions for it that are faster, else "float32".

    A processor's are timed once per process, in some tens of milliseconds; a GPU's are taken to be faster.
    """
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    capabilities = torch.cpu.get_capabilities()
    able = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")  # emulation is not worth the trial
    return "bfloat16" if able and _gain() >= PAYS else "float32"


@cache
def _gain() -> float:
    """How many times as fast a matrix product is in bfloat16 as in float32."""
    operands = {dtype: torch.ones(SIDE, SIDE, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    turns = [{dtype: _seconds(x) for dtype, x in operands.items()} for _ in range(TURNS)]
    wide, half = (min(turn[dtype] for turn in turns) for dtype in operands)
    return wide / half


def _seconds(x: torch.Tensor) -> float:
    began = time.perf_counter()
    x @ x
    return time.perf_counter() - began
