"""Activation rules, scale maps, and what follows a layer, against loops, numpy and autograd of the definitions."""

import copy
import io
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from onebit.connections import attach
from onebit.quantizers.activations import (
    ACTIVATION_RULES,
    SILU_SHIFT,
    DoReFaActivation,
    LSQActivation,
    activation_rule,
)
from onebit.quantizers.estimators import ESTIMATORS
from onebit.quantizers.lsq import lsq
from onebit.quantizers.outputs import OUTPUT_RULES, RPReLU, Shortcut, output_rule
from onebit.quantizers.scale_maps import XNORMap
from onebit.quantizers.timed import ActivationRule, Clock
from onebit.recipes import quantize

SPECS = ("lsq:4", "lsq:8,signed=False", "lsq:4,offset=silu", "sign", "sign:identity", "rsign", "reste", "dorefa",
         "dorefa:4", "xnor", "xnor++", "bidm", "bidm:bias=True,threshold=False,learn=False", "insta", "insta:4",
         "tdq:4", "absmax")
BINARY = ("sign", "rsign", "reste", "xnor", "xnor++", "bidm", "insta")
LAYERS = {
    "3x3": (lambda: nn.Conv2d(4, 6, 3, padding=1), (3, 4, 6, 5)),
    "4x4 stride 2": (lambda: nn.Conv2d(4, 6, 4, stride=2, padding=1), (3, 4, 6, 8)),
    "1x1": (lambda: nn.Conv2d(4, 6, 1), (3, 4, 5, 5)),
    "one channel": (lambda: nn.Conv2d(1, 1, 3, padding=1), (3, 1, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), (3, 4, 3, 5)),
    "linear 2-d": (lambda: nn.Linear(4, 6), (3, 4)),
    "linear 3-d": (lambda: nn.Linear(4, 6), (3, 7, 4)),
}


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def clock_at(*timesteps):
    clock = Clock()
    clock.timestep = torch.tensor(timesteps)
    return clock


def made(spec, kind, clock=None, dtype=torch.float64, ready=True):
    """A rule for a layer of that kind, initialised (and prepared) on one batch; the layer and that batch."""
    torch.manual_seed(0)
    maker, shape = LAYERS[kind]
    layer, x = maker().to(dtype), gaussian(*shape, dtype=dtype)
    rule = activation_rule(spec, layer, clock or clock_at(1, 500, 999)).to(dtype)
    if ready:
        if hasattr(rule, "prepare"):
            rule.prepare(x, layer(x))
        rule(x)
        for i, parameter in enumerate(rule.parameters()):  # off their start, where zeros would hide mistakes
            parameter.data += 0.05 * gaussian(*parameter.shape, seed=i, dtype=dtype).abs()
    return rule, layer, x


def used(rule, layer, x):
    """The layer with its input quantized and its output scaled, the bias last, as a quantized layer does it."""
    bias = layer.bias if isinstance(layer, nn.Linear) else layer.bias[:, None, None]
    y, scale = layer(rule(x)) - bias, rule.scale_map(x)
    return (y if scale is None else y * scale) + bias


