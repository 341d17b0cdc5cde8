"""Integers in bytes by hand, and packed weights against the rules that made them, bit for bit."""


import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_tools import built, packed
from weight_tools import gaussian

from onebit.layers import quantized_layers
from onebit.packing import Packed, load_packed, save_packed
from onebit.packing.digits import Coding
from onebit.packing.packed import half
from onebit.quantizers import weight_rule

RULES = (  # every rule, with its options where they change what is stored
    "sign", "xnor", "learned-scale", "centred", "reactnet", "reste", "dorefa", "dorefa:2", "dorefa:5",
    "dorefa:4,rescale=False", "lsq:2", "lsq:4", "lsq:8", "lsq:9", "lsq:3,per_channel=False", "ebb", "ebb:transition=0",
    "residual", "residual:3,learned=True", "ternary", "ternary:stochastic=True", "group-binary:8",
    "group-binary:7,learned=True", "group-ternary:8", "group-ternary:128,stochastic=True",
)
BITS = Coding()
SLOTS, BASE3 = Coding(range(-1, 2), 4), Coding(range(-1, 2), 3)


# digits --------------------------------------------------------------------------------------------------------------


def test_bits_are_in_little_order_and_the_last_byte_is_filled_with_zeros():
    """+1 is a set bit: + - + + - - - - | + is 1 + 4 + 8 = 13, then 1."""
    row = np.array([[1, -1, 1, 1, -1, -1, -1, -1, 1]], np.float32)
    assert BITS.encode(row).tolist() == [[[13, 1]]]


def test_ternary_slots_and_trits_by_hand():
    """- 0 + + - has digits 0 1 2 2 0: 0 + 4 + 32 + 128 = 164, then 0, in base 4; 0 + 3 + 18 + 54 + 0 = 75 in base 3."""
    row = np.array([[-1, 0, 1, 1, -1]], np.float32)
    assert SLOTS.encode(row).tolist() == [[[164, 0]]]
    assert BASE3.encode(row).tolist() == [[[75]]]


def test_codes_of_k_bits_are_k_planes_lowest_place_first():
    """-4 .. 3 are 0 .. 7: of -4, 3, -1, 1 = 000, 111, 011, 101 the places are 0111, 0110, 0101, first weight lowest."""
    row = np.array([[-4, 3, -1, 1]], np.float32)
    assert Coding(range(-4, 4)).encode(row).tolist() == [[[0b1110], [0b0110], [0b1010]]]


@st.composite
def codings(draw):
    if draw(st.booleans()):
        return draw(st.sampled_from([SLOTS, BASE3]))
    bits, step = draw(st.integers(1, 16)), draw(st.sampled_from([1, 2]))
    start = draw(st.integers(-(2**15), 5))
    return Coding(range(start, start + step * 2**bits, step))


