"""The two networks: sizes by hand, the published layout as plain functions, and starts that are identities."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from onebit import nets
from onebit.nets.embedding import sinusoidal_embedding
from onebit.nets.unet import Attention, ResBlock


def tensor(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lived_in(net, seed=0):
    """The net with every parameter and buffer moved off its start, so that nothing is zero or one by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in [*net.parameters(), *net.buffers()]:
            if value.is_floating_point():
                value.add_(0.2 * torch.rand(value.shape, generator=generator))
    return net.eval()


def inputs_of(net, *modules):
    """A list per module that fills with (inputs, output) as the net runs."""
    seen = [[] for _ in modules]
    for module, record in zip(modules, seen, strict=True):
        module.register_forward_hook(lambda m, args, out, record=record: record.append((args, out)))
    return seen


def n_parameters(net):
    return sum(p.numel() for p in net.parameters())


# timestep embedding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [4, 6, 32, 64])
def test_the_time_embedding_is_the_float64_formula(dim):
    """Sines, then cosines, of t 10000^(-i / (half - 1)); float32 angles up to 999 carry an error of about 1e-4."""
    half = dim // 2
    want = np.array([
        [math.sin(t * 10_000 ** (-i / (half - 1))) for i in range(half)]
        + [math.cos(t * 10_000 ** (-i / (half - 1))) for i in range(half)]
        for t in range(1000)
    ])
    got = sinusoidal_embedding(torch.arange(1000), dim)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), want, atol=2e-4)


@pytest.mark.parametrize("dim", [0, 2, 3, 7])
def test_an_odd_or_tiny_embedding_is_refused(dim):
    with pytest.raises(ValueError, match=f"even and >= 4, got {dim}"):
        sinusoidal_embedding(torch.arange(2), dim)


# ResUNet, the published network --------------------------------------------------------------------------------------


def test_the_resunet_of_width_64_has_3690721_parameters():
    """Source 000's float control: 3,689,761 as counted for its 1-bit net, and the 960 biases that one drops."""
    assert n_parameters(nets.build("resunet", 64)) == 3_690_721 == 3_689_761 + 960


@pytest.mark.parametrize("w", [1, 4, 64])
def test_the_resunets_size_is_the_sum_over_its_published_layers(w):
    """Counted by hand from the layout: 64-128-256-128-64 at w = 64, time embeddings of 32 whatever the width."""

    def block(into, out):  # conv1, conv2, two batch norms, time, 4x4 resampling
        return (9 * into * out + out) + (9 * out * out + out) + 4 * out + (32 * out + out) + (16 * out * out + out)

    blocks = block(w, 2 * w) + block(2 * w, 4 * w) + block(8 * w, 2 * w) + block(4 * w, w)
    assert n_parameters(nets.build("resunet", w)) == blocks + (32 * 32 + 32) + (9 * w + w) + (w + 1)


def published_forward(state, x, t):
    """Source 000's network, written from its layout with functions on its weights: no modules, float64."""

    def linear(name, h):
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def batch_norm(name, h):
        mean, var, weight, bias = (state[f"{name}.{k}"][:, None, None] for k in (
            "running_mean", "running_var", "weight", "bias"))
        return (h - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def silu(h):
        return h / (1 + torch.exp(-h))

    def block(name, h, time, up):
        h = F.conv2d(h, state[f"{name}.conv1.weight"], state[f"{name}.conv1.bias"], padding=1)
        h = batch_norm(f"{name}.norm1", silu(h))
        h = h + silu(linear(f"{name}.time", time))[:, :, None, None]
        h = F.conv2d(h, state[f"{name}.conv2.weight"], state[f"{name}.conv2.bias"], padding=1)
        h = batch_norm(f"{name}.norm2", silu(h))
        resample = F.conv_transpose2d if up else F.conv2d
        return resample(h, state[f"{name}.resample.weight"], state[f"{name}.resample.bias"], stride=2, padding=1)

    frequency = torch.exp(torch.arange(16, dtype=torch.float64) * -math.log(10_000) / 15)
    angle = t[:, None].double() * frequency
    time = linear("time_mlp", torch.cat([angle.sin(), angle.cos()], dim=1)).clamp(min=0)
    x = F.conv2d(x, state["conv_in.weight"], state["conv_in.bias"], padding=1)
    first = block("down.0", x, time, up=False)
    second = block("down.1", first, time, up=False)
    x = block("up.0", torch.cat([second, second], dim=1), time, up=True)
    x = block("up.1", torch.cat([x, first], dim=1), time, up=True)
    return F.conv2d(x, state["conv_out.weight"], state["conv_out.bias"])


@pytest.mark.parametrize("size", [8, 28])
def test_the_resunet_computes_the_published_layout(size):
    """Against the network rewritten as functions in float64: norm after the activation, time between the norms."""
    net = lived_in(nets.build("resunet", 2))
    x, t = tensor(3, 1, size, size), torch.tensor([0, 17, 999])
    state = {k: v.double() for k, v in net.state_dict().items()}
    want = published_forward(state, x.double(), t)
    with torch.no_grad():
        got = net(x, t)
    assert got.shape == x.shape and want.std() > 0.1
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-4 * want.abs().max().item())