def loaded(state, fresh):
    """`fresh` with the state written to bytes and read back, as in a new process."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


# what all rules share ------------------------------------------------------------------------------------------------


def test_every_rule_of_the_table_is_tested():
    assert {spec.partition(":")[0] for spec in SPECS} == set(ACTIVATION_RULES)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("spec", SPECS)
def test_a_sample_does_not_depend_on_its_batch_in_eval_mode(spec, kind):
    """Quantized input and scaled output of each sample alone (with its own timestep) are those of the whole batch."""
    clock = clock_at(1, 500, 999)
    rule, layer, x = made(spec, kind, clock)
    rule.eval()
    q, y = rule(x), used(rule, layer, x)
    assert q.shape == x.shape
    for i, t in enumerate((1, 500, 999)):
        clock.timestep = torch.tensor([t])
        torch.testing.assert_close(rule(x[i:i + 1]), q[i:i + 1], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(used(rule, layer, x[i:i + 1]), y[i:i + 1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("spec", SPECS)
def test_an_empty_batch_comes_out_empty_and_teaches_nothing(spec, kind):
    rule, layer, x = made(spec, kind, clock_at(5), ready=False)
    if hasattr(rule, "prepare"):
        rule.prepare(x, layer(x))
    before = copy.deepcopy(rule.state_dict())
    y = used(rule, layer, x[:0].requires_grad_())
    y.sum().backward()
    assert y.shape == layer(x[:0]).shape
    assert all(torch.equal(before[name], value) for name, value in rule.state_dict().items() if "tracked" not in name)
    assert rule(x).isfinite().all()  # the first batch from which to take a step
    assert used(rule.eval(), layer, x[:0]).shape == y.shape


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("spec", SPECS)
def test_a_saved_state_in_a_fresh_rule_gives_the_same_bits(spec, kind):
    clock = clock_at(1, 500, 999)
    rule, layer, x = made(spec, kind, clock, torch.float32)
    rule.advance(0.6)
    twin = loaded(rule.state_dict(), activation_rule(spec, layer, clock)).eval()
    rule.eval()
    assert torch.equal(twin(x), rule(x)) and torch.equal(used(twin, layer, x), used(rule, layer, x))
    assert twin.state_dict().keys() == rule.state_dict().keys()


@pytest.mark.parametrize("spec", SPECS)
def test_a_copy_gives_the_same_bits_and_shares_nothing(spec):
    clock = clock_at(1, 500, 999)
    rule, layer, x = made(spec, "3x3", clock)
    twin = copy.deepcopy(rule).eval()
    if twin.clock:
        twin.clock.timestep = clock.timestep
    want = used(rule.eval(), layer, x)
    assert torch.equal(used(twin, layer, x), want)
    for parameter in twin.parameters():
        parameter.data += 1
    assert torch.equal(used(rule, layer, x), want)


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "one channel"])
@pytest.mark.parametrize("spec", SPECS)
def test_bfloat16_autocast_forward_and_backward_are_finite(spec, kind):
    rule, layer, x = made(spec, kind, dtype=torch.float32)
    image = x.ndim == 4
    x = (x.to(memory_format=torch.channels_last) if image else x).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = used(rule, layer, x)
        same = used(rule, layer, x.bfloat16())  # as it comes out of a layer before
    (y.float().square().mean() + same.float().square().mean()).backward()
    trained = [p for p in rule.parameters() if p.requires_grad]
    assert y.shape == layer(x).shape and y.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in trained if p.grad is not None)
    idle = {name for name, p in rule.named_parameters() if p.requires_grad and p.grad is None}
    assert not idle


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", BINARY)
def test_binary_rules_give_minus_one_and_plus_one_and_never_zero(name, kind):
    rule, layer, x = made(name, kind)
    assert set(rule(x).unique().tolist()) == {-1.0, 1.0}
    fresh, _, _ = made(name, kind, ready=False)
    if name == "xnor++":
        fresh.prepare(x, layer(x))
    assert (fresh(torch.zeros_like(x)) == 1).all()  # sign(0) = +1


def test_bits_are_those_of_the_name_and_the_default_map_is_none():
    layer = nn.Conv2d(2, 2, 3)
    bits = {spec: activation_rule(spec, layer, Clock()).activation_bits for spec in SPECS}
    assert bits["lsq:4"] == bits["tdq:4"] == bits["insta:4"] == bits["dorefa:4"] == 4
    assert bits["absmax"] == bits["lsq:8,signed=False"] == 8
    assert all(bits[name] == 1 for name in (*BINARY, "dorefa"))
    assert activation_rule("sign", layer, Clock()).scale_map(torch.ones(1, 2, 4, 4)) is None


@pytest.mark.parametrize(("spec", "message"), [
    ("relu", "unknown activation rule 'relu'; valid: lsq, sign"),
    ("sign:tanh", "unknown estimator 'tanh'"),
    ("lsq:1", "bits must be in 2..16, got 1"),
    ("lsq:4,offset=relu", "unknown offset 'relu'; valid: none, silu"),
    ("lsq:4,step=1", "unexpected keyword argument 'step'; options: bits"),
    ("dorefa:0", "bits must be in 1..16"),
    ("absmax:1", "bits must be in 2..16"),
    ("tdq:1", "bits must be in 2..16"),
    ("insta:0", "bits must be in 2..16"),
    ("reste:end=0.5", "end must be >= 1"),
    ("lsq:4.5", "activation rule 'lsq:4.5': bits must be an integer, got 4.5"),
    ("bidm:threshold=false", "threshold must be True or False, got 'false'"),
    ("lsq:4,signed=0", "signed must be True or False, got 0"),
    ("sign:1", "estimator must be a word, got 1"),
])
def test_names_and_options_that_cannot_be_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        activation_rule(spec, nn.Conv2d(2, 2, 3), Clock())


def test_layers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="layer must be a Conv2d, ConvTranspose2d or Linear, got Conv1d"):
        activation_rule("sign", nn.Conv1d(2, 2, 3), Clock())
    for name in ("xnor", "xnor++", "bidm"):
        with pytest.raises(ValueError, match="needs groups=1 and padding_mode='zeros', got groups=2"):
            activation_rule(name, nn.Conv2d(2, 2, 3, groups=2), Clock())
        with pytest.raises(ValueError, match="padding_mode='circular'"):
            activation_rule(name, nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), Clock())


# A1: LSQ, and the first batch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lsq_takes_its_step_from_the_first_training_batch(bits):
    """s = 2 mean|x| / sqrt(Q_P), Q_P = 2^(k-1) - 1; later batches do not change it."""
    x = gaussian(5, 3, 4, 4) + 0.3
    rule = activation_rule(f"lsq:{bits}", nn.Conv2d(3, 2, 3), None).double()
    rule(x)
    want = 2 * np.abs(x.numpy()).mean() / math.sqrt(2 ** (bits - 1) - 1)
    assert rule.step.item() == pytest.approx(want, rel=1e-6) and rule.initialised.item()
    rule(100 * x)
    assert rule.step.item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(("spec", "low", "high", "shift"), [
    ("lsq:4", -8, 7, 0.0), ("lsq:2", -2, 1, 0.0), ("lsq:3,signed=False", 0, 7, 0.0),
    ("lsq:4,offset=silu", 0, 15, SILU_SHIFT),
])
def test_lsq_codes_fill_exactly_their_range(spec, low, high, shift):
    """Codes (Q(x) + d) / s are integers, and a wide input reaches both ends; against numpy's rint and clip."""
    rule, _, _ = made(spec, "3x3")
    x = torch.linspace(-30, 30, 4 * 900, dtype=torch.float64).view(1, 4, 30, 30)
    step = rule.step.item()
    codes = (rule(x).detach().numpy() + shift) / step
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-9)
    assert np.rint(codes).min() == low and np.rint(codes).max() == high
    want = step * np.rint(np.clip((x.numpy() + shift) / step, low, high)) - shift
    np.testing.assert_allclose(rule(x).detach().numpy(), want, atol=1e-12)


def test_the_silu_offset_spends_no_code_on_values_that_silu_never_takes():
    x = F.silu(gaussian(4, 3, 16, 16) * 3)
    assert x.min() >= -SILU_SHIFT
    error = {}
    for spec in ("lsq:4", "lsq:4,offset=silu"):
        rule = activation_rule(spec, nn.Conv2d(3, 3, 1), None).double()
        error[spec] = min(_with_step(rule, x, step) for step in np.linspace(0.05, 1.5, 60))
    assert error["lsq:4,offset=silu"] < 0.5 * error["lsq:4"]


def _with_step(rule, x, step):
    rule(x)
    rule.step.data.fill_(step)
    return (rule(x) - x).square().mean().item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("low", "high"), [(-8, 7), (-2, 1), (0, 15)])
def test_lsq_passes_the_gradient_on_its_whole_range_and_no_further(low, high, dtype):
    """LSQ Eq. 3 and the line below: slope 1 for Q_N <= x/s <= Q_P, both ends included, in every precision."""
    ends = torch.tensor([low, high], dtype=dtype)
    beyond = torch.nextafter(ends, torch.tensor([-1e3, 1e3], dtype=dtype))
    x = torch.cat([ends, beyond, torch.tensor([0.5], dtype=dtype)]).requires_grad_()
    step = torch.ones((), dtype=dtype, requires_grad=True)
    g = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=dtype)
    by_x, by_step = torch.autograd.grad(lsq(x, step, low, high), (x, step), g)
    assert by_x.tolist() == [1.0, 2.0, 0.0, 0.0, 16.0]
    assert by_step.item() == 4.0 * low + 8.0 * high + 16.0 * (0 - 0.5)  # at the ends codes - ratio = 0


