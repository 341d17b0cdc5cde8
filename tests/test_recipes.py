"""Recipes: the published counts, module swap on any network, and what survives saving and loading."""

import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torchvision.models import resnet18
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d

from onebit import nets
from onebit.audit import audit
from onebit.frozen import frozen
from onebit.layers import quantized_layers, weight_layers, without_quantizers
from onebit.quantizers import ACTIVATION_RULES
from onebit.recipes import RECIPES, Recipe, penalty, quantize, recipe, schedules

BINARY_RULES = ("sign", "xnor", "learned-scale", "centred", "reactnet", "reste", "dorefa")
EXAMPLE = (torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 10, 500, 999]))


def counts(report, bits):
    """Weights at `bits`, summed by kind of layer: the part of the name before the block's number, and its last part."""
    found = {}
    for row in report.layers:
        if row.weight_bits == bits:
            kind = f"{row.name.split('.')[0]}.{row.name.split('.')[-1]}"
            found[kind] = found.get(kind, 0) + row.weights
    return found


def test_the_published_recipe_binarizes_35_percent_of_the_published_net():
    """Source 000 at width 64, counted by hand from its layer sizes (3x3 convolutions 64-128-256 and back)."""
    report = quantize(nets.build("resunet", 64), "published-1bit")
    assert report.parameters == 3_689_761 == 3_690_721 - (128 + 128 + 256 + 256 + 128 + 64)
    assert counts(report, 1) == {
        "down.conv1": 9 * (64 * 128 + 128 * 256),  # 368,640
        "down.conv2": 9 * (128 * 128 + 256 * 256),  # 737,280
        "up.conv2": 9 * (128 * 128 + 64 * 64),  # 184,320
    }
    assert report.binary_weights == 1_290_240
    assert report.binary_share == pytest.approx(0.3497, abs=5e-5)
    floats = counts(report, 32)
    assert floats["up.conv1"] == 737_280 and floats["down.resample"] == 1_310_720 and floats["up.resample"] == 327_680
    assert sum(row.scale_bits for row in report.layers) == 16 * 960


def test_the_published_recipe_is_4_96_megabytes():
    """1,290,240 bits, 960 half-precision scales and 2,399,521 half-precision numbers: 1.49 times below all-half."""
    report = quantize(nets.build("resunet", 64), "published-1bit")
    assert report.stored_bytes == (1_290_240 + 16 * 960 + 16 * 2_399_521) / 8
    assert 2 * 3_690_721 / report.stored_bytes == pytest.approx(1.49, abs=0.005)


def test_the_strict_recipe_leaves_the_ends_and_the_time_embedding():
    model = nets.build("resunet", 64)
    report = quantize(model, "strict-1bit")
    kept = {row.name for row in report.layers if row.weight_bits == 32}
    assert kept == {"time_mlp", "conv_in", "conv_out", *(f"{b}.{i}.time" for b in ("down", "up") for i in (0, 1))}
    assert report.binary_weights == 3_665_920 and report.binary_share > 0.99
    assert all(layer.bias is not None for layer in quantized_layers(model).values())


def test_post_training_touches_the_layers_of_strict():
    a, b = nets.build("unet", 4), nets.build("unet", 4)
    after, strict = quantize(a, "ptq-1bit"), quantize(b, "strict-1bit")
    assert [row.weight_bits for row in after.layers] == [row.weight_bits for row in strict.layers]
    assert recipe("ptq-1bit").post_training == "start" and recipe("strict-1bit").post_training == "none"


def test_the_control_is_left_alone():
    model = nets.build("unet", 4)
    report = quantize(model, "fp16")
    assert report.binary_share == 0 and not quantized_layers(model)
    assert all(row.weight_bits == 32 and row.scale_bits == 0 for row in report.layers)


