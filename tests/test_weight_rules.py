"""Weight rules W6 and W8-W16 against loops in numpy, hand computation, finite differences and their Gaussian errors."""

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from weight_tools import channels, gaussian, gradient

from onebit.quantizers import (
    EBB,
    LSQ,
    XNOR,
    DoReFa,
    GroupBinary,
    GroupTernary,
    LearnedScale,
    ReActNet,
    Residual,
    Ternary,
    weight_rule,
)
from onebit.quantizers.estimators import stochastic_round
from onebit.quantizers.grouped import stochastic_codes
from onebit.recipes import quantize

SPECS = (  # every rule of this file, with its options where they change the computation
    "reactnet", "dorefa", "dorefa:2", "dorefa:4,rescale=False", "lsq:2", "lsq:4,per_channel=False", "ebb",
    "ebb:transition=0", "residual", "residual:3,learned=True", "ternary", "ternary:stochastic=True", "group-binary:8",
    "group-binary:8,learned=True", "group-ternary:8", "group-ternary:8,stochastic=True",
)


def relative_error(rule, w):
    return ((w - rule(w)).square().sum() / w.square().sum()).item()


def np_sign(x):
    return np.where(x < 0, -1.0, 1.0)


def through(x):
    """sign forward, hard tanh backward, without the library: the clipped STE as sources write it."""
    soft = F.hardtanh(x)
    return soft + (torch.where(x < 0, -1.0, 1.0) - soft).detach()


@st.composite
def weights(draw, largest=5):
    shape = draw(st.lists(st.integers(1, largest), min_size=2, max_size=4))
    out_dim = draw(st.integers(0, len(shape) - 1))
    return gaussian(*shape, seed=draw(st.integers(0, 999))) * 2.0 ** draw(st.integers(-3, 3)), out_dim


# errors and sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "target"), [
    ("reactnet", 1 - 2 / math.pi), ("dorefa", 1 - 2 / math.pi), ("group-binary", 1 - 2 / math.pi),
    ("group-binary:100000", 1 - 2 / math.pi), ("residual:1", 1 - 2 / math.pi), ("ebb:transition=0", 1 - 2 / math.pi),
    ("ebb", 0.132), ("residual", 0.132), ("residual:learned=True", 0.132), ("ternary", 0.264), ("group-ternary", 0.214),
    ("group-ternary:100000", 0.214), ("group-ternary:threshold=0.7", 0.193),
    ("group-ternary:100000,threshold=0.7", 0.193),
])
def test_gaussian_weights_lose_the_published_share_of_their_energy(name, target):
    w = gaussian(1, 100_000)
    assert relative_error(weight_rule(name, w), w) == pytest.approx(target, abs=0.01)


def test_the_second_basis_of_gaussian_weights_has_0603_of_the_firsts_scale():
    """E| |z| - a | / a with a = E|z| = sqrt(2/pi), z normal."""
    w = gaussian(1, 100_000)
    ebb, residual = EBB(w), Residual(w, learned=True)
    assert (ebb.scale2 / ebb.scale).item() == pytest.approx(0.603, abs=0.01)
    assert (residual.scales[1] / residual.scales[0]).item() == pytest.approx(0.603, abs=0.01)


@pytest.mark.parametrize(("threshold", "zeros"), [(0.5, 0.31), (0.7, 0.42)])
def test_a_ternary_threshold_zeroes_the_published_share_of_gaussian_weights(threshold, zeros):
    w = gaussian(1, 100_000)
    codes = GroupTernary(w, group=100_000, threshold=threshold).codes(w)
    assert (codes == 0).double().mean().item() == pytest.approx(zeros, abs=0.01)


def test_the_absmean_scale_is_not_the_least_squares_one_of_its_own_codes():
    """0.264 against 0.214: the best scale for fixed codes t is <w, t> / <t, t>."""
    w = gaussian(1, 100_000)
    t = Ternary(w).codes(w)
    best = (w * t).sum() / t.square().sum()
    assert ((w - best * t).square().sum() / w.square().sum()).item() == pytest.approx(0.214, abs=0.01)
    torch.testing.assert_close(GroupTernary(w, group=100_000)(w), best * t, rtol=1e-3, atol=0)  # half precision


@pytest.mark.parametrize(("name", "bits", "packed", "scales"), [
    ("reactnet", 1, 1, 6), ("dorefa", 1, 1, 1), ("dorefa:3", 3, 3, 1), ("dorefa:3,rescale=False", 3, 3, 0),
    ("lsq:2", 2, 2, 6), ("lsq:4,per_channel=False", 4, 4, 1), ("ebb", 2, 2, 12), ("ebb:transition=0", 1, 1, 6),
    ("residual:1", 1, 1, 6), ("residual:3", 3, 3, 18), ("residual:3,learned=True", 3, 3, 18),
    ("ternary", math.log2(3), 2, 1), ("group-binary:8", 1, 1, 6 * 5), ("group-binary:9", 1, 1, 6 * 4),
    ("group-ternary:8", math.log2(3), 2, 6 * 5), ("group-ternary", math.log2(3), 2, 6),
])
@pytest.mark.parametrize("out_dim", [0, 1])
def test_the_bits_of_each_rule_counted_by_hand(name, bits, packed, scales, out_dim):
    """Six output channels of 36 weights, on either axis; 16 bits per scale."""
    rule = weight_rule(name, gaussian(*((6, 4) if out_dim == 0 else (4, 6)), 3, 3), out_dim)
    assert (rule.weight_bits, rule.packed_bits, rule.scale_bits) == (bits, packed, 16 * scales)


