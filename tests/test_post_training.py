"""Quantization after training: what is fitted, against least squares and the float network."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from onebit import nets
from onebit.patches import patches, weight_matrix
from onebit.post_training import Moments, fit
from onebit.quantizers.multibit import LSQ
from onebit.recipes import Recipe, quantize, recipe

RULES = ("learned-scale", "lsq:2", "lsq:4")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("layer, shape", [
    (nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 3, 9, 8)),
    (nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular", bias=False), (2, 3, 6, 6)),
    (nn.Conv2d(4, 2, 3, padding="same"), (2, 4, 5, 5)),
    (nn.ConvTranspose2d(3, 5, 4, stride=2, padding=1), (2, 3, 5, 6)),
    (nn.ConvTranspose2d(3, 5, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=1, dilation=(2, 1)), (2, 3, 5, 6)),
    (nn.Linear(7, 3), (4, 7)), (nn.Linear(7, 3), (2, 4, 7)),
])
def test_patches_times_weights_are_the_layers_output(layer, shape):
    x = torch.randn(shape, generator=generator())
    y = patches(layer, x) @ weight_matrix(layer).T + (0 if layer.bias is None else layer.bias)
    expected = layer(x) if isinstance(layer, nn.Linear) else layer(x).permute(0, 2, 3, 1)
    assert torch.allclose(y, expected.reshape(y.shape), atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv1d(4, 4, 3)])
def test_patches_of_other_layers_are_refused(layer):
    with pytest.raises(ValueError, match="groups=1"):
        patches(layer, torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize("centred", [False, True])
def test_targets_are_the_least_squares_weights_for_other_inputs(centred):
    """numpy's lstsq on |X w + b - X' v - c|^2 / rows + ridge |v - w|^2, with a free c where centred."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)) + 1
    own, w = x + 0.3 * rng.normal(size=x.shape) - 0.5, rng.normal(size=(3, 4))
    halves = [(torch.from_numpy(x[part]), torch.from_numpy(own[part])) for part in (slice(0, 20), slice(20, 50))]
    moments = Moments.of(halves, centred, wide=False)
    target, hessian = moments.target(torch.from_numpy(w))
    shift = own.mean(0) if centred else 0
    ridge = 0.01 * np.mean((own - shift) ** 2)
    ones = np.ones((50, 1)) if centred else np.zeros((50, 0))
    rows = np.block([[own / 50**0.5, ones / 50**0.5], [ridge**0.5 * np.eye(4), np.zeros((4, ones.shape[1]))]])
    wanted = np.vstack([x @ w.T / 50**0.5, ridge**0.5 * w.T])
    assert np.allclose(target.numpy(), np.linalg.lstsq(rows, wanted, rcond=None)[0][:4].T)
    assert np.allclose(hessian.numpy(), np.cov(own.T, bias=True) + ridge * np.eye(4) if centred
                       else own.T @ own / 50 + ridge * np.eye(4))


def trained_like(name):
    """A float network none of whose weights is zero, and inputs."""
    torch.manual_seed(0)
    model = nets.build(name, 4)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
    x = torch.randn(24, 1, 16, 16, generator=generator())
    timestep = torch.randint(0, 1000, (24,), generator=generator())
    model.train()(x, timestep)  # batch norms get statistics
    return model.eval(), [(x[:8], timestep[:8]), (x[8:16], timestep[8:16])], (x[16:], timestep[16:])


def fitted(model, rule, reference=None, inputs=()):
    model = deepcopy(model)
    quantize(model, f"weights={rule} keep=time_mlp* ends=int8")
    fit(model, reference, inputs)
    return model


