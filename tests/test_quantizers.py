"""Weight rules and their estimators against hand computation, exhaustive search and autograd of the definitions."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_tools import channels, gaussian, gradient

from onebit.quantizers import (
    ESTIMATORS,
    WEIGHT_RULES,
    XNOR,
    Centred,
    LearnedScale,
    PlainSign,
    sign,
    straight_through,
    weight_rule,
)

SCALED = ("xnor", "learned-scale", "centred")
BINARY = ("sign", *SCALED)  # the rules of this file; the others have their own


# sign and straight-through -------------------------------------------------------------------------------------------


def test_sign_is_plus_one_at_both_zeros_and_never_zero():
    """BiDM Eq. 6-7: sign(0) = +1, where torch.sign gives 0; -0.0 counts as 0."""
    x = torch.tensor([-2.0, -1e-300, -0.0, 0.0, 1e-300, 3.0], dtype=torch.float64)
    assert sign(x).tolist() == [-1.0, -1.0, 1.0, 1.0, 1.0, 1.0]
    assert torch.sign(x).tolist() != sign(x).tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sign_keeps_the_dtype_of_its_argument(dtype):
    x = torch.tensor([-0.5, 0.0], dtype=dtype)
    assert sign(x).dtype == dtype and sign(x).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(("estimator", "passes"), [
    ("clipped", [0, 0, 1, 1, 1, 1, 1, 0, 0]),
    ("identity", [1, 1, 1, 1, 1, 1, 1, 1, 1]),
])
def test_sign_lets_the_gradient_through_where_its_surrogate_has_slope(estimator, passes):
    """Hard tanh has slope 1 on [-1, 1], its ends included, and 0 outside; the identity has slope 1 everywhere."""
    just_outside = math.nextafter(1.0, 2.0)
    x = torch.tensor([-5, -just_outside, -1, -0.5, 0, 0.5, 1, just_outside, 5], dtype=torch.float64)
    g = torch.arange(1, 10, dtype=torch.float64)  # distinct, so that a shuffled gradient would show
    assert gradient(lambda w: sign(w, estimator), x, g).tolist() == [i * p for i, p in enumerate(passes, start=1)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_fused_gradient_is_the_surrogates_at_and_around_its_bounds(estimator, dtype):
    """sign's backward takes fewer passes than the definition, in every precision, and must not move its bounds."""
    one = torch.ones((), dtype=dtype)
    bounds = [torch.nextafter(one, one * 0), one, torch.nextafter(one, one * 2)]
    x = torch.stack([s * b for b in bounds for s in (1, -1)] + [0 * one, 0.375 * one, -1.5 * one])
    g = torch.arange(1, len(x) + 1).to(dtype)
    assert torch.equal(gradient(lambda w: sign(w, estimator), x, g), g * ESTIMATORS[estimator](x))


def test_the_default_estimator_is_the_clipped_one():
    x, g = torch.tensor([0.5, 1.5], dtype=torch.float64), torch.tensor([3.0, 3.0], dtype=torch.float64)
    assert gradient(sign, x, g).tolist() == [3.0, 0.0]