def test_the_resunets_skips_behave_as_published():
    """Source 000 stores the outputs of the down blocks: the first up block sees cat(x, x), the second the 1/2 size."""
    net = lived_in(nets.build("resunet", 2))
    down0, down1, up0, up1 = inputs_of(net, *net.down, *net.up)
    with torch.no_grad():
        net(tensor(2, 1, 8, 8), torch.tensor([3, 900]))
    bottom, half = down1[0][1], down0[0][1]
    assert bottom.shape[-1] == 2 and half.shape[-1] == 4
    assert torch.equal(up0[0][0][0], torch.cat([bottom, bottom], dim=1))
    assert torch.equal(up1[0][0][0], torch.cat([up0[0][1], half], dim=1))


# UNet ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("w", [4, 16])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_unets_size_is_the_sum_over_its_layers(w, norm):
    """Counted by hand: widths w, 2w, 4w; batch and group norm both have two parameters per channel."""

    def block(a, b):  # norm1, conv1, time, norm2, conv2, shortcut
        shortcut = 0 if a == b else a * b + b
        return 2 * a + (9 * a * b + b) + (64 * b + b) + 2 * b + (9 * b * b + b) + shortcut

    def resample(a, b):
        return 16 * a * b + b

    down = block(w, w) + resample(w, 2 * w) + block(2 * w, 2 * w) + resample(2 * w, 4 * w) + block(4 * w, 4 * w)
    up = block(8 * w, 4 * w) + resample(4 * w, 2 * w) + block(4 * w, 2 * w) + resample(2 * w, w) + block(2 * w, w)
    rest = (32 * 64 + 64) + (64 * 64 + 64) + (9 * w + w) + 2 * w + (9 * w + 1)
    attention = 2 * 4 * w + (4 * w * 12 * w + 12 * w) + (4 * w * 4 * w + 4 * w)
    assert n_parameters(nets.build("unet", w, norm=norm)) == down + up + rest
    assert n_parameters(nets.build("unet", w, norm=norm, attention=True)) == down + up + rest + attention


def test_the_unet_of_width_16_has_357585_parameters():
    """Pinned: another number means other runs."""
    assert n_parameters(nets.build("unet", 16)) == 357_585


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("training", [False, True])
def test_a_residual_block_is_its_shortcut_at_the_start(norm, training):
    """The second convolution starts at zero (Ho et al. 2020): identity, or the 1x1 convolution where widths differ."""
    x, time = tensor(2, 4, 4, 4), tensor(2, 64, seed=1)
    same, wider = ResBlock(4, 4, norm).train(training), ResBlock(4, 8, norm).train(training)
    assert torch.equal(same(x, time), x)
    weight, bias = wider.shortcut.weight, wider.shortcut.bias
    want = torch.einsum("oi,bihw->bohw", weight[:, :, 0, 0], x) + bias[:, None, None]
    torch.testing.assert_close(wider(x, time), want)


def test_a_residual_block_off_its_start_is_the_sum_in_its_docstring():
    """x + conv(SiLU(norm(conv(SiLU(norm(x))) + time))) with group norm of 2 groups of 1 channel, in float64."""
    block = lived_in(ResBlock(2, 2, "group")).double()
    x, time = tensor(2, 2, 4, 4, dtype=torch.float64), tensor(2, 64, seed=1, dtype=torch.float64)

    def norm(layer, h):  # one group per channel: each plane by its own mean and variance
        centred = h - h.mean((2, 3), keepdim=True)
        return centred / torch.sqrt(centred.square().mean((2, 3), keepdim=True) + 1e-5) * layer.weight[:, None, None] \
            + layer.bias[:, None, None]

    def silu(h):
        return h * torch.sigmoid(h)

    h = F.conv2d(silu(norm(block.norm1, x)), block.conv1.weight, block.conv1.bias, padding=1)
    h = h + (time @ block.time.weight.T + block.time.bias)[:, :, None, None]
    h = F.conv2d(silu(norm(block.norm2, h)), block.conv2.weight, block.conv2.bias, padding=1)
    torch.testing.assert_close(block(x, time), x + h)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_attention_is_the_identity_at_the_start(norm):
    x = tensor(2, 8, 3, 3)
    assert torch.equal(Attention(8, norm)(x), x)


def test_attention_is_softmax_of_scaled_products_over_pixels():
    """x + proj(softmax(q k^T / sqrt(C)) v), pixel by pixel in float64; one head."""
    layer = lived_in(Attention(4, "group")).double()
    x = tensor(2, 4, 2, 3, dtype=torch.float64)
    want = x.clone()
    for b in range(2):
        pixels = layer.norm(x)[b].reshape(4, 6).T  # (6, C)
        q, k, v = (pixels @ layer.qkv.weight[:, :, 0, 0].T + layer.qkv.bias).split(4, dim=1)
        weights = torch.exp(q @ k.T / 2)
        h = weights / weights.sum(1, keepdim=True) @ v
        want[b] += (h @ layer.proj.weight[:, :, 0, 0].T + layer.proj.bias).T.reshape(4, 2, 3)
    torch.testing.assert_close(layer(x), want)