@pytest.mark.parametrize("name", ["unet", "resunet"])
@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_seen_inputs_bring_the_network_nearer_to_the_float_one(name, rule):
    """On inputs that it was not fitted on; without calibration the error is larger by a fifth and more."""
    model, inputs, unseen = trained_like(name)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    blind, calibrated = fitted(model, rule), fitted(model, rule, model, inputs)
    errors = [float((m(*unseen) - model(*unseen)).square().mean()) for m in (blind, calibrated)]
    assert errors[0] > 1.2 * errors[1], errors
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_fitted_weights_are_what_the_rules_can_hold(rule):
    model, inputs, _ = trained_like("unet")
    for layer in [fitted(model, rule, model, inputs).mid.conv1, fitted(model, rule).up[0].conv1]:
        used = layer.quantized_weight()
        assert torch.allclose(used, layer.weight, atol=1e-6)  # latent weights are the fitted ones
        codes, scales = layer.rule.stored(layer.weight)
        assert set(codes.unique().tolist()) <= set(layer.rule.levels)
        assert torch.allclose(codes[0] * scales.view(-1, 1, 1, 1), used, atol=1e-6)


@torch.no_grad()
def test_a_single_layer_keeps_its_mean_output_and_loses_little_else():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4)).eval()
    x = torch.randn(200, 6, generator=generator()) @ torch.randn(6, 6, generator=generator(1)) + 2
    quantized, blind = deepcopy(model), deepcopy(model)
    for one in (quantized, blind):
        quantize(one, "weights=learned-scale")
    fit(quantized, model, [(x,)])
    fit(blind)
    assert torch.allclose(quantized(x).mean(0), model(x).mean(0), atol=1e-4)
    far = [(m(x) - model(x)).square().mean(0) for m in (quantized, blind)]
    assert (far[0] < far[1]).all()


def test_layers_behind_others_are_fitted_to_the_inputs_they_get():
    """Two layers: the second makes up for the first's error, which fitting it on the float network's inputs cannot."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8)).eval()
    x = torch.randn(500, 16, generator=generator()) @ torch.randn(16, 16, generator=generator(1))
    first, whole = deepcopy(model), deepcopy(model)
    for one in (first, whole):
        quantize(one, "weights=lsq:2")
    fit(whole, model, [(x,)])
    alone = nn.Sequential(deepcopy(model[2])).eval()
    quantize(alone, "weights=lsq:2")
    with torch.no_grad():
        fit(alone, nn.Sequential(model[2]).eval(), [(model[:2](x),)])
        behind = [(last(whole[:2](x)) - model(x)).square().mean() for last in (whole[2], alone)]
    assert behind[0] < behind[1]


def layer_wise():
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    quantize(model, "weights=lsq:2")
    model[0].rule = LSQ(model[0].weight, bits=2, per_channel=False)
    return model


def quantized(layer, how):
    model = nn.Sequential(layer).eval()
    quantize(model, how)
    return model


@pytest.mark.parametrize("model, message", [
    (nn.Sequential(nn.Linear(4, 4)).eval(), "call quantize first"),
    (quantized(nn.Linear(4, 4), "weights=learned-scale").train(), "eval mode"),
    (quantized(nn.Linear(4, 4), "weights=centred"), "cannot fit 0: rule Centred"),
    (layer_wise(), "cannot fit 0: LSQ with one step"),
    (quantized(nn.Conv2d(4, 4, 3, groups=2), "weights=learned-scale"), "cannot fit 0: groups=2"),
])
def test_what_cannot_be_fitted_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        fit(model)


def test_layers_that_share_a_weight_are_refused_and_left_as_they_are():
    """The second fit would overwrite the latent weight of the first."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    model[3].weight = model[0].weight
    reference = deepcopy(model)
    quantize(model, "weights=lsq:4")
    before = model[0].weight.detach().clone()
    for given in ((), (reference, [(torch.randn(8, 4),)])):
        with pytest.raises(ValueError, match=r"cannot fit 3: it shares its weight with 0; .*`keep`"):
            fit(model, *given)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_finite_is_refused_by_name(rule, bad):
    sound = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    broken = deepcopy(sound)
    broken[1].weight.data[0, 0] = bad
    x = torch.randn(8, 4)
    model = deepcopy(broken)
    quantize(model, f"weights={rule}")
    for given in ((), (sound, [(x,)])):
        with pytest.raises(ValueError, match="cannot fit 1: its weight holds NaN or infinity"):
            fit(model, *given)
    model = deepcopy(sound)
    quantize(model, f"weights={rule}")
    with pytest.raises(ValueError, match="cannot fit the reference's 1: its weight holds NaN"):
        fit(model, broken, [(x,)])
    x[0, 0] = bad
    with pytest.raises(ValueError, match="cannot fit 0: its inputs are not finite"):
        fit(model, sound, [(x,)])


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(self.inner(x))


