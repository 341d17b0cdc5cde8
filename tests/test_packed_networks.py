"""Packed networks come back with the weights they were packed with, dense or mapped."""

import numpy as np
import pytest
import torch
from packing_tools import built, output, packed, pictures
from safetensors.torch import load_file
from torch import nn
from weight_tools import gaussian

from onebit import nets
from onebit.distill import L2
from onebit.frozen import frozen
from onebit.layers import quantized_layers
from onebit.objective import Objective
from onebit.packing import Stored, load_packed, save_packed
from onebit.recipes import RECIPES, Recipe, audit, quantize, recipe
from onebit.sampling import sample_batch


@pytest.mark.parametrize("how", [*RECIPES, "weights=residual:3 activations=lsq:4", "weights=lsq:4 ends=float",
                                 "weights=dorefa:3", "weights=reste activations=sign"])
def test_every_recipe_comes_back_with_the_weights_it_was_packed_with(how, tmp_path):
    """Quantized weights: integers of the rule times its scales in float16, bit for bit; all else rounded to float16."""
    model, path = packed(tmp_path, how)
    loaded, layers, state = load_packed(path), quantized_layers(model), model.state_dict()
    assert set(quantized_layers(loaded)) == set(layers)
    for name, layer in quantized_layers(loaded).items():
        assert torch.equal(rows(layer.quantized_weight(), layer.rule.out_dim), rounded(layers[name]))
        assert not layer.weight.requires_grad and isinstance(layer.rule, Stored)
    others = {k: v for k, v in loaded.state_dict().items() if k.removesuffix(".weight") not in layers}
    assert set(others) == {k for k in state if k.removesuffix(".weight") not in layers and ".rule." not in k}
    for k, v in others.items():
        assert torch.equal(v, state[k].half().to(v.dtype) if v.is_floating_point() else state[k]), k
    assert loaded.recipe == model.recipe and not loaded.training
    if model.recipe.activations == "none":  # a rounding of inputs may fall the other way, and change the output a lot
        torch.testing.assert_close(output(loaded), output(model), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("how", [name for name in RECIPES if name not in ("fp16", "ptq-1bit")])
def test_an_exact_file_rounds_nothing(how, tmp_path):
    """All else keeps its bits, and a weight is its integer times its scale, as the rule computes it."""
    model, _ = packed(tmp_path, how)
    save_packed(model, tmp_path / "exact", exact=True)
    loaded, state = load_packed(tmp_path / "exact"), model.state_dict()
    layers = quantized_layers(model)
    for name, layer in quantized_layers(loaded).items():
        torch.testing.assert_close(layer.quantized_weight(), layers[name].quantized_weight(), rtol=1e-6, atol=0)
        assert layer.rule.scale_bits == layers[name].rule.scale_bits
    others = {k: v for k, v in loaded.state_dict().items() if k.removesuffix(".weight") not in layers}
    assert others and all(torch.equal(v, state[k]) for k, v in others.items())


def rows(x, out_dim):
    return x.movedim(out_dim, 0).flatten(1)


def rounded(layer):
    """The quantized weight with scales rounded to float16, from the rule's integers and scales."""
    integers, scales = layer.rule.stored(layer.weight.detach())
    integers = torch.stack([rows(plane, layer.rule.out_dim) for plane in integers])  # (planes, out, inputs)
    spread = scales.half().float().repeat_interleave(layer.rule.group or integers.shape[2], 2)
    return sum(c * s for c, s in zip(integers, spread[..., : integers.shape[2]], strict=True))


@pytest.mark.parametrize("how", ["strict-1bit", "published-1bit", "ternary-w1.58a32", "residual2-w1a32", "lsq-w2a4"])
def test_a_loaded_network_is_as_binary_as_it_was(how, tmp_path):
    model, path = packed(tmp_path, how)
    assert audit(load_packed(path)) == audit(model)


@pytest.mark.parametrize("how", ["fp16", "strict-1bit", "bidm-w1a1", "bonsai-ternary-g128", "dorefa-w1a1", "lsq-w2a4"])
@pytest.mark.parametrize("mapped", [False, True])
def test_packing_what_was_loaded_gives_the_same_file(how, mapped, tmp_path):
    _, path = packed(tmp_path, how)
    save_packed(load_packed(path, mapped=mapped), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("how", ["strict-1bit", "binarydm-w1a4", "bidm-w1a1", "bonsai-ternary-g128", "lsq-w2a4"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_mapped_network_computes_the_same_and_holds_no_weights(how, layout, tmp_path):
    _, path = packed(tmp_path, how, width=8)
    dense, mapped = (load_packed(path, mapped=m).to(memory_format=layout) for m in (False, True))
    assert torch.equal(output(mapped), output(dense))
    layers = quantized_layers(mapped)
    assert all(layer.weight.is_meta for layer in layers.values())
    assert audit(mapped) == audit(dense)
    held = sum(p.nbytes for p in mapped.parameters() if not p.is_meta)
    rest = sum(p.nbytes for n, p in dense.named_parameters() if n.removesuffix(".weight") not in layers)
    assert held == rest


def test_a_mapped_networks_bytes_are_the_files(tmp_path):
    """The pages are the file's: they outlive its name, and a new file of that name does not disturb them."""
    _, path = packed(tmp_path)
    mapped, want = load_packed(path, mapped=True), output(load_packed(path))
    save_packed(built(how="strict-1bit", attention=True), path)
    assert torch.equal(output(mapped), want)
    name = next(iter(quantized_layers(mapped)))
    held = quantized_layers(mapped)[name].rule.packed.data
    assert not held.flags.owndata and quantized_layers(load_packed(path))[name].rule.packed.data.flags.owndata


def test_options_of_the_net_come_back_and_random_numbers_stay(tmp_path):
    _, path = packed(tmp_path, attention=True, norm="group")
    before = torch.get_rng_state()
    loaded = load_packed(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.architecture == {"name": "unet", "width": 4, "attention": True, "norm": "group"}


def test_a_loaded_network_refuses_to_learn_its_packed_weights(tmp_path):
    loaded = load_packed(packed(tmp_path, "binarydm-base-w1a4")[1]).train()
    loaded(*pictures()).square().mean().backward()
    layers = quantized_layers(loaded)
    assert all(layer.weight.grad is None and isinstance(layer.rule, Stored) for layer in layers.values())
    assert next(iter(layers.values())).bias.grad.abs().sum() > 0


def test_a_width_out_of_numpy_is_written(tmp_path):
    model = nets.build("unet", np.int64(4))
    quantize(model, "strict-1bit")
    save_packed(model, tmp_path / "m")
    assert load_packed(tmp_path / "m").architecture == {"name": "unet", "width": 4}


def test_a_rule_with_spaces_comes_back(tmp_path):
    """The header's text of the recipe is split at spaces."""
    model = built(how=Recipe(weights="lsq:bits=2, per_channel=True", keep=("*time*",)))
    save_packed(model, tmp_path / "m")
    loaded = load_packed(tmp_path / "m")
    assert loaded.recipe == model.recipe == recipe("weights=lsq:bits=2,per_channel=True keep=*time*")


def test_a_float_network_is_packed_as_float16(tmp_path):
    torch.manual_seed(0)
    model = nets.build("unet", 4).eval()
    save_packed(model, tmp_path / "m")
    assert torch.equal(output(load_packed(tmp_path / "m")), output(model.half().float()))


def test_statistics_that_float16_cannot_hold_stay_float32(tmp_path):
    model = built()
    model.norm_out.running_var[0] = 1e6
    save_packed(model, tmp_path / "m")
    assert load_packed(tmp_path / "m").norm_out.running_var.tolist() == model.norm_out.running_var.tolist()
    stored = load_file(tmp_path / "m")
    assert {k for k, v in stored.items() if v.dtype == torch.float32} == {"norm_out.running_var"}


def own():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.SiLU(), nn.Conv2d(6, 9, 3, groups=3), nn.ConvTranspose2d(9, 4, 4),
                         nn.Flatten(), nn.Linear(4 * 49, 5))


def test_a_network_of_ones_own_is_given_to_load_packed(tmp_path):
    model, path, x = own().eval(), tmp_path / "own", gaussian(2, 1, 8, 8, dtype=torch.float32)
    quantize(model, "weights=learned-scale")
    for layer in quantized_layers(model).values():
        layer.rule.scale.data = layer.rule.scale.data.half().float()
        layer.bias.data = layer.bias.data.half().float()
    save_packed(model, path)
    with pytest.raises(ValueError, match=rf"{path} .*Sequential.*`model`"):
        load_packed(path)
    assert torch.equal(load_packed(path, own())(x), model(x))
    with pytest.raises(ValueError, match="quantized already"):
        load_packed(path, model)
    with pytest.raises(ValueError, match=r"shape|is \(6, 1, 3, 3\) in the file"):
        load_packed(path, nn.Sequential(nn.Conv2d(1, 7, 3), *own()[1:]))
    with pytest.raises(ValueError, match=r"alone: 6.weight|layers differ; .*6"):
        load_packed(path, nn.Sequential(*own(), nn.Linear(5, 5)))


def without_recipe():
    model = own()
    quantize(model, "strict-1bit")
    del model.recipe
    return model


@pytest.mark.parametrize("make", [without_recipe, lambda: frozen(built(how="strict-1bit")),
                                  lambda: frozen(built(how="xnor-w1a1")),
                                  lambda: pytest.importorskip("onebit.kernels").to_packed(built(how="xnor-w1a1"))])
def test_a_network_that_is_not_as_quantize_left_it_is_refused(make, tmp_path):
    with pytest.raises(ValueError, match=r"not as recipes\.quantize leaves them"):
        save_packed(make(), tmp_path / "m")


def test_a_layer_that_came_or_went_after_quantize_is_named(tmp_path):
    """The file could not be loaded: quantizing a new network would make other layers of it."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    quantize(model, "weights=xnor")
    model[2] = nn.Linear(8, 10)
    with pytest.raises(ValueError, match=r"not as recipes\.quantize leaves them: 2; quantize it with that once"):
        save_packed(model, tmp_path / "m")
    model[2] = nn.Identity()
    save_packed(model, tmp_path / "m")
    assert len(quantized_layers(load_packed(tmp_path / "m", nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))))) == 2


@pytest.mark.parametrize("how", ["strict-1bit", "xnor-w1a1"])
def test_a_loaded_network_is_frozen_like_any_other(how, tmp_path):
    loaded = load_packed(packed(tmp_path, how)[1])
    torch.testing.assert_close(output(frozen(loaded)), output(loaded), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("how", "name"), [("strict-1bit", "mid.conv1"), ("binarydm-base-w1a32", "time_mlp.2"),
                                          ("fp16", "conv_in")])
def test_a_network_that_lost_a_bias_since_is_refused_before_it_is_written(how, name, tmp_path):
    net = built(how=how)
    layer = net.get_submodule(name)
    assert layer.bias is not None
    layer.bias = None
    with pytest.raises(ValueError, match=rf"no more what nets\.build made: {name}\.bias is gone"):
        save_packed(net, tmp_path / "net.packed")
    assert not list(tmp_path.iterdir())


def test_a_wrapper_is_told_which_of_its_parts_to_pack(tmp_path):
    wrapper = nn.Sequential()
    wrapper.add_module("unet", built())
    with pytest.raises(ValueError, match=r"not the module that recipes\.quantize was given: pack its part unet"):
        save_packed(wrapper, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_wrapper_around_a_float_control_is_a_float_network(tmp_path):
    wrapper = nn.Sequential(built(how="fp16"))
    save_packed(wrapper, tmp_path / "m")
    loaded = load_packed(tmp_path / "m", nn.Sequential(nets.build("unet", 4)))
    assert loaded.state_dict().keys() == wrapper.state_dict().keys()


def test_a_compiled_network_is_filled_inside(tmp_path):
    _, path = packed(tmp_path)
    anew = nets.build("unet", 4)
    loaded = load_packed(path, torch.compile(anew))
    assert loaded is anew
    assert torch.equal(output(loaded), output(load_packed(path)))


def test_arguments_that_contradict_each_other_or_are_unknown(tmp_path):
    model, path = packed(tmp_path)
    with pytest.raises(ValueError, match="choose one"):
        load_packed(path, mapped=True, kernels=True)
    with pytest.raises(ValueError, match="unknown ternary 'trits'; valid: slots, base3"):
        save_packed(model, path, ternary="trits")


def test_packed_weights_run_in_the_popcount_kernels(tmp_path):
    pytest.importorskip("onebit.kernels")
    _, path = packed(tmp_path, "xnor-w1a1", width=8)
    torch.testing.assert_close(output(load_packed(path, kernels=True)), output(load_packed(path)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", ["resnet", object(), {"name": "unet", "width": 4}])
@pytest.mark.parametrize("how", ["fp16", "weights=xnor"])
def test_a_network_of_ones_own_may_call_anything_its_architecture(architecture, how, tmp_path):
    model, x = own().eval(), gaussian(2, 1, 8, 8, dtype=torch.float32)
    model.architecture = architecture
    if how == "fp16":
        model.recipe = "a float network's own"
    else:
        quantize(model, how)
    save_packed(model, tmp_path / "own", exact=True)
    with pytest.raises(ValueError, match=r"Sequential that nets\.build did not make; give load_packed a new"):
        load_packed(tmp_path / "own")
    assert torch.equal(load_packed(tmp_path / "own", own())(x), model(x))


def test_state_that_is_no_tensor_is_refused_by_name(tmp_path):
    class Stateful(nn.Linear):
        def get_extra_state(self):
            return {"version": 1}

        def set_extra_state(self, state):
            pass

    model = nn.Sequential(nn.Linear(4, 4), Stateful(4, 4))
    quantize(model, "weights=xnor keep=1")
    with pytest.raises(ValueError, match=r"state 1\._extra_state is a dict, .*get_extra_state"):
        save_packed(model, tmp_path / "m")


def test_a_network_on_the_meta_device_is_not_filled(tmp_path):
    model = own()
    quantize(model, "weights=xnor")
    save_packed(model, tmp_path / "own")
    with torch.device("meta"):
        empty = own()
    with pytest.raises(ValueError, match="cannot be loaded: `model` lies on the meta device"):
        load_packed(tmp_path / "own", empty)


@pytest.mark.parametrize("how", ["strict-1bit", "xnor-w1a1"])
def test_a_mapped_network_teaches_and_its_state_is_the_unpacked_ones(how, tmp_path):
    _, path = packed(tmp_path, how)
    dense, mapped = (load_packed(path, mapped=m) for m in (False, True))
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in mapped.state_dict().items())
    student, (x, t) = nets.build("unet", 4), pictures()
    objectives = [Objective(teacher, L2(), 1.0) for teacher in (dense, mapped)]
    assert objectives[0].told == objectives[1].told
    losses = [objective(student, x, x.flip(0), t) for objective in objectives]
    assert torch.equal(*losses)
    assert all(layer.weight.is_meta for layer in quantized_layers(mapped).values())


@pytest.mark.parametrize("mapped", [False, True])
def test_a_single_layer_is_packed_without_its_latent_weight(mapped, tmp_path):
    layer, x = nn.Conv2d(4, 6, 3), torch.randn(2, 4, 7, 7)
    quantize(layer, "weights=lsq:2")
    save_packed(layer.eval(), tmp_path / "layer", exact=True)
    assert set(load_file(tmp_path / "layer")) == {"weight", "scales", "bias"}
    torch.testing.assert_close(load_packed(tmp_path / "layer", nn.Conv2d(4, 6, 3), mapped)(x), layer(x))


class Twice(nn.Module):
    """One layer under two names, another whose weight is tied to a third's."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = self.a
        self.head, self.tied = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied.weight = self.head.weight

    def forward(self, x):
        return self.tied(self.head(self.b(torch.relu(self.a(x))).mean((2, 3))))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("weights", ["xnor", "learned-scale", "lsq:2"])
def test_a_layer_of_two_names_comes_back_as_it_was(weights, exact, tmp_path):
    torch.manual_seed(0)
    model = Twice()
    quantize(model, f"weights={weights} keep=head|tied")
    model.eval()
    save_packed(model, tmp_path / "twice", exact=exact)
    again, x = load_packed(tmp_path / "twice", Twice()), torch.randn(2, 8, 6, 6)
    assert again.a is again.b
    torch.testing.assert_close(again(x), model(x), rtol=2e-3, atol=2e-3 if not exact else 1e-6)


def test_a_compiled_network_is_packed_as_what_was_compiled(tmp_path):
    model = nets.build("unet", 4)
    quantize(model, "weights=xnor")
    save_packed(torch.compile(model.eval(), backend="eager"), tmp_path / "compiled")
    x, t = torch.randn(2, 1, 12, 12), torch.tensor([3, 900])
    with torch.no_grad():
        torch.testing.assert_close(load_packed(tmp_path / "compiled")(x, t), model(x, t), rtol=0.01, atol=0.01)


def test_a_network_in_bfloat16_is_packed(tmp_path):
    model = nets.build("unet", 4)
    quantize(model, "weights=lsq:2")
    save_packed(model.bfloat16().eval(), tmp_path / "narrow")
    loaded = load_packed(tmp_path / "narrow")
    for name, layer in quantized_layers(model).items():
        weight = quantized_layers(loaded)[name].weight
        torch.testing.assert_close(weight, layer.quantized_weight().float(), rtol=0.01, atol=1e-4)


def test_a_mapped_network_samples_batch_by_batch(tmp_path):
    model = nets.build("unet", 4)
    quantize(model, "weights=xnor")
    save_packed(model, tmp_path / "mapped", exact=True)
    mapped, whole = (load_packed(tmp_path / "mapped", mapped=m) for m in (True, False))
    with torch.inference_mode():
        drawn = [sample_batch(one, [0, 1], (1, 12, 12), "ddim", 2) for one in (mapped, whole)]
    torch.testing.assert_close(*drawn)
