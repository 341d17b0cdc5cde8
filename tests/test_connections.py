"""Cross-timestep connections against hand computation on toy nets, and on real ones."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from onebit import nets
from onebit.audit import audit
from onebit.connections import Connections, attach, connections_of, neighbour
from onebit.diffusion import add_noise
from onebit.objective import Objective, asked
from onebit.recipes import quantize
from onebit.sampling import sample
from onebit.taps import Taps


class Toy(nn.Module):
    """Two blocks that multiply, U_0 = 2 x and U_1 = 3 (mixed U_0), then the identity; time is ignored."""

    def __init__(self):
        super().__init__()
        self.up = nn.ModuleList([Times(2.0), Times(3.0)])

    def forward(self, x, timestep):
        return self.up[1](self.up[0](x))


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x):
        return self.factor * x


def toy(**options):
    model = Toy()
    attach(model, ("up.*",), **options)
    return model.double()


def images(*values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def unet(alpha=None):
    """A small network whose zero-initialised layers are not zero, so that every block matters."""
    torch.manual_seed(0)
    model = nets.build("unet", 4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    if alpha is not None:
        attach(model, initial=alpha)
    return model


def batch(n=2):
    torch.manual_seed(1)
    return torch.randn(n, 1, 8, 8), torch.randn(n, 1, 8, 8), torch.tensor([3, 998, 500, 20][:n])


# mixing by hand ------------------------------------------------------------------------------------------------------


def test_a_mix_by_hand_takes_each_samples_own_row_and_each_sites_own_column():
    """BiDM Eq. 12.  T = 10, two rows: t = 4 is in row 0, t = 5 in row 1.  x = 1, 1; cache 10 and 100.

    t = 4: U_0 = 2, out 0.5 * 2 + 0.5 * 10 = 6;    U_1 = 18, out 0.75 * 18 + 0.25 * 100 = 38.5
    t = 5: U_0 = 2, out 2 + 1 * (10 - 2) = 10;     U_1 = 30, out 1.5 * 30 - 0.5 * 100 = -5  (alpha is free)
    """
    model = toy(timesteps=10, rows=2)
    model.connections.alpha.data = torch.tensor([[0.5, 0.25], [1.0, -0.5]], dtype=torch.float64)
    with model.connections.mixing({"up.0": images(10, 10), "up.1": images(100, 100)}):
        out = model(images(1, 1), torch.tensor([4, 5]))
    assert out.flatten().tolist() == [38.5, -5.0]


def test_alpha_gets_the_sum_of_g_times_the_difference_in_drawn_rows_alone():
    """dL/dalpha[r, 1] = sum g (cache - U_1); g_0 reaches site 0 through (1 - a_1) and the factor 3.  a = 0.25."""
    model = toy(timesteps=10, rows=5, initial=0.25)
    x, cache = images(1, 2, 5), {"up.0": images(10, 20, 30).requires_grad_(), "up.1": images(7, 8, 9)}
    with model.connections.mixing(cache):
        out = model(x, torch.tensor([2, 3, 9]))  # rows 1, 1, 4
    g = images(1, -2, 4)
    (out * g).sum().backward()
    mixed = 0.75 * 2 * x + 0.25 * cache["up.0"].detach()
    each = torch.stack([0.75 * 3 * g * (cache["up.0"].detach() - 2 * x), g * (cache["up.1"] - 3 * mixed)], 1).view(3, 2)
    want = torch.zeros(5, 2, dtype=torch.float64)
    want[1], want[4] = each[0] + each[1], each[2]
    torch.testing.assert_close(model.connections.alpha.grad, want)
    assert cache["up.0"].grad is None  # stopgrad


@pytest.mark.parametrize("timestep", [torch.tensor(7), torch.tensor([7]), 7, torch.tensor([7.0, 7.0])])
def test_one_time_for_all_by_position_or_name_is_as_good_as_one_each(timestep):
    model = toy(timesteps=10, rows=10)
    model.connections.alpha.data = torch.arange(20.0).double().view(10, 2)
    cache = {"up.0": images(3, 5), "up.1": images(1, 2)}
    with model.connections.mixing(cache):
        want = model(images(1, 2), torch.tensor([7, 7]))
        assert torch.equal(model(images(1, 2), timestep), want)
        assert torch.equal(model(images(1, 2), timestep=timestep), want)


def test_a_hundred_rows_are_ten_timesteps_each():
    """Row floor(t / 10) for T = 1000, as released; the last row is 990 .. 999."""
    model = toy()
    model.connections.alpha.data = torch.arange(100.0).double()[:, None].repeat(1, 2)
    with model.connections.mixing({"up.0": images(*[0.0] * 6), "up.1": images(*[1.0] * 6)}):
        x = images(*[0.0] * 6)  # U = 0, so out = alpha of the row
        seen = model(x, torch.tensor([0, 9, 10, 499, 990, 999])).flatten().tolist()
    assert seen == [0, 0, 1, 49, 99, 99]


# trajectories --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recursive", "want"), [
    # a = 0.5, site 0 alone: U = 2, 4, 8.  Step 1: 2.  Step 2: (4 + 2) / 2 = 3.
    (True, [2.0, 3.0, 5.5]),  # step 3: (8 + 3) / 2, of what step 2 put out
    (False, [2.0, 3.0, 6.0]),  # step 3: (8 + 4) / 2, of what step 2 computed
])
def test_three_sampler_steps_by_hand(recursive, want):
    model = Toy()
    attach(model, ("up.0",), initial=0.5)
    with model.connections.following(recursive):
        seen = [model(images(x), torch.tensor([t])).item() / 3 for t, x in ((30, 1), (20, 2), (10, 4))]
    assert seen == want


def test_every_trajectory_starts_without_a_cache():
    model, x = toy(initial=0.5), images(1, 2)
    with torch.no_grad():
        plain = model(x, torch.tensor([5, 5]))
        for _ in range(2):
            with model.connections.following():
                assert torch.equal(model(x, torch.tensor([5, 5])), plain)
                assert not torch.equal(model(2 * x, torch.tensor([5, 5])), 2 * plain)


def test_another_batch_size_within_a_trajectory_is_refused():
    model = toy()
    with model.connections.following():
        model(images(1, 2), torch.tensor([5, 5]))
        with pytest.raises(ValueError, match=r"up\.0: the cache is \(2, 1, 1, 1\), the output \(1, 1, 1, 1\).*anew"):
            model(images(1), torch.tensor([5]))
    with model.connections.following():  # nothing is left of it
        assert model(images(1), torch.tensor([5])).item() == 6


def test_an_exception_ends_the_mode():
    model = toy()
    with pytest.raises(ZeroDivisionError), model.connections.following():
        model(images(1), 5)
        raise ZeroDivisionError
    assert model(images(2), 5).item() == 12
    with model.connections.recording() as cache:
        model(images(2), 5)
    assert cache["up.1"].item() == 12


# on networks ---------------------------------------------------------------------------------------------------------


def test_without_a_mode_or_with_alpha_0_the_network_is_the_one_without_connections():
    """methods 9.7, bit for bit."""
    x, _, t = batch()
    want = unet()(x, t)
    model, idle = unet(alpha=0.0), unet(alpha=0.3)
    assert torch.equal(idle(x, t), want)
    with model.connections.mixing(neighbour(model, x, x, t)):
        assert torch.equal(model(x, t), want)


def test_the_recorded_features_are_the_blocks_outputs():
    x, _, t = batch()
    model = unet(alpha=0.3)
    with Taps(model, ("up.[0-9]",)) as taps, model.connections.recording() as cache:
        model(x, t)
    assert list(cache) == ["up.0", "up.1", "up.2"] == taps.names
    assert all(torch.equal(a, b) for a, b in zip(cache.values(), taps.features, strict=True))


def test_taps_opened_after_attaching_see_the_mixed_features():
    """Distillation compares what goes on in the network (methods 3.3, step 4)."""
    model = toy(initial=0.5)
    with Taps(model, ("up.0",)) as taps, model.connections.mixing({"up.0": images(10), "up.1": images(0)}):
        model(images(1), 5)
    assert taps.features[0].item() == 6


def test_connections_survive_saving_and_loading():
    x, noise, t = batch()
    model, fresh = unet(alpha=0.3), unet(alpha=0.0)
    with torch.no_grad():
        model.connections.alpha.add_(torch.randn(100, 3))
    assert "connections.alpha" in model.state_dict()
    fresh.load_state_dict(model.state_dict())
    outs = []
    for m in (model, fresh):
        m.eval()
        with m.connections.mixing(neighbour(m, x, noise, t)):
            outs.append(m(x, t))
    assert torch.equal(*outs)


def test_a_copy_of_a_model_uses_its_own_connections():
    x, _, t = batch()
    model = unet(alpha=0.3)
    twin = copy.deepcopy(model)
    assert twin.connections is not model.connections
    with torch.no_grad():
        twin.connections.alpha.zero_()
        plain = model(x, t)
    cache = neighbour(model, x, x, t)
    with twin.connections.mixing(cache):
        assert torch.equal(twin(x, t), plain)  # the copy's alpha, which is 0
        assert torch.equal(model(x, t), plain)  # the original is in no mode
    with model.connections.mixing(cache):
        assert not torch.equal(model(x, t), plain)
        assert torch.equal(twin(x, t), plain)


def test_diffusers_networks_take_connections_as_ours_do():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, attention_head_dim=8,
    ).eval()
    x, noise, t = batch()
    with torch.no_grad():
        plain = model(x, t).sample
        assert attach(model).sites == ("up_blocks.0", "up_blocks.1")
        assert torch.equal(model(x, timestep=t).sample, plain)
        with model.connections.following():
            assert torch.equal(model(x, 20).sample, model(x, 20).sample)  # the same input: the mix changes nothing
            assert not torch.equal(model(x + 1, 10).sample, plain)
    with Taps(model) as taps, model.connections.mixing(neighbour(model, x, noise, t)):
        model(x, t).sample.sum().backward()
    assert taps.names == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    assert model.connections.alpha.grad[[0, 99]].abs().min() > 0 and not model.connections.alpha.grad[1:99].any()


def test_a_site_may_put_out_a_tuple():
    class Pair(Times):
        def forward(self, x):
            return self.factor * x, x

    model = Toy()
    model.up[0], model.up[1] = Pair(2.0), nn.Identity()
    attach(model, ("up.0",), initial=0.5)
    with model.connections.mixing({"up.0": images(10)}):
        mixed, other = model(images(1), 5)
    assert (mixed.item(), other.item()) == (6, 1)


# the training pass ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dt", "later"), [(1, [4, 999]), (10, [13, 999])])
def test_the_neighbour_is_the_same_image_with_the_same_noise_a_little_later(dt, later):
    """t' = min(t + dt, T - 1); the cache is what the unconnected network puts out on x_t'."""
    x0, noise, t = batch()
    model = unet(alpha=0.3).eval()
    cache = neighbour(model, x0, noise, t, cache_dt=dt)
    with Taps(model, ("up.[0-9]",)) as taps:
        model(add_noise(x0, noise, torch.tensor(later)), torch.tensor(later))
    assert all(torch.equal(a, b) for a, b in zip(cache.values(), taps.features, strict=True))
    assert not any(f.requires_grad for f in cache.values())


def test_the_neighbour_pass_uses_the_batchs_statistics_and_does_not_count_in_the_running_ones():
    x0, noise, t = batch()
    model = unet(alpha=0.3).train()
    before = {name: b.clone() for name, b in model.named_buffers()}
    cache = neighbour(model, x0, noise, t)
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    later = (t + 1).clamp_max(999)
    with Taps(model, ("up.[0-9]",)) as taps:
        model(add_noise(x0, noise, later), later)  # an ordinary training pass counts, with the same features
    assert all(torch.equal(a, b) for a, b in zip(cache.values(), taps.features, strict=True))
    assert all(not torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_a_training_step_under_autocast_reaches_every_weight_and_alpha_in_full_precision():
    """Casts of weights that the neighbour's pass made without gradient must not serve the main pass."""
    x0, noise, t = batch()
    model = unet(alpha=0.3).train()
    with torch.autocast("cpu", torch.bfloat16):
        with model.connections.mixing(neighbour(model, x0, noise, t)):
            loss = model(add_noise(x0, noise, t), t).float().square().mean()
        loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.connections.alpha.grad[[0, 99]].abs().min() > 0