@pytest.mark.parametrize("rule", BINARY_RULES)
def test_any_torch_module_is_quantized_and_still_learns(rule):
    """torchvision's ResNet-18: all but first convolution and classifier; gradients reach every latent weight."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    names = list(weight_layers(model))
    report = quantize(model, Recipe(weights=rule, ends="float"))
    kept = [row.name for row in report.layers if row.weight_bits == 32]
    assert kept == ["conv1", "fc"] and len(names) == 21
    assert report.parameters == sum(p.numel() for p in resnet18(num_classes=10).parameters())
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    for name, layer in quantized_layers(model).items():
        assert layer.weight.grad is not None and layer.weight.grad.abs().max() > 0, name
        levels = layer.quantized_weight()[0].unique()
        assert len(levels) == 2 and levels[0] == -levels[1]


def one_layer(layer, rule="centred"):
    model = nn.Sequential(layer)
    quantize(model, Recipe(weights=rule))
    return model[0]


@pytest.mark.parametrize("options", [
    {}, {"stride": 2, "padding": 1}, {"groups": 2, "bias": False}, {"dilation": 2, "padding": 2},
    {"padding": 1, "padding_mode": "circular"},
])
def test_a_swapped_convolution_is_the_convolution_with_the_quantized_weight(options):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, **options).double()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    twin = nn.Conv2d(4, 6, 3, **options).double()
    twin.load_state_dict(plain.state_dict())
    layer = one_layer(plain)
    centred = twin.weight - twin.weight.mean((1, 2, 3), keepdim=True)
    with torch.no_grad():
        twin.weight.copy_(centred.abs().mean((1, 2, 3), keepdim=True) * torch.where(centred < 0, -1.0, 1.0))
    torch.testing.assert_close(layer(x), twin(x))


@pytest.mark.parametrize("how", ["binarydm-w1a32", "strict-1bit", "xnor-w1a1"])
def test_quantized_weights_keep_the_layout_of_latent_ones(how):
    """One input channel or a 1x1 kernel make strides ambiguous: torch then left channels-last."""
    net = nets.build("unet", 8)
    quantize(net, how)
    net.to(memory_format=torch.channels_last)
    for name, layer in quantized_layers(net).items():
        assert layer.quantized_weight().stride() == layer.weight.stride(), name
    x = torch.randn(2, 1, 28, 28)
    y = net.conv_in(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.grad(y.sum(), net.conv_in.weight)[0].abs().sum() > 0  # the copy hands gradients on


def test_a_swapped_linear_layer_is_linear_with_the_quantized_weight():
    layer = one_layer(nn.Linear(5, 3), "xnor")
    x = torch.randn(7, 2, 5)
    scale = layer.weight.abs().mean(1, keepdim=True)
    torch.testing.assert_close(layer(x), F.linear(x, scale * torch.where(layer.weight < 0, -1.0, 1.0), layer.bias))


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"stride": 3, "output_padding": 1}])
def test_a_swapped_transposed_convolution_scales_its_output_channels(options):
    """Output channels lie on axis 1, so the scale is a mean over axes 0, 2 and 3."""
    torch.manual_seed(0)
    layer = one_layer(nn.ConvTranspose2d(4, 6, 4, **options), "xnor")
    x = torch.randn(2, 4, 5, 5)
    weight = layer.weight.abs().mean((0, 2, 3), keepdim=True) * torch.where(layer.weight < 0, -1.0, 1.0)
    torch.testing.assert_close(layer(x), F.conv_transpose2d(x, weight, layer.bias, **options))


def test_a_swapped_transposed_convolution_takes_an_output_size():
    layer = one_layer(nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1))
    x = torch.randn(1, 2, 5, 5)
    assert layer(x).shape[-2:] == (9, 9) and layer(x, output_size=[10, 10]).shape[-2:] == (10, 10)
    with pytest.raises(ValueError, match="output size"):
        layer(x, output_size=[12, 12])


@pytest.mark.parametrize("size", [[10, 10], [2, 10, 10]])
def test_the_output_size_of_an_image_without_a_batch_may_name_its_channels(size):
    plain = nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1)
    layer, x = one_layer(plain), torch.randn(2, 5, 5)
    assert layer(x, output_size=size).shape == plain(x, output_size=size).shape == (2, 10, 10)


def test_swapping_keeps_parameters_their_names_and_float_checkpoints():
    plain, model = nets.build("unet", 4), nets.build("unet", 4)
    before = {name: id(p) for name, p in model.named_parameters()}
    quantize(model, "strict-1bit")
    assert {name: id(p) for name, p in model.named_parameters()} == before
    model.load_state_dict(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("rule", ["centred", "learned-scale"])
def test_saved_and_loaded_in_a_new_process_it_computes_the_same_bits(rule, tmp_path):
    script = (
        "import sys, torch; from safetensors.torch import load_file\n"
        "from onebit import nets; from onebit.recipes import Recipe, quantize\n"
        "torch.set_num_threads(1); torch.manual_seed(99)\n"
        f"model = nets.build('unet', 4); quantize(model, Recipe(weights={rule!r}, ends='float'))\n"
        "model.load_state_dict(load_file(sys.argv[1])); model.eval()\n"
        "with torch.no_grad(): y = model(torch.linspace(-1, 1, 256).view(1, 1, 16, 16), torch.tensor([7]))\n"
        "print(y.numpy().tobytes().hex())\n"
    )
    torch.manual_seed(0)
    model = nets.build("unet", 4)
    quantize(model, Recipe(weights=rule, ends="float"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model(torch.randn(4, 1, 16, 16), torch.arange(4)).square().mean().backward()
    optimizer.step()  # learned state has left its initial values
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    model.eval()
    with torch.no_grad():
        here = model(torch.linspace(-1, 1, 256).view(1, 1, 16, 16), torch.tensor([7]))
    out = subprocess.run([sys.executable, "-c", script, str(tmp_path / "model.safetensors")], capture_output=True,
                         text=True, check=True)
    assert out.stdout.strip() == here.numpy().tobytes().hex()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("assign", [True, False])
def test_built_without_memory_a_network_computes_what_the_loaded_state_says(name, assign):
    want = quantized_net(name)[0]
    want(*EXAMPLE)  # a first batch, for the rules that wait for one
    want.eval()
    with torch.device("meta"):
        model = nets.build("unet", 4)
    quantize(model, name, prepare=False)
    if not assign:
        model.to_empty(device="cpu")
        for value in (*model.parameters(), *model.buffers()):
            value.data.fill_(7)  # what memory happens to hold
    model.load_state_dict(want.state_dict(), assign=assign)
    with torch.no_grad():
        assert torch.equal(model.eval()(*EXAMPLE), want(*EXAMPLE))


def test_learned_scales_are_trained_saved_and_not_counted_as_the_networks_parameters():
    model = nets.build("unet", 4)
    n = sum(p.numel() for p in model.parameters())
    report = quantize(model, Recipe(weights="learned-scale", ends="float"))
    assert report.parameters == n < sum(p.numel() for p in model.parameters())
    assert "mid.conv1.rule.scale" in model.state_dict()


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(ValueError, match=r"'2bit'.*fp16, published-1bit, strict-1bit, ptq-1bit"):
        quantize(nets.build("unet", 4), "2bit")
    with pytest.raises(ValueError, match=r"'quinary'.*xnor"):
        Recipe(weights="quinary")
    with pytest.raises(ValueError, match=r"'4bit'.*lsq.*bidm"):
        Recipe(weights="xnor", activations="4bit")
    with pytest.raises(ValueError, match=r"'residual'.*shortcut, rprelu"):
        Recipe(weights="xnor", outputs=("residual",))
    with pytest.raises(ValueError, match=r"'int4'.*quantized, float, int8"):
        Recipe(weights="xnor", ends="int4")
    with pytest.raises(ValueError, match=r"unknown connections 'skip'.*none, tbs"):
        Recipe(weights="xnor", connections="skip")
    with pytest.raises(ValueError, match=r"'tbs:foo=3'.*options: .*patterns.*rows.*initial"):
        Recipe(weights="xnor", connections="tbs:foo=3")
    with pytest.raises(ValueError, match=r"rows must be an integer, got 'many'"):
        recipe("bidm-w1a1 connections=tbs:up.1+up.2,rows=many")
    with pytest.raises(ValueError, match=r"unknown part of a recipe 'weight'.*weights"):
        recipe("weight=xnor")
    with pytest.raises(ValueError, match=r"options: bits"):
        Recipe(weights="lsq:width=2")
    with pytest.raises(ValueError, match=r"unknown drop_bias 'yes'.*True, False"):
        recipe("weights=xnor drop_bias=yes")


def test_a_model_is_quantized_once():
    model = nets.build("unet", 4)
    quantize(model, "strict-1bit")
    with pytest.raises(ValueError, match="quantized already"):
        quantize(model, "strict-1bit")


def test_a_recipe_that_matches_nothing_is_an_error_that_shows_the_layers():
    with pytest.raises(ValueError, match=r"matches no Conv2d.*mid\.conv1.*conv_out"):
        quantize(nets.build("unet", 4), RECIPES["published-1bit"].__class__(weights="xnor", only=("nothing",)))
    with pytest.raises(ValueError, match="matches no Conv2d"):
        quantize(nn.Sequential(nn.ReLU()), "strict-1bit")


def test_a_subclass_of_a_layer_is_refused_rather_than_broken():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    with pytest.raises(ValueError, match="Own"):
        quantize(nn.Sequential(nn.Linear(2, 2), Own(2, 2)), Recipe(weights="xnor"))


def test_the_audit_is_a_table():
    model = nets.build("unet", 4)
    quantize(model, "strict-1bit")
    table = audit(model).table()
    assert list(table.columns) == ["name", "shape", "weights", "weight_bits", "activation_bits", "scale_bits"]
    row = table.set_index("name").loc["mid.conv1"]
    assert row["shape"] == (16, 16, 3, 3) and row.weights == 2304 and row.weight_bits == 1 and row.scale_bits == 16 * 16


def test_a_refused_model_is_left_as_it_was():
    """So that the mend the message names, `keep`, works on the same model."""

    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Own(2, 2))
    with pytest.raises(ValueError, match="name it in `keep`"):
        quantize(model, Recipe(weights="xnor"))
    assert not quantized_layers(model)
    assert quantize(model, Recipe(weights="xnor", keep=("1",))).binary_weights == 4


def everything(model):
    """What makes a model: of every module its class, attributes, modules and hooks, by identity, and all its values."""
    modules = {}
    for name, module in model.named_modules():
        inside = {k: tuple(v.items()) if isinstance(v, dict) else v for k, v in vars(module).items()}
        modules[name] = type(module), inside
    return modules, {key: value.clone() for key, value in model.state_dict().items()}


def same(before, after):
    return before[0] == after[0] and all(torch.equal(before[1][key], after[1][key]) for key in before[1] | after[1])


class Timed(nn.Module):
    """A network of two named layers that is called with a time."""

    def __init__(self, *layers):
        super().__init__()
        self.up = nn.ModuleList(layers)

    def forward(self, x, timestep):
        for layer in self.up:
            x = layer(x)
        return x


def convolutions(**options):
    return Timed(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, **options), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 3))


GOOD = (torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 4]))


@pytest.mark.parametrize(("options", "how", "example", "error", "message"), [
    ({}, "weights=sign activations=xnor++ drop_bias=True", None, ValueError, "give quantize an `example`"),
    ({"groups": 2}, "weights=xnor activations=xnor", None, ValueError, r"cannot quantize up\.1: .*groups=1"),
    ({}, "weights=xnor outputs=shortcut at=up.1->lsq:99", None, ValueError, r"cannot quantize up\.1: .*2\.\.16"),
    ({}, "weights=xnor activations=sign connections=tbs:nothing", None, ValueError, "match no module"),
    ({}, "weights=xnor activations=sign connections=tbs:rows=0", None, ValueError, "rows must be in"),
    ({}, "weights=sign activations=xnor++ outputs=shortcut connections=tbs drop_bias=True", (GOOD[0][:, :1], GOOD[1]),
     RuntimeError, "channels"),  # the example is no input of the model, and shows so within its forward pass
])
def test_whatever_refuses_a_model_leaves_it_module_for_module_as_it_was(options, how, example, error, message):
    """And the mend is taken: nothing is quantized already."""
    model = convolutions(**options)
    model.up[2].eval()  # a part in another mode than the whole stays in it
    before = everything(model)
    with pytest.raises(error, match=message):
        quantize(model, how, example)
    assert same(before, everything(model))
    quantize(model, "weights=sign activations=xnor++", GOOD) if not options else quantize(model, "weights=xnor")
    assert len(quantized_layers(model)) == 3 and model.training and not model.up[2].training
    assert model(*GOOD).isfinite().all()


class OwnRecipe(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 4))
        self.recipe = nn.Linear(4, 4)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.LazyLinear(3)), "2.weight has no shape yet: run one"),
    (OwnRecipe, "OwnRecipe has a part named `recipe`.*another name"),
])
def test_what_would_fail_after_the_swap_is_refused_before_it(make, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        quantize(model, "weights=xnor keep=2")
    assert not quantized_layers(model) and not isinstance(getattr(model, "recipe", None), Recipe)


def hooked(layer):
    """As accelerate's hooks leave a layer: with a `forward` of its own, which calls the one it had."""
    layer._old_forward = layer.forward
    layer.forward = lambda *args, **kwargs: layer._old_forward(*args, **kwargs)
    return layer


