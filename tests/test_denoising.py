"""The held-out loss as a measure: against its definition in float64, and along two steps of a trajectory."""

import numpy as np
import pytest
import torch
from torch import nn

from onebit import data, nets, recipes
from onebit.connections import neighbour
from onebit.diffusion import add_noise
from onebit.objective import Objective
from onebit.study import JudgeSpec, Protocol, Run, Samples, SampleSpec
from onebit.study.denoising import LEVELS, losses
from onebit.study.evaluation import evaluate

BETAS = np.linspace(1e-4, 0.02, 1_000)  # DDPM's schedule
ALPHA_BAR = np.cumprod(1 - BETAS)


class Affine(nn.Module):
    """A network whose answer can be written down: a x_t + b t."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(1e-3))

    def forward(self, x, timestep):
        return self.a * x + self.b * timestep.view(-1, 1, 1, 1)


def some(n=7, size=8):
    return torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def noises(shape):
    return [torch.randn(shape, generator=torch.Generator().manual_seed(t)) for t in LEVELS]


def test_losses_are_those_of_the_definition(monkeypatch):
    """mean over pixels of (eps - eps_theta(sqrt(a) x0 + sqrt(1 - a) eps))^2, in batches that do not divide."""
    monkeypatch.setattr("onebit.study.denoising.BATCH", 3)
    images = some()
    found = losses(Affine(), images)
    x0 = images.double().numpy() / 127.5 - 1
    for row, t, noise in zip(found, LEVELS, noises(images.shape), strict=True):
        eps = noise.double().numpy()
        xt = np.sqrt(ALPHA_BAR[t]) * x0 + np.sqrt(1 - ALPHA_BAR[t]) * eps
        expected = ((0.5 * xt + 1e-3 * t - eps) ** 2).mean((1, 2, 3))
        np.testing.assert_allclose(row, expected, rtol=1e-4)
    assert found.shape == (10, 7) and found.dtype == np.float64


def test_images_meet_the_same_noise_in_any_set():
    images = some()
    np.testing.assert_allclose(losses(Affine(), images[:3]), losses(Affine(), images)[:, :3], rtol=1e-6)


def connected(recipe="weights=learned-scale connections=tbs:initial=0.4"):
    torch.manual_seed(0)
    model = nets.build("unet", 4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    recipes.quantize(model, recipe)
    return model.eval()


@pytest.mark.parametrize("stride", [1, 20])
def test_connections_mix_what_a_sampler_of_that_stride_would_hand_them(stride):
    """Two calls of the network in a row, first the noisier one, as `following` strings them together."""
    model, images = connected(), some(4)
    found = losses(model, images, stride)
    x0 = data.normalize(images)
    for row, t, noise in zip(found, LEVELS, noises(images.shape), strict=True):
        now, before = torch.full((4,), t), torch.full((4,), t + stride)
        with torch.no_grad(), model.connections.following(recursive=False):
            model(add_noise(x0, noise, before), before)
            predicted = model(add_noise(x0, noise, now), now)
        np.testing.assert_allclose(row, (predicted - noise).square().mean((1, 2, 3)), rtol=1e-4)
    with torch.no_grad():
        alone = model(add_noise(x0, noise, now), now)
    assert not torch.allclose(alone, predicted, rtol=1e-2)  # the connections do something


def test_a_recipe_says_how_far_back_training_looks():
    """The objective's first pass is at t + cache_dt."""
    seen = []
    model = connected("weights=learned-scale connections=tbs:cache_dt=20")
    model.register_forward_pre_hook(lambda module, args: seen.append(args[1].tolist()))
    x0, t = data.normalize(some(2)), torch.tensor([3, 990])
    Objective()(model, x0, torch.randn(x0.shape), t)
    assert seen == [[23, 999], [3, 990]]
    near, far = neighbour(model, x0, x0, t, cache_dt=20), neighbour(model, x0, x0, t)
    assert all(torch.equal(near[site], far[site]) for site in near)


@pytest.mark.parametrize("dt", [0, -1])
def test_a_stride_that_is_none_is_refused(dt):
    with pytest.raises(ValueError, match=f"cache_dt must be at least 1 timestep, got {dt}"):
        connected(f"weights=learned-scale connections=tbs:cache_dt={dt}")


@pytest.fixture
def protocol(home):
    return Protocol(JudgeSpec("digits", 100, 1), (), reference=200, held_out=150)


def test_it_is_measured_with_the_statistics_that_samples_are_drawn_with(protocol):
    run = Run(dataset="digits", net="unet", width=4, steps=6, batch=32, precision="float32")
    ended, anew = (evaluate("denoising", Samples(run, SampleSpec("ddim", 5, 4, reestimated=new)), protocol)
                   for new in (False, True))
    for found in (ended, anew):
        loss = found.estimates["held_out_loss"]
        assert loss.low < loss.value < loss.high and loss.n == 150
        assert loss.value == pytest.approx(found.arrays["losses"].mean())
        assert found.arrays["timesteps"].tolist() == list(LEVELS)
    assert ended.estimates["held_out_loss"].value != anew.estimates["held_out_loss"].value