@pytest.mark.parametrize("n", [128, 256, 576, 1152, 2304, 100])
def test_groups_of_128_cost_an_eighth_of_a_bit_where_they_divide(n):
    """1 + 16 ceil(n/128)/n: 1.125 and 1.710 where 128 divides n; 1.139 for the MNIST study's 576."""
    binary, ternary = GroupBinary(gaussian(2, n)), GroupTernary(gaussian(2, n))
    of = [rule.weight_bits + rule.scale_bits / (2 * n) for rule in (binary, ternary)]
    assert of == pytest.approx([1 + 16 * math.ceil(n / 128) / n, math.log2(3) + 16 * math.ceil(n / 128) / n])
    if n % 128 == 0:
        assert of == pytest.approx([1.125, 1.710], abs=5e-4)
    if n == 576:
        assert of[0] == pytest.approx(1.139, abs=5e-4)


@pytest.mark.parametrize(("name", "levels"), [
    ("reactnet", 2), ("dorefa", 2), ("dorefa:2", 4), ("lsq:2", 4), ("ebb", 4), ("ebb:transition=0", 2),
    ("residual:1", 2), ("residual", 4), ("residual:3", 8), ("ternary", 3), ("group-binary:100", 2),
    ("group-binary:100,learned=True", 2), ("group-ternary:100", 3), ("ternary:stochastic=True", 3),
    ("group-ternary:100,stochastic=True", 3),
])
@pytest.mark.parametrize("out_dim", [0, 1])
def test_each_rule_takes_its_number_of_values_per_scale(name, levels, out_dim):
    """300 weights per channel: enough that every code occurs.  Groups of 100, three to a channel."""
    w = gaussian(*((4, 12) if out_dim == 0 else (12, 4)), 5, 5)
    q = channels(weight_rule(name, w, out_dim)(w), out_dim)
    sharing = q.reshape(-1, 100) if "group" in name else q
    assert {len(np.unique(values)) for values in sharing} == {levels}
    if name not in ("lsq:2", "dorefa:2") and levels % 2 == 0:
        assert (q != 0).all()


# W6: ReActNet --------------------------------------------------------------------------------------------------------


def test_reactnet_is_xnor_forward_and_hard_tanh_backward():
    """dL/dw = g 1[|w| <= 1], ends included: the scale appears in no gradient."""
    w = torch.tensor([[0.5, -2.0, 1.0], [-0.1, 0.0, -1.5]], dtype=torch.float64)
    g = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    assert torch.equal(ReActNet(w)(w), XNOR(w)(w))
    assert gradient(ReActNet(w), w, g).tolist() == [[1.0, 0.0, 3.0], [4.0, 5.0, 0.0]]


# W8, W9: DoReFa ------------------------------------------------------------------------------------------------------


def test_one_bit_dorefa_has_one_scale_for_the_layer_and_the_identity_backward():
    w = torch.tensor([[1.0, -3.0], [-0.5, 0.0]], dtype=torch.float64)
    g = gaussian(2, 2)
    assert DoReFa(w)(w).tolist() == [[1.125, -1.125], [-1.125, 1.125]]  # (1 + 3 + 0.5 + 0) / 4
    assert torch.equal(gradient(DoReFa(w), w, g), g)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_dorefa_is_its_formula_in_numpy(bits):
    """2 q(u) - 1 with u = tanh(w) / (2 max|tanh w|) + 1/2, over the layer; `rescale` multiplies by max|w|."""
    w, n = gaussian(3, 20), 2**bits - 1
    t = np.tanh(w.numpy())
    want = 2 * np.round(n * (t / (2 * np.abs(t).max()) + 0.5)) / n - 1
    np.testing.assert_allclose(DoReFa(w, 0, bits, rescale=False)(w), want, rtol=1e-12)
    np.testing.assert_allclose(DoReFa(w, 0, bits)(w), want * np.abs(w.numpy()).max(), rtol=1e-12)
    np.testing.assert_allclose(DoReFa(w, 0, bits).codes(w), np.round((want + 1) / 2 * n), rtol=1e-12)


def test_the_rescaling_is_the_magnitude_the_layer_started_with():
    w = gaussian(3, 20)
    rule = DoReFa(w, 0, 2)
    assert rule(10 * w).abs().max() == w.abs().max() and not rule.top.requires_grad