def lsq_surrogate(x, s, low, high, offset):
    """x's quantizer with its rounding error frozen: the function that LSQ's gradients belong to."""
    v = x / s
    return s * (np.clip(v, low, high) + np.where((v >= low) & (v <= high), offset, 0))


def test_lsq_gradients_are_finite_differences_of_the_surrogate():
    """To x directly; to s the sum times 1/sqrt(N Q_P), N features of a sample (4 x 6 x 5), not of the batch of 3."""
    rule, _, x = made("lsq:4", "3x3")
    x = (2 * x).requires_grad_()
    g, s, h = gaussian(*x.shape, seed=1), rule.step.item(), 1e-6
    (rule(x) * g).sum().backward()
    xn, gn = x.detach().numpy(), g.numpy()
    frozen = np.rint(xn / s) - xn / s
    assert (np.abs(xn / s) > 8).any()  # some are clipped

    def loss(x, s):
        return (lsq_surrogate(x, s, -8, 7, frozen) * gn)

    slope = (loss(xn, s + h) - loss(xn, s - h)).sum() / (2 * h)
    assert rule.step.grad.item() == pytest.approx(slope / math.sqrt(4 * 6 * 5 * 7), rel=1e-5)
    want = (loss(xn + h, s) - loss(xn - h, s)) / (2 * h)
    np.testing.assert_allclose(x.grad.numpy(), want, atol=1e-7)


@pytest.mark.parametrize("spec", ["lsq:4", "tdq:4", "insta:4"])
def test_a_rule_that_has_seen_no_training_batch_says_so_in_eval_mode(spec):
    rule, _, x = made(spec, "3x3", ready=False)
    with pytest.raises(RuntimeError, match="run one training step first, or load the state"):
        rule.eval()(x)
    rule.train()(x)
    rule.eval()(x)


@pytest.mark.parametrize("first", [math.inf, math.nan, 0.0])
def test_a_first_batch_that_tells_nothing_sets_no_step(first):
    """Its step would be infinite, NaN or as good as zero for ever."""
    rule = activation_rule("lsq:4", nn.Linear(4, 4), None).train()
    rule(torch.full((2, 4), first))
    assert not rule.initialised and rule.step.item() == 1
    x = gaussian(8, 4, dtype=torch.float32)
    rule(x)
    other = activation_rule("lsq:4", nn.Linear(4, 4), None).train()
    other(x)
    assert rule.initialised and torch.equal(rule.step, other.step)


def test_a_vector_alone_has_the_threshold_of_a_batch_of_one():
    rule = activation_rule("insta:4", nn.Linear(4, 4), None).train()
    rule(gaussian(8, 4, dtype=torch.float32))
    rule.eval().gain.data.fill_(0.3)
    x = gaussian(4, dtype=torch.float32)
    torch.testing.assert_close(rule(x), rule(x[None])[0], rtol=0, atol=0)


def test_vectors_of_xnorpp_are_of_the_networks_type_and_not_of_the_files():
    rule, layer, _ = made("xnor++", "3x3", dtype=torch.float32)
    half = {name: value.half() for name, value in rule.state_dict().items()}
    anew = activation_rule("xnor++", layer, None)
    anew.load_state_dict(half)
    assert {p.dtype for p in anew.parameters()} == {torch.float32}
    torch.testing.assert_close(anew.alpha, rule.alpha.half().float(), rtol=0, atol=0)


def test_a_clock_kept_before_it_knew_a_place_takes_the_second_argument():
    clock = Clock.__new__(Clock)  # as pickle makes it from an empty state
    clock(nn.Identity(), (torch.ones(2), torch.tensor([3, 7])), {})
    assert clock.timestep.tolist() == [3, 7]


def test_loading_an_uninitialised_state_makes_a_rule_uninitialised_again():
    """The Python flag follows the buffer: else the loaded step of 1 would pass for a trained one."""
    rule, layer, x = made("lsq:4", "3x3")
    loaded(activation_rule("lsq:4", layer, None).double().state_dict(), rule)
    with pytest.raises(RuntimeError, match="first batch in training mode"):
        rule.eval()(x)


@pytest.mark.parametrize("spec", ["lsq:4", "tdq:4", "insta:4"])
def test_a_loaded_rule_is_exported(spec):
    rule, _, x = made(spec, "3x3")
    fresh = loaded(rule.state_dict(), made(spec, "3x3", ready=False)[0]).eval()
    torch.testing.assert_close(torch.export.export(fresh, (x,)).module()(x), rule.eval()(x))


def test_a_rule_without_memory_is_loaded_and_used():
    rule, _, x = made("lsq:4", "3x3")
    fresh = made("lsq:4", "3x3", ready=False)[0].to("meta")
    fresh.load_state_dict(copy.deepcopy(fresh.state_dict()), assign=True)  # still none
    fresh.load_state_dict(rule.state_dict(), assign=True)
    assert torch.equal(fresh.eval()(x), rule(x))


def test_initialising_changes_the_parameter_in_place_so_that_an_optimiser_keeps_it():
    rule, _, x = made("lsq:4", "3x3", ready=False)
    before = rule.step
    rule(x)
    assert rule.step is before and rule.step != 1


@pytest.mark.parametrize("spec", ["lsq:4", "tdq:4", "absmax", "insta:4"])
def test_a_first_batch_of_zeros_leaves_everything_finite(spec):
    rule, _, x = made(spec, "3x3", ready=False)
    assert rule(torch.zeros_like(x)).isfinite().all()
    assert rule(x).isfinite().all()


# A2, A3, A5, ReSTE: signs --------------------------------------------------------------------------------------------


def test_lsq_learns_its_step_after_a_first_batch_of_zeros():
    rule = activation_rule("lsq:4", nn.Conv2d(2, 2, 3), None)
    rule(torch.zeros(2, 2, 3, 3))
    optimizer, x = torch.optim.Adam(rule.parameters(), 1e-2), gaussian(2, 2, 3, 3, dtype=torch.float32)
    for _ in range(100):
        optimizer.zero_grad()
        (rule(x) - x).square().mean().backward()
        optimizer.step()
    assert (rule(x) - x).abs().mean() < 0.2