def test_an_estimator_of_ones_own_serves_by_its_name(monkeypatch):
    monkeypatch.setitem(ESTIMATORS, "tenth", lambda x: x / 10)
    x, g = torch.tensor([0.5, -2.0], dtype=torch.float64), torch.tensor([3.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(gradient(lambda w: sign(w, "tenth"), x, g), torch.tensor([0.15, -1.0]).double())


def test_an_unknown_estimator_is_refused_with_the_valid_names():
    with pytest.raises(ValueError, match="unknown estimator 'tanh'; valid: identity, clipped") as error:
        sign(torch.zeros(1), "tanh")
    assert all(name in str(error.value) for name in ESTIMATORS)


def test_straight_through_gives_the_value_exactly_where_the_usual_form_rounds():
    """`latent + (value - latent).detach()` loses bits in float32; the function must not lose any."""
    value, latent = torch.full((64,), 0.1), gaussian(64, dtype=torch.float32) * 1000
    usual = latent + (value - latent)
    assert not torch.equal(usual, value)  # else this test would show nothing
    assert torch.equal(straight_through(value, latent), value)


def test_straight_through_sends_the_whole_gradient_to_the_latent_and_none_to_the_value():
    value = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    latent = torch.tensor([20.0, 0.1], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([3.0, -7.0], dtype=torch.float64)
    (straight_through(value, latent) * g).sum().backward()
    assert latent.grad.tolist() == [3.0, -7.0]
    assert value.grad is None


# W1: sign without a scale --------------------------------------------------------------------------------------------


def test_plain_sign_by_hand_forward_and_backward():
    """BinaryConnect Eq. 1; d w_bin / d w = 1[|w| <= 1]."""
    w = torch.tensor([[-3.0, -0.5], [0.0, 2.0]], dtype=torch.float64)
    g = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    assert PlainSign(w)(w).tolist() == [[-1.0, -1.0], [1.0, 1.0]]
    assert gradient(PlainSign(w), w, g).tolist() == [[0.0, 2.0], [3.0, 0.0]]


def test_plain_sign_error_is_the_one_in_its_docstring():
    """|w - w_bin|^2 = |w|^2 - 2 sum|w| + n."""
    w = gaussian(3, 5)
    error = (w - PlainSign(w)(w)).square().sum()
    torch.testing.assert_close(error, w.square().sum() - 2 * w.abs().sum() + 15)


# W2: XNOR-Net --------------------------------------------------------------------------------------------------------


def test_xnor_is_the_least_squares_fit():
    """XNOR-Net Eq. 2 and 6: no sign pattern and no scale beats s = mean|w|, B = sign(w).  n = 8, so try all 256."""
    w = gaussian(1, 8)
    best = min(
        (w - (w @ b / 8) * b).square().sum()  # for a fixed b the best scale is w.b / n
        for signs in itertools.product((-1.0, 1.0), repeat=8)
        for b in [torch.tensor(signs, dtype=torch.float64)]
    )
    error = (w - XNOR(w)(w)).square().sum()
    torch.testing.assert_close(error, best)
    torch.testing.assert_close(error, w.square().sum() - 8 * w.abs().mean() ** 2)  # the Error line of the docstring


def test_xnor_scales_every_output_channel_by_its_own_mean_magnitude():
    """XNOR-Net Eq. 6 by hand, two channels; and the same numbers with the channels on axis 1."""
    w = torch.tensor([[1.0, -3.0], [-0.5, 0.0]], dtype=torch.float64)
    want = torch.tensor([[2.0, -2.0], [-0.25, 0.25]], dtype=torch.float64)
    assert torch.equal(XNOR(w)(w), want)
    assert torch.equal(XNOR(w.T, out_dim=1)(w.T), want.T)


def xnor_gradient_by_loops(w, g, detach_scale):
    """dL/dw_i = s g_i 1[|w_i| <= 1] + sign(w_i)/n sum_j g_j sign(w_j), the docstring's formula, element by element."""
    out = np.zeros(w.shape)
    for o, (row, grads) in enumerate(zip(w.numpy(), g.numpy(), strict=True)):
        n, signs = len(row), np.where(row < 0, -1, 1)
        for i in range(n):
            out[o, i] = np.abs(row).mean() * grads[i] * (abs(row[i]) <= 1)
            if not detach_scale:
                out[o, i] += signs[i] / n * sum(grads[j] * signs[j] for j in range(n))
    return torch.from_numpy(out)


@pytest.mark.parametrize("detach_scale", [False, True])
def test_xnor_gradient_is_the_docstrings_formula(detach_scale):
    """Both terms with weights inside and outside the clip; `detach_scale` drops the second."""
    w, g = gaussian(3, 7) * 1.2, gaussian(3, 7, seed=1)
    assert 0 < (w.abs() > 1).sum() < w.numel()
    got = gradient(XNOR(w, detach_scale=detach_scale), w, g)
    torch.testing.assert_close(got, xnor_gradient_by_loops(w, g, detach_scale))


@pytest.mark.parametrize("detach_scale", [False, True])
def test_xnor_gradient_is_autograd_of_mean_magnitude_times_hard_tanh(detach_scale):
    """The definition with sign written as sign + hardtanh - stopgrad(hardtanh), differentiated by autograd."""
    w, g = gaussian(2, 3, 2, 2) * 1.2, gaussian(2, 3, 2, 2, seed=1)

    def definition(w):
        scale = w.abs().flatten(1).mean(1)[:, None, None, None]
        surrogate = torch.nn.functional.hardtanh(w)
        return (scale.detach() if detach_scale else scale) * (w.sign().detach() + surrogate - surrogate.detach())

    torch.testing.assert_close(gradient(XNOR(w, detach_scale=detach_scale), w, g), gradient(definition, w, g))


def test_xnor_gradient_outside_the_clip_is_the_finite_difference_of_its_loss():
    """With every |w| > 1 the surrogate is silent and the loss is piecewise linear: differences are exact."""
    w = gaussian(1, 6)
    w, g, step = w + 2 * w.sign(), gaussian(1, 6, seed=1), 1e-3
    rule = XNOR(w)
    steps = torch.eye(6, dtype=torch.float64)[:, None] * step
    differences = [((rule(w + d) - rule(w - d)) * g).sum() / (2 * step) for d in steps]
    torch.testing.assert_close(gradient(rule, w, g)[0], torch.stack(differences))


# W3: learned scale ---------------------------------------------------------------------------------------------------


def test_learned_scale_starts_at_the_mean_magnitude_of_each_channel():
    """BinaryDM Eq. 3-4 with the released code's start: the l1 norm over n, not the printed l2 norm over n."""
    w = torch.tensor([[1.0, -3.0], [-0.5, 0.0]], dtype=torch.float64)
    assert LearnedScale(w).scale.tolist() == [[2.0], [0.25]]
    assert LearnedScale(w.T, out_dim=1).scale.tolist() == [[2.0, 0.25]]
    assert LearnedScale(w).scale.requires_grad


def test_learned_scale_gradients_by_hand():
    """dL/ds = sum_i g_i sign(w_i), dL/dw = s g 1[|w| <= 1], at a scale that is no longer the start."""
    w = torch.tensor([[0.5, -2.0, 0.0], [-0.1, 1.0, -1.5]], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    rule = LearnedScale(w)
    with torch.no_grad():
        rule.scale.copy_(torch.tensor([[10.0], [-0.5]]))
    (rule(w) * g).sum().backward()
    assert rule.scale.grad.tolist() == [[1.0 - 2.0 + 3.0], [-4.0 + 5.0 - 6.0]]
    assert w.grad.tolist() == [[10.0, 0.0, 30.0], [-2.0, -2.5, 0.0]]


def test_learned_scale_does_not_follow_the_latent_weight():
    """After the start the scale changes by training alone, unlike XNOR's."""
    w = gaussian(2, 4)
    learned, mean = LearnedScale(w), XNOR(w)
    torch.testing.assert_close(learned(w), mean(w))
    assert torch.equal(learned(4 * w), learned(w))
    torch.testing.assert_close(mean(4 * w), 4 * mean(w))


# W4: centred ---------------------------------------------------------------------------------------------------------


def test_centred_rule_by_hand_without_the_mean_added_back():
    """Channel 0: mean 2, deviations -1 -1 +2, so s = 4/3; adding the mean back would give {2 - s, 2 + s}."""
    w = torch.tensor([[1.0, 1.0, 4.0], [0.5, -0.5, 0.0]], dtype=torch.float64)
    want = torch.tensor([[-4 / 3, -4 / 3, 4 / 3], [1 / 3, -1 / 3, 1 / 3]], dtype=torch.float64)
    torch.testing.assert_close(Centred(w)(w), want)


def test_centred_levels_are_symmetric_about_zero_whatever_the_mean():
    w = gaussian(4, 50) + 3.0
    levels = [np.unique(row) for row in channels(Centred(w)(w), 0)]
    assert all(len(level) == 2 and level[0] == -level[1] for level in levels)


def test_centred_gradient_is_the_incoming_one_exactly():
    """Source 000 uses w + stopgrad(Q - w): no clip, no scale factor, nothing through mean or scale."""
    w, g = gaussian(2, 3, 3, 3) * 5, gaussian(2, 3, 3, 3, seed=1)
    assert (w.abs() > 1).any()
    assert torch.equal(gradient(Centred(w), w, g), g)


def test_centred_rule_ignores_a_constant_added_to_a_filter():
    """Q(w + c_o) = Q(w).  Integers, and n a power of two: the means are exact and no sign hangs on rounding."""
    w = torch.randint(-8, 9, (3, 16), generator=torch.Generator().manual_seed(0)).double()
    shift = torch.tensor([[4.0], [-32.0], [1024.0]], dtype=torch.float64)
    assert torch.equal(Centred(w)(w + shift), Centred(w)(w))


def test_centred_error_against_the_centred_and_against_the_latent_weight():
    """|c - w_bin|^2 = |c|^2 - n s^2; against w = c + m itself n m^2 - 2 m s sum sign(c) more, as sum c = 0."""
    w = gaussian(1, 9) + 0.7
    m = w.mean()
    c = w - m
    s, w_bin = c.abs().mean(), Centred(w)(w)
    own = c.square().sum() - 9 * s**2
    assert c.sign().sum() != 0  # the cross term vanishes only if the signs are balanced
    torch.testing.assert_close((c - w_bin).square().sum(), own)
    torch.testing.assert_close((w - w_bin).square().sum(), own + 9 * m**2 - 2 * m * s * c.sign().sum())


# what all rules share ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCALED)
def test_gaussian_weights_lose_0363_of_their_energy(name):
    """1 - 2/pi = 0.363 for the mean-magnitude scale, n = 1e5."""
    w = gaussian(1, 100_000)
    relative = (w - weight_rule(name, w)(w)).square().sum() / w.square().sum()
    assert relative.item() == pytest.approx(1 - 2 / math.pi, abs=0.01)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(("shape", "out_dim"), [((5, 4, 3, 3), 0), ((4, 5, 3, 3), 1), ((5, 30), 0)])
def test_each_rule_takes_exactly_two_values_per_output_channel(name, shape, out_dim):
    """One of each sign, of one magnitude: that is what makes a weight one bit.  out_dim = 1 for ConvTranspose2d."""
    w = gaussian(*shape, dtype=torch.float32)
    w_bin = weight_rule(name, w, out_dim)(w)
    levels = [np.unique(row) for row in channels(w_bin, out_dim)]
    assert len(levels) == 5 and all(len(level) == 2 and level[0] == -level[1] < 0 for level in levels)
    if name != "sign":  # every channel its own scale, so a scale over the wrong axis would show
        assert len({level[1] for level in levels}) == 5


@pytest.mark.parametrize("name", BINARY)
def test_codes_are_the_signs_of_the_quantized_weight_without_gradient(name):
    w = (gaussian(3, 4, 2) + 0.5).requires_grad_()
    rule = weight_rule(name, w, 1)
    codes = rule.codes(w)
    assert not codes.requires_grad
    assert torch.equal(codes, rule(w).detach().sign())


@pytest.mark.parametrize(("name", "value"), [("sign", 1.0), ("xnor", 0.0), ("learned-scale", 0.0), ("centred", 0.0)])
def test_a_zero_weight_becomes_its_channels_scale_not_a_nan(name, value):
    w = torch.zeros(2, 3, dtype=torch.float64)
    rule = weight_rule(name, w)
    assert torch.equal(rule(w), torch.full_like(w, value))
    assert gradient(rule, w, torch.ones_like(w)).isfinite().all()


@pytest.mark.parametrize(("name", "want"), [
    ("sign", [[-1.0], [1.0]]),
    ("xnor", [[-2.0], [0.5]]),
    ("learned-scale", [[-2.0], [0.5]]),
    ("centred", [[0.0], [0.0]]),
])
def test_channels_of_a_single_weight_by_hand(name, want):
    """n = 1: a mean magnitude is the magnitude itself, and a lone weight minus its mean is 0."""
    w = torch.tensor([[-2.0], [0.5]], dtype=torch.float64)
    assert weight_rule(name, w)(w).tolist() == want


@pytest.mark.parametrize("name", BINARY)
def test_a_single_output_channel_has_a_single_scale(name):
    w = gaussian(1, 2, 3, 3)
    rule = weight_rule(name, w)
    assert len(rule(w).abs().unique()) == 1
    assert rule.scale_bits == (0 if name == "sign" else 16)


@st.composite
def weights(draw):
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    out_dim = draw(st.integers(0, len(shape) - 1))
    return gaussian(*shape, seed=draw(st.integers(0, 999))) * 2.0 ** draw(st.integers(-3, 3)), out_dim


@given(weights(), st.sampled_from(BINARY))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_weight_becomes_numpys_sign_times_its_channels_scale(given_weight, name):
    """The four forward formulas in numpy, row by row, for any shape and any output-channel axis."""
    w, out_dim = given_weight
    got = channels(weight_rule(name, w, out_dim)(w), out_dim)
    for row, out in zip(channels(w, out_dim), got, strict=True):
        row = row - row.mean() if name == "centred" else row
        scale = 1.0 if name == "sign" else np.abs(row).mean()
        if np.abs(row).min() > 1e-12:  # else the sign of a centred weight hangs on rounding
            np.testing.assert_allclose(out, np.where(row < 0, -scale, scale), rtol=1e-12)


@given(weights(), st.sampled_from(SCALED), st.integers(-4, 4))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_scaled_rules_scale_with_their_weight(given_weight, name, power):
    """Q(c w) = c Q(w) for c > 0; exact for powers of two.  (The learned scale starts from the scaled weight.)"""
    (w, out_dim), c = given_weight, 2.0**power
    assert torch.equal(weight_rule(name, c * w, out_dim)(c * w), c * weight_rule(name, w, out_dim)(w))


@given(weights(), st.sampled_from(sorted(WEIGHT_RULES)))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_output_channel_axis_may_be_any_axis(given_weight, name):
    """Moving the axis before or after quantizing is the same."""
    w, out_dim = given_weight
    first = w.movedim(out_dim, 0).contiguous()
    torch.testing.assert_close(weight_rule(name, w, out_dim)(w).movedim(out_dim, 0), weight_rule(name, first)(first))


def test_scale_bits_are_sixteen_per_output_channel():
    """1 + 16/n bits per weight: 16 for each of the stored scales, on whichever axis the channels are."""
    w = gaussian(3, 5, 2, 2)
    for name in SCALED:
        assert (weight_rule(name, w).scale_bits, weight_rule(name, w, 1).scale_bits) == (48, 80)
    assert PlainSign(w).scale_bits == 0
    assert all(weight_rule(name, w).weight_bits == weight_rule(name, w).packed_bits == 1 for name in BINARY)


@pytest.mark.parametrize("name", WEIGHT_RULES)
@pytest.mark.parametrize(("weight", "out_dim", "message"), [
    (torch.ones(3, 3, dtype=torch.int64), 0, "float weight with >= 2 dims, got torch.int64"),
    (torch.ones(3), 0, r">= 2 dims, got torch.float32 \(3,\)"),
    (torch.tensor(1.0), 0, ">= 2 dims"),
    (torch.ones(3, 4), 2, r"out_dim must be in 0..1 .*got 2"),
    (torch.ones(3, 4), -1, r"out_dim must be in 0..1 .*got -1"),
])
def test_a_weight_or_axis_that_cannot_be_is_refused(name, weight, out_dim, message):
    with pytest.raises(ValueError, match=message):
        weight_rule(name, weight, out_dim)


def test_an_unknown_rule_is_refused_with_the_valid_names():
    with pytest.raises(ValueError, match="unknown weight rule 'xnor-net'; valid: sign, xnor, learned-scale, centred"):
        weight_rule("xnor-net", torch.ones(2, 2))