def test_dorefa_gradient_is_the_finite_difference_without_rounding():
    """Identity through round: the slope of c tanh(w) / max|tanh w|, the maximum included."""
    w, g, h = gaussian(2, 4), gaussian(2, 4, seed=1), 1e-6
    c = w.abs().max()

    def smooth(v):
        return (c * v.tanh() / v.tanh().abs().max() * g).sum()

    steps = torch.eye(8, dtype=torch.float64).view(8, 2, 4) * h
    want = torch.stack([(smooth(w + d) - smooth(w - d)) / (2 * h) for d in steps]).view(2, 4)
    torch.testing.assert_close(gradient(DoReFa(w, 0, 2), w, g), want, rtol=1e-6, atol=1e-8)


def test_dorefa_from_zero_keeps_its_gradients_in_bounds():
    """A U-Net's last convolutions start at zero: dividing by max|tanh w| = 0 would give 1e8 or nan."""
    w = torch.zeros(4, 25)
    rule = DoReFa(w, 0, 2)
    assert rule.top.item() == pytest.approx(1 / 5)
    assert gradient(rule, w, torch.ones_like(w)).abs().max() <= 0.2 / 1e-3 * 1.001


# W10: LSQ ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("out_dim", [0, 1])
def test_lsq_is_its_formula_in_numpy_from_the_published_start(bits, out_dim):
    """s = 2 mean|w| / sqrt(Q_P); codes -2^(k-1) .. 2^(k-1) - 1, scaled up so that some clip on both sides."""
    w, low, high = gaussian(4, 6, 3) * 3, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    rule = LSQ(w, out_dim, bits)
    with torch.no_grad():
        rule.step.mul_(0.5)
    tensors = (w, rule(w), rule.codes(w))
    for row, got, code in zip(*(channels(x, out_dim) for x in tensors), strict=True):
        step = 0.5 * 2 * np.abs(row).mean() / math.sqrt(high)
        want = np.clip(np.round(row / step), low, high)
        np.testing.assert_array_equal(code, want)
        np.testing.assert_allclose(got, step * want, rtol=1e-6)  # the start is computed in single precision
    assert rule.codes(w).min() == low or bits > 3
    assert rule.codes(w).max() == high or bits > 3


def lsq_gradients_by_loops(row, g, step, low, high):
    """LSQ Eq. 3 and 5 for one step shared by a row, its gradient scale included."""
    total, passed = 0.0, []
    for wi, gi in zip(row, g, strict=True):
        v = wi / step
        total += gi * (low if v < low else high if v > high else round(v) - v)
        passed.append(gi if low <= v <= high else 0.0)
    return total / math.sqrt(len(row) * high), passed


@pytest.mark.parametrize("per_channel", [True, False])
def test_lsq_gradients_are_the_papers_with_the_number_of_weights_per_step(per_channel):
    w, g = (gaussian(3, 8) * 2).requires_grad_(), gaussian(3, 8, seed=1)
    rule = LSQ(w, 0, 3, per_channel)
    (rule(w) * g).sum().backward()
    shape = (3, 8) if per_channel else (1, 24)
    for i in range(shape[0]):
        row, grads = w.detach().view(shape)[i].tolist(), g.view(shape)[i].tolist()
        of_step, of_row = lsq_gradients_by_loops(row, grads, rule.step.flatten()[i].item(), -4, 3)
        assert rule.step.grad.flatten()[i].item() == pytest.approx(of_step)
        assert w.grad.view(shape)[i].tolist() == of_row
    assert rule.step.numel() == shape[0]


def test_a_step_that_an_update_made_negative_counts_with_its_absolute_value_and_can_come_back():
    w = gaussian(2, 30)
    rule = LSQ(w)
    before = rule(w).detach()
    with torch.no_grad():
        rule.step.neg_()
    assert torch.equal(rule(w), before) and torch.equal(rule.codes(w).unique(), torch.tensor([-2.0, -1, 0, 1]).double())
    rule(w).square().sum().backward()
    assert (rule.step.grad != 0).all()
    with torch.no_grad():
        rule.step.zero_()
    assert (rule.positive_step() > 0).all() and rule(w).isfinite().all()


