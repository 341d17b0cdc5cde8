"""Whole packed networks against dense ones: outputs, samples, connections, folded norms, and what is reported."""

import copy
import subprocess
import sys

import pytest
import torch
from kernel_tools import Denoiser
from torch import nn
from torch.nn import functional as F

from onebit import nets
from onebit.errors import Diverged
from onebit.frozen import frozen
from onebit.kernels import NotPackable, PackedConv2d, PackedConvTranspose2d, to_packed
from onebit.kernels.folding import fold
from onebit.kernels.inputs import Before
from onebit.kernels.modules import PackedLinear, packed
from onebit.layers import quantized_layers
from onebit.quantizers import ACTIVATION_RULES
from onebit.quantizers.activations import Sign
from onebit.quantizers.estimators import sign
from onebit.recipes import Recipe, quantize
from onebit.sampling import sample

NAMED = ("xnor-w1a1", "bidm-w1a1", "reactnet-w1a1", "reste-w1a1", "dorefa-w1a1", "xnorpp-w1a1", "binarydm-base-w1a4",
         "insta-w1a4", "tdq-w1a4")
SIGN = "weights=xnor activations=sign keep=*time* ends=float"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def inputs(samples=3):
    x = torch.randn(samples, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([3, 500, 999, 70, 20])[:samples]


def trained(net, recipe, **options):
    """A network whose parameters and running statistics are all away from their start, so that every layer matters."""
    torch.manual_seed(0)
    model = nets.build(net, 8, **options)
    x, timestep = inputs()
    quantize(model, recipe, example=(x, timestep))
    noise = torch.Generator().manual_seed(2)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 and not name.endswith("step"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
            elif "rule" not in name and "activation" not in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=noise))
        for norm in norms:
            norm.momentum = 1.0  # statistics of what is really seen, or every sign would be the same
            if norm.affine:
                norm.weight[0] = -norm.weight[0]  # a sign that turns
        model.train()(x, timestep)  # rules that learn from the first batch do so
    return model.eval()


def close(ours, dense):
    """Within 1e-4 of the outputs' size everywhere, in all samples but one, where rounding may turn a sign that lies at
    its threshold and with it all that follows.  Outputs differ between samples, else agreeing would show nothing."""
    assert dense.std(0).mean() > 0.1 * dense.std()
    error = (ours - dense).abs().flatten(1).amax(1) / dense.abs().max()
    assert int((error > 1e-4).sum()) <= 1, error


@pytest.mark.parametrize("net", nets.NETS)
@pytest.mark.parametrize("recipe", [*NAMED, SIGN])
def test_a_packed_network_is_the_dense_one(net, recipe):
    model, (x, timestep) = trained(net, recipe), inputs()
    ours = to_packed(model)
    with torch.inference_mode():
        close(ours(x, timestep), model(x, timestep))
    binary = [name for name, layer in quantized_layers(model).items() if layer.rule.weight_bits == 1]
    assert [row.name for row in ours.packed_report if row.became == "packed"] == binary


@pytest.mark.parametrize("recipe", [SIGN, "xnor-w1a1", "binarydm-base-w1a4"])
def test_most_signs_agree_inside_the_network(recipe):
    """Rounding may flip a sign that lies at its threshold: of the inputs of all layers at most one in ten thousand."""
    model, found = trained("unet", recipe), ({}, {})
    for network, seen in zip((model, to_packed(model, fold=False)), found, strict=True):
        for name in quantized_layers(model):
            network.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name, seen=seen: seen.update({name: args[0] < 0}))
        with torch.inference_mode():
            network(*inputs())
    flipped = sum(int((found[0][name] != found[1][name]).sum()) for name in found[0])
    assert flipped <= 1e-4 * sum(value.numel() for value in found[0].values())


@pytest.mark.parametrize("recipe", ["bidm-w1a1", "xnor-w1a1"])
def test_samples_are_the_dense_networks(recipe):
    """Along a trajectory, which for BiDM hands block outputs from step to step."""
    model, how = Denoiser(trained("unet", recipe)), {"shape": (1, 16, 16), "sampler": "ddim", "steps": 5, "seed": 0}
    close(sample(to_packed(model), 4, **how), sample(model, 4, **how))


def test_connections_mix_in_the_packed_network():
    model = trained("unet", "bidm-w1a1")
    ours = to_packed(model)
    assert ours.connections is not model.connections
    x, timestep = inputs()
    with torch.inference_mode(), ours.connections.following(), model.connections.following():
        for _ in range(2):
            close(ours(x, timestep), model(x, timestep))


def test_the_original_is_left_alone():
    model = trained("unet", "xnor-w1a1")
    before, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    ours = to_packed(model)
    assert [type(m) for m in model.modules()] == classes
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not ours.training and not hasattr(model, "packed_report")


def test_the_report_names_every_layer_and_says_why():
    report = {row.name: row for row in to_packed(trained("unet", "binarydm-base-w1a4")).packed_report}
    assert report["mid.conv1"].became == "packed" and report["upsample.0"].became == "packed"
    assert (report["conv_in"].became, report["conv_in"].why) == ("dense", "its weight has 8 bits")
    assert report["time_mlp.0"].why == "it is a float layer"