# refusals ------------------------------------------------------------------------------------------------------------


def test_bad_options_are_refused():
    for sites, options, match in (([], {}, "sites"), (["a"], {"rows": 0}, "rows"), (["a"], {"rows": 1001}, "rows")):
        with pytest.raises(ValueError, match=match):
            Connections(sites, **options)
    untouched = nn.Sequential(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="match no module"):
        attach(untouched)
    with pytest.raises(ValueError, match="rows"):
        attach(untouched, ("0",), rows=0)
    assert not hasattr(untouched, "connections") and not untouched._forward_pre_hooks
    model = toy()
    with pytest.raises(ValueError, match="connections already"):
        attach(model, ("up.*",))


def test_connections_take_nobodys_place():
    class Own(Toy):
        def __init__(self):
            super().__init__()
            self.connections = nn.Linear(1, 1)

    model = Own()
    layer = model.connections
    for add in (lambda: attach(model, ("up.*",)), lambda: quantize(model, "weights=xnor connections=tbs:up.*")):
        with pytest.raises(ValueError, match="Own has an attribute `connections` of its own"):
            add()
    assert model.connections is layer and not model._forward_pre_hooks


def test_a_call_without_time_a_foreign_cache_and_a_mode_within_a_mode_are_refused():
    model = toy()
    model.forward = lambda x, timestep=None: Toy.forward(model, x, timestep)
    cache = {"up.0": images(1), "up.1": images(1)}
    with model.connections.mixing(cache), pytest.raises(ValueError, match="need the timestep"):
        model(images(1))
    with pytest.raises(ValueError, match=r"cache lacks up\.1"), model.connections.mixing({"up.0": images(1)}):
        pass
    mode = model.connections
    with mode.following(), pytest.raises(RuntimeError, match="in a mode already"), mode.recording():
        pass
    with model.connections.following():  # the refused one has not spoilt the next
        pass


