"""Packed layers against the dense ones they are made from, for every rule, geometry and weight that has a kernel."""

import itertools

import pytest
import torch
from kernel_tools import generator, quantized
from torch import nn

from onebit.kernels import NotPackable, packed
from onebit.kernels.modules import SIZES
from onebit.kernels.weights import split
from onebit.layers import QuantConv2d
from onebit.quantizers import Clock
from onebit.recipes import Recipe, quantize

LAYERS = {  # name -> layer, shape of its input: odd channels, borders, strides, residues, a last block that is short
    "3x3": (lambda: nn.Conv2d(70, 37, 3, padding=1), (3, 70, 7, 5)),
    "1x1": (lambda: nn.Conv2d(64, 16, 1), (2, 64, 3, 4)),
    "4x4 stride 2": (lambda: nn.Conv2d(16, 8, 4, stride=2, padding=1), (2, 16, 8, 6)),
    "uneven": (lambda: nn.Conv2d(5, 9, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)), (2, 5, 9, 8)),
    "same": (lambda: nn.Conv2d(3, 4, 5, padding="same", bias=False), (1, 3, 4, 4)),
    "transposed 4x4": (lambda: nn.ConvTranspose2d(66, 33, 4, stride=2, padding=1), (2, 66, 5, 4)),
    "transposed 3x3": (lambda: nn.ConvTranspose2d(6, 5, 3, stride=3, output_padding=1), (2, 6, 5, 4)),
    "transposed with gaps": (lambda: nn.ConvTranspose2d(6, 5, 2, stride=3), (2, 6, 5, 4)),
    "linear": (lambda: nn.Linear(100, 20), (5, 100)),
    "tokens": (lambda: nn.Linear(130, 7), (2, 4, 130)),
}
RULES = ("sign", "rsign", "reste", "xnor", "bidm", "bidm:threshold=False,bias=True", "dorefa", "dorefa:3", "lsq:2",
         "lsq:3", "lsq:4", "lsq:8", "lsq:4,signed=False", "insta", "insta:4")


pytestmark = pytest.mark.usefixtures("one_thread")


# layers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "name"), itertools.product(RULES, LAYERS))
def test_a_packed_layer_is_the_dense_one(rule, name):
    """Within 1e-5 after scales, for every rule that has a kernel and every kind of layer."""
    make, shape = LAYERS[name]
    x = torch.randn(shape, generator=generator(3))
    layer = quantized(make(), rule, x)
    dense = layer(x)
    torch.testing.assert_close(packed(layer)(x), dense, rtol=1e-5, atol=1e-5)
    assert dense.std() > 0.01  # else agreeing would show nothing


@pytest.mark.parametrize("weights", ["sign", "xnor", "learned-scale", "centred", "reactnet", "reste", "dorefa",
                                     "ebb:transition=0"])