def test_a_layer_with_a_forward_of_its_own_would_stay_float_and_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), hooked(nn.Linear(4, 4)))
    before = everything(model)
    with pytest.raises(ValueError, match=r"cannot quantize 1: .*remove that hook first .*name it in `keep`"):
        quantize(model, "weights=xnor")
    assert same(before, everything(model))
    assert list(quantized_layers(model)) == [] and quantize(model, "weights=xnor keep=1").binary_weights == 16


def test_a_forward_that_a_quantized_layer_gets_later_is_put_back():
    layer = one_layer(nn.Linear(4, 4))
    forward = hooked(layer).forward
    with without_quantizers([layer]):
        assert layer.forward is not forward
    assert layer.forward is forward


@pytest.mark.parametrize("how", ["weights=ternary:stochastic=True", "weights=xnor activations=insta:4",
                                 "weights=xnor activations=sign outputs=shortcut connections=tbs"])
def test_a_network_in_eval_mode_stays_in_it_with_all_its_rules(how):
    """As `from_pretrained` gives networks: nothing in it may change by a look at it."""
    model = convolutions().eval()
    model.up[2].train()  # a part in another mode than the whole stays in it
    quantize(model, how)
    assert [m for m in model.modules() if m.training] == [model.up[2]]
    model.train()
    assert all(m.training for m in model.modules())