@given(codings(), st.integers(1, 40), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_what_is_encoded_is_decoded_and_reads_as_the_docstring_says(coding, n, seed):
    """Against Python's own integers: a row's place is one number in the base, its digits from the low end."""
    index = np.random.default_rng(seed).integers(0, len(coding.levels), (3, n))
    integers = (coding.levels.start + coding.levels.step * index).astype(np.float32)
    data = coding.encode(integers)
    assert np.array_equal(coding.decode(data, n), integers)
    for row, want in zip(data, index, strict=True):
        got = [0] * n
        for place, string in enumerate(row):
            for i in range(n):
                byte = int(string[i // coding.per_byte])
                got[i] += coding.base**place * (byte // coding.base ** (i % coding.per_byte) % coding.base)
        assert got == want.tolist()


@pytest.mark.parametrize("wrong", [[0.0, 1.0], [0.5, -1.0], [3.0, 1.0], [-3.0, 1.0], [np.nan, 1.0]])
def test_a_number_that_is_no_level_is_refused(wrong):
    with pytest.raises(ValueError, match="not among the levels"):
        BITS.encode(np.array([wrong], np.float32))


@pytest.mark.parametrize("arguments", [(range(-1, 2, 2), 5), (range(3), 2), (range(4), 4), (range(2**17), 2)])
def test_levels_that_do_not_fit_the_base_are_refused(arguments):
    with pytest.raises(ValueError, match="base"):
        Coding(*arguments)


@pytest.mark.parametrize("coding", [BITS, SLOTS, BASE3])
def test_sound_bytes_are_those_that_some_codes_have(coding):
    n = coding.per_byte
    every = np.stack(np.meshgrid(*[list(coding.levels)] * n), -1).reshape(-1, n).astype(np.float32)
    possible = set(coding.encode(every).ravel().tolist())
    assert [b for b in range(256) if coding.sound(np.array([b], np.uint8))] == sorted(possible)


# one weight ----------------------------------------------------------------------------------------------------------


def bound(one):
    """2^-11 of the scales a weight is made of, summed over its planes: (out, 1) or the largest of the groups."""
    return torch.from_numpy(2.0**-11 * np.abs(one.scales.astype(np.float64)).sum(0).max(-1, keepdims=True))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("shape", "out_dim"), [((6, 5, 3, 3), 0), ((5, 6, 4, 4), 1), ((7, 19), 0)])
def test_a_packed_weight_is_the_rules_up_to_the_rounding_of_its_scales(name, shape, out_dim):
    w = gaussian(*shape, dtype=torch.float32) * 0.1
    rule = weight_rule(name, w, out_dim).eval()
    one = Packed.of(rule, w)
    got, want = (x.movedim(out_dim, 0).flatten(1).double() for x in (one.weight(), rule(w).detach()))
    levels = max(abs(rule.levels[0]), abs(rule.levels[-1]))
    assert ((got - want).abs() <= levels * bound(one) * 1.01).all()
    assert one.weight().shape == w.shape and one.weight().is_contiguous()
    assert one.bits == rule.weight_bits


@pytest.mark.parametrize("name", RULES)
def test_a_packed_weight_is_integers_times_half_scales_bit_for_bit(name):
    """Element by element in numpy's float32, from what the rule stores."""
    w = gaussian(4, 3, 3, 3, dtype=torch.float32) * 0.1
    rule = weight_rule(name, w).eval()
    integers, scales = rule.stored(w)
    assert set(integers.unique().tolist()) <= set(map(float, rule.levels))
    narrow, rows = scales.half().numpy(), integers.flatten(2).numpy()
    want = np.zeros(rows.shape[1:], np.float32)
    for p in range(len(rows)):
        for o in range(4):
            for i in range(27):
                s = np.float32(narrow[p, o % narrow.shape[1], i // (rule.group or 27)])
                want[o, i] = np.float32(want[o, i] + np.float32(s * rows[p, o, i]))
    assert np.array_equal(Packed.of(rule, w).weight().flatten(1).numpy(), want)


@pytest.mark.parametrize("name", ["learned-scale", "lsq:2", "lsq:8", "ebb", "residual:3,learned=True", "group-binary:8",
                                  "group-ternary:8", "sign"])
def test_where_scales_are_half_precision_already_nothing_is_lost(name):
    w = gaussian(6, 5, 3, 3, dtype=torch.float32)
    rule = weight_rule(name, w)
    for parameter in rule.parameters():
        parameter.data = parameter.data.half().float()
    assert torch.equal(Packed.of(rule, w).weight(), rule(w))


@pytest.mark.parametrize("name", ["ternary", "group-ternary:128"])
def test_trits_take_four_fifths_of_slots_and_hold_the_same_weights(name):
    w = gaussian(16, 40)
    rule = weight_rule(name, w)
    slots, base3 = Packed.of(rule, w), Packed.of(rule, w, "base3")
    assert (slots.data.size, base3.data.size) == (16 * 10, 16 * 8)
    assert torch.equal(slots.weight(), base3.weight())


def test_what_half_precision_keeps():
    """11 significant bits down to 2^-14, an absolute 2^-25 below, nothing above 65504."""
    usual = gaussian(100, dtype=torch.float32)
    assert half(usual).dtype == half(usual, each=True).dtype == torch.float16
    assert half(torch.tensor([1.0, 1e-7])).dtype == torch.float16  # small beside the largest
    assert half(torch.tensor([1.0, 1e-7]), each=True).dtype == torch.float32
    assert half(torch.tensor([1e-7])).dtype == half(torch.tensor([1.0, 7e4])).dtype == torch.float32
    assert half(torch.tensor([1.0, float("inf")])).dtype == torch.float16  # no worse than before
    assert half(torch.zeros(2)).dtype == half(torch.zeros(0)).dtype == torch.float16


def test_measured_error_of_scales_is_that_of_float16():
    w = gaussian(2000, 30, dtype=torch.float32)
    scales = weight_rule("xnor", w).stored(w)[1]
    error = (half(scales, each=True).double() / scales.double() - 1).abs()
    assert 2.0**-12.5 < error.max() <= 2.0**-11


@pytest.mark.parametrize("size", [1e5, 1e-6])
def test_scales_out_of_half_precisions_range_stay_float32_and_are_reported(size, tmp_path):
    model = built(how="binarydm-base-w1a32 ends=float")
    name, layer = next(iter(quantized_layers(model).items()))
    layer.rule.scale.data[0] = size
    with pytest.warns(UserWarning, match=rf"{name}: scales .*float32"):
        save_packed(model, tmp_path / "m")
    one = quantized_layers(load_packed(tmp_path / "m"))[name].rule.packed
    assert one.scales.dtype == np.float32 and one.scales[0, 0, 0] == np.float32(size)


@pytest.mark.parametrize("what", ["weight", "scale"])
def test_weights_that_are_not_finite_are_refused_and_an_older_file_stays(what, tmp_path):
    model, path = packed(tmp_path, "binarydm-base-w1a32")
    before = path.read_bytes()
    name, layer = list(quantized_layers(model).items())[3]
    (layer.weight if what == "weight" else layer.rule.scale).data.flatten()[0] = torch.nan
    with pytest.raises(ValueError, match=f"cannot pack {name}"):
        save_packed(model, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_bytes_of_another_shape_or_type_are_refused():
    one = Packed.of(weight_rule("xnor", w := gaussian(4, 20)), w)
    fields = {"shape": one.shape, "axis": 0, "group": None, "coding": BITS, "data": one.data, "scales": one.scales}
    for change in ({"data": one.data[:, :3]}, {"data": one.data.astype(np.int8)}, {"shape": (4, 30)}, {"group": 5},
                   {"scales": one.scales[:, :2]}, {"scales": one.scales.astype(np.float64)}, {"data": one.data[:0]}):
        with pytest.raises(ValueError, match=r"packed weights must be|scales must be"):
            Packed(**fields | change)
    with pytest.raises(ValueError, match="no digits of base 4"):
        Packed(**fields | {"coding": SLOTS, "data": np.full((1, 4, 1, 5), 3, np.uint8)})
