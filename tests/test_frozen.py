"""Frozen networks against the networks they copy, layer by layer and through the sampler."""

import copy

import pytest
import torch
from torch import nn

from onebit import nets
from onebit.audit import audit
from onebit.connections import attach
from onebit.diffusion import SCHEDULE
from onebit.efficiency import account
from onebit.frozen import FixedNorm, FoldedBlock, frozen, sharing_weights
from onebit.layers import Quantized
from onebit.nets.unet import ResBlock
from onebit.recipes import quantize
from onebit.sampling import generators, sample, scheduler

SHAPE = (1, 16, 16)


def network(recipe="fp16", name="unet", width=8, **options):
    """A quantized network after one training pass; its running statistics and affine maps are not the identity."""
    torch.manual_seed(0)
    model = nets.build(name, width, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    quantize(model, recipe, batch())
    model.train()(*batch(1))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def batch(seed=0, times=(3, 998, 500, 20)):
    noise = torch.randn(len(times), *SHAPE, generator=torch.Generator().manual_seed(seed))
    return noise, torch.tensor(times)


def close(got, want, relative=1e-5):
    assert want.abs().max() > 0.1
    torch.testing.assert_close(got, want, atol=relative * want.abs().max().item(), rtol=0)


@pytest.mark.parametrize("times", [(3, 998, 500, 20), (500, 500, 500)])
@pytest.mark.parametrize(("name", "options"), [
    ("unet", {}), ("unet", {"attention": True}), ("unet", {"norm": "group"}), ("resunet", {}),
])
@pytest.mark.parametrize("recipe", ["fp16", "strict-1bit", "binarydm-w1a32", "lsq-w2a32", "bonsai-ternary-g128"])
@torch.no_grad()
def test_a_frozen_network_computes_the_same(recipe, name, options, times):
    """Images of different timesteps and of one timestep, which take different ways through a folded block."""
    model = network(recipe, name, **options)
    made, inputs = frozen(model), batch(2, times)
    close(made(*inputs), model(*inputs))
    assert not any(isinstance(module, Quantized) for module in made.modules())


@pytest.mark.parametrize("times", [(3, 998, 500, 20), (500, 500, 500)])
@pytest.mark.parametrize("name", ["unet", "resunet"])
@torch.no_grad()
def test_under_autocast_a_frozen_network_is_as_near_to_float32_as_the_network_itself(name, times):
    """Root mean squares of the errors."""
    model, inputs = network(name=name), batch(2, times * 2)
    made, want = frozen(model), model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        own, folded = (net(*inputs).float().sub(want).square().mean().sqrt().item() for net in (model, made))
    scale = want.square().mean().sqrt().item()
    assert 1e-3 * scale < own, "nothing was computed in bfloat16"
    assert folded < 1.5 * own


@pytest.mark.parametrize("recipe", [
    "binarydm-w1a4", "xnor-w1a1", "reactnet-w1a1", "bidm-w1a1", "tdq-w1a4", "insta-w1a4", "xnorpp-w1a1",
])
@torch.no_grad()
def test_activation_codes_do_not_flip(recipe):
    """A code that flips is no rounding error: not a bit may differ."""
    model, inputs = network(recipe), batch(2)
    made = frozen(model)
    assert torch.equal(made(*inputs), model(*inputs))
    assert not any(isinstance(module, (FixedNorm, FoldedBlock)) for module in made.modules())


def test_a_folded_block_by_hand():
    """One channel, h = SiLU(x) after norms that do nothing but norm2's: y = SiLU(2 (3 h + 5 + t) - 1) + x, weight 1."""
    block = nets.build("unet", 1).mid.double()
    block = type(block)(1, 1, "batch").double().eval()
    with torch.no_grad():
        for p in block.parameters():
            p.zero_()
        block.norm1.weight.fill_(1)
        block.norm1.eps = block.norm2.eps = 0.0
        block.conv1.weight[0, 0, 1, 1], block.conv1.bias[0], block.conv2.weight[0, 0, 1, 1] = 3, 5, 1
        block.time.weight[0, 0], block.time.bias[0] = 1, 7
        block.norm2.weight[0], block.norm2.bias[0], block.norm2.running_var[0] = 4, -1, 4
    made = frozen(nn.Sequential(block))[0]
    x, time = torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.randn(2, 64, dtype=torch.float64)
    h = x * x.sigmoid()
    for rows in (time, time[:1]):
        z = 2 * (3 * h + 5 + 7 + rows[:, :1, None, None]) - 1
        torch.testing.assert_close(made(x, rows), z * z.sigmoid() + x)
    assert type(made) is FoldedBlock


def test_a_fixed_norm_keeps_to_bfloat16_where_autocast_does():
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(4).eval()
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2)
    made = frozen(torch.nn.Sequential(norm))
    x = torch.randn(2, 4, 3, 3).bfloat16()
    assert made(x).dtype == torch.bfloat16
    torch.testing.assert_close(made(x).double(), torch.nn.functional.batch_norm(
        x.double(), norm.running_mean.double(), norm.running_var.double(), norm.weight.double(), norm.bias.double(),
    ), rtol=2e-2, atol=2e-2)


def test_weights_are_quantized_once():
    model = network("binarydm-w1a4")
    calls = []
    for module in model.modules():
        if isinstance(module, Quantized):
            module.rule.register_forward_hook(lambda *_: calls.append(1))
    sample(model, 3, shape=SHAPE, sampler="ddim", steps=4, batch=3)
    assert len(calls) == sum(isinstance(module, Quantized) for module in model.modules())