def test_the_example_may_be_given_late():
    """As the message of the first attempt says."""
    model = nets.build("unet", 4)
    with pytest.raises(ValueError, match="example"):
        quantize(model, "xnorpp-w1a1")
    quantize(model, "xnorpp-w1a1", EXAMPLE)
    assert model(*EXAMPLE).isfinite().all()


def test_a_grouped_transposed_convolution_is_refused_by_name():
    """Its output channels are spread over two axes of the weight; scales over axis 1 would be shared by groups."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ConvTranspose2d(4, 6, 4, groups=2))
    before = everything(model)
    with pytest.raises(ValueError, match=r"cannot quantize 1: .*ConvTranspose2d with groups=2; name it in `keep`"):
        quantize(model, "weights=xnor")
    assert same(before, everything(model))
    assert quantize(model, "weights=xnor keep=1").binary_weights == 36


@pytest.mark.parametrize("make", [
    lambda: nn.Linear(4, 3), lambda: nn.Conv2d(4, 3, 1), lambda: nn.ConvTranspose2d(4, 3, 1)])
@pytest.mark.parametrize("activations", ["none", "xnor", "xnor++"])
def test_a_layer_takes_its_input_by_the_name_that_torch_gives_it(make, activations):
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make()

        def forward(self, x):
            return self.layer(input=x)

    x = torch.randn(2, 4, 4, 4)
    model = ByName()
    quantize(model, f"weights=sign activations={activations}", (x,))
    assert torch.equal(model(x), model.layer(x))


# patterns ------------------------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    def __init__(self, net, head=None):
        super().__init__()
        self.net, self.head = net, head


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("net", ["unet", "resunet"])
def test_a_network_in_a_wrapper_gets_what_it_gets_alone(net, name):
    """Kept layers and second bases are found behind the prefix."""
    alone, wrapped = nets.build(net, 4), Wrapper(nets.build(net, 4))
    want, got = quantize(alone, name, prepare=False), quantize(wrapped, name, prepare=False)
    assert [(f"net.{row.name}", row.weight_bits, row.activation_bits, row.scale_bits) for row in want.layers] == [
        (row.name, row.weight_bits, row.activation_bits, row.scale_bits) for row in got.layers]


def test_a_pattern_is_tried_behind_a_prefix_only_where_it_matches_no_whole_name():
    model = Wrapper(nn.ModuleDict({"head": nn.Linear(2, 2), "body": nn.Linear(2, 2)}), head=nn.Linear(2, 2))
    quantize(model, Recipe(weights="xnor", keep=("head", "body")))  # "head" stands for one, "body" for net.body
    assert list(quantized_layers(model)) == ["net.head"]


def test_the_case_of_a_pattern_counts():
    model = nn.ModuleDict({"Head": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    quantize(model, Recipe(weights="xnor", keep=("Head",)))
    assert list(quantized_layers(model)) == ["head"]


class Shared(nn.Module):
    """Its second layer is `enc.1` and `dec.l`."""

    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.dec = nn.ModuleDict({"l": self.enc[1], "o": nn.Linear(8, 8)})


@pytest.mark.parametrize(("parts", "quantized"), [
    ("keep=dec.*", ["enc.0"]), ("only=dec.*", ["enc.1", "dec.o"]), ("keep=l", ["enc.0", "dec.o"]),
    ("keep=enc.*", ["dec.o"]),
])
def test_a_pattern_reaches_a_shared_layer_by_any_of_its_names(parts, quantized):
    model = Shared()
    quantize(model, f"weights=xnor {parts}")
    assert list(quantized_layers(model)) == quantized


def test_a_shared_layer_gets_the_rule_that_any_of_its_names_is_given():
    model = Shared()
    quantize(model, "weights=xnor at=dec.l->lsq:2|enc.*->lsq:3")
    assert [layer.rule.weight_bits for layer in quantized_layers(model).values()] == [3, 2, 1]


# recipes as text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_read_back_from_what_it_spells(name):
    assert recipe(str(recipe(name))) == recipe(name)


def test_a_recipe_is_spelt_with_its_changes_only():
    how = Recipe(weights="ebb", activations="lsq:4", ends="int8", at=(("mid.*", "lsq:2"),), keep=("a*", "b"))
    assert str(how) == "weights=ebb at=mid.*->lsq:2 activations=lsq:4 ends=int8 keep=a*|b"
    assert recipe(str(how)) == how


def test_a_name_may_be_followed_by_changes():
    how = recipe("bidm-w1a1 connections=none activations=bidm:learn=False")
    assert (how.weights, how.activations, how.connections) == ("learned-scale", "bidm:learn=False", "none")
    assert how.keep == recipe("bidm-w1a1").keep


@pytest.mark.parametrize(("text", "message"), [
    ("weights=xnor at=", "at: '' is no pattern->rule"),
    ("weights=xnor at=mid.*->ebb|up.*", r"at: 'up\.\*' is no pattern->rule"),
    ("weights=xnor at=->ebb", "at: '->ebb' is no pattern->rule"),
    ("weights=xnor outputs=", r"outputs= names an empty output rule; valid: shortcut, rprelu"),
    ("weights=xnor outputs=shortcut|", r"outputs=shortcut\| names an empty output rule"),
])
def test_an_item_that_is_none_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        recipe(text)


@pytest.mark.parametrize(("parts", "message"), [
    ({"only": "down.*"}, r"only must be a tuple, such as \(\"down\.\*\",\), got 'down\.\*'"),
    ({"keep": ["down.*"]}, r"keep must be a tuple, such as \(\"down\.\*\",\), got \['down\.\*'\]"),
    ({"outputs": "shortcut"}, r"outputs must be a tuple, such as \(\"shortcut\",\), got 'shortcut'"),
    ({"at": "down.*->ebb"}, r"at must be a tuple, such as \(\(\"down\.\*\", \"ebb\"\),\), got 'down\.\*->ebb'"),
    ({"at": ("ab", "cd")}, "at: 'ab' is no pattern->rule"),  # two letters are no pair
    ({"at": (["mid.*", "ebb"],)}, r"at: \['mid\.\*', 'ebb'\] is no pattern->rule"),
    ({"at": (5,)}, "at: 5 is no pattern->rule"),
    ({"at": (("mid.*", 5),)}, r"at: \('mid\.\*', 5\) is no pattern->rule"),
    ({"only": (1,)}, r"only must hold words, such as \(\"down\.\*\",\), got 1"),
    ({"outputs": (None,)}, r"outputs must hold words, such as \(\"shortcut\",\), got None"),
])
def test_a_string_or_list_is_not_taken_item_by_item(parts, message):
    with pytest.raises(ValueError, match=message):
        Recipe(weights="ebb", **parts)


def test_white_space_in_rules_does_not_count():
    how = Recipe(weights="lsq:bits=2, per_channel=True", at=(("a", "ebb: tau = 0.1"),), activations=" lsq:4",
                 outputs=("shortcut ",), connections="tbs: rows=2, initial=0.0")
    assert recipe(str(how)) == how == recipe("weights=lsq:bits=2,per_channel=True at=a->ebb:tau=0.1 activations=lsq:4 "
                                             "outputs=shortcut connections=tbs:rows=2,initial=0.0")


@pytest.mark.parametrize("parts", [{"keep": ("my layer",)}, {"only": ("a|b",)}, {"at": (("a->b", "ebb"),)},
                                   {"at": (("a\t", "ebb"),)}])
def test_a_pattern_that_text_cannot_spell_is_refused(parts):
    with pytest.raises(ValueError, match=rf"{next(iter(parts))}: the pattern .* cannot be spelt .*write \? for each"):
        Recipe(weights="xnor", **parts)


def test_a_question_mark_stands_for_a_space_in_a_name():
    model = nn.ModuleDict({"my layer": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    quantize(model, Recipe(weights="xnor", keep=("my?layer",)))
    assert list(quantized_layers(model)) == ["b"]


def test_some_layers_cannot_be_left_float_by_a_rule():
    with pytest.raises(ValueError, match="unknown weight rule 'none'; valid: sign, xnor"):
        recipe("weights=ebb at=down.*->none")


@pytest.mark.parametrize("parts", [
    {"weights": "none", "activations": "lsq:4"}, {"weights": "none", "drop_bias": True},
])
def test_a_float_recipe_has_no_other_part(parts):
    with pytest.raises(ValueError, match="leaves the network alone"):
        Recipe(**parts)


def test_a_post_training_recipe_learns_nothing():
    with pytest.raises(ValueError, match="no training to learn"):
        Recipe(weights="xnor", activations="lsq:4", post_training="start")


# what recipes do -----------------------------------------------------------------------------------------------------


def quantized_net(name, net="unet", width=4):
    torch.manual_seed(0)
    model = nets.build(net, width)
    return model, quantize(model, name, EXAMPLE)


@pytest.mark.parametrize("net", ["unet", "resunet"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_saves_and_computes_one_image_as_in_a_batch(name, net, tmp_path):
    """One optimiser step; a fresh network with the saved state computes the same bits; no image sees its batch."""
    model, _ = quantized_net(name, net)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for rule in schedules(model):
        rule.advance(0.7)
    model.train()
    loss = model(*EXAMPLE).square().mean()
    extra = penalty(model)
    (loss if extra is None else loss + extra).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None
               and "scale2" not in n and "connections" not in n]
    assert not missing
    optimizer.step()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "m.safetensors")
    twin, _ = quantized_net(name, net)
    twin.load_state_dict(load_file(tmp_path / "m.safetensors"))
    x, t = EXAMPLE
    with torch.no_grad():
        here, there, alone = model.eval()(x, t), twin.eval()(x, t), model(x[1:2], t[1:2])
    assert torch.equal(here, there) and here.isfinite().all()
    torch.testing.assert_close(here[1:2], alone, rtol=1e-4, atol=1e-5)


def test_the_ends_are_float_or_eight_bit_or_like_the_others():
    _, report = quantized_net("binarydm-base-w1a4")
    bits = {row.name: (row.weight_bits, row.activation_bits) for row in report.layers}
    assert bits["conv_in"] == bits["conv_out"] == (8, 8)
    assert bits["mid.conv1"] == (1, 4) and bits["time_mlp.0"] == (32, 32) and bits["mid.time"] == (1, 4)
    _, report = quantized_net("binarydm-base-w1a32")
    assert {row.name: row.activation_bits for row in report.layers}["conv_in"] == 32
    _, report = quantized_net("xnor-w1a1")
    bits = {row.name: (row.weight_bits, row.activation_bits) for row in report.layers}
    assert bits["conv_in"] == bits["conv_out"] == (32, 32) and bits["up.2.shortcut"] == (1, 1)


def test_ebb_stands_at_high_resolution_and_goes_over_to_one_basis():
    """BinaryDM's location: all but the lowest resolution; the penalty is tau times the mean second scale."""
    model, report = quantized_net("binarydm-w1a32")
    two = {row.name.split(".")[0] + row.name.split(".")[1] for row in report.layers if row.weight_bits == 2}
    assert two == {"down0", "down1", "up1", "up2"}
    layers = [layer for layer in quantized_layers(model).values() if layer.rule.weight_bits == 2]
    want = 0.09 * sum(layer.rule.scale2.abs().mean() for layer in layers) / len(layers)
    torch.testing.assert_close(penalty(model), want)
    for rule in schedules(model):
        rule.advance(0.5)
    assert penalty(model) is None and all(row.weight_bits in (1, 8, 32) for row in audit(model).layers)