@pytest.mark.parametrize("spec", ["lsq:2", "lsq:8", "lsq:4,per_channel=False"])
def test_lsq_of_a_layer_that_starts_at_zero_learns_its_step(spec):
    """At the first update codes are 0 and the weight alone moves; from the second on the step has a gradient too."""
    w = torch.zeros(3, 8, requires_grad=True)
    rule = weight_rule(spec, w)
    optimizer = torch.optim.Adam([w, *rule.parameters()], 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        (rule(w) - 0.1).square().mean().backward()
        optimizer.step()
    assert (rule(w) - 0.1).abs().max() < 0.06


@pytest.mark.parametrize("spec", ["lsq:2", "lsq:8", "lsq:4,per_channel=False"])
def test_lsq_of_a_layer_of_zeros_is_finite_in_half_precision(spec):
    """1e-8 is 0 there, and w / s would be 0 / 0; a larger w / s would be infinite."""
    w = torch.zeros(3, 8, dtype=torch.half, requires_grad=True)
    rule = weight_rule(spec, w)
    for value in (0, 100):
        w.data.fill_(value)
        for step in (rule.step.data.clone(), torch.zeros_like(rule.step)):  # its start; cast from full precision
            rule.step.data.copy_(step)
            rule(w).sum().backward()
            assert rule(w).isfinite().all() and rule.codes(w).isfinite().all() and (rule.stored_scales(w) > 0).all()
            assert w.grad.isfinite().all() and rule.step.grad.isfinite().all()
    w = torch.full((3, 8), 1e-5, dtype=torch.half)  # a step that half precision can just hold stays what it is
    assert torch.equal(weight_rule(spec, w).step, weight_rule(spec, w.float()).step.half())


# W11: EBB ------------------------------------------------------------------------------------------------------------


def ebb_with(w, first, second, out_dim=0, **options):
    """An EBB whose scales have the given values."""
    rule = EBB(w, out_dim, **options)
    with torch.no_grad():
        rule.scale.copy_(torch.as_tensor(first, dtype=w.dtype).expand_as(rule.scale))
        rule.scale2.copy_(torch.as_tensor(second, dtype=w.dtype).expand_as(rule.scale2))
    return rule


def test_ebb_starts_at_the_mean_magnitudes_of_weight_and_residual():
    """Channel 0: sI = 2, residuals -1, +1, so sII = 1; channel 1: 0.25, residuals -0.25, -0.25."""
    w = torch.tensor([[1.0, -3.0], [-0.5, 0.0]], dtype=torch.float64)
    for rule in (EBB(w), EBB(w.T.contiguous(), out_dim=1)):
        assert rule.scale.flatten().tolist() == [2.0, 0.25] and rule.scale2.flatten().tolist() == [1.0, 0.25]
    assert EBB(w)(w).tolist() == [[1.0, -3.0], [-0.5, 0.0]]


def test_ebb_stage_1_takes_the_values_plus_minus_sI_plus_minus_sII():
    w = gaussian(1, 200)
    values = ebb_with(w, 0.5, 0.2)(w).unique()
    torch.testing.assert_close(values, torch.tensor([-0.7, -0.3, 0.3, 0.7], dtype=torch.float64))


def test_ebb_gradients_are_the_chain_rules():
    """dQ/dsI = sign(w)(1 - sII M2), dQ/dsII = sign(r), dQ/dw = sI M1 + sII M2 (1 - sI M1), weight by weight."""
    w, g = (gaussian(4, 40) * 1.5).requires_grad_(), gaussian(4, 40, seed=1)
    first, second = [[0.3], [0.9], [0.05], [1.4]], [[0.2], [-0.4], [0.6], [0.1]]
    rule = ebb_with(w, first, second)
    (rule(w) * g).sum().backward()
    x, gn, s1, s2 = w.detach().numpy(), g.numpy(), np.array(first), np.array(second)
    r = x - s1 * np_sign(x)
    m1, m2 = (np.abs(x) <= 1) * 1.0, (np.abs(r) <= 1) * 1.0
    assert {(a, b) for a, b in zip(m1.flatten(), m2.flatten(), strict=True)} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    np.testing.assert_allclose(rule.scale.grad[:, 0], (gn * np_sign(x) * (1 - s2 * m2)).sum(1))
    np.testing.assert_allclose(rule.scale2.grad[:, 0], (gn * np_sign(r)).sum(1))
    np.testing.assert_allclose(w.grad, gn * (s1 * m1 + s2 * m2 * (1 - s1 * m1)), rtol=1e-12)


def test_the_scale_gradient_is_a_finite_difference_and_not_what_equation_7_prints():
    """w = -0.3, sI = 0.15, sII = 0.08: -0.92, where Eq. 7's sign(w)(1 - sII sign(w)) gives -1.08."""
    w = torch.full((1, 1), -0.3, dtype=torch.float64)
    rule = ebb_with(w, 0.15, 0.08)
    rule(w).sum().backward()
    h, soft = 1e-6, lambda s: -s + 0.08 * max(-1, min(1, -0.3 + s))  # hard tanh in place of the outer sign
    assert rule.scale.grad.item() == pytest.approx(-0.92) == pytest.approx((soft(0.15 + h) - soft(0.15 - h)) / (2 * h))
    printed = -1 * (1 - 0.08 * -1)
    assert printed == pytest.approx(-1.08)


@pytest.mark.parametrize("out_dim", [0, 1])
def test_ebb_stage_2_is_the_learned_scale_bit_for_bit_and_so_is_its_gradient(out_dim):
    w, g = gaussian(5, 6, 3, 3, dtype=torch.float32) * 1.5, gaussian(5, 6, 3, 3, seed=1, dtype=torch.float32)
    ebb, plain = EBB(w, out_dim), LearnedScale(w, out_dim)
    assert not torch.equal(ebb(w), plain(w))
    ebb.advance(0.5)
    assert torch.equal(ebb(w), plain(w)) and torch.equal(ebb.codes(w), plain.codes(w))
    assert torch.equal(gradient(ebb, w, g), gradient(plain, w, g))
    assert torch.equal(ebb.scale.grad, plain.scale.grad)
    assert (ebb.weight_bits, ebb.scale_bits) == (plain.weight_bits, plain.scale_bits)


def test_a_second_scale_of_zero_makes_stage_1_equal_to_stage_2():
    w = gaussian(3, 8)
    rule = ebb_with(w, 0.7, 0.0)
    first = rule(w).detach()
    rule.advance(1.0)
    assert torch.equal(first, rule(w))


@pytest.mark.parametrize(("transition", "stages"), [
    (0.5, [1, 1, 2, 2]), (0, [2, 2, 2, 2]), (0.0, [2, 2, 2, 2]), (1, [1, 1, 1, 2]), (1.5, [1, 1, 1, 1]),
    (None, [1, 1, 1, 1]),
])
def test_the_transition_comes_once_its_share_of_training_is_reached(transition, stages):
    rule = EBB(gaussian(2, 4), transition=transition)
    seen = []
    for share in (0.0, 0.499, 0.5, 1.0):
        rule.advance(share)
        seen.append(rule.stage.item())
        assert rule.weight_bits == 3 - seen[-1]
    assert seen == stages
    rule.advance(0.0)  # a resumed run may tell an earlier share: what was dropped stays dropped
    assert rule.stage.item() == stages[-1]


def test_the_penalty_is_tau_times_the_mean_magnitude_of_the_second_scale_in_stage_1():
    """Eq. 9 with |sII|: its gradient pulls towards zero from both sides."""
    rule = ebb_with(gaussian(2, 4), 0.5, [[0.4], [-0.2]], tau=0.1)
    rule.penalty().backward()
    assert rule.penalty().item() == pytest.approx(0.1 * 0.3)
    assert rule.scale2.grad.flatten().tolist() == pytest.approx([0.05, -0.05]) and rule.scale.grad is None
    rule.advance(1.0)
    assert rule.penalty() is None
    assert EBB(gaussian(2, 4), tau=0).penalty() is None and LearnedScale(gaussian(2, 4)).penalty() is None


def test_the_stage_is_saved_and_copied(tmp_path):
    w = gaussian(3, 8, dtype=torch.float32)
    rule = EBB(w)
    rule.advance(0.7)
    save_file(rule.state_dict(), tmp_path / "rule.safetensors")
    fresh = EBB(gaussian(3, 8, seed=1, dtype=torch.float32))
    fresh.load_state_dict(load_file(tmp_path / "rule.safetensors"))
    for other in (fresh, copy.deepcopy(rule)):
        assert other.stage.item() == 2 and other.weight_bits == 1 and other.penalty() is None
        assert torch.equal(other(w), rule(w))
    assert fresh.bfloat16().stage.dtype == torch.int64


# W12: residuals ------------------------------------------------------------------------------------------------------


@given(weights(), st.integers(1, 4), st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_residual_rule_is_its_recursion_in_numpy(given_weight, order, learned):
    w, out_dim = given_weight
    rule = Residual(w, out_dim, order, learned)
    got, codes = channels(rule(w), out_dim), rule.codes(w)
    assert codes.shape == (order, *w.shape) and codes.abs().eq(1).all()
    for i, row in enumerate(channels(w, out_dim)):
        rest, total = row, 0
        for _ in range(order):
            if np.abs(rest).min() < 1e-9:  # the sign of an exact remainder hangs on rounding
                break
            step = np.abs(rest).mean() * np_sign(rest)
            rest, total = rest - step, total + step
        else:
            np.testing.assert_allclose(got[i], total, rtol=1e-9, atol=1e-12)


@given(weights(), st.integers(1, 4))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_every_further_basis_lowers_the_error(given_weight, order):
    """Per channel by n s_k^2, since s_k is the least-squares scale of what is left."""
    w, out_dim = given_weight
    error = [(w - Residual(w, out_dim, k)(w)).square().sum().item() for k in (order, order + 1)]
    assert error[1] <= error[0] * (1 + 1e-9) + 1e-18


@pytest.mark.parametrize("learned", [False, True])
def test_residual_gradient_is_autograd_of_the_recursion_with_hard_tanh(learned):
    w, g = gaussian(3, 20) * 1.2, gaussian(3, 20, seed=1)
    rule = Residual(w, 0, 3, learned)
    v, total = w.clone().requires_grad_(), 0
    scales = rule.scales.detach().clone().requires_grad_() if learned else None
    rest = v
    for k in range(3):
        basis = (scales[k, :, None] if learned else rest.abs().mean(1, keepdim=True)) * through(rest)
        rest, total = rest - basis, total + basis
    (total * g).sum().backward()
    torch.testing.assert_close(gradient(rule, w, g), v.grad)
    if learned:
        torch.testing.assert_close(rule.scales.grad, scales.grad)


def test_two_learned_bases_are_ebb_that_never_drops_its_second():
    w, g = gaussian(3, 20), gaussian(3, 20, seed=1)
    residual, ebb = Residual(w, learned=True), EBB(w, transition=None)
    assert torch.equal(residual(w), ebb(w)) and torch.equal(residual.codes(w), ebb.codes(w))
    torch.testing.assert_close(gradient(residual, w, g), gradient(ebb, w, g))
    torch.testing.assert_close(residual.scales.grad, torch.stack([ebb.scale.grad, ebb.scale2.grad])[..., 0])


# W14: ternary --------------------------------------------------------------------------------------------------------


def test_ternary_by_hand_with_one_scale_for_the_whole_tensor():
    """mean|w| = 1; round half to even: |w| = 0.5 goes to 0, 0.75 to 1; nothing exceeds one."""
    w = torch.tensor([[0.5, -0.75], [3.0, 0.25], [-1.25, 0.25]], dtype=torch.float64)
    assert Ternary(w)(w).tolist() == [[0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]]
    assert torch.equal(Ternary(w)(4 * w), 4 * Ternary(w)(w))


@pytest.mark.parametrize("name", [name for name in SPECS if "ternary" in name])
def test_ternary_gradients_are_the_incoming_ones_exactly(name):
    w, g = gaussian(3, 10) * 3, gaussian(3, 10, seed=1)
    assert torch.equal(gradient(weight_rule(name, w), w, g), g)


@pytest.mark.parametrize(("name", "nearest"), [
    ("ternary:stochastic=True", "ternary"), ("group-ternary:8,stochastic=True", "group-ternary:8"),
])
def test_stochastic_rounding_is_unbiased_in_training_and_nearest_in_evaluation(name, nearest):
    """E[Q(w)] = w clipped to [-s, s]: 4,000 draws, each of standard deviation at most s/2."""
    torch.manual_seed(0)
    w = gaussian(2, 20)
    rule, plain = weight_rule(name, w), weight_rule(nearest, w)
    draws = torch.stack([rule(w) for _ in range(4000)])
    scale = draws.abs().amax(0)  # nothing here is so small that it never rounds up
    torch.testing.assert_close(draws.mean(0), w.clamp(-scale, scale), rtol=0, atol=0.05)
    assert draws.std(0).max() > 0.2 and torch.equal(rule.codes(w), plain.codes(w))
    assert torch.equal(rule.eval()(w), plain(w)) and torch.equal(rule(w), rule(w))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_stochastic_codes_stay_ternary_where_one_plus_noise_rounds_up_to_two(dtype):
    """In bfloat16 1 + 0.996 is 2: one draw in 256."""
    torch.manual_seed(0)
    scale = torch.ones((), dtype=dtype)
    for value in (1.0, -1.0, 5.0):
        codes = stochastic_codes(torch.full((10_000,), value, dtype=dtype), scale)
        assert codes.unique().tolist() == [max(-1.0, min(1.0, value))]


# W15, W16: groups ----------------------------------------------------------------------------------------------------


def group_slices(n, group):
    return [slice(i, min(i + group, n)) for i in range(0, n, group)]


@given(weights(), st.integers(1, 30), st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_group_binary_is_numpys_sign_times_its_groups_mean_magnitude(given_weight, group, learned):
    """Any shape, any output-channel axis, groups that do not divide and groups longer than a channel."""
    w, out_dim = given_weight
    rule = GroupBinary(w, out_dim, group, learned)
    for row, got in zip(channels(w, out_dim), channels(rule(w), out_dim), strict=True):
        for part in group_slices(len(row), group):
            want = np.float64(np.float16(np.abs(row[part]).mean())) * np_sign(row[part])
            np.testing.assert_allclose(got[part], want, rtol=1.1e-3)  # half precision, one unit in the last place
    n = w.numel() // w.shape[out_dim]
    assert rule.scale_bits == 16 * w.shape[out_dim] * len(group_slices(n, group))


@given(weights(), st.integers(1, 30), st.sampled_from([0.0, 0.5, 0.7]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_group_ternary_is_its_formula_in_numpy(given_weight, group, threshold):
    w, out_dim = given_weight
    rule = GroupTernary(w, out_dim, group, threshold)
    for row, got in zip(channels(w, out_dim), channels(rule(w), out_dim), strict=True):
        for part in group_slices(len(row), group):
            size = np.abs(row[part])
            if np.abs(size - threshold * size.mean()).min() < 1e-9:
                continue  # which side of the threshold hangs on rounding
            kept = size > threshold * size.mean()
            want = np.float64(np.float16(size[kept].mean())) * np_sign(row[part]) * kept
            np.testing.assert_allclose(got[part], want, rtol=1.1e-3)


def test_a_group_never_spans_two_output_channels():
    """n = 3, groups of two: each channel ends with a group of one."""
    w = torch.tensor([[1.0, -3.0, 4.0], [8.0, 16.0, -64.0]], dtype=torch.float64)
    want = torch.tensor([[2.0, -2.0, 4.0], [12.0, 12.0, -64.0]], dtype=torch.float64)
    assert torch.equal(GroupBinary(w, 0, 2)(w), want)
    assert torch.equal(GroupBinary(w.T.contiguous(), 1, 2)(w.T.contiguous()), want.T)
    assert GroupBinary(w, 0, 2).scale_bits == 16 * 4


@pytest.mark.parametrize("name", ["group-binary:8", "group-binary:8,learned=True", "group-ternary:8"])
def test_group_scales_are_half_precision_numbers(name):
    w = gaussian(4, 30)
    q, plain = weight_rule(name, w)(w).detach(), XNOR(w)(w)
    assert torch.equal(q, q.half().double()) and not torch.equal(plain, plain.half().double())


def test_group_binary_gradient_is_xnors_with_groups_for_channels():
    """dL/dw_i = s g_i 1[|w_i| <= 1] + sign(w_i)/m sum_j g_j sign(w_j) over the group; s as rounded."""
    w, g = gaussian(2, 7) * 1.2, gaussian(2, 7, seed=1)
    want = np.zeros((2, 7))
    for o in range(2):
        for part in group_slices(7, 3):
            x, gs = w[o, part].numpy(), g[o, part].numpy()
            scale = np.float64(np.float16(np.abs(x).mean()))
            want[o, part] = scale * gs * (np.abs(x) <= 1) + np_sign(x) / len(x) * (gs * np_sign(x)).sum()
    np.testing.assert_allclose(gradient(GroupBinary(w, 0, 3), w, g), want, rtol=1e-12)


def test_learned_group_scales_get_their_groups_gradient_and_the_weight_the_clipped_one():
    w, g = (gaussian(2, 7) * 1.2).requires_grad_(), gaussian(2, 7, seed=1)
    rule = GroupBinary(w, 0, 3, learned=True)
    (rule(w) * g).sum().backward()
    signed = g * torch.where(w < 0, -1.0, 1.0)
    want = torch.stack([signed[:, part].sum(1) for part in group_slices(7, 3)], 1).detach()
    torch.testing.assert_close(rule.scale.grad, want)
    scale = torch.cat([rule.scale[:, [i]].half().double().expand(2, n) for i, n in enumerate((3, 3, 1))], 1)
    torch.testing.assert_close(w.grad, (scale * g * (w.abs() <= 1)).detach())


# what all of them have to bear ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("shape", "out_dim"), [((1, 7), 0), ((3, 1), 0), ((2, 1, 3, 3), 1), ((1, 1, 1, 1), 0)])
def test_zero_tensors_and_single_channels_give_finite_values_and_gradients(name, shape, out_dim):
    w = torch.zeros(shape)
    rule = weight_rule(name, w, out_dim)
    q = rule(w)
    assert q.shape == w.shape and q.isfinite().all()
    assert gradient(rule, w, torch.ones_like(w)).isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in rule.parameters())


@pytest.mark.parametrize("name", [*SPECS, "xnor", "learned-scale", "centred"])
def test_a_layer_that_starts_at_zero_learns(name):
    """The last convolution of a residual block does.  Fit a target of mixed signs for 200 steps of Adam."""
    torch.manual_seed(0)
    target = gaussian(3, 24, dtype=torch.float32)
    w = nn.Parameter(torch.zeros(3, 24))
    rule = weight_rule(name, w.detach())
    if "rescale" not in name and "dorefa:" in name:
        rule.top.fill_(target.abs().max())  # this magnitude is not learned
    optimizer = torch.optim.Adam([w, *rule.parameters()], 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        (rule(w) - target).square().mean().backward()
        optimizer.step()
    assert torch.cosine_similarity(rule.eval()(w).flatten(), target.flatten(), dim=0) > 0.5  # signs near 0 swing


@pytest.mark.parametrize("name", SPECS)
def test_autocast_changes_nothing(name):
    w = gaussian(6, 4, 3, 3, dtype=torch.float32)
    rule = weight_rule(name, w).eval()
    with torch.autocast("cpu", torch.bfloat16):
        inside = rule(w)
    assert inside.dtype == torch.float32 and torch.equal(inside, rule(w))


@pytest.mark.parametrize("name", SPECS)
def test_a_bfloat16_network_stays_one(name):
    w = gaussian(6, 4, 3, 3, dtype=torch.float32)
    rule = weight_rule(name, w).bfloat16().eval()
    q = rule(w.bfloat16())
    assert q.dtype == torch.bfloat16 and q.isfinite().all()
    assert weight_rule(name, w.bfloat16())(w.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("out_dim", [0, 1])
def test_channels_last_weights_give_the_same_values_in_the_same_layout(name, out_dim):
    w = gaussian(6, 4, 3, 3)
    rule = weight_rule(name, w, out_dim).eval()
    last = w.to(memory_format=torch.channels_last)
    torch.testing.assert_close(rule(last), rule(w))
    assert rule(last).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", SPECS)
def test_codes_carry_no_gradient_and_are_whole_numbers(name):
    w = gaussian(6, 30).requires_grad_()
    codes = weight_rule(name, w).codes(w)
    assert not codes.requires_grad and torch.equal(codes, codes.round())
    assert codes.shape[-2:] == w.shape and codes.unique().numel() > 1


def test_saved_and_loaded_in_a_new_process_every_rule_computes_the_same_bits(tmp_path):
    w = gaussian(6, 4, 3, 3, dtype=torch.float32)
    here = {}
    for i, name in enumerate(SPECS):
        rule = weight_rule(name, w).eval()
        rule.advance(0.8)
        with torch.no_grad():
            for p in rule.parameters():
                p.mul_(1.1)  # learned state has left its start
        save_file(rule.state_dict() | {"w": w}, tmp_path / f"{i}.safetensors")
        here[name] = rule(w).detach().numpy().tobytes().hex()
        assert copy.deepcopy(rule)(w).detach().numpy().tobytes().hex() == here[name]
    script = (
        "import sys, torch; from safetensors.torch import load_file; from onebit.quantizers import weight_rule\n"
        f"for i, name in enumerate({SPECS!r}):\n"
        "    state = load_file(f'{sys.argv[1]}/{i}.safetensors'); w = state.pop('w')\n"
        "    rule = weight_rule(name, torch.ones_like(w)).eval(); rule.load_state_dict(state)\n"
        "    print(rule(w).detach().numpy().tobytes().hex())\n"
    )
    out = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert out.stdout.split() == list(here.values())


@pytest.mark.parametrize(("name", "message"), [
    ("dorefa:0", "bits must be an integer >= 1, got 0"), ("dorefa:17", r"bits must be in 1..16, got 17"),
    ("lsq:1", "bits must be an integer >= 2, got 1"), ("lsq:17", r"bits must be in 2..16"),
    ("lsq:2.5", "'lsq:2.5': bits must be an integer, got 2.5"), ("ebb:tau=-1", "tau must be >= 0, got -1"),
    ("ebb:transition=-0.1", "transition must be a share of training >= 0, or None"),
    ("ebb:transition=never", "must be a number or None, got 'never'"), ("residual:0", "order must be an integer >= 1"),
    ("group-binary:0", "group must be an integer >= 1, got 0"), ("group-ternary:1.5", "group must be an integer"),
    ("group-ternary:threshold=1", r"in \[0, 1\); got 1"), ("group-ternary:threshold=-0.1", r"in \[0, 1\)"),
    ("ternary:threshold=0.7", "options: stochastic"), ("reactnet:2", "options: none"),
    ("xnor:detach_scale=false", "weight rule 'xnor:detach_scale=false': detach_scale must be True or False, got 'fa"),
    ("xnor:detach_scale=1", "True or False, got 1"), ("ternary:stochastic=no", "must be True or False, got 'no'"),
    ("ebb:tau=abc", "tau must be a number, got 'abc'"), ("ebb:tau=True", "tau must be a number, got True"),
    ("residual:True", "order must be an integer, got True"), ("ebb:tau=None", "tau must be a number, got None"),
])
def test_options_that_cannot_be_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        weight_rule(name, torch.ones(2, 2))


def test_options_of_the_right_type_are_taken():
    """A whole number serves as a share, and None where a rule knows it."""
    weight = torch.ones(2, 2)
    assert weight_rule("ebb:tau=0,transition=None", weight).transition is None
    assert weight_rule("ebb:tau=1", weight).tau == 1 and weight_rule("xnor:detach_scale=True", weight).detach_scale


@pytest.mark.parametrize(("shape", "out_dim"), [((4, 3, 3, 3), 0), ((3, 4, 2, 2), 1), ((4, 3), 0)])
def test_learned_residual_scales_are_one_per_order_and_channel(shape, out_dim):
    """Each row starts as the mean magnitude of what the rows before it left, whatever axis the channels are on."""
    w = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rule, rest = Residual(w, out_dim, order=3, learned=True), w
    others = [d for d in range(w.ndim) if d != out_dim]
    assert rule.scales.shape == (3, 4)
    for scales in rule.scales:
        means = rest.abs().mean(others, keepdim=True)
        torch.testing.assert_close(scales, means.flatten())
        rest = rest - means * torch.where(rest < 0, -1.0, 1.0)
    torch.testing.assert_close(rule(w), w - rest)


def test_learned_residual_scales_train_in_channels_last():
    """As `train` lays a network out; parameters of five axes have no such layout."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 3))
    quantize(model, "weights=residual:2,learned=True")
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = [layer.rule.scales.detach().clone() for layer in model]
    model(torch.randn(2, 3, 6, 6)).square().mean().backward()
    optimizer.step()
    assert not any((layer.rule.scales == start).any() for layer, start in zip(model, before, strict=True))


@pytest.mark.parametrize("value", [0.001, -0.001, 1.0])
def test_stochastic_rounding_is_unbiased_in_bfloat16_too(value):
    x = torch.full((400_000,), value, dtype=torch.bfloat16)
    torch.manual_seed(0)
    codes = stochastic_round(x)
    assert codes.dtype == torch.bfloat16
    assert set(codes.unique().tolist()) <= {math.floor(value), math.ceil(value)}
    assert codes.float().mean().item() == pytest.approx(value, abs=2e-4)  # six standard errors at most


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
@pytest.mark.parametrize("name", ["ebb", "reste"])
def test_a_rule_lies_where_its_layer_does(name):
    rule = weight_rule(name, torch.randn(4, 4, 3, 3, device="cuda"))
    assert {buffer.device.type for buffer in rule.buffers()} == {"cuda"}