@pytest.mark.parametrize("keep, message", [
    ("unused", "inner: it is run 2 times"), ("inner", "unused: it is run 0 times"),
])
def test_layers_that_inputs_reach_not_or_twice_are_refused(keep, message):
    model = Twice().eval()
    reference = deepcopy(model)
    quantize(model, f"weights=learned-scale keep={keep}")
    with pytest.raises(ValueError, match=message):
        fit(model, reference, [(torch.zeros(2, 4),)])


def test_inputs_and_the_float_network_go_together():
    model = quantized(nn.Linear(4, 4), "weights=learned-scale")
    with pytest.raises(ValueError, match="give both, or neither"):
        fit(model, nn.Sequential(nn.Linear(4, 4)).eval())
    with pytest.raises(ValueError, match="give both, or neither"):
        fit(model, None, [(torch.zeros(2, 4),)])


@pytest.mark.parametrize("how", ["activations=lsq:4", "outputs=shortcut"])
def test_layers_whose_inputs_or_outputs_are_quantized_too_are_not_fitted_on_inputs(how):
    """Of their weights alone, which no input enters, the fit is right."""
    model = quantized(nn.Linear(4, 4), f"weights=learned-scale {how}")
    with pytest.raises(ValueError, match=r"cannot fit 0 on inputs: its input or output is quantized .*weights alone"):
        fit(model, nn.Sequential(nn.Linear(4, 4)).eval(), [(torch.zeros(2, 4),)])
    w = model[0].weight.detach().clone()
    fit(model)
    assert torch.allclose(model[0].quantized_weight(), w.sign() * w.abs().mean(1, keepdim=True))


def test_a_reference_that_is_quantized_is_refused():
    model = quantized(nn.Linear(4, 4), "weights=learned-scale")
    with pytest.raises(ValueError, match="must be the float network, but its 0 is quantized: copy it before quantize"):
        fit(model, deepcopy(model), [(torch.zeros(2, 4),)])


@pytest.mark.parametrize("inputs, message", [
    ((torch.zeros(3, 4), torch.zeros(3)), "got Tensor for a batch; put a single batch into a list"),
    (torch.zeros(3, 4), "got Tensor; make a list of it"),
    (((torch.zeros(3, 4),) for _ in "ab"), "got generator; make a list of it"),
])
def test_inputs_that_are_no_list_of_batches_are_refused(inputs, message):
    model, reference = quantized(nn.Linear(4, 4), "weights=learned-scale"), nn.Sequential(nn.Linear(4, 4)).eval()
    with pytest.raises(ValueError, match=rf"must be a list of batches.*\[\(x_t, timestep\), ...\], {message}"):
        fit(model, reference, inputs)


def test_recipes_say_how_a_network_is_quantized_after_training():
    text = "weights=lsq:2 ends=int8 post_training=calibrated"
    assert recipe(text) == Recipe(weights="lsq:2", ends="int8", post_training="calibrated")
    assert str(recipe(text)) == text
    with pytest.raises(ValueError, match="none, start, nearest, calibrated"):
        recipe("weights=lsq:2 post_training=guessed")


def two_layers(in_place=False):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            h = self.a(x)
            r = torch.relu(self.b(h))
            if in_place:
                h += r
                return h
            return h + r

    torch.manual_seed(0)
    return Residual().eval()