def test_the_model_stays_as_it_was_and_the_copy_as_it_is():
    model = network("strict-1bit").train()
    state, inputs = copy.deepcopy(model.state_dict()), batch(2)
    made = frozen(model)
    with torch.no_grad():
        before = made(*inputs)
    sample(model, 2, shape=SHAPE, sampler="ddim", steps=2)
    assert model.training and all(m.training for m in model.modules()) and not any(m.training for m in made.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters()) and not any(p.requires_grad for p in made.parameters())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(*inputs).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(made(*inputs), before)


def test_a_block_with_a_hook_inside_is_not_folded():
    """Whoever watches a convolution would see another one's output."""
    model, seen = network(), []
    model.mid.conv1.register_forward_hook(lambda _, inputs, output: seen.append(output))
    made = frozen(model)
    kinds = {name: isinstance(module, FoldedBlock) for name, module in made.named_modules()}
    assert not kinds["mid"] and kinds["down.0"] and kinds["up.2"]
    with torch.no_grad():
        close(made(*batch(2)), model(*batch(2)))
    torch.testing.assert_close(seen[0], seen[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("part", "folded"), [("conv1", 0), ("time", 0), ("norm2", 0), ("conv2", 2), (None, 2)])
def test_blocks_that_share_a_layer_are_not_folded_into_it_twice(part, folded):
    torch.manual_seed(0)
    blocks = nn.ModuleList([ResBlock(4, 4, "batch"), ResBlock(4, 4, "batch")])
    if part:
        setattr(blocks[1], part, getattr(blocks[0], part))
    for parameter in blocks.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, time = torch.randn(8, 4, 6, 6), torch.randn(8, 64)

    def run(blocks):
        return blocks[1](blocks[0](x, time), time)

    run(blocks)  # norms get statistics
    copied = frozen(blocks.eval())
    close(run(copied), run(blocks))
    assert sum(isinstance(block, FoldedBlock) for block in copied) == folded


def test_a_block_of_two_names_is_folded_once():
    torch.manual_seed(0)
    blocks = nn.ModuleList([ResBlock(4, 4, "batch")] * 2)
    x, time = torch.randn(8, 4, 6, 6), torch.randn(8, 64)
    blocks[0](x, time)
    copied = frozen(blocks.eval())
    assert isinstance(copied[0], FoldedBlock) and copied[1] is copied[0]
    close(copied[0](x, time), blocks[0](x, time))


def test_a_copy_that_shares_weights_has_its_own_hooks():
    model = network("strict-1bit")
    attach(model, initial=0.5)
    made = frozen(model)
    other = sharing_weights(made)
    assert all(p is q for p, q in zip(made.parameters(), other.parameters(), strict=True))
    assert all(p is q for p, q in zip(made.buffers(), other.buffers(), strict=True))
    with torch.no_grad(), made.connections.following():
        made(*batch(1))
        assert not other.connections._following and other.connections.clock.timestep is None
        torch.testing.assert_close(other(*batch(2)), model(*batch(2)), atol=1e-4, rtol=0)


def steer(net, inputs, output):
    """Forward hook: the exact noise predictor of Gaussian data, sd 0.4, bent by the net, so that samples stay grey."""
    x, bar = inputs[0], SCHEDULE.alpha_bar[inputs[1]].float()[:, None, None, None]
    return (1 - bar).sqrt() * x / (0.16 * bar + 1 - bar) + 0.2 * (bar * (1 - bar)).sqrt() * output.tanh()


@torch.inference_mode()
def unfrozen(model, n, steps, seed):
    """The model itself, called by diffusers' scheduler, in one batch."""
    made = scheduler("ddim", steps)
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in generators(seed, range(n))])
    for t in made.timesteps:
        x = made.step(model(x, torch.full((n,), int(t))), t, x).prev_sample
    return x.clamp(-1, 1)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("recipe", ["fp16", "strict-1bit", "bidm-w1a1", "tdq-w1a4"])
def test_samples_are_those_of_the_network_itself_on_any_number_of_threads(recipe, threads):
    """20 images: on three threads each has a batch of seven, six or seven, and a trajectory of its own."""
    model, before = network(recipe), torch.get_num_threads()
    model.register_forward_hook(steer)
    following = model.connections.following() if hasattr(model, "connections") else torch.no_grad()
    with following:
        want = unfrozen(model, 20, 5, 1)
    torch.set_num_threads(threads)
    try:
        got = sample(model, 20, shape=SHAPE, sampler="ddim", steps=5, seed=1)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    assert (want.abs() < 1).float().mean() > 0.5, "clamped nearly everywhere: nothing would be compared"


def packed(model):
    return pytest.importorskip("onebit.kernels").to_packed(model)


@pytest.mark.parametrize("count", [audit, lambda model: account(model, batch())])
@pytest.mark.parametrize(("recipe", "made"), [
    ("strict-1bit", frozen), ("xnor-w1a1", frozen), ("fp16", frozen), ("xnor-w1a1", packed),
    ("strict-1bit", lambda model: nn.Sequential(sharing_weights(frozen(model)))),
])
def test_a_network_made_for_inference_is_not_audited(recipe, made, count):
    """Its layers say nothing, or something wrong, of the bits of the weights."""
    model = network(recipe)
    with pytest.raises(ValueError, match=r"before `frozen` or `to_packed`"):
        count(made(model))
    assert count(model).parameters == sum(p.numel() for p in network().parameters())


def test_the_mark_of_a_frozen_network_is_no_part_of_its_state():
    model = network("xnor-w1a1")
    assert frozen(model).state_dict().keys() <= model.state_dict().keys()
    assert not hasattr(model, "is_frozen_copy")
