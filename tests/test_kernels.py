"""The XNOR-popcount kernels: integers against float64 convolutions, and bit planes exhaustively."""


import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_tools import generator, plain_layer, quantized, signs
from torch import nn
from torch.nn import functional as F

from onebit.kernels import packed
from onebit.kernels.geometry import Sliding, plan
from onebit.kernels.packing import filled_words, pack_codes, pack_signs
from onebit.kernels.weights import Codes, code_constants, pack_bits, pack_weights, sign_constants, unpack_weights
from onebit.quantizers import sign

pytestmark = pytest.mark.usefixtures("one_thread")


# integers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 7, 8, 63, 64, 65, 130, 256])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (3, 2, 1), (4, 2, 1), (3, 1, 2)])
def test_convolutions_of_signs_are_the_exact_integers(channels, kernel, stride, padding):
    """Against float64 on zero-padded +-1: taps outside the image add nothing."""
    layer = plain_layer(nn.Conv2d, channels, 19, kernel_size=kernel, stride=stride, padding=padding)
    for shape in [(2, channels, 7, 9), (1, channels, 4, 4)]:
        x = signs(*shape, seed=channels)
        expected = F.conv2d(x, layer.weight.double(), None, stride, padding)
        assert torch.equal(packed(layer)(x.float()).double(), expected)


@pytest.mark.parametrize("channels", [1, 64, 100])
def test_transposed_convolutions_of_signs_are_the_exact_integers(channels):
    layer = plain_layer(nn.ConvTranspose2d, channels, 21, kernel_size=4, stride=2, padding=1)
    for shape in [(2, channels, 7, 3), (1, channels, 1, 1)]:
        x = signs(*shape, seed=1)
        expected = F.conv_transpose2d(x, layer.weight.double(), None, 2, 1)
        assert torch.equal(packed(layer)(x.float()).double(), expected)


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_geometry_gives_the_exact_integers(data):
    """Channels, sizes, kernel, stride, padding, dilation and output padding drawn freely, both directions."""
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    transposed = data.draw(st.booleans())
    kernel, stride, dilation = (draw(1, 4), draw(1, 4)), (draw(1, 3), draw(1, 3)), (draw(1, 2), draw(1, 2))
    padding = tuple(draw(0, d * (k - 1)) for k, d in zip(kernel, dilation, strict=True))
    more = {"output_padding": tuple(draw(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))}
    channels, height, width = draw(1, 140), draw(4, 9), draw(7, 9)
    layer = plain_layer(nn.ConvTranspose2d if transposed else nn.Conv2d, channels, draw(1, 20), kernel_size=kernel,
                        stride=stride, padding=padding, dilation=dilation, **(more if transposed else {}))
    x = signs(draw(1, 3), channels, height, width, seed=draw(0, 99))
    try:
        expected = layer.double().linear_map(x, layer.weight, None)
    except RuntimeError:  # no output of that size
        with pytest.raises(ValueError, match="does not fit"):
            packed(layer.float())(x.float())
        return
    assert torch.equal(packed(layer.float())(x.float()).double(), expected)