@pytest.mark.parametrize("spec", ["lsq:4", "tdq:4", "insta:4"])
@pytest.mark.parametrize("dtype", [torch.half, torch.float32])  # of the layer; float32: as under autocast
def test_a_first_batch_of_zeros_leaves_everything_finite_in_half_precision(spec, dtype):
    rule = activation_rule(spec, nn.Conv2d(2, 2, 3), clock_at(5)).to(dtype)
    for x in (torch.zeros(2, 2, 3, 3), 100 * gaussian(2, 2, 3, 3)):
        x = x.half().requires_grad_()
        y = rule(x)
        y.float().sum().backward()
        assert y.isfinite().all() and x.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in rule.parameters() if p.grad is not None)


def test_the_polynomial_surrogate_has_the_derivative_of_bi_real_net():
    """F = 2x + x^2 on [-1, 0), 2x - x^2 on [0, 1]: F'(0) = 2, F'(+-0.5) = 1, F'(+-1) = 0, and 0 beyond."""
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    assert ESTIMATORS["polynomial"](x).tolist() == [0, 0, 1, 2, 1, 0, 0]
    inside = torch.linspace(-0.99, 0.99, 34, dtype=torch.float64).requires_grad_()
    torch.where(inside < 0, 2 * inside + inside**2, 2 * inside - inside**2).sum().backward()
    torch.testing.assert_close(ESTIMATORS["polynomial"](inside.detach()), inside.grad)


@pytest.mark.parametrize(("spec", "slope"), [
    ("sign", [0, 1, 1, 1, 0]), ("sign:polynomial", [0, 1, 2, 1, 0]), ("sign:estimator=identity", [1] * 5),
    ("reste", [0, 1, 1, 1, 0]), ("rsign", [0, 1, 2, 1, 0]), ("rsign:clipped", [0, 1, 1, 1, 0]),
    ("xnor", [0, 1, 1, 1, 0]), ("bidm", [0, 1, 2, 1, 0]), ("insta", [0, 1, 2, 1, 0]),
])
def test_each_sign_rule_has_its_own_estimator(spec, slope):
    x = torch.tensor([[-2.0, -0.5, 0.0, 0.5, 2.0]], requires_grad=True)
    rule = activation_rule(spec, nn.Linear(5, 1), None).eval()
    rule(x).sum().backward()
    assert x.grad.tolist() == [slope]


@pytest.mark.parametrize("kind", ["3x3", "transposed", "linear 2-d", "linear 3-d"])
@pytest.mark.parametrize("spec", ["rsign", "rsign:clipped", "bidm"])
def test_the_threshold_belongs_to_its_channel_and_gets_minus_the_sum_of_surrogate_gradients(spec, kind):
    """By a loop over channels: sign(x - th[c]); dL/dth[c] = - sum g F'(x - th[c]) over batch and space."""
    rule, _, x = made(spec, kind)
    threshold = torch.tensor([-0.7, 0.0, 0.2, 1.0], dtype=torch.float64)
    rule.threshold.data.copy_(threshold)
    rule.zero_grad()
    g = gaussian(*x.shape, seed=1)
    q = rule(x)
    (q * g).sum().backward()
    slope = ESTIMATORS["clipped" if spec.endswith("clipped") else "polynomial"]
    axis = -1 if "linear" in kind else 1
    for c in range(4):
        shifted = x.select(axis, c) - threshold[c]
        assert torch.equal(q.select(axis, c), torch.where(shifted >= 0, 1.0, -1.0).double())
        torch.testing.assert_close(rule.threshold.grad[c], -(g.select(axis, c) * slope(shifted)).sum())


def test_reste_activations_anneal():
    """At share 1 the power is 3, and the slope at one 1/3; at zero the chord's 0.1^(-2/3)."""
    rule = activation_rule("reste", nn.Linear(3, 1), None)
    rule.advance(1.0)
    x = torch.tensor([[0.0, 1.0, 1.6]], dtype=torch.float64, requires_grad=True)
    rule(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0.1 ** (-2 / 3), 1 / 3, 0.0]], dtype=torch.float64))


# DoReFa and BitNet ---------------------------------------------------------------------------------------------------


