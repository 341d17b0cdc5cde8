"""Kernels called from several Python threads: numba ends the process where two are in its parallel loops at once."""

import os
import subprocess
import sys

import pytest

PACKED = """from onebit.bench_kernels import packed_convolution
layer, x = packed_convolution("{}", 2, 8, 32)
call = lambda: layer(x)"""
SPD = """from onebit.distill import SPD
student, teacher = torch.randn(2, 4, 8, 16, 16)
call = lambda: SPD()([student.requires_grad_()], [teacher])"""
BINARY = """from onebit.quantizers import fused
x = torch.randn(4, 16, 16, 16).contiguous(memory_format=torch.channels_last)
call = lambda: fused.Binarize.apply(x, None, "clipped")[0]"""
BOTH = f"""{SPD}
spd = call
{BINARY}
binarize = call
call = lambda: (spd(), binarize())[1]"""

TWICE = """
import threading, torch
torch.set_num_threads(2)
with torch.no_grad():
    {}
    want, same = call(), []
def work():
    torch.set_num_threads(2)
    for _ in range(200):
        same.append(torch.equal(call().detach(), want.detach()))
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
raise SystemExit(same != [True] * 400)"""


@pytest.mark.parametrize("code", [PACKED.format("sign"), PACKED.format("lsq:4"), SPD, BINARY, BOTH],
                         ids=["signs", "codes", "spd", "binary", "spd and binary"])
def test_two_python_threads_may_call_the_kernels(code):
    """By the threading layer that any numba has, and which stands no second caller."""
    subprocess.run([sys.executable, "-c", TWICE.format(code.replace("\n", "\n    "))], check=True, timeout=300,
                   env=os.environ | {"NUMBA_THREADING_LAYER": "workqueue"})