class Checkpointed(Toy):
    """Toy, its blocks computed again in the backward pass where there is a `reentrant`."""

    reentrant = None

    def forward(self, x, timestep):
        if self.reentrant is None:
            return super().forward(x, timestep)
        for block in self.up:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


def gradients(model, cache=None):
    """Of a call, mixed where there is a cache; the backward pass is inside the mode too."""
    model.zero_grad()
    with model.connections.mixing(cache) if cache else contextlib.nullcontext():
        model(images(1, 2).requires_grad_(), torch.tensor([4, 5])).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_site_is_not_computed_again_without_its_mix(reentrant):
    """Outside the mode it would be another function's gradient; inside, or where nothing was mixed, it is right."""
    model, cache = Checkpointed(), {"up.0": images(3, 5), "up.1": images(1, 2)}
    attach(model.double(), ("up.*",))
    twin = copy.deepcopy(model)
    twin.reentrant = reentrant
    for given in (None, cache):
        torch.testing.assert_close(gradients(twin, given), gradients(model, given))
    assert "connections.alpha" in gradients(twin, cache)
    with twin.connections.mixing(cache):
        loss = twin(images(1, 2).requires_grad_(), torch.tensor([4, 5])).sum()
    with pytest.raises(RuntimeError, match=r"up\.1 is computed again in the backward pass"):
        loss.backward()