def test_two_bases_stay_dense_until_one_is_left():
    ours = to_packed(trained("unet", "binarydm-w1a4"))
    why = {row.name: row.why for row in ours.packed_report}
    assert why["down.0.conv1"] == "its weight has 2 bits" and why["mid.conv1"] == ""
    settled = to_packed(trained("unet", "binarydm-w1a4 at=down.*->ebb:transition=0"))
    assert "its weight has 2 bits" not in [row.why for row in settled.packed_report]


def test_hooks_stay_with_their_layer():
    model = trained("unet", "xnor-w1a1")
    model.mid.conv1.register_forward_hook(lambda module, args, output: output + 1.0)
    x, timestep = inputs()
    with torch.inference_mode():
        close(to_packed(model)(x, timestep), model(x, timestep))


def test_attention_is_packed_as_1x1_convolutions():
    model, (x, timestep) = trained("unet", "xnor-w1a1", attention=True), inputs()
    ours = to_packed(model)
    assert isinstance(ours.attention.qkv, PackedConv2d) and isinstance(ours.upsample[0], PackedConvTranspose2d)
    with torch.inference_mode():
        close(ours(x, timestep), model(x, timestep))


def test_torchs_number_of_threads_is_left_alone():
    """Starting numba's threads would set it to their number, where both run on one OpenMP."""
    code = """import torch; torch.set_num_threads(1)
from onebit.bench_kernels import packed_convolution
layer, x = packed_convolution("sign", 1, 8, 4)
layer(x)
raise SystemExit(torch.get_num_threads() != 1)"""
    subprocess.run([sys.executable, "-c", code], check=True)


# folded norms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "recipe", "norms"), [
    ("unet", SIGN, 12), ("unet", "xnor-w1a1", 12), ("unet", "binarydm-base-w1a4", 12), ("resunet", SIGN, 8),
    ("resunet", "xnor-w1a1", 8), ("unet", "bidm-w1a1", 0), ("unet", "reactnet-w1a1", 0), ("unet", "insta-w1a4", 0),
])
def test_norms_are_folded_where_nothing_else_needs_the_layers_input(net, recipe, norms):
    """Shortcuts and INSTA's statistics do."""
    model = trained(net, recipe)
    assert len(to_packed(model).folded) == norms
    unfolded, (x, timestep) = to_packed(model, fold=False), inputs()
    with torch.inference_mode():
        close(unfolded(x, timestep), model(x, timestep))
    assert not hasattr(unfolded, "folded")