def test_dorefa_by_hand_forward_and_backward():
    """One bit: {0, 1}, halves to even; two bits: thirds.  The gradient passes on [0, 1], its ends included."""
    x = torch.tensor([[-1.0, 0.0, 0.4, 0.6, 1.0, 3.0]], dtype=torch.float64, requires_grad=True)
    one, two = (activation_rule(f"dorefa:{k}", nn.Linear(6, 1), None) for k in (1, 2))
    assert one(x).tolist() == [[0, 0, 0, 1, 1, 1]]
    torch.testing.assert_close(3 * two(x), torch.tensor([[0, 0, 1, 2, 3, 3]], dtype=torch.float64))
    two(x).sum().backward()
    assert x.grad.tolist() == [[0, 1, 1, 1, 1, 0]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_absmax_scales_every_token_by_its_own_largest_magnitude(bits):
    """Against numpy, token by token; identity gradient."""
    x = gaussian(2, 3, 5) * torch.tensor([[[0.01], [1.0], [50.0]]], dtype=torch.float64)
    rule, high = activation_rule(f"absmax:{bits}", nn.Linear(5, 1), None), 2 ** (bits - 1) - 1
    for i, j in np.ndindex(2, 3):
        row = x[i, j].numpy()
        step = np.abs(row).max() / high
        np.testing.assert_allclose(rule(x)[i, j].numpy(), np.rint(row / step) * step, rtol=1e-12)
    leaf, g = x.clone().requires_grad_(), gaussian(2, 3, 5, seed=1)
    (rule(leaf) * g).sum().backward()
    assert torch.equal(leaf.grad, g)


def test_absmax_of_a_convolution_is_per_sample():
    x = gaussian(2, 3, 4, 4)
    x[1] *= 100
    q = activation_rule("absmax", nn.Conv2d(3, 1, 3), None)(x)
    for i in range(2):
        codes = q[i] / (x[i].abs().max() / 127)
        torch.testing.assert_close(codes, codes.round())
        assert codes.abs().max().round() == 127


# A4 and A6: maps from the input --------------------------------------------------------------------------------------


def map_by_loops(x, kernel, stride, padding, transposed):
    """The kernel slid over mean_c |x| with zero padding, as float64 loops; scattered for a transposed layer."""
    a = np.abs(x).mean(1)  # (B, H, W)
    (batch, height, width), (kh, kw) = a.shape, kernel.shape
    if transposed:
        out = np.zeros((batch, (height - 1) * stride + kh, (width - 1) * stride + kw))
        for i, j in np.ndindex(height, width):
            out[:, i * stride:i * stride + kh, j * stride:j * stride + kw] += a[:, i, j, None, None] * kernel
        return out[:, None, padding:out.shape[1] - padding, padding:out.shape[2] - padding]
    out = np.zeros((batch, (height + 2 * padding - kh) // stride + 1, (width + 2 * padding - kw) // stride + 1))
    for (i, j), u, v in itertools.product(np.ndindex(out.shape[1:]), range(kh), range(kw)):
        row, column = i * stride + u - padding, j * stride + v - padding
        if 0 <= row < height and 0 <= column < width:  # else zero padding: K is smaller at borders
            out[:, i, j] += kernel[u, v] * a[:, row, column]
    return out[:, None]


GEOMETRY = {"3x3": (1, 1, False), "4x4 stride 2": (2, 1, False), "1x1": (1, 0, False), "transposed": (2, 1, True)}


@pytest.mark.parametrize("kind", GEOMETRY)
@pytest.mark.parametrize("spec", ["xnor", "bidm"])
def test_the_map_is_the_loops_map_borders_included(spec, kind):
    rule, layer, x = made(spec, kind)
    got = rule.scale_map(x)
    want = map_by_loops(x.numpy(), rule.kernel_for(x)[0, 0].detach().numpy(), *GEOMETRY[kind])
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-12)
    assert got.shape == (3, 1, *layer(x).shape[2:])


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.integers(0, 99))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_geometry_gives_the_loops_map(size, stride, padding, transposed, seed):
    """Kernels, strides and paddings that do not divide the image."""
    x = gaussian(2, 3, 6, 7, seed=seed)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    rule = activation_rule("xnor", kind(3, 2, size, stride, padding).double(), None)
    want = map_by_loops(x.numpy(), rule.kernel_for(x)[0, 0].numpy(), stride, padding, transposed)
    if want.size:
        np.testing.assert_allclose(rule.scale_map(x).numpy(), want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", GEOMETRY)
@pytest.mark.parametrize("spec", ["xnor", "bidm"])
def test_the_map_of_a_constant_magnitude_is_that_magnitude_away_from_borders(spec, kind):
    """The kernel starts as a mean, over the inputs that reach an output; hence s^2 / (kh kw) when transposed."""
    rule, _, _ = made(spec, kind, ready=False)
    x = 3.0 * gaussian(1, 4, 8, 8).sign()
    inner = rule.scale_map(x)[:, :, 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 3.0))
    if kind == "3x3":
        assert rule.scale_map(x)[0, 0, 0, 0].item() == pytest.approx(3 * 4 / 9)  # four of nine taps at a corner


def test_a_dilated_layer_has_a_dilated_map():
    x = gaussian(1, 2, 9, 9)
    rule = activation_rule("xnor", nn.Conv2d(2, 2, 3, padding=2, dilation=2).double(), None)
    a = x.abs().mean(1)
    want = sum(a[0, 4 + 2 * u, 4 + 2 * v] for u in (-1, 0, 1) for v in (-1, 0, 1)) / 9
    torch.testing.assert_close(rule.scale_map(x)[0, 0, 4, 4], want)


def test_a_linear_layers_map_is_the_mean_magnitude_of_its_features():
    x = gaussian(2, 3, 4)
    rule, _, _ = made("xnor", "linear 3-d", ready=False)
    np.testing.assert_allclose(rule.scale_map(x)[..., 0].numpy(), np.abs(x.numpy()).mean(-1))
    assert made("bidm", "linear 3-d")[0].scale_map(x) is None


@pytest.mark.parametrize("kind", ["3x3", "4x4 stride 2"])
def test_the_kernels_gradient_is_the_printed_sum(kind):
    """dL/dk[u,v] = sum g[n,o,i,j] B[n,o,i,j] A[n, i stride + u - pad, j stride + v - pad], in loops."""
    rule, layer, x = made("bidm", kind)
    layer.bias = None
    binary = layer(rule(x)).detach()
    g = gaussian(*binary.shape, seed=1)
    rule.zero_grad()
    (binary * rule.scale_map(x) * g).sum().backward()
    stride, padding, _ = GEOMETRY[kind]
    a, gb = np.abs(x.numpy()).mean(1), (g * binary).numpy().sum(1)
    want = np.zeros(tuple(layer.kernel_size))
    for u, v in np.ndindex(want.shape):
        for i, j in np.ndindex(gb.shape[1:]):
            row, column = i * stride + u - padding, j * stride + v - padding
            if 0 <= row < a.shape[1] and 0 <= column < a.shape[2]:
                want[u, v] += (gb[:, i, j] * a[:, row, column]).sum()
    np.testing.assert_allclose(rule.kernel.grad[0, 0].numpy(), want, rtol=1e-10)


@pytest.mark.parametrize("spec", ["xnor", "bidm"])
def test_the_map_sends_its_gradient_to_the_raw_input(spec):
    """Not detached: sign(x)/C times the correlation of k with the incoming gradient; here by finite differences."""
    rule, _, x = made(spec, "3x3")
    x, g, h = x[:1].requires_grad_(), gaussian(1, 1, 6, 5, seed=1), 1e-6
    (rule.scale_map(x) * g).sum().backward()
    for index in [(0, 0, 0, 0), (0, 3, 2, 4), (0, 1, 5, 2)]:
        step = torch.zeros_like(x)
        step[index] = h
        slope = ((rule.scale_map(x + step) - rule.scale_map(x - step)) * g).sum() / (2 * h)
        assert x.grad[index].item() == pytest.approx(slope.item(), rel=1e-5)


def test_bidms_options_leave_out_or_add_what_they_name():
    layer = nn.Conv2d(4, 2, 3, padding=1)
    names = {spec: {n for n, p in activation_rule(spec, layer, None).named_parameters() if p.requires_grad}
             for spec in ("bidm", "bidm:threshold=False", "bidm:learn=False", "bidm:bias=True")}
    assert names["bidm"] == {"threshold", "kernel"}
    assert names["bidm:threshold=False"] == {"kernel"} and names["bidm:learn=False"] == {"threshold"}
    assert names["bidm:bias=True"] == {"threshold", "kernel", "bias"}
    rule = activation_rule("bidm:bias=True", layer, None)
    assert 0 < rule.bias.abs().item() <= 1 / 3
    torch.testing.assert_close(rule.scale_map(torch.zeros(1, 4, 5, 5)), rule.bias.expand(1, 1, 5, 5).detach(),
                               check_stride=False)


# W5: XNOR-Net++ ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
def test_rank_one_scales_start_at_mean_weight_times_mean_input(kind):
    """Gamma[o,i,j] = mean |w[o]| mean |x| for all i, j; the output channel is axis 1 of a transposed weight."""
    rule, layer, x = made("xnor++", kind, ready=False)
    y = layer(x)
    rule.prepare(x, y)
    gamma = rule.scale_map(x).detach()
    assert gamma.shape == (y.shape[1:] if y.ndim == 4 else y.shape[-1:])
    for o in range(gamma.shape[0]):
        row = (layer.weight[:, o] if kind == "transposed" else layer.weight[o]).detach().numpy()
        np.testing.assert_allclose(gamma[o].numpy(), np.abs(row).mean() * np.abs(x.numpy()).mean(), rtol=1e-12)


def test_rank_one_scales_are_an_outer_product_in_loops():
    rule, _, x = made("xnor++", "4x4 stride 2")
    alpha, beta, gamma = (p.detach().numpy().ravel() for p in (rule.alpha, rule.beta, rule.gamma))
    got = rule.scale_map(x).detach().numpy()
    assert got.shape == (6, 3, 4)
    for o, i, j in np.ndindex(got.shape):
        assert got[o, i, j] == pytest.approx(alpha[o] * beta[i] * gamma[j])
    assert torch.equal(rule.scale_map(x), rule.scale_map(100 * x))  # it does not see the input


def test_rank_one_scales_must_be_prepared_once():
    rule, layer, x = made("xnor++", "3x3", ready=False)
    for use in (rule, rule.scale_map):
        with pytest.raises(RuntimeError, match=r"call prepare\(x, y\)"):
            use(x)
    assert set(rule.quantized(x).unique().tolist()) == {-1.0, 1.0}
    rule.prepare(x, layer(x))
    assert all(p.requires_grad and p.is_leaf for p in rule.parameters()) and len(list(rule.parameters())) == 3
    with pytest.raises(RuntimeError, match="prepared already"):
        rule.prepare(x, layer(x))


# A7: INSTA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["3x3", "linear 2-d", "linear 3-d"])
@pytest.mark.parametrize("training", [True, False])
def test_instas_threshold_is_the_third_moment_in_numpy(kind, training):
    """th = b + a mean z^3, z by the batch's statistics in training and by the running ones in eval mode."""
    rule, _, x = made("insta", kind)
    rule.train(training)
    channels_last = x.numpy() if "linear" in kind else np.moveaxis(x.numpy(), 1, -1)
    rows = channels_last.reshape(-1, 4)
    mean, var = (rows.mean(0), rows.var(0)) if training else (rule.norm.running_mean, rule.norm.running_var)
    z = (channels_last - np.asarray(mean)) / np.sqrt(np.asarray(var) + 1e-5)
    between = tuple(range(1, z.ndim - 1))
    want = rule.bias.detach().numpy() + rule.gain.detach().numpy() * (z**3).mean(between)
    got = rule.threshold(x).detach().numpy()
    assert got.shape == {"3x3": (3, 4, 1, 1), "linear 2-d": (3, 4), "linear 3-d": (3, 1, 4)}[kind]
    np.testing.assert_allclose(got.reshape(3, 4), want, rtol=1e-9)
    shifted = x.numpy() - got
    np.testing.assert_array_equal(rule(x).detach().numpy(), np.where(shifted < 0, -1, 1))


def test_insta_starts_as_the_rule_without_a_threshold():
    _, layer, x = made("insta", "3x3", ready=False)
    for spec, plain in (("insta", "sign:polynomial"), ("insta:4", "lsq:4")):
        insta, other = (activation_rule(s, layer, None).double() for s in (spec, plain))
        assert torch.equal(insta(x), other(x))


# A8: TDQ and the clock -----------------------------------------------------------------------------------------------


def test_tdqs_step_starts_at_three_standard_deviations_for_every_timestep():
    """s0 = (|mean| + 3 sd) / (2^(k-1) - 1), exactly, whatever t."""
    rule, _, _ = made("tdq:4", "3x3", ready=False)
    x = gaussian(3, 4, 6, 5) - 0.4
    rule(x)
    want = (abs(x.numpy().mean()) + 3 * x.numpy().std()) / 7
    np.testing.assert_allclose(rule.eval().steps(torch.arange(0, 1000, 100)).detach().numpy(), want, rtol=1e-6)


@pytest.mark.parametrize("kind", ["3x3", "linear 2-d", "linear 3-d"])
def test_tdq_is_lsq_with_each_samples_own_step(kind):
    """Sample by sample in numpy with the symmetric range; steps differ once the network is trained."""
    rule, _, x = made("tdq:4", kind)
    rule.mlp[-1].weight.data.copy_(0.02 * gaussian(1, 64))
    rule.eval()
    steps = rule.steps(rule.clock.timestep).detach().numpy()
    assert len(set(steps.tolist())) == 3 and (steps > 1e-3).all()
    for i, s in enumerate(steps):
        want = s * np.rint(np.clip(5 * x[i].numpy() / s, -7, 7))
        np.testing.assert_allclose(rule(5 * x)[i].detach().numpy(), want, rtol=1e-12)


def test_tdqs_network_learns_by_the_gradient_of_lsqs_step():
    """d loss / d last bias = sum over samples of dL/ds sigmoid(bias), dL/ds by LSQ's formula with 1/sqrt(N Q)."""
    rule, _, x = made("tdq:4", "3x3")
    rule.eval().zero_grad()
    rule.mlp[-1].weight.data.zero_()
    g, bias = gaussian(*x.shape, seed=1), rule.mlp[-1].bias.item()
    (rule(3 * x) * g).sum().backward()
    v = 3 * x.numpy() / rule.steps(torch.tensor([0])).item()
    slope = np.where(np.abs(v) <= 7, np.rint(v) - v, np.clip(v, -7, 7))
    want = (g.numpy() * slope).sum() / math.sqrt(4 * 6 * 5 * 7) / (1 + math.exp(-bias))
    assert rule.mlp[-1].bias.grad.item() == pytest.approx(want, rel=1e-9)
    assert rule.mlp[-1].weight.grad.abs().sum() > 0


def test_tdq_without_a_timestep_or_with_another_number_of_them_says_so():
    rule, _, x = made("tdq:4", "3x3", ready=False)
    rule.clock.timestep = None
    with pytest.raises(RuntimeError, match=r"register the rule's Clock .* call the model with \(x, timestep\)"):
        rule(x)
    rule.clock.timestep = torch.arange(2)
    with pytest.raises(ValueError, match="the clock holds 2 timesteps for an input of 3 samples"):
        rule(x)


class Checkpointed(nn.Module):
    """Two layers that are computed again in the backward pass where there is a `reentrant`."""

    reentrant = None

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 3)

    def forward(self, x, timestep):
        if self.reentrant is None:
            return self.b(self.a(x).relu())
        return checkpoint(lambda x: self.b(self.a(x).relu()), x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_layer_is_not_computed_again_at_another_calls_timestep(reentrant):
    """It would be another function's gradient."""
    torch.manual_seed(0)
    net = Checkpointed().double()
    quantize(net, "weights=learned-scale activations=tdq:4")
    x, t, later = gaussian(4, 1, 8, 8).requires_grad_(), torch.full((4,), 10), torch.full((4,), 900)
    net(x, t)
    for layer in (net.a, net.b):
        layer.activation.mlp[-2].p = 0.0
        nn.init.normal_(layer.activation.mlp[-1].weight, std=0.5)  # a step that depends on the time

    def gradients(look_first=False):
        net.zero_grad()
        if look_first:
            with torch.no_grad():
                net(x, later)
        net(x, t).square().sum().backward()
        return {name: p.grad for name, p in net.named_parameters()}

    want = gradients()
    net.reentrant = reentrant
    torch.testing.assert_close(gradients(), want)
    torch.testing.assert_close(gradients(look_first=True), want)
    loss = net(x, t).sum()
    with torch.no_grad():
        net(x, later)
    with pytest.raises(RuntimeError, match=r"TDQ is computed again in the backward pass.*call backward\(\) before"):
        loss.backward()


class Net(nn.Module):
    """A model whose one layer has a timed rule, as quantize() builds it."""

    def __init__(self, clock):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3)
        self.rule = activation_rule("tdq:4", self.layer, clock)
        self.register_forward_pre_hook(clock, with_kwargs=True)

    def forward(self, sample, *second, timestep=None):
        return self.layer(self.rule(sample))


