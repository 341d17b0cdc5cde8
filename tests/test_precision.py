"""Which arithmetic networks are trained in where nobody says."""

import math

import pytest
import torch

from onebit import precision
from onebit.precision import resolve_precision

BOTH = {"avx512_bf16": True, "amx_bf16": True}


@pytest.fixture
def machine(monkeypatch):
    """A processor with these capabilities, and a bfloat16 that is so many times as fast."""
    def make(capabilities, gain):
        def timed():
            trials.append(gain)
            return gain

        trials = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        monkeypatch.setattr(precision, "_gain", timed)
        return trials

    return make


@pytest.mark.parametrize(("capabilities", "gain", "resolved"), [
    ({"avx2": True, "avx512_bf16": False}, 2.0, "float32"), ({"avx512_bf16": True}, 0.5, "float32"),
    ({"avx512_bf16": True}, 2.0, "bfloat16"), (BOTH, 2.0, "bfloat16"), (BOTH, 1.1, "float32"),
])
def test_auto_is_bfloat16_where_it_has_instructions_that_pay(capabilities, gain, resolved, machine):
    machine(capabilities, gain)
    assert resolve_precision("auto") == resolved


def test_nothing_is_timed_where_bfloat16_is_emulated_or_somebody_says(machine):
    trials = machine({"avx2": True}, 2.0)
    assert resolve_precision("auto") == "float32"
    later = machine(BOTH, 0.5)
    assert resolve_precision("bfloat16") == "bfloat16" and resolve_precision("float32") == "float32"
    assert not trials and not later


def test_the_trial_divides_the_best_float32_time_by_the_best_bfloat16_time_and_is_made_once(monkeypatch):
    seconds = {torch.float32: iter([9.0, 6.0, 8.0] * 9), torch.bfloat16: iter([5.0, 7.0, 4.0] * 9)}
    monkeypatch.setattr(precision, "_seconds", lambda x: next(seconds[x.dtype]))
    precision._gain.cache_clear()
    try:
        assert precision._gain() == precision._gain() == 1.5
        assert sum(1 for _ in seconds[torch.float32]) == 27 - precision.TURNS
    finally:
        precision._gain.cache_clear()


def test_a_product_takes_time():
    took = precision._seconds(torch.ones(64, 64, dtype=torch.bfloat16))
    assert took > 0 and math.isfinite(took)
