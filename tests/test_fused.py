"""The loops around a binary layer's product against the equations, written with torch's own operations."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from onebit import nets
from onebit.kernels import binary
from onebit.layers import quantized_layers
from onebit.quantizers import fused, sign
from onebit.recipes import Recipe, quantize

EPS = {torch.float32: 2**-23, torch.bfloat16: 2**-8}  # twice the error of one rounding


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request):
    """One thread runs the loops compiled without threads, two the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def feature(*shape, dtype=torch.float32, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype, memory_format=torch.channels_last)


def close(got, want, dtype, terms=1):
    """Equal up to one rounding, and the float32 errors of so many terms of normal numbers."""
    assert got.dtype == dtype
    error = (got.double() - want).abs().max().item()
    assert error <= EPS[dtype] * want.abs().max().item() + 2e-6 * terms, error


def gradients(outputs, inputs, slopes):
    return torch.autograd.grad(outputs, inputs, [s.to(o.dtype) for o, s in zip(outputs, slopes, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("estimator", ["clipped", "polynomial"])
@given(batch=st.integers(1, 5), channels=st.integers(1, 40), height=st.integers(1, 7), width=st.integers(1, 7),
       threshold=st.booleans(), seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_signs_magnitudes_and_their_gradients_are_the_definitions(
        estimator, dtype, batch, channels, height, width, threshold, seed):
    x = feature(batch, channels, height, width, dtype=dtype, seed=seed)
    x[..., :1][x[..., :1].abs() < 0.5] = 0.0  # where sign and |.| are not smooth
    x.requires_grad_()
    th = feature(1, channels, 1, 1, seed=seed + 1).flatten().mul_(0.3).requires_grad_() if threshold else None
    slopes = feature(*x.shape, dtype=dtype, seed=seed + 2), feature(batch, 1, height, width, dtype=dtype, seed=seed + 3)

    exact = x.detach().double().requires_grad_()
    wide = th.detach().double().requires_grad_() if threshold else None
    want = (sign(exact if wide is None else exact - wide[:, None, None], estimator),
            exact.abs().mean(1, keepdim=True))
    got = fused.Binarize.apply(x, th, estimator)

    assert torch.equal(got[0].double(), want[0])
    close(got[1], want[1], dtype)
    inputs, exact_inputs = [t for t in (x, th) if t is not None], [t for t in (exact, wide) if t is not None]
    got_slopes, want_slopes = gradients(got, inputs, slopes), gradients(want, exact_inputs, slopes)
    close(got_slopes[0], want_slopes[0], dtype)
    assert got_slopes[0].is_contiguous(memory_format=torch.channels_last)
    if threshold:
        close(got_slopes[1], want_slopes[1], torch.float32, terms=batch * height * width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(batch=st.integers(1, 5), channels=st.integers(1, 40), height=st.integers(1, 7), width=st.integers(1, 7),
       with_bias=st.booleans(), seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_a_scaled_output_and_its_gradients_are_the_definitions(dtype, batch, channels, height, width, with_bias, seed):
    y = feature(batch, channels, height, width, dtype=dtype, seed=seed).requires_grad_()
    scale = feature(batch, 1, height, width, dtype=dtype, seed=seed + 1).requires_grad_()
    bias = feature(1, channels, 1, 1, seed=seed + 2).flatten().requires_grad_() if with_bias else None
    slope = feature(*y.shape, dtype=dtype, seed=seed + 3)
    inputs = [t for t in (y, scale, bias) if t is not None]

    exact = [t.detach().double().requires_grad_() for t in inputs]
    want = exact[0] * exact[1] + (exact[2][:, None, None] if with_bias else 0)
    got = fused.scaled(y, scale, bias)

    assert type(got.grad_fn).__name__ == "_ScaledBackward"
    close(got, want, dtype)
    pairs = zip(gradients([got], inputs, [slope]), gradients([want], exact, [slope]), strict=True)
    for i, (g, w) in enumerate(pairs):
        close(g, w, inputs[i].dtype, terms=(1, channels, batch * height * width)[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_is_rounded_as_torch_rounds_it(dtype):
    """Every half-way case, the largest numbers, infinity and NaN, through a product with one."""
    bits = torch.arange(0, 2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    y = bits.reshape(1, 64, 32, 32).contiguous(memory_format=torch.channels_last).to(dtype)
    half = torch.full((64,), 2.0**-8)  # added to numbers in [1, 2) it lies half-way between two of them
    got = fused.scaled(y, torch.ones(1, 1, 32, 32, dtype=dtype), half)
    want = (y.float() + half[:, None, None]).to(dtype)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[~got.isnan()], want[~want.isnan()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_is_plus_one_and_shows_in_the_scale(dtype):
    x = torch.tensor([0.0, -0.0, float("nan"), -float("inf")], dtype=dtype).reshape(4, 1, 1, 1)
    signs, magnitude = fused.Binarize.apply(x, None, "clipped")
    assert signs.flatten().tolist() == [1.0, 1.0, 1.0, -1.0]
    np.testing.assert_equal(magnitude.flatten().float().numpy(), [0.0, 0.0, np.nan, np.inf])


@pytest.mark.parametrize("estimator", ["clipped", "polynomial"])
def test_the_gradient_of_what_is_no_number_is_the_definitions(estimator):
    """None comes from infinity, and a NaN is not lost on the way back."""
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.5]).reshape(4, 1, 1, 1).requires_grad_()
    signs, magnitude = fused.Binarize.apply(x, None, estimator)
    (got,) = gradients([signs, magnitude], [x], [torch.ones(4, 1, 1, 1), torch.zeros(4, 1, 1, 1)])
    (want,) = torch.autograd.grad(sign(x, estimator).sum(), x)
    np.testing.assert_equal(got.flatten().numpy(), want.flatten().numpy())


def test_one_image_is_the_same_alone_and_whatever_the_number_of_threads(threads):
    x, th, g = feature(6, 24, 9, 5), feature(1, 24, 1, 1, seed=1).flatten(), feature(6, 24, 9, 5, seed=2)
    scale, bias = feature(6, 1, 9, 5, seed=3), feature(1, 24, 1, 1, seed=4).flatten()

    def both(rows, count):
        torch.set_num_threads(count)
        leaves = [t[rows].clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, x, scale)]
        outputs = *fused.Binarize.apply(leaves[0], th, "polynomial"), fused.scaled(*leaves[1:], bias)
        return *outputs, *gradients(outputs, leaves, (g[rows], scale[rows], g[rows]))

    everything = both(slice(None), threads)
    for a, b in zip(everything, both(slice(None), 3 - threads), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(everything, both(slice(2, 3), threads), strict=True):
        assert torch.equal(a[2:3], b)


def test_numbas_cache_takes_no_loop_for_another():
    """It knows a function by file, name and line: one thread's loop was loaded for two, or two threads' for one."""
    loops = [getattr(loop, kind) for loop in vars(binary).values() if isinstance(loop, binary._Loop)
             for kind in ("serial", "parallel")]
    names = {(loop.py_func.__qualname__, loop.py_func.__code__.co_firstlineno) for loop in loops}
    assert len(names) == len(loops) == 8


def test_two_python_threads_may_call_the_loops(threads):
    """Numba ends the process when two threads are in one of its parallel loops, by some of its threading layers."""
    x = feature(8, 16, 12, 12)
    want, results = fused.Binarize.apply(x, None, "clipped"), {}

    def work(i):
        torch.set_num_threads(threads)
        results[i] = [fused.Binarize.apply(x, None, "clipped") for _ in range(50)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(a, b) for i in range(2) for pair in results[i] for a, b in zip(pair, want, strict=True))


@pytest.mark.parametrize("kind", ["convolution", "stride", "transposed", "pointwise"])
@pytest.mark.parametrize(("weights", "activations"), [
    ("xnor", "xnor"), ("learned-scale", "bidm"), ("learned-scale", "bidm:bias=True,threshold=False"),
    ("sign", "xnor++")])
def test_a_layer_is_the_same_function_in_either_layout(weights, activations, kind):
    """Channels-last takes the loops, the other layout torch's operations; and under autocast both to its rounding."""
    torch.manual_seed(0)
    layer = {"convolution": nn.Conv2d(12, 20, 3, padding=1), "stride": nn.Conv2d(12, 20, 4, stride=2, padding=1),
             "transposed": nn.ConvTranspose2d(12, 20, 4, stride=2, padding=1), "pointwise": nn.Conv2d(12, 20, 1)}[kind]
    model = nn.Sequential(layer)
    x = torch.randn(3, 12, 8, 6).bfloat16().float()  # or signs would differ
    quantize(model, Recipe(weights=weights, activations=activations), (x,))
    for name, parameter in model.named_parameters():
        if "threshold" in name:
            nn.init.normal_(parameter, std=0.3)

    def run(layout, half):
        model.to(memory_format=layout)
        leaf = x.clone(memory_format=layout).contiguous(memory_format=layout).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = model(leaf.bfloat16() if half else leaf)
        assert y.is_contiguous(memory_format=layout) and y.dtype == (torch.bfloat16 if half else torch.float32)
        slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
        return y.detach(), *torch.autograd.grad(y, [leaf, *model.parameters()], slope, allow_unused=True)

    want = run(torch.contiguous_format, half=False)
    for got, error in ((run(torch.channels_last, half=False), 1e-5), (run(torch.channels_last, half=True), 0.04)):
        for a, b in zip(got, want, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert (a.float() - b).abs().max() <= error * b.abs().max()


def test_a_training_step_takes_the_loops(monkeypatch):
    """Every convolution of a channels-last network does; in the other layout torch's operations give the same."""
    torch.manual_seed(0)
    used = []
    monkeypatch.setattr(fused.Binarize, "forward", staticmethod(
        lambda ctx, *args, _forward=fused.Binarize.forward: used.append(1) or _forward(ctx, *args)))
    model = nets.build("unet", 4)
    quantize(model, "xnor-w1a1")
    x, timestep = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    spatial = sum(layer.weight.ndim == 4 for layer in quantized_layers(model).values())
    want = model(x, timestep)
    assert not used
    got = model.to(memory_format=torch.channels_last)(x, timestep)
    assert len(used) == spatial > 10
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_scale_that_is_no_map_goes_by_torchs_own_operations():
    y, scale, bias = torch.randn(4, 6), torch.rand(4, 1), torch.randn(6)
    torch.testing.assert_close(fused.scaled(y, scale, bias, spatial=False), y * scale + bias)
    assert torch.equal(fused.scaled(y, scale, None, spatial=False), y * scale)
    images = feature(2, 6, 3, 3)
    gamma = torch.rand(6, 3, 3)
    torch.testing.assert_close(fused.scaled(images, gamma, bias), images * gamma + bias[:, None, None])


@pytest.mark.parametrize("activations", ["xnor", "xnor++"])
@pytest.mark.parametrize("axes", [2, 3, 4, 5])
def test_a_linear_layer_adds_its_bias_to_features_whatever_comes_before_them(axes, activations):
    """K (sign(x) w^T) + b along the last axis, for tokens, images of tokens and more."""
    torch.manual_seed(0)
    features = 6  # as many as rows of the input: a bias along the wrong axis would broadcast too
    model = nn.Sequential(nn.Linear(5, features))
    x = torch.randn(*(2, 3, features, features)[: axes - 1], 5)
    quantize(model, Recipe(weights="sign", activations=activations), (x,))

    scale = x.double().abs().mean(-1, keepdim=True)
    if activations == "xnor++":
        scale = model[0].weight.double().abs().mean(1) * x.double().abs().mean()
    signs = [torch.where(t < 0, -1.0, 1.0).double() for t in (x, model[0].weight)]
    want = scale * torch.einsum("...i,oi->...o", *signs) + model[0].bias.double()
    torch.testing.assert_close(model(x).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activations", ["xnor", "bidm"])
def test_a_network_with_maps_is_exported(activations):
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1))
    quantize(model, f"weights=xnor activations={activations}")
    model.eval().to(memory_format=torch.channels_last)
    x = feature(2, 4, 8, 8)
    assert fused.in_one_pass(x)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))