@pytest.mark.parametrize(("args", "kwargs", "want"), [
    ((torch.tensor([3, 7]),), {}, [3, 7]), ((), {"timestep": torch.tensor([3, 7])}, [3, 7]), ((5,), {}, [5]),
    ((), {"timestep": torch.tensor(5)}, [5]), ((torch.zeros(2, 3, 4),), {"timestep": 5}, [5]),
    (([3, 7],), {"timestep": None}, [3, 7]),
])
def test_the_clock_reads_the_timestep_however_it_is_given(args, kwargs, want):
    clock = Clock()
    Net(clock)(gaussian(2, 1, 5, 5, dtype=torch.float32), *args, **kwargs)
    assert clock.timestep.tolist() == want


@pytest.mark.parametrize("attached", ["rules", "connections"])
def test_the_network_says_where_its_timestep_comes(attached):
    """As a transformer's forward(hidden_states, encoder_hidden_states, timestep) of diffusers does."""

    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])

        def forward(self, hidden_states, encoder_hidden_states=None, timestep=None):
            return self.layers(hidden_states)

    net, x, context = Conditional(), torch.ones(2, 3, 4), torch.ones(2, 5, 4)
    if attached == "rules":
        quantize(net, "strict-1bit activations=sign")
        clock = net.layers[1].activation.clock
    else:
        clock = attach(net, ("layers.1",)).clock
    net(x, context, torch.tensor([3, 7]))
    assert clock.timestep.tolist() == [3, 7]
    assert copy.deepcopy(clock).timestep is None and copy.deepcopy(clock).place == 2
    net(x, context)
    assert clock.timestep is None
    net(x, context, timestep=5)
    assert clock.timestep.tolist() == [5]


