"""Handing a network real images halfway: what it gets, what it makes of them, and what is measured."""

import numpy as np
import pytest
import torch
from torch import nn

from onebit import data, metrics, sampling
from onebit.judge import look
from onebit.metrics import Gaussian
from onebit.study import JudgeSpec, Protocol, Run, Samples, SampleSpec, judging
from onebit.study.ablations import FINISHING, finishing
from onebit.study.evaluation import evaluate, real_features
from onebit.study.study import Study
from onebit.study.trajectories import finish

ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1_000))  # DDPM's schedule
RUN = Run(dataset="digits", net="unet", width=4, steps=6, batch=32, precision="float32")
SAMPLERS = ("ddim", "ddim-eta1")


class Knows(nn.Module):
    """The true noise of one image, whatever was added: both samplers must end at that image."""

    def __init__(self, image):
        super().__init__()
        self.x0 = nn.Parameter(data.normalize(image))
        self.seen = []

    def forward(self, x, timestep):
        self.seen.append((x.detach().clone(), int(timestep[0])))
        bar = torch.from_numpy(ALPHA_BAR)[timestep].to(x.dtype)[:, None, None, None]
        return (x - bar.sqrt() * self.x0) / (1 - bar).sqrt()


def some(n):
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def source(sampler="ddim", steps=10):
    return Samples(RUN, SampleSpec(sampler, steps, 4, reestimated=True))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("left", [1, 4, 10])
def test_who_knows_the_noise_gives_the_image_back(sampler, left):
    image = some(1)
    model = Knows(image)
    made = finish(model, image.repeat(3, 1, 1, 1), source(sampler), left)
    assert made.dtype == torch.uint8 and (made.int() - image.int()).abs().max() <= 1


def test_it_gets_the_images_noised_to_the_first_of_its_timesteps(monkeypatch):
    """sqrt(a) x0 + sqrt(1 - a) eps, eps being what the image of that number would have started from."""
    given = {}
    made = torch.zeros(3, 1, 8, 8)
    monkeypatch.setattr(sampling, "sample", lambda model, n, **asked: given.update(asked, n=n) or made)
    images = some(3)
    finish(nn.Identity(), images, source("ddim-eta1"), 4)
    bar = ALPHA_BAR[399]  # 999, 899, ...: four steps are left at 399
    noise = torch.stack([torch.randn(1, 8, 8, generator=g) for g in sampling.generators(0, range(3))])
    expected = np.sqrt(bar) * (images.double().numpy() / 127.5 - 1) + np.sqrt(1 - bar) * noise.double().numpy()
    np.testing.assert_allclose(given["start"], expected, rtol=1e-5, atol=1e-5)
    assert (given["n"], given["sampler"], given["steps"], given["remaining"]) == (3, "ddim-eta1", 10, 4)
    assert given["seed"] != 0  # or the first noise on the way would be eps once more


@pytest.fixture
def protocol(home):
    return Protocol(JudgeSpec("digits", 200, 2), (), reference=400, held_out=200)


def test_the_distance_is_measured_from_nothing_left_to_everything(protocol):
    found = evaluate("handover", source(), protocol)
    timesteps = [0, 99, 199, 399, 599, 799, 999]
    assert found.arrays["timesteps"].tolist() == timesteps
    assert list(found.estimates) == [f"frechet_from_{t}" for t in timesteps]
    assert found.arrays["frechet"].tolist() == [e.value for e in found.estimates.values()]
    images = data.load("digits", "test").draw(200).images
    features = look(judging.judge(protocol.judge), images)[0].numpy()
    real = Gaussian.fit(real_features(protocol.judge, "digits", 400))
    assert found.estimates["frechet_from_0"].value == pytest.approx(metrics.frechet(features, real).value, rel=1e-6)
    assert found.estimates["frechet_from_0"].value < found.estimates["frechet_from_999"].value  # 6 steps of training


def test_rows_finish_at_two_seeds_if_they_have_them_by_either_sampler_and_with_new_statistics():
    laptop = Study.named("laptop", "mnist")
    found = finishing(laptop)
    seeds = {(label, seed) for label in (*FINISHING, "GroupNorm float") for seed in (0, 1)
             if seed == 0 or not label.startswith("GroupNorm")}
    assert set(found) == {(*key, sampler) for key in seeds for sampler in SAMPLERS}
    for (label, seed, sampler), one in found.items():
        assert (one.request.sampler, one.request.reestimated, one.run.seed) == (sampler, True, seed)
        assert (one.run.net == "unet-group") == label.startswith("GroupNorm")
    assert found["GroupNorm float", 0, "ddim"].run.recipe == "fp16"