def test_a_sum_longer_than_a_byte_can_count_is_exact():
    """31 words of 64 differing bits fill a byte; 2048 channels times nine taps are 288 of them."""
    layer = plain_layer(nn.Conv2d, 2048, 8, kernel_size=3, padding=1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    x = -torch.ones(1, 2048, 3, 3)
    assert packed(layer)(x)[0, 0].tolist() == [[-8192, -12288, -8192], [-12288, -18432, -12288], [-8192, -12288, -8192]]


# packing -------------------------------------------------------------------------------------------------------------


def test_zeros_thresholds_and_nan_pack_as_sign_does():
    """quantizers.sign is -1 below its threshold and +1 elsewhere, NaN included."""
    x = torch.tensor([-1.0, -0.0, 0.0, 1.0, float("nan"), 2.0, 2.5, -3.0, 2.0])
    threshold = np.array([0, 0, 0, 0, 0, 2, 3, -4, 2.1], np.float32)
    frame, magnitude = np.empty(1, np.uint64), np.empty(1, np.float32)
    empty = np.zeros(0, np.float32)
    pack_signs(x.numpy(), (1, 1, 1, 9), (0, 0, 0, 0), empty, threshold, (0, 0), filled_words(9), frame, magnitude)
    expected = sign(x - torch.from_numpy(threshold)) > 0
    assert [bool(int(frame[0]) >> c & 1) for c in range(9)] == expected.tolist()
    assert int(frame[0]) >> 9 == 0  # nothing beyond the last channel


def test_the_magnitude_is_the_mean_over_channels_and_zero_in_the_padding():
    x = torch.randn(2, 3, 2, 77, generator=generator())  # (N, H, W, C)
    frame, magnitude = np.empty(2 * 5 * 5 * 2, np.uint64), np.empty(2 * 5 * 5, np.float32)
    pack_signs(x.numpy().ravel(), (2, 3, 2, 77), (1, 1, 2, 1), np.zeros(0, np.float32), np.zeros(77, np.float32),
               (0, 0), filled_words(77), frame, magnitude)
    expected = F.pad(x.abs().double().mean(-1), (2, 1, 1, 1))
    torch.testing.assert_close(torch.from_numpy(magnitude).view(2, 5, 5).double(), expected, rtol=1e-6, atol=0)
    assert not frame.reshape(2, 5, 5, 2)[:, 0].any() and not frame.reshape(2, 5, 5, 2)[:, :, :2].any()


def test_weights_come_back_from_their_words():
    positive = torch.rand(9, 100, 5, generator=generator()) < 0.5
    assert np.array_equal(unpack_weights(pack_weights(positive), 100), positive.numpy())


# bit planes ----------------------------------------------------------------------------------------------------------


def planes_of(bits, value):
    """What `pack_codes` makes of one channel holding `value`, lowest plane first, as -1 / +1."""
    codes, frame = Codes(bits, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 2 ** (bits - 1)), np.empty(8, np.uint64)
    pack_codes(np.array([value], np.float32), (1, 1, 1, 1), (0, 0, 0, 0), np.zeros(0, np.float32),
               np.zeros(1, np.float32), np.ones(1, np.float32), (0, 0, 0), np.float32(1), np.float32(codes.low),
               np.float32(codes.high), codes.offset, bits, codes.planes, filled_words(1), frame)
    return [2 * int(word & np.uint64(1)) - 1 for word in frame[:bits]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_code_is_its_bit_planes(bits):
    """BinaryDM Eq. 19 for all 2^k codes: a = sum_j 2^(j-1) b_j - 1/2, the leading plane the inverted sign bit."""
    for a in range(-(2 ** (bits - 1)), 2 ** (bits - 1)):
        b = planes_of(bits, a)
        assert a == sum(2.0 ** (j - 1) * b[j] for j in range(bits)) - 0.5
        assert (b[-1] == 1) == (a >= 0)  # two's complement has this bit the other way round


def test_equation_19_as_printed_for_four_bits():
    """4 k b1 + 2 k b2 + k b3 + k b4 / 2 - k / 2; and padding, a = 0, is (+1, -1, -1, -1)."""
    k = 0.25
    for a in range(-8, 8):
        b4, b3, b2, b1 = planes_of(4, a)
        assert k * a == 4 * k * b1 + 2 * k * b2 + k * b3 + k / 2 * b4 - k / 2
    assert planes_of(4, 0)[::-1] == [1, -1, -1, -1]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("margin", [0, 2])
def test_a_padded_pixel_has_the_planes_of_zero(bits, margin):
    codes, channels = Codes(bits, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 2 ** (bits - 1)), 70
    side = 1 + 2 * margin
    frame = np.empty(side * side * codes.planes * 2, np.uint64)
    pack_codes(np.zeros(channels, np.float32), (1, 1, 1, channels), (margin,) * 4, np.zeros(0, np.float32),
               np.zeros(channels, np.float32), np.ones(1, np.float32), (0, 0, 0), np.float32(1), np.float32(codes.low),
               np.float32(codes.high), codes.offset, bits, codes.planes, filled_words(channels), frame)
    pixels = frame.reshape(side * side, codes.planes, 2)
    assert (pixels == pixels[0]).all()  # the one real pixel, a zero, included
    assert np.array_equal(pixels[0, bits - 1], filled_words(channels)) and not pixels[0, : bits - 1].any()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_convolutions_of_all_codes_are_the_exact_integers(bits):
    """5x5 inputs of random codes at the borders too, against float64."""
    layer = nn.Conv2d(37, 11, 3, padding=1, bias=False)
    layer = quantized(layer, f"lsq:{bits}", torch.ones(1, 37, 5, 5), "sign")
    with torch.no_grad():
        layer.activation.step.fill_(1.0)
    x = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (2, 37, 5, 5), generator=generator()).double()
    expected = F.conv2d(x, sign(layer.weight).double(), padding=1)
    assert torch.equal(packed(layer)(x.float()).double(), expected)


def test_constants_by_hand():
    """Two channels, 1x3 kernel of weights (+ +), (- -), (+ -), one pixel padded on both sides: only the middle counts.

    Signs: n = 2 and the outer taps have 2 + 1 ones: 2 + 2 * 3 = 8.  Codes, k = 4, no padding taken out:
    ones = 3, sum w = 0: 15 * 3 - 8 * 0 = 45.
    """
    words = pack_bits(np.array([[[1, 1]], [[0, 0]], [[1, 0]]], bool)).swapaxes(1, 2)  # (taps, words, out)
    (phase,) = plan(Sliding((1, 3), padding=(0, 1)), 1, 1).phases
    assert sign_constants(words, 2, phase).tolist() == [[8]]
    assert code_constants(words, 2, phase, Codes(4, -8, 7, 8)).tolist() == [[45]]