def test_every_weight_rule_with_one_scale_per_channel_is_packed(weights):
    x = torch.randn(2, 33, 5, 5, generator=generator(4))
    layer = quantized(nn.Conv2d(33, 10, 3, padding=1), "sign", x, weights)
    if hasattr(layer.rule, "scale"):
        with torch.no_grad():
            layer.rule.scale.mul_(torch.linspace(-1, 1, 10)[:, None, None, None])  # a scale may turn negative
    torch.testing.assert_close(packed(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_xnorpp_maps_go_into_scale_and_factor():
    x = torch.randn(2, 20, 6, 5, generator=generator(5))
    for layer, shaped in ((nn.Conv2d(20, 9, 3, padding=1), x), (nn.Linear(20, 9), x[:, :, 0, 0])):
        layer = quantized(layer, "xnor++", shaped, "sign")
        torch.testing.assert_close(packed(layer)(shaped), layer(shaped), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["sign", "bidm", "xnor", "lsq:4", "insta"])
def test_an_image_alone_is_the_image_in_its_batch(rule):
    """Bit by bit: tiles of pixels span images, and must not mix them."""
    x = torch.randn(5, 70, 7, 3, generator=generator(6))
    layer = packed(quantized(nn.Conv2d(70, 37, 3, padding=1), rule, x))
    assert torch.equal(torch.cat([layer(x[i : i + 1]) for i in range(5)]), layer(x))


@pytest.mark.parametrize(("rule", "name"), itertools.product(
    (*RULES, "xnor++", "absmax:8"), [name for name, (_, shape) in LAYERS.items() if len(shape) == 4]))
def test_an_image_without_a_batch_is_a_batch_of_one(rule, name):
    """As for torch's own layers; the packed layer too, where the rule has one."""
    make, shape = LAYERS[name]
    x = torch.randn(1, *shape[1:], generator=generator(7))
    layer = quantized(make(), rule, x, "sign")
    assert torch.equal(layer(x[0]), layer(x)[0])
    if rule != "absmax:8":
        assert torch.equal(packed(layer)(x[0]), packed(layer)(x)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outputs", ["rprelu", "shortcut:convolve=True"])
def test_what_follows_the_layer_computes_in_float32_and_gives_the_inputs_type(outputs, dtype):
    model = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])
    quantize(model, f"weights=xnor activations=xnor outputs={outputs}")
    layer, x = packed(model.eval()[1]), torch.randn(2, 4, 5, 5, dtype=dtype)
    assert layer(x).dtype == dtype and not layer.training
    assert torch.equal(layer(x), layer(x.float()).to(dtype))


def test_samples_without_tokens_need_no_timestep_of_their_own():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    quantize(model, "weights=xnor activations=tdq:4")
    clock = model[1].activation.clock
    clock.timestep = torch.tensor([3, 7])
    model[1](torch.ones(2, 5, 4))
    layer = packed(model.eval()[1])
    layer.packer.rule.clock.timestep = torch.tensor([3, 7])
    assert layer(torch.ones(2, 0, 4)).shape == (2, 0, 4)


@pytest.mark.parametrize("shape", [(2, 0, 4), (0, 5, 4), (0, 4), (2, 0, 3, 4)])
@pytest.mark.parametrize("outputs", ["", " outputs=rprelu"])
def test_no_token_has_no_output(outputs, shape):
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    quantize(model, f"weights=xnor activations=xnor{outputs}")
    layer = packed(model.eval()[1])
    assert layer(torch.ones(shape)).shape == model[1](torch.ones(shape)).shape == shape
    with pytest.raises(ValueError, match="needs inputs of 4 channels, got 5"):
        layer(torch.ones(*shape[:-1], 5))


@pytest.mark.parametrize("rule", ["lsq:4", "dorefa:3", "tdq:4", "insta:4", "sign"])
@pytest.mark.parametrize("channels", [64, 13])
def test_nan_is_nan_where_it_is_in_the_dense_layer_and_in_no_other_sample(rule, channels):
    """Codes have no NaN: a broken network would compute on as if nothing were."""
    x = torch.randn(4, channels, 5, 5, generator=generator(8))
    model = nn.Sequential(nn.Conv2d(channels, 9, 3, padding=1))
    quantize(model, f"weights=xnor activations={rule}")
    model[0].activation.clock = clock = Clock()  # apart from the model, which is called without a time
    clock.timestep = torch.tensor([3])
    model(x)
    layer = packed(model.eval()[0])
    whole = layer(x)
    x[2, 5, 3, 1] = torch.nan
    broken, dense = layer(x), model(x)
    assert broken[2].isnan().any() == dense[2].isnan().any() and (broken.isnan() | ~dense.isnan()).all()
    assert torch.equal(broken[[0, 1, 3]], whole[[0, 1, 3]])
    x[2] = torch.inf  # is clipped
    torch.testing.assert_close(layer(x), model(x), rtol=1e-5, atol=1e-5, equal_nan=True)


def test_any_layout_and_precision_of_the_input_and_threads_give_the_same():
    x = torch.randn(3, 20, 6, 6, generator=generator(7))
    layer = packed(quantized(nn.Conv2d(20, 9, 3, padding=1), "xnor", x))
    y = layer(x)
    assert torch.equal(layer(x.to(memory_format=torch.channels_last)), y)
    assert torch.equal(layer(x.bfloat16()), layer(x.bfloat16().float()).bfloat16())
    torch.set_num_threads(2)
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_of_another_precision_goes_on_in_it(dtype):
    """Its other layers take no float32; what the packed one computes has one more rounding."""
    x = torch.randn(2, 20, 6, 6, generator=generator(9))
    layer = packed(quantized(nn.Conv2d(20, 9, 3, padding=1), "sign", x))
    after = nn.Conv2d(9, 3, 1)
    want = after(layer(x.to(dtype).float()))
    y = nn.Sequential(layer, after).to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), want, rtol=0.03, atol=0.03 if dtype == torch.bfloat16 else 1e-5)
    assert torch.equal(layer(input=x.to(dtype)), layer(x.to(dtype)))


def test_outputs_are_laid_out_channels_last():
    layer = packed(quantized(nn.Conv2d(8, 4, 3, padding=1), "sign", torch.randn(2, 8, 6, 6)))
    assert layer(torch.randn(2, 8, 6, 6)).is_contiguous(memory_format=torch.channels_last)