def test_neighbour_needs_connections_and_a_later_time():
    x0, noise, t = batch()
    with pytest.raises(ValueError, match="attach"):
        neighbour(unet(), x0, noise, t)
    with pytest.raises(ValueError, match="cache_dt"):
        neighbour(unet(alpha=0.3), x0, noise, t, cache_dt=0)


def test_the_sites_of_a_network_in_a_wrapper_are_found():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nets.build("unet", 4)

    assert attach(Wrapper()).sites == ("net.up.0", "net.up.1", "net.up.2")


@pytest.mark.parametrize("recursive", [True, False])
def test_a_cache_holds_what_the_site_put_out_whatever_works_on_it_in_place(recursive):
    class Net(nn.Module):
        def __init__(self, in_place):
            super().__init__()
            self.up = nn.ModuleList([nn.Conv2d(1, 4, 3, padding=1)])
            self.act, self.out = nn.SiLU(inplace=in_place), nn.Conv2d(4, 1, 1)

        def forward(self, x, timestep):
            return self.out(self.act(self.up[0](x)))

    outputs, taps = [], []
    for in_place in (False, True):
        torch.manual_seed(0)
        net = Net(in_place)
        connections = attach(net)
        x, t = torch.randn(2, 1, 6, 6), torch.tensor([5, 5])
        with torch.no_grad(), connections.following(recursive):
            net(x, t + 1)
            outputs.append(net(-x, t))
        with torch.inference_mode(), Taps(net) as tap:
            net(x, t)
            taps.append(tap.features[0].clone())
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*taps)
    with torch.no_grad(), Taps(net) as tap:
        net(x, t)
        with pytest.raises(RuntimeError, match=r"what up\.0 put out was changed in place"):
            _ = tap.features


def test_a_wrapped_network_is_trained_and_sampled_with_its_connections():
    torch.manual_seed(0)
    net = nets.build("unet", 4)
    quantize(net, "bidm-w1a1")
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    wrapped = nn.DataParallel(net)
    assert connections_of(wrapped) is net.connections and isinstance(asked(wrapped), Objective)
    x0, noise = torch.randn(2, 2, 1, 8, 8)
    timestep = torch.tensor([5, 900])
    losses = [Objective()(model, x0, noise, timestep) for model in (net, wrapped)]
    assert torch.equal(*losses)
    net.eval()
    drawn = [sample(model, 2, shape=(1, 8, 8), sampler="ddim", steps=5) for model in (net, wrapped.eval())]
    torch.testing.assert_close(*drawn)
    assert audit(wrapped).parameters == audit(net).parameters


def test_more_than_ten_blocks_are_sites_all():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(12))

    assert len(attach(Deep()).sites) == 12