@pytest.mark.parametrize("rule", RULES)
def test_a_second_fit_aims_at_the_float_network_too(rule):
    """Whatever was fitted before: nearest weights, or the same inputs."""
    reference, inputs = two_layers(), [(torch.randn(256, 8, generator=generator(1)),)]
    fitted = []
    for before in ("nothing", "nearest", "itself"):
        model = deepcopy(reference)
        quantize(model, f"weights={rule}")
        model.eval()
        if before == "nearest":
            fit(model)
        if before == "itself":
            fit(model, reference, inputs)
        fit(model, reference, inputs)
        fitted.append(model(inputs[0][0]))
    for other in fitted[1:]:
        torch.testing.assert_close(other, fitted[0], rtol=1e-5, atol=1e-5)


def test_a_network_that_works_in_place_is_fitted_as_one_that_does_not():
    inputs, outputs = [(torch.randn(256, 8, generator=generator(1)),)], []
    for in_place in (False, True):
        reference = two_layers(in_place)
        model = deepcopy(reference)
        quantize(model, "weights=lsq:3")
        fit(model.eval(), reference, inputs)
        outputs.append(model(inputs[0][0]))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("rule", ["learned-scale", "lsq:4"])
def test_inputs_about_a_large_mean_are_fitted(rule):
    """In float32 the sums of squares cancel: the mean is a thousand times what inputs vary by."""
    torch.manual_seed(0)
    reference, x = nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(4096, 8, generator=generator(1))
    errors = []
    for offset in (0, 10_000):
        model = deepcopy(reference)
        quantize(model, f"weights={rule}")
        fit(model.eval(), reference, [(x + offset,)])
        errors.append((model(x + offset) - reference(x + offset)).square().mean().item())
    assert errors[1] == pytest.approx(errors[0], rel=0.15, abs=1e-5)  # rounding may lead to codes as good or nearly so


def test_one_timestep_for_all_images_is_fitted():
    torch.manual_seed(0)
    reference = nets.build("unet", 4).eval()
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model = deepcopy(reference)
    quantize(model, "weights=lsq:4")
    x, t = torch.randn(16, 1, 16, 16, generator=generator(1)), torch.full((16,), 500)
    fit(model.eval(), reference, [(x, t)])
    with torch.no_grad():
        expected = reference(x, t)
        assert (model(x, t) - expected).square().mean() < 0.05 * expected.var()


@torch.no_grad()
def test_weights_make_up_for_a_bias_that_is_dropped():
    """numpy's lstsq without a column of ones, its ridge added; eight bits round by little."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 4)).eval()
    nn.init.normal_(model[0].bias, 2, 0.5)
    x = torch.randn(4096, 16, generator=generator()) + 1
    quantized = deepcopy(model)
    quantize(quantized, "weights=lsq:8 drop_bias=True post_training=calibrated")
    fit(quantized.eval(), model, [(x[:2048],), (x[2048:],)])
    least = np.linalg.lstsq(x.numpy(), model(x).numpy(), rcond=None)[1] / len(x)
    error = (quantized(x) - model(x)).square().mean(0)
    assert np.allclose(error, least, rtol=0.02) and (least < 0.3).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moments_of_half_precision_inputs_are_summed_as_those_of_their_values(dtype):
    torch.manual_seed(0)
    pairs = [(torch.randn(300, 6).add(5).to(dtype), torch.randn(300, 6).add(5).to(dtype)) for _ in range(2)]
    found = Moments.of(pairs, centred=True, wide=False)
    x, y = (torch.cat([pair[i] for pair in pairs]).double() for i in (1, 0))
    centred = x - x.mean(0)
    torch.testing.assert_close(found.own, centred.T @ centred / len(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.cross, centred.T @ (y - y.mean(0)) / len(x), rtol=1e-4, atol=1e-4)


def test_no_rows_are_refused_by_name():
    with pytest.raises(ValueError, match="inputs to fit on are empty: give images"):
        Moments.of([(torch.ones(0, 3), torch.ones(0, 3))], centred=True, wide=False)


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Conv2d(2, 3, 3, stride=2),
                                   nn.ConvTranspose2d(2, 3, 4, 2, 1)])
def test_an_image_without_a_batch_has_the_patches_of_a_batch_of_one(layer):
    x = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(patches(layer, x), patches(layer, x[None]))