@pytest.mark.parametrize("second", [[torch.ones(2, 1, 3, 3)] * 2, {"h": torch.ones(2, 1, 3, 3)}, "text", [None]])
def test_a_second_argument_that_is_no_number_is_no_timestep(second):
    clock = Clock()
    clock(nn.Identity(), (torch.ones(2, 1, 3, 3), second), {})
    assert clock.timestep is None


def test_a_call_without_a_timestep_does_not_use_the_last_one():
    net = Net(Clock())
    net(gaussian(1, 1, 5, 5, dtype=torch.float32), 5)
    with pytest.raises(RuntimeError, match="needs the timestep"):
        net(gaussian(1, 1, 5, 5, dtype=torch.float32))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copied_model_keeps_its_hook_and_its_rules_on_one_clock_of_its_own(duplicate):
    clock = Clock()
    net, x = Net(clock), gaussian(2, 1, 5, 5, dtype=torch.float32)
    net(x, torch.tensor([1, 2]))
    twin = duplicate(net)
    hooked = next(iter(twin._forward_pre_hooks.values()))
    assert twin.rule.clock is hooked is not clock and twin.rule.clock.timestep is None
    twin(x, torch.tensor([8, 9]))
    assert twin.rule.clock.timestep.tolist() == [8, 9] and clock.timestep.tolist() == [1, 2]


def test_the_clock_is_no_part_of_the_saved_state():
    net = Net(Clock())
    assert not any("clock" in name for name in net.state_dict()) and not isinstance(net.rule.clock, nn.Module)


# what follows the layer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "shape"), [(1, (2, 3, 4, 4)), (-1, (2, 5, 3)), (-1, (2, 3))])
def test_rprelu_is_torchs_prelu_between_two_shifts(axis, shape):
    rule = RPReLU(3, axis).double()
    y = gaussian(*shape)
    torch.testing.assert_close(rule(None, y), F.leaky_relu(y, 0.25))  # g = z = 0, b = 0.25 at first
    for i, parameter in enumerate(rule.parameters()):
        parameter.data.copy_(gaussian(3, seed=i + 20))
    first = y.movedim(axis, 1)
    shape = (3, *[1] * (first.ndim - 2))
    g, z = rule.before.view(shape), rule.after.view(shape)
    torch.testing.assert_close(rule(None, y).movedim(axis, 1), F.prelu(first - g, rule.slope) + z)
    g = gaussian(*y.shape, seed=9)
    assert torch.autograd.gradcheck(lambda v: rule(None, v) * g, y.clone().requires_grad_())