@pytest.mark.parametrize("activations", ["sign", "xnor", "rsign", "lsq:4"])
@pytest.mark.parametrize("after", [False, True])
def test_a_folded_layer_computes_norm_silu_shift_and_layer(activations, after):
    """Against the float modules one after another; gamma negative and zero, at 13 channels."""
    torch.manual_seed(3)
    conv, norm = nn.Conv2d(13, 9, 3, padding=1), nn.BatchNorm2d(13)
    x, shift = torch.randn(4, 13, 6, 6), torch.randn(4, 13)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 1, 13))
        norm.weight[6] = 0.0
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    model, norm = nn.Sequential(conv), norm.eval()
    quantize(model, Recipe(weights="centred", activations=activations))
    z = norm(F.silu(x)) + shift[:, :, None, None] if after else F.silu(norm(x + shift[:, :, None, None]))
    model(z)
    dense, layer = model.eval()(z), packed(model[0])
    fold(norm, layer, after)
    torch.testing.assert_close(layer(x, shift=shift), dense, rtol=1e-4, atol=1e-5)
    unshifted = norm(F.silu(x)) if after else F.silu(norm(x))
    torch.testing.assert_close(layer(x), model(unshifted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", [SIGN, "binarydm-base-w1a4"])
def test_a_broken_norm_is_not_folded_and_breaks_the_packed_network_where_it_breaks_the_dense_one(recipe):
    model, (x, timestep) = trained("unet", recipe), inputs()
    model.up[2].norm2.running_var[1] = torch.nan
    ours = to_packed(model)
    assert "up.2.norm2" not in ours.folded and "up.1.norm2" in ours.folded
    with torch.inference_mode():
        assert ours(x, timestep).isfinite().all() == model(x, timestep).isfinite().all() == (recipe == SIGN)
    if recipe != SIGN:
        with pytest.raises(Diverged):
            sample(ours, 2, shape=(1, 16, 16), sampler="ddim", steps=2)


def test_what_a_folded_norm_and_silu_make_nan_is_nan():
    model = trained("unet", "binarydm-base-w1a4")
    ours = to_packed(model).up[2].conv1
    x = torch.randn(3, ours.channels, 8, 8)
    x[1] = -torch.inf
    assert [bool(y.isnan().all()) for y in ours(x)] == [False, True, False]
    assert ours(x[::2], shift=torch.full((2, 1), torch.nan).expand(-1, ours.channels)).isnan().all()


def test_the_kernels_silu_is_torchs():
    """Over the whole range, through a layer of one channel whose scale map is the mean magnitude itself."""
    x = torch.cat([torch.linspace(-120, 120, 4001), torch.linspace(-1e-3, 1e-3, 9)]).repeat_interleave(8).view(1, -1, 8)
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    quantize(model, Recipe(weights="sign", activations="xnor"))
    with torch.no_grad():
        model[0].weight.fill_(0.125)
    layer = packed(model.eval()[0])
    one, none = torch.ones(8), torch.zeros(8)
    layer.packer.before = Before(torch.stack([one, none, one, none]), late=False)
    torch.testing.assert_close(layer(x)[..., 0], 8 * F.silu(x[..., 0]), rtol=1e-6, atol=1e-30)


# what is refused, and what it costs to import ------------------------------------------------------------------------


def test_a_binary_weight_with_several_scales_is_refused_by_name():
    model = trained("unet", "bonsai-binary-g128 weights=group-binary:16 activations=sign ends=float")
    with pytest.raises(ValueError, match=r"cannot pack down.0.conv1: output channel 0 has weights of \d+ magnitudes"):
        to_packed(model)


@pytest.mark.parametrize("recipe", ["fp16", "binarydm-base-w1a32"])
def test_a_network_with_nothing_to_pack_is_refused(recipe):
    with pytest.raises(ValueError, match=r"nothing to pack: .*recipes such as xnor-w1a1"):
        to_packed(trained("unet", recipe))


def test_another_device_is_refused():
    with pytest.raises(ValueError, match="on the CPU, it is on meta"):
        to_packed(trained("unet", "xnor-w1a1").to("meta"))
    layer = packed(trained("unet", "xnor-w1a1").mid.conv1)
    with pytest.raises(ValueError, match="run on the CPU, got an input on meta"):
        layer(torch.empty(1, 32, 4, 4, device="meta"))


def test_importing_the_package_or_its_recipes_does_not_import_numba():
    code = "import sys, onebit, onebit.recipes, onebit.sampling, onebit.bench; sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# what networks of other people hold ----------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", ["lsq:4", "tdq:4", "insta:4"])
def test_a_layer_without_a_step_is_refused_as_it_refuses_itself(activations):
    model = nets.build("unet", 4)
    quantize(model, f"weights=xnor activations={activations}")
    with pytest.raises(ValueError, match="has no step yet: run one training step first"):
        to_packed(model)


class Grows(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1)

    def forward(self, x, size):
        return self.up(x, size)


@pytest.mark.parametrize("size", [None, [11, 11], [12, 12], [11, 12]])
def test_a_packed_transposed_convolution_takes_an_output_size(size):
    torch.manual_seed(0)
    model, x = Grows(), torch.randn(2, 8, 6, 6)
    quantize(model, "weights=xnor activations=sign")
    kernels = to_packed(model)
    for _ in range(2):  # plans are kept by size
        torch.testing.assert_close(kernels(x, size), model(x, size), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(kernels(x, None), model(x, None), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="output size"):
        kernels(x, [14, 14])


@pytest.mark.parametrize("net", ["unet", "resunet"])
def test_who_looks_on_sees_what_he_saw(net):
    torch.manual_seed(0)
    model = nets.build(net, 4)
    quantize(model, "xnor-w1a1")
    model.eval()
    seen = []
    block = next(m for m in model.modules() if hasattr(m, "norm2"))
    block.conv2.register_forward_pre_hook(lambda layer, given: seen.append(given[0].clone()))
    x, t = torch.randn(2, 1, 12, 12), torch.tensor([3, 900])
    with torch.no_grad():
        for one in (model, to_packed(model)):
            one(x, t)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(16,), (0, 16), (3, 16), (2, 5, 16)])
def test_a_layer_by_itself_is_packed_and_takes_any_number_of_axes(shape):
    layer = nn.Linear(16, 8)
    quantize(layer, "weights=xnor activations=sign")
    kernels, x = to_packed(layer), torch.randn(shape)
    assert isinstance(kernels, PackedLinear)
    assert [(row.name, row.became) for row in kernels.packed_report] == [("", "packed")]
    torch.testing.assert_close(kernels(x), layer(x), rtol=1e-4, atol=1e-5)


def test_a_layer_that_stands_in_two_places_is_packed_in_both():
    shared = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    quantize(model, "weights=xnor activations=sign")
    found = to_packed(model)
    assert type(found[0]) is PackedConv2d and found[2] is found[0]
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        assert torch.allclose(found(x), model(x), atol=1e-4)


def test_a_frozen_copy_is_refused_with_the_mend():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
    quantize(model, "xnor-w1a1")
    with pytest.raises(ValueError, match="needs the network that `frozen` was given"):
        to_packed(frozen(model))


def test_a_subclass_of_an_activation_rule_stays_dense(monkeypatch):
    class Half(Sign):
        def forward(self, x):
            return sign(x - 0.5, self.estimator)

    monkeypatch.setitem(ACTIVATION_RULES, "half", Half)
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)).eval()
    quantize(model, "weights=xnor activations=half only=0")
    layer = quantized_layers(model)["0"]
    with pytest.raises(NotPackable, match="no kernel for the activation rule Half"):
        packed(layer)