def test_only_rules_with_a_schedule_are_told_the_time():
    assert not schedules(quantized_net("binarydm-base-w1a4")[0])
    assert len(schedules(quantized_net("reste-w1a1")[0])) == 2 * len(quantized_layers(quantized_net("reste-w1a1")[0]))


def test_a_recipe_with_parameters_per_pixel_asks_for_an_example():
    with pytest.raises(ValueError, match="example"):
        quantize(nets.build("unet", 4), "xnorpp-w1a1")


def test_a_scale_map_multiplies_the_output_before_the_bias():
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 5, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1))
    model[0].load_state_dict(plain.state_dict())
    quantize(model, Recipe(weights="xnor", activations="xnor"))
    x = torch.randn(2, 3, 6, 6)
    a = plain.weight.abs().mean((1, 2, 3), keepdim=True) * torch.where(plain.weight < 0, -1.0, 1.0)
    product = F.conv2d(torch.where(x < 0, -1.0, 1.0), a, padding=1)
    scale = F.avg_pool2d(x.abs().mean(1, keepdim=True), 3, stride=1, padding=1)
    torch.testing.assert_close(model[0](x), product * scale + plain.bias[:, None, None])


def test_quantizers_own_networks_are_no_layers_of_the_model():
    _, report = quantized_net("tdq-w1a4")
    assert not [row.name for row in report.layers if "mlp" in row.name and "time_mlp" not in row.name]
    assert report.parameters == sum(p.numel() for p in nets.build("unet", 4).parameters())