def test_a_shortcut_around_equal_channels_fits_the_outputs_size():
    """The input itself; means of 2 x 2 blocks for stride 2; each pixel repeated 2 x 2 by a transposed layer."""
    x = gaussian(2, 4, 6, 8)
    y = gaussian(2, 4, 6, 8, seed=1)
    torch.testing.assert_close(Shortcut(nn.Conv2d(4, 4, 3, padding=1))(x, y), y + x)
    y = gaussian(2, 4, 3, 4, seed=1)
    blocks = x.numpy().reshape(2, 4, 3, 2, 4, 2).mean((3, 5))
    down = Shortcut(nn.Conv2d(4, 4, 4, stride=2, padding=1), coefficient=0.3)(x, y)
    np.testing.assert_allclose(down.numpy(), y.numpy() + 0.3 * blocks)
    y = gaussian(2, 4, 12, 16, seed=1)
    up = Shortcut(nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1))(x, y)
    np.testing.assert_allclose(up.numpy(), y.numpy() + np.kron(x.numpy(), np.ones((2, 2))))
    x, y = gaussian(2, 3, 4), gaussian(2, 3, 4, seed=1)
    torch.testing.assert_close(Shortcut(nn.Linear(4, 4))(x, y), x + y)


def test_a_shortcut_pools_odd_sizes_too():
    """3x3 with stride 2 makes 4 of 7 pixels; the mean over each of the 4 overlapping windows, ends ceil(7(i+1)/4)."""
    x, y = gaussian(1, 2, 7, 7), torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    got = Shortcut(nn.Conv2d(2, 2, 3, stride=2, padding=1))(x, y)
    for i, j in np.ndindex(4, 4):
        rows, columns = (slice(7 * k // 4, -(-7 * (k + 1) // 4)) for k in (i, j))
        torch.testing.assert_close(got[..., i, j], x[..., rows, columns].mean((2, 3)))


def test_without_equal_channels_there_is_a_shortcut_only_by_convolution():
    x, y, layer = gaussian(1, 4, 6, 6), gaussian(1, 2, 3, 3, seed=1), nn.Conv2d(4, 2, 4, stride=2, padding=1).double()
    none = Shortcut(layer, learn=True)
    assert none(x, y) is y and not list(none.parameters())
    rule = Shortcut(layer, convolve=True, coefficient=0.3, learn=True)
    pooled = x.numpy().reshape(1, 4, 3, 2, 3, 2).mean((3, 5))
    weight, bias = rule.convolution.weight.detach().numpy()[:, :, 0, 0], rule.convolution.bias.detach().numpy()
    want = y.numpy() + 0.3 * (np.einsum("oc,bchw->bohw", weight, pooled) + bias[:, None, None])
    np.testing.assert_allclose(rule(x, y).detach().numpy(), want, rtol=1e-6)
    rule(x, y).sum().backward()
    assert all(p.grad is not None for p in rule.parameters()) and rule.coefficient.item() == pytest.approx(0.3)
    assert isinstance(Shortcut(nn.Linear(3, 2), convolve=True).convolution, nn.Linear)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("spec", ["shortcut", "shortcut:convolve=True,coefficient=0.0,learn=True", "rprelu"])
def test_output_rules_are_built_from_a_layer_and_survive_copies_states_and_autocast(spec, kind):
    maker, shape = LAYERS[kind]
    layer, x = maker(), gaussian(*shape, dtype=torch.float32)
    rule, y = output_rule(spec, layer), layer(x).detach()
    for parameter in rule.parameters():
        parameter.data += 0.3
    assert torch.equal(loaded(rule.state_dict(), output_rule(spec, layer))(x, y), rule(x, y))
    assert torch.equal(copy.deepcopy(rule)(x, y), rule(x, y)) and rule(x, y).shape == y.shape
    with torch.autocast("cpu", torch.bfloat16):
        assert rule(x, layer(x)).isfinite().all()


def test_unknown_output_rules_are_refused():
    with pytest.raises(ValueError, match="unknown output rule 'gelu'; valid: shortcut, rprelu"):
        output_rule("gelu", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="options: convolve"):
        output_rule("shortcut:stride=2", nn.Linear(2, 2))
    assert set(OUTPUT_RULES) == {"shortcut", "rprelu"}


def test_every_class_of_the_table_is_an_activation_rule_with_a_source():
    assert all(issubclass(c, ActivationRule) and "Source    " in c.__doc__ for c in ACTIVATION_RULES.values())


def test_the_options_of_what_follows_a_layer_are_of_their_type():
    with pytest.raises(ValueError, match="convolve must be True or False, got 'false'"):
        output_rule("shortcut:convolve=false", nn.Linear(2, 3))
    with pytest.raises(ValueError, match="coefficient must be a number, got 'half'"):
        output_rule("shortcut:coefficient=half", nn.Linear(2, 3))


@pytest.mark.parametrize("rule", [LSQActivation, DoReFaActivation])
def test_a_rule_that_is_built_directly_wants_whole_bits_too(rule):
    with pytest.raises(ValueError, match=r"bits must be in .*got 4\.5"):
        rule(nn.Linear(2, 2), None, bits=4.5)


def test_a_map_takes_an_estimator_that_the_loops_do_not_know(monkeypatch):
    """Registered by name, with a slope of its own; channels-last, where the loops would be taken."""
    class Steep(XNORMap):
        estimator = "steep"

    x = gaussian(2, 3, 4, 4, dtype=torch.float32).contiguous(memory_format=torch.channels_last).requires_grad_()
    monkeypatch.setitem(ESTIMATORS, "steep", lambda x: 7 * torch.ones_like(x))
    signs, _ = Steep(nn.Conv2d(3, 2, 3), None).with_scale_map(x)
    signs.sum().backward()
    assert (x.grad == 7).all()


def test_a_single_vector_has_the_step_gradient_of_a_batch_of_one():
    vector, gradients = torch.randn(64, generator=torch.Generator().manual_seed(0)), []
    for x in (vector[None], vector):
        made = activation_rule("lsq:4", nn.Linear(64, 8), None)
        made(x).sum().backward()
        gradients.append(made.step.grad.item())
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5) and gradients[0]