def test_a_state_that_is_loaded_is_the_state_that_is_used():
    x = torch.randn(2, 8, 5, 5, generator=generator(8))
    first, second = (packed(quantized(nn.Conv2d(8, 4, 3, padding=1), "bidm", x)) for _ in range(2))
    wanted, before = first(x), second(x)
    assert not torch.equal(wanted, before)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(x), wanted)


def test_a_kept_word_is_64_weights():
    layer = packed(quantized(nn.Conv2d(128, 256, 3, padding=1), "sign", torch.randn(1, 128, 4, 4)))
    assert layer.words.numel() * 64 == 128 * 256 * 9


# what is refused -----------------------------------------------------------------------------------------------------


def test_a_weight_of_several_magnitudes_is_refused():
    weight = torch.tensor([[1.0, -1.0], [2.0, 0.5]])
    with pytest.raises(ValueError, match=r"output channel 1 has weights of 2 magnitudes"):
        split(weight, 0)


@pytest.mark.parametrize(("layer", "recipe", "why"), [
    (nn.Conv2d(4, 4, 3), Recipe(weights="xnor"), "input is not quantized"),
    (nn.Conv2d(4, 4, 3), Recipe(weights="lsq:4", activations="sign"), "weight has 4 bits"),
    (nn.Conv2d(4, 4, 3, groups=2), Recipe(weights="xnor", activations="sign"), "groups"),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), Recipe(weights="xnor", activations="sign"), "groups, or"),
    (nn.Conv2d(4, 4, 2, padding="same"), Recipe(weights="xnor", activations="sign"), "even kernel"),
    (nn.Conv2d(4, 4, 3), Recipe(weights="xnor", activations="lsq:4,offset='silu'"), "no kernel .* LSQActivation"),
    (nn.Conv2d(4, 4, 3), Recipe(weights="xnor", activations="absmax"), "no kernel .* AbsMax"),
    (nn.Conv2d(4, 4, 3), Recipe(weights="xnor", activations="lsq:9"), "9-bit"),
])
def test_layers_without_a_kernel_say_why(layer, recipe, why):
    model = nn.Sequential(layer)
    quantize(model, recipe)
    with pytest.raises(NotPackable, match=why):
        packed(model[0])


def test_a_subclass_is_refused_rather_than_guessed_at():
    class Other(QuantConv2d):
        pass

    layer = quantized(nn.Conv2d(4, 4, 1), "sign", torch.randn(1, 4, 2, 2))
    layer.__class__ = Other
    with pytest.raises(NotPackable, match="no kernel for Other"):
        packed(layer)


def test_a_kernel_larger_than_its_input_is_refused():
    layer = packed(quantized(nn.Conv2d(4, 4, 3), "sign", torch.randn(1, 4, 3, 3)))
    with pytest.raises(ValueError, match="does not fit an input of 2 x 3"):
        layer(torch.randn(1, 4, 2, 3))


@pytest.mark.parametrize("rule", ["sign", "rsign", "bidm", "xnor", "lsq:4", "insta"])
@pytest.mark.parametrize("channels", [1, 7, 9, 64, 200])
def test_inputs_of_another_number_of_channels_are_refused(rule, channels):
    """The kernel reads as many words as the weight has: it would answer from other pixels, or from beyond."""
    x = torch.randn(2, 8, 5, 5, generator=generator(9))
    layer = packed(quantized(nn.Conv2d(8, 6, 3, padding=1), rule, x))
    with pytest.raises(ValueError, match=f"needs inputs of 8 channels, got {channels}"):
        layer(torch.randn(2, channels, 5, 5))


def test_images_of_another_size_than_the_scale_map_are_refused():
    x = torch.randn(2, 8, 6, 5, generator=generator(10))
    layer = quantized(nn.Conv2d(8, 6, 3, padding=1), "xnor++", x, "sign")
    for size in ((5, 6), (4, 4), (12, 12)):
        for one in (layer, packed(layer)):
            with pytest.raises(ValueError, match=rf"\({size[0]}, {size[1]}\).*give images of the size that"):
                one(torch.randn(2, 8, *size))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_packed_layer_does_not_depend_on_the_default_dtype(dtype):
    x = torch.randn(2, 8, 6, 5, generator=generator(11))
    layer = packed(quantized(nn.Conv2d(8, 6, 3, padding=1), "xnor", x))
    expected = layer(x)
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(layer(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_plans_of_many_sizes_share_the_weights_and_the_oldest_are_forgotten():
    layer = packed(quantized(nn.Linear(100, 20), "sign", torch.randn(5, 100)))
    first = layer(torch.ones(1, 1, 100))
    for tokens in range(1, 100):
        assert torch.equal(layer(torch.ones(1, tokens, 100)), first.expand(1, tokens, -1))
    assert len(layer._plans) == SIZES and len(layer._blocks) == 1