@pytest.mark.parametrize("rule", sorted(ACTIVATION_RULES))
def test_every_activation_rule_fits_every_kind_of_layer(rule):
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 4, 2, 1), nn.ConvTranspose2d(4, 3, 4, 2, 1),
                          nn.Flatten(), nn.Linear(192, 5))

    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, x, timestep):
            return self.body(x)

    net = Timed()
    example = (torch.randn(4, 2, 8, 8), torch.arange(4))
    quantize(net, Recipe(weights="xnor", activations=rule), example)
    y = net(*example)
    y.square().mean().backward()
    assert y.isfinite().all() and net.body[0].weight.grad.abs().max() > 0


def test_outputs_follow_inner_layers_whatever_their_rule_and_never_the_ends():
    """Inner layers may share the rule of the 8-bit ends."""
    model = nets.build("unet", 4)
    quantize(model, Recipe(weights="lsq:8", outputs=("rprelu",), ends="int8"))
    with_outputs = {name for name, layer in quantized_layers(model).items() if layer.outputs is not None}
    assert with_outputs and with_outputs == set(weight_layers(model)) - {next(iter(weight_layers(model))), "conv_out"}


# what other code does to layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", ["none", "sign"])
def test_torch_computes_no_quantized_transformer_layer_by_its_latent_weights(activations):
    """In eval mode without gradient a float TransformerEncoderLayer is one fused call on its layers' `weight`."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).eval()
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x, floats = torch.randn(2, 5, 16), stack(torch.zeros(1, 3, 16))
    quantize(stack, f"weights=xnor activations={activations} keep=*out_proj")
    step_by_step = stack(x)
    for model in (stack, frozen(stack)):
        with torch.no_grad():
            torch.testing.assert_close(model(x), step_by_step.detach())
    with torch.no_grad():
        assert not torch.allclose(stack(torch.zeros(1, 3, 16)), floats, atol=1e-2)


def test_a_refused_transformer_keeps_its_fast_path():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    with pytest.raises(ValueError, match="example"):
        quantize(layer, "weights=xnor activations=xnor++ keep=*out_proj")
    assert layer.activation_relu_or_gelu == 1


@pytest.mark.parametrize("hook", [nn.utils.weight_norm, nn.utils.spectral_norm,
                                  lambda layer: prune.l1_unstructured(layer, "weight", 0.5)])
def test_a_weight_that_a_hook_makes_is_refused(hook):
    with pytest.raises(ValueError, match="cannot quantize 0: a hook makes its weight anew"):
        quantize(nn.Sequential(hook(nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 4, 1)), "weights=xnor")


@pytest.mark.parametrize("activations", ["xnor", "bidm"])
def test_an_output_size_that_no_scale_map_has_is_refused(activations):
    layer = nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1)
    quantize(layer, f"weights=xnor activations={activations}")
    x = torch.randn(1, 2, 5, 5)
    assert layer(x, output_size=[9, 9]).shape[-2:] == (9, 9)
    with pytest.raises(ValueError, match=r"outputs of \(10, 10\) are not of the size of the scale map, \(9, 9\)"):
        layer(x, output_size=[10, 10])


@pytest.mark.parametrize("outputs", ["rprelu", "shortcut", "shortcut rprelu"])
def test_an_image_without_a_batch_is_a_batch_of_one(outputs):
    layer = nn.Conv2d(6, 6, 3, padding=1)
    quantize(layer, Recipe(weights="xnor", activations="sign", outputs=tuple(outputs.split())))
    for parameter in layer.outputs.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(1, 6, 6, 6)  # as many channels as rows: a wrong axis would go unnoticed
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


def test_only_limits_the_ends_too():
    model = nets.build("unet", 4)
    quantize(model, "weights=xnor only=mid.* ends=int8")
    assert all(name.startswith("mid.") for name in quantized_layers(model))


class ByWeight(nn.Module):
    """Calls one of its two layers and computes with the weight of the other."""

    def __init__(self):
        super().__init__()
        self.called, self.read = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, timestep):
        return F.linear(self.called(x), self.read.weight)


class FirUpsample2D(ByWeight):  # as diffusers names one
    pass


@pytest.mark.parametrize("make", [
    lambda: nn.Sequential(ShiftedWindowAttention(8, [2, 2], [0, 0], 2)),
    lambda: nn.Sequential(ShiftedWindowAttentionV2(8, [2, 2], [0, 0], 2)),
    lambda: nn.Sequential(ShiftedWindowAttention3d(8, [2, 2, 2], [0, 0, 0], 2))])
def test_layers_that_swins_attention_does_not_call_are_refused_by_name(make):
    model = make()
    before = everything(model)
    with pytest.raises(ValueError, match=r"cannot quantize 0\.qkv: ShiftedWindowAttention.* never calls it.*`keep`"):
        quantize(model, "weights=xnor")
    assert same(before, everything(model))
    model.append(nn.Linear(8, 8))
    quantize(model, "weights=xnor keep=*qkv|*proj")
    assert not {"0.qkv", "0.proj"} & set(quantized_layers(model)) and "1" in quantized_layers(model)


def test_a_subclass_of_a_module_that_calls_no_layer_is_known_too():
    class Own(FirUpsample2D):
        pass

    with pytest.raises(ValueError, match="cannot quantize called: Own"):
        quantize(Own(), "weights=xnor")


@pytest.mark.parametrize("activations", ["none", "lsq:4", "xnor++"])
def test_an_example_that_leaves_a_quantized_layer_uncalled_warns_of_it(activations):
    how, example = f"weights=sign activations={activations}", (torch.randn(3, 4), torch.arange(3))
    with pytest.warns(UserWarning, match=r"the example did not call read: .* `keep`"):
        quantize(ByWeight(), how, example)
    with warnings.catch_warnings(action="error"):
        model = ByWeight()
        quantize(model, f"{how} keep=read", example)
        quantize(ByWeight(), how, example, prepare=False)
    assert model.train()(*example).isfinite().all()


def test_an_example_leaves_rules_to_their_first_batch_and_random_numbers_where_they_are():
    class Noisy(Timed):
        def forward(self, x, timestep):
            return super().forward(x + torch.randn_like(x), timestep)

    torch.manual_seed(0)
    model = Noisy(nn.Linear(4, 4), nn.Linear(4, 4))
    state = torch.get_rng_state()
    quantize(model, "weights=xnor activations=lsq:4", (torch.randn(3, 4, generator=torch.Generator()), torch.arange(3)))
    assert torch.equal(state, torch.get_rng_state())
    assert not any(layer.activation.initialised for layer in quantized_layers(model).values())


def test_an_example_that_no_rule_needs_and_that_does_not_fit_is_no_error():
    model = convolutions()
    with pytest.warns(UserWarning, match=r"does not run on the example \(.*channels.*stay unnoticed"):
        quantize(model, "weights=xnor activations=lsq:4", (GOOD[0][:, :1], GOOD[1]))
    assert model.training and len(quantized_layers(model)) == 3 and model(*GOOD).isfinite().all()


def test_a_compiled_network_keeps_nothing_of_the_example():
    model = nets.build("unet", 4)
    compiled = torch.compile(model, backend="eager")
    quantize(compiled, "weights=xnor", EXAMPLE)
    torch.testing.assert_close(compiled(*EXAMPLE), model(*EXAMPLE))


def test_rules_per_output_pixel_may_stand_between_ends_that_wait_for_a_training_batch():
    model = nets.build("unet", 4)
    quantize(model, "xnorpp-w1a1 ends=int8", EXAMPLE)
    assert model(*EXAMPLE).isfinite().all()


def test_a_layer_that_runs_twice_a_pass_is_prepared_by_its_first_call():
    """As the embedder that both blocks of a DiT share."""
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    model = Timed(layer, nn.Linear(4, 4), layer)
    quantize(model, "weights=sign activations=xnor++", (x, torch.arange(3)))
    rule = layer.activation
    torch.testing.assert_close(rule.alpha.detach(), rule.weight_scale * x.abs().mean())
    assert model(x, torch.arange(3)).isfinite().all()


@pytest.mark.parametrize(("how", "added"), [
    ("weights=xnor activations=tdq:4", 0),
    ("weights=xnor outputs=shortcut:convolve=True,learn=True", 4 * 8 + 8),  # a 1x1 convolution is no quantizer's state
])
def test_a_network_that_is_one_layer_lists_no_layers_of_its_quantizers(how, added):
    layer = nn.Conv2d(4, 8, 3)
    report = quantize(layer, how)
    assert [row.name for row in report.layers] == [""] and list(quantized_layers(layer)) == [""]
    assert report.parameters == 4 * 8 * 9 + 8 + added
    assert report.binary_share == 4 * 8 * 9 / report.parameters


def test_a_model_whose_class_has_a_recipe_is_refused_before_anything_is_touched():
    class Named(nn.Sequential):
        recipe = property(lambda self: "soup")

    model = Named(nn.Conv2d(2, 2, 3))
    with pytest.raises(ValueError, match="has a part named `recipe`"):
        quantize(model, "weights=xnor")
    assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize("how", [None, {"weights": "xnor"}])
def test_what_is_no_recipe_is_refused(how):
    with pytest.raises(ValueError, match="a recipe is a name, a text or a Recipe, got"):
        quantize(nn.Sequential(nn.Conv2d(2, 2, 3)), how)


def test_an_example_of_images_alone_is_one_input():
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3)), torch.randn(2, 2, 9, 8)
    quantize(model, "weights=sign activations=xnor++", example=x)
    assert [layer.activation.pixels for layer in model] == [(7, 6), (5, 4)]


def test_a_recipe_that_leaves_no_layer_between_the_ends_says_so():
    with pytest.raises(ValueError, match=r"no Conv2d, ConvTranspose2d or Linear of this model between the first"):
        quantize(nn.Sequential(nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)), "weights=xnor ends=int8")


def test_the_time_mlp_of_a_diffusers_transformer_stays_float():
    block = nn.ModuleDict({"timestep_embedder": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
                           "to_q": nn.Linear(4, 4)})
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "block": block, "last": nn.Linear(4, 4)})
    audit = {layer.name: layer.weight_bits for layer in quantize(model, "binarydm-base-w1a32").layers}
    assert audit["block.timestep_embedder.0"] == 32 and audit["block.to_q"] == 1


def test_what_a_frozen_layers_rules_could_learn_is_frozen():
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    net[1].requires_grad_(False)
    quantize(net, "weights=learned-scale activations=lsq:4 outputs=rprelu")
    assert not any(p.requires_grad for p in net[1].parameters())
    assert all(p.requires_grad for p in net[2].parameters()) and isinstance(net[1].rule.scale, nn.Parameter)


def test_a_weight_that_a_float_module_uses_too_is_refused_and_one_between_quantized_layers_is_not():
    def tied(first, second):
        second.weight = first.weight
        return nn.Sequential(first, nn.Linear(8, 8), second)

    with pytest.raises(ValueError, match=r"cannot quantize 0: 2, which stays float, uses its weight as well"):
        quantize(tied(nn.Linear(8, 8), nn.Linear(8, 8)), "weights=xnor keep=2")
    model = tied(nn.Linear(8, 8), nn.Embedding(8, 8))
    with pytest.raises(ValueError, match=r"cannot quantize 0: 2, which stays float"):
        quantize(model, "weights=xnor ends=quantized")
    assert type(model[0]) is nn.Linear and not hasattr(model, "recipe")
    assert quantize(model, "weights=xnor ends=quantized keep=0").binary_weights == 64
    assert quantize(tied(nn.Linear(8, 8), nn.Linear(8, 8)), "weights=xnor ends=quantized").binary_weights == 128


def test_a_parametrized_layer_is_told_to_lose_its_parametrization():
    model = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"cannot quantize 1: .*remove that \(torch\.nn\.utils\.parametrize\)"):
        quantize(model, "weights=xnor")


@pytest.mark.parametrize("wrong, said", [
    ({"drop_bias": "False"}, "drop_bias must be True or False, got 'False'"),
    ({"activations": None}, "activations must be a word"), ({"connections": 3}, "connections must be a word")])
def test_a_recipe_of_a_wrong_type_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Recipe(**{"weights": "xnor"} | wrong)


def test_a_plain_attribute_called_recipe_is_not_overwritten():
    class Reducing(nn.Module):
        def __init__(self):
            super().__init__()
            self.recipe, self.layer = "sum", nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x).sum() if self.recipe == "sum" else self.layer(x)

    model = Reducing()
    with pytest.raises(ValueError, match="named `recipe`"):
        quantize(model, "weights=xnor")
    assert model(torch.randn(2, 3)).shape == ()


def test_what_rules_learn_on_the_first_input_of_a_frozen_layer_is_frozen_too():
    model = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 4), (4, 4), (4, 1)))).requires_grad_(False)
    quantize(model, "xnorpp-w1a1", torch.randn(2, 1, 8, 8))
    assert any(name.startswith("1.activation.") for name, _ in model.named_parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_transformer_encoder_takes_padded_batches_in_evaluation_as_in_training():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 2)
    quantize(encoder, "weights=xnor activations=xnor keep=*out_proj")
    x, padding = torch.randn(2, 5, 8), torch.tensor([[0] * 5, [0, 0, 0, 1, 1]], dtype=torch.bool)
    expected = encoder.eval()(x, src_key_padding_mask=padding)  # with gradient: no fast path
    with torch.no_grad():
        found = encoder(x, src_key_padding_mask=padding)
    assert torch.allclose(found[~padding], expected[~padding], atol=1e-6)


def test_a_frozen_copy_asks_for_no_penalty():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
    quantize(model, "weights=ebb")
    assert penalty(model) is not None and penalty(frozen(model)) is None