def test_attention_stands_in_the_unet_only_if_asked_for_and_starts_silent():
    torch.manual_seed(0)
    with_attention = nets.build("unet", 4, attention=True)
    without = nets.build("unet", 4)
    assert isinstance(with_attention.attention, Attention) and isinstance(without.attention, nn.Identity)
    shared = {k: v for k, v in with_attention.state_dict().items() if not k.startswith("attention.")}
    without.load_state_dict(shared)
    x, t = tensor(2, 1, 8, 8), torch.tensor([1, 800])
    torch.testing.assert_close(with_attention.eval()(x, t), without.eval()(x, t))


def test_the_unets_skips_carry_every_resolution():
    """Each up block sees what comes from below beside what left its resolution on the way down."""
    net = lived_in(nets.build("unet", 4))
    down0, down1, low, mid, up0, up1, up2, rise0, rise1 = inputs_of(
        net, *net.down, net.downsample[1], net.mid, *net.up, *net.upsample)
    with torch.no_grad():
        net(tensor(2, 1, 8, 8), torch.tensor([3, 900]))

    def out(record):
        return record[0][1]

    assert torch.equal(up0[0][0][0], torch.cat([out(mid), out(low)], dim=1))
    assert torch.equal(up1[0][0][0], torch.cat([out(rise0), out(down1)], dim=1))
    assert torch.equal(up2[0][0][0], torch.cat([out(rise1), out(down0)], dim=1))
    assert [out(r).shape[-1] for r in (mid, up0, up1, up2)] == [2, 2, 4, 8]


@pytest.mark.parametrize("options", [{"norm": "batch"}, {"norm": "group"}, {"norm": "group", "attention": True}])
def test_every_option_of_the_unet_runs_and_all_its_parameters_learn(options):
    """After one step off the start no parameter is cut off: time and skips reach every block."""
    net = lived_in(nets.build("unet", 8, **options)).train()
    out = net(tensor(2, 1, 8, 8), torch.tensor([3, 900]))
    assert out.shape == (2, 1, 8, 8)
    out.square().mean().backward()
    norms = {name: p.grad.abs().max().item() for name, p in net.named_parameters()}
    # biases right before a norm over few values have a gradient of nearly zero; every weight must have one
    assert not [name for name, value in norms.items() if name.endswith("weight") and not value > 0]


def test_group_norm_makes_an_image_independent_of_its_batch_even_in_training():
    """And batch norm does not: the difference is what the option is for."""
    x, t = tensor(3, 1, 8, 8), torch.tensor([1, 500, 900])
    change = {}
    for norm in ("batch", "group"):
        net = lived_in(nets.build("unet", 8, norm=norm)).train()
        with torch.no_grad():
            change[norm] = (net(x, t)[:1] - net(x[:1], t[:1])).abs().max().item()
    assert change["group"] < 1e-4 < change["batch"]


# both ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), [("resunet", {}), ("unet", {}), ("unet", {"attention": True})])
def test_the_output_for_an_image_does_not_depend_on_its_batch_in_eval_mode(name, options):
    net = lived_in(nets.build(name, 4, **options)).double()
    x, t = tensor(4, 1, 8, 8), torch.tensor([0, 10, 500, 999])
    net.float()
    with torch.no_grad():
        together = net(x, t)
        alone = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4 * together.abs().max().item())
    assert (together[0] - together[3]).abs().max() > 1e-3  # else the comparison would show nothing


@pytest.mark.parametrize("name", ["resunet", "unet"])
def test_the_same_seed_builds_the_same_net(name):
    built = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        built.append(torch.cat([p.detach().flatten() for p in nets.build(name, 2).parameters()]))
    assert torch.equal(built[0], built[1]) and not torch.equal(built[0], built[2])


def test_an_unknown_net_is_refused_with_the_valid_names():
    with pytest.raises(ValueError, match="unknown net 'dit'; valid: resunet, unet"):
        nets.build("dit", 8)


@pytest.mark.parametrize("width", [0, -4])
@pytest.mark.parametrize("name", ["resunet", "unet"])
def test_a_width_below_one_is_refused(name, width):
    with pytest.raises(ValueError, match=f"width must be a positive number of channels, got {width}"):
        nets.build(name, width)


def test_an_unknown_norm_is_refused_with_the_valid_names():
    with pytest.raises(ValueError, match="unknown norm 'layer'; valid: batch, group"):
        nets.build("unet", 8, norm="layer")


@pytest.mark.parametrize(("name", "option"), [("resunet", "attention"), ("unet", "depth")])
def test_an_option_the_net_does_not_have_is_refused(name, option):
    with pytest.raises(ValueError, match=option):
        nets.build(name, 4, **{option: True})


@pytest.mark.parametrize("width", [6, 10, 12])
def test_group_norm_works_at_any_width(width):
    assert nets.build("unet", width, norm="group")(tensor(1, 1, 8, 8), torch.tensor([5])).isfinite().all()
