"""ReSTE: the annealed power surrogate against its integral, its limits and autograd of the definition."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onebit.quantizers.annealed import ReSTE, annealed_power, power_surrogate
from onebit.quantizers.estimators import sign


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(rule, w, g):
    w = w.clone().requires_grad_()
    (rule(w) * g).sum().backward()
    return w.grad


def test_the_power_rises_from_one_to_its_end_and_slowly_at_first():
    """o(0) = 1, o(E) = o_end; at half time 1 + 2 (1 - cos 45 degrees)."""
    assert annealed_power(0.0) == 1
    assert annealed_power(1.0) == pytest.approx(3)
    assert annealed_power(0.5) == pytest.approx(1 + 2 * (1 - math.sqrt(0.5)))
    assert annealed_power(1.0, end=7.0) == pytest.approx(7)
    powers = [annealed_power(i / 20) for i in range(21)]
    steps = np.diff(powers)
    assert (steps > 0).all() and (np.diff(steps) > 0).all()  # increasing, and ever faster


def test_power_one_is_the_identity_inside_the_clip_and_nothing_outside():
    just_outside = math.nextafter(1.5, 2.0)
    z = torch.tensor([-just_outside, -1.5, -0.1, -0.01, 0.0, 0.05, 0.7, 1.5, just_outside, 9.0], dtype=torch.float64)
    assert power_surrogate(1.0)(z).tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 0, 0]


def test_the_slope_at_power_three_by_hand():
    """The chord's 0.1^(-2/3) = 4.64 up to |z| = 0.1; then |z|^(-2/3) / 3, 1.55 at first, 1/3 at one; 0 beyond 1.5."""
    z = torch.tensor([0.0, 0.1, -0.1, 0.1 + 1e-9, -1.0, 1.0, 1.6], dtype=torch.float64)
    want = [4.6415888] * 3 + [1.5471963, 1 / 3, 1 / 3, 0.0]
    torch.testing.assert_close(power_surrogate(3.0)(z), torch.tensor(want, dtype=torch.float64), rtol=1e-6, atol=0)


@given(st.floats(1.0, 6.0), st.floats(0.02, 0.4), st.floats(0.5, 3.0))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_slope_integrates_to_the_power_function_which_is_continuous_at_the_interval(power, interval, clip):
    """f(z) = sign(z) |z|^(1/o): a chord inside m that meets the curve at m; trapezoids on both sides of m."""
    slope = power_surrogate(power, clip, interval)
    inner = torch.linspace(0, interval, 11, dtype=torch.float64)
    outer = torch.linspace(math.nextafter(interval, 9.0), clip, 40_001, dtype=torch.float64)
    assert len(slope(inner).unique()) == 1
    at_interval = torch.trapezoid(slope(inner), inner)
    torch.testing.assert_close(at_interval.item(), interval ** (1 / power), rtol=1e-12, atol=0)
    at_clip = at_interval + torch.trapezoid(slope(outer), outer)
    torch.testing.assert_close(at_clip.item(), clip ** (1 / power), rtol=1e-6, atol=0)


def test_a_great_power_is_nearly_sign():
    """o -> infinity: f is about 1 from the interval on, so that its slope there is about 0."""
    z = torch.linspace(0.11, 1.5, 50, dtype=torch.float64)
    assert power_surrogate(1e6)(z).max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_slope_keeps_the_dtype_and_is_finite_at_zero(dtype):
    slope = power_surrogate(torch.tensor(3.0, dtype=torch.float64))(torch.tensor([0.0, 1e-30], dtype=dtype))
    assert slope.dtype == dtype and slope.isfinite().all()


def test_the_surrogate_is_an_estimator_of_sign():
    x, g = gaussian(50), gaussian(50, seed=1)
    got = gradient(lambda w: sign(w, power_surrogate(2.5)), x, g)
    torch.testing.assert_close(got, g * power_surrogate(2.5)(x))


@pytest.mark.parametrize("out_dim", [0, 1])
def test_reste_gives_the_whole_layer_one_scale(out_dim):
    """s = mean |w| over the tensor, and the least squares one: no other scale of the same signs is nearer."""
    w = gaussian(3, 4, 2, 2)
    w_bin = ReSTE(w, out_dim)(w)
    assert w_bin.unique().tolist() == pytest.approx([-np.abs(w.numpy()).mean(), np.abs(w.numpy()).mean()])
    error = (w - w_bin).square().sum()
    torch.testing.assert_close(error, w.square().sum() - w.numel() * w.abs().mean() ** 2)
    assert all((w - f * w_bin).square().sum() > error for f in (0.99, 1.01))
    assert ReSTE(w).scale_bits == 16


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_reste_gradient_is_the_docstrings_formula_element_by_element(share):
    """dL/dw_i = s g_i f'(w_i) + sign(w_i)/N sum_j g_j sign(w_j), in numpy, with weights in all three ranges."""
    w, g = gaussian(4, 9) * 1.2, gaussian(4, 9, seed=1)
    w[0, 0] = 0.01
    assert (w.abs() > 1.5).any() and (w.abs() < 0.1).any()
    rule = ReSTE(w)
    rule.advance(share)
    o, wn, gn = annealed_power(share), w.numpy(), g.numpy()
    signs, want = np.where(wn < 0, -1, 1), np.zeros(wn.shape)
    for i in np.ndindex(wn.shape):
        size = abs(wn[i])
        slope = 0 if size > 1.5 else 0.1 ** (1 / o) / 0.1 if size <= 0.1 else size ** ((1 - o) / o) / o
        want[i] = np.abs(wn).mean() * gn[i] * slope + signs[i] / wn.size * (gn * signs).sum()
    np.testing.assert_allclose(gradient(rule, w, g).numpy(), want, rtol=1e-12)


def test_the_stage_is_part_of_the_saved_state_and_of_a_copy():
    w, g = gaussian(2, 8), gaussian(2, 8, seed=1)
    rule, fresh = ReSTE(w), ReSTE(w)
    rule.advance(0.7)
    assert rule.power.dtype == torch.float64 and not torch.equal(gradient(rule, w, g), gradient(fresh, w, g))
    file = io.BytesIO()
    torch.save(rule.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(gradient(rule, w, g), gradient(fresh, w, g))
    assert torch.equal(gradient(rule, w, g), gradient(copy.deepcopy(rule), w, g))


def test_a_layer_of_zeros_stays_finite():
    w = torch.zeros(1, 3, dtype=torch.float64)
    rule = ReSTE(w)
    rule.advance(1.0)
    assert rule(w).tolist() == [[0.0, 0.0, 0.0]] and gradient(rule, w, torch.ones_like(w)).isfinite().all()


@pytest.mark.parametrize(("make", "message"), [
    (lambda: annealed_power(0.5, end=0.5), "end must be >= 1"),
    (lambda: annealed_power(1.5), "share is the part of training"),
    (lambda: power_surrogate(2.0, interval=0.0), "need 0 < interval < clip"),
    (lambda: ReSTE(torch.ones(2, 2), clip=0.1), "need 0 < interval < clip, got interval=0.1, clip=0.1"),
    (lambda: ReSTE(torch.ones(2, 2), end=0.0), "end must be >= 1"),
])
def test_options_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
