"""The forward process and the loss of DDPM against float64 numpy and hand computation."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from onebit.diffusion import SCHEDULE, TIMESTEPS, NoiseSchedule, add_noise, image_losses, noise_loss, predict


def alpha_bars():
    """prod (1 - beta_s) by a plain float64 loop."""
    out, product = [], 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        out.append(product)
    return np.array(out)


def images(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_betas_rise_linearly_from_1e_4_to_0_02_in_a_thousand_steps():
    """DDPM section 4."""
    assert TIMESTEPS == SCHEDULE.timesteps == 1000
    np.testing.assert_allclose(SCHEDULE.beta.numpy(), np.linspace(1e-4, 0.02, 1000), rtol=1e-13)


def test_alpha_bar_is_the_float64_product_of_one_minus_beta():
    """DDPM Eq. 4.  A float32 product is off by far more than 1e-12, so this also shows the precision."""
    np.testing.assert_allclose(SCHEDULE.alpha_bar.numpy(), alpha_bars(), rtol=1e-12)
    single = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000, dtype=np.float32), dtype=np.float32)
    assert np.abs(single / alpha_bars() - 1).max() > 1e-7


def test_almost_nothing_of_the_image_is_left_at_the_last_timestep():
    """log alpha_bar_T = sum log(1 - beta) = -10.1: a signal-to-noise ratio of 4e-5."""
    assert SCHEDULE.alpha_bar[-1].item() == pytest.approx(4.04e-5, rel=0.01)


def test_another_schedule_is_taken_from_its_own_numbers():
    schedule = NoiseSchedule(timesteps=3, beta_start=0.1, beta_end=0.3)
    np.testing.assert_allclose(schedule.alpha_bar.numpy(), [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7], rtol=1e-14)
    x0, noise = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert add_noise(x0, noise, torch.tensor([1]), schedule).item() == pytest.approx(math.sqrt(0.72), rel=1e-6)


def test_add_noise_by_hand_with_a_timestep_per_image():
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, pixel by pixel in numpy; both ends of the schedule."""
    x0, noise = images(4, 2, 3, 3, dtype=torch.float64), images(4, 2, 3, 3, seed=1, dtype=torch.float64)
    timestep = [0, 999, 500, 1]
    want = np.empty((4, 2, 3, 3))
    for i, t in enumerate(timestep):
        a = alpha_bars()[t]
        want[i] = math.sqrt(a) * x0[i].numpy() + math.sqrt(1 - a) * noise[i].numpy()
    np.testing.assert_allclose(add_noise(x0, noise, torch.tensor(timestep), SCHEDULE).numpy(), want, rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_add_noise_keeps_the_dtype_of_the_images(dtype):
    """The float64 table must not lift a float32 batch to float64."""
    x0, noise = images(2, 1, 4, 4, dtype=torch.float64), images(2, 1, 4, 4, seed=1, dtype=torch.float64)
    t = torch.tensor([3, 700])
    noisy = add_noise(x0.to(dtype), noise.to(dtype), t)
    assert noisy.dtype == dtype
    torch.testing.assert_close(noisy.double(), add_noise(x0, noise, t), atol=8 * torch.finfo(dtype).eps, rtol=0)


@pytest.mark.parametrize(("dtype", "timestep", "message"), [
    (torch.uint8, [0, 10], r"x0 must be floating-point .*got torch\.uint8; data\.normalize"),
    (torch.float32, [-1, 10], r"timestep must be in 0\.\.999, got -1\.\.10"),
    (torch.float32, [5, 1000], r"timestep must be in 0\.\.999, got 5\.\.1000"),
])
def test_grey_levels_and_timesteps_that_there_are_not_are_refused(dtype, timestep, message):
    """Their factors would be rounded to 0, and -1 counted from the end."""
    x0 = torch.ones(2, 1, 4, 4, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        add_noise(x0, torch.zeros(2, 1, 4, 4), torch.tensor(timestep))


def test_noisy_images_keep_unit_variance():
    """Variance-preserving: alpha_bar + (1 - alpha_bar) = 1 for data of unit variance, at every t."""
    x0, noise = images(20, 1, 64, 64), images(20, 1, 64, 64, seed=1)
    timestep = torch.linspace(0, 999, 20).long()
    variance = add_noise(x0, noise, timestep).flatten(1).var(dim=1)
    torch.testing.assert_close(variance, torch.ones(20), atol=0.1, rtol=0)


class Predicts(nn.Module):
    """A "model" that returns what it is told, and remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, timestep):
        self.asked = (x, timestep)
        return self.answer


def test_the_loss_of_an_oracle_that_returns_the_noise_is_zero():
    x0, noise, t = images(3, 1, 4, 4), images(3, 1, 4, 4, seed=1), torch.tensor([0, 400, 999])
    assert noise_loss(Predicts(noise), x0, noise, t).item() == 0.0


def test_the_model_is_asked_about_the_noisy_image_and_its_timestep():
    x0, noise, t = images(2, 1, 4, 4), images(2, 1, 4, 4, seed=1), torch.tensor([10, 990])
    model = Predicts(noise)
    noise_loss(model, x0, noise, t)
    asked, timestep = model.asked
    assert torch.equal(timestep, t)
    a = torch.from_numpy(alpha_bars())[t][:, None, None, None]
    torch.testing.assert_close(asked.double(), a.sqrt() * x0 + (1 - a).sqrt() * noise, atol=1e-6, rtol=0)


def test_the_loss_is_the_mean_square_over_pixels_and_batch():
    """DDPM Eq. 14 by hand: errors 1, 2, 3, 4 on the four pixels of two images; (1 + 4 + 9 + 16) / 4 = 7.5."""
    noise = torch.zeros(2, 1, 1, 2)
    answer = torch.tensor([1.0, -2.0, 3.0, -4.0]).reshape(2, 1, 1, 2)
    assert noise_loss(Predicts(answer), torch.zeros(2, 1, 1, 2), noise, torch.tensor([5, 6])).item() == 7.5


def test_the_loss_is_float32_even_if_the_model_answers_in_bfloat16():
    """1.0 + 2^-9 is no bfloat16 number: subtracting before the cast would lose it."""
    noise = torch.full((1, 1, 1, 1), 1 + 2**-9)
    loss = noise_loss(Predicts(torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)), noise, noise, torch.tensor([0]))
    assert loss.dtype == torch.float32 and loss.item() == 2.0**-18


def test_the_gradient_of_the_loss_is_twice_the_error_over_the_number_of_pixels():
    answer = torch.tensor([1.0, -2.0, 3.0, -4.0]).reshape(2, 1, 1, 2).requires_grad_()
    noise_loss(Predicts(answer), torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2), torch.tensor([5, 6])).backward()
    assert answer.grad.flatten().tolist() == [0.5, -1.0, 1.5, -2.0]


def test_an_output_that_holds_the_noise_as_its_sample_is_taken_like_the_noise():
    """As diffusers' networks answer."""
    x0, noise, t = images(2, 1, 4, 4), images(2, 1, 4, 4, seed=1), torch.tensor([10, 990])
    answer = images(2, 1, 4, 4, seed=2, dtype=torch.bfloat16)
    bare, wrapped = Predicts(answer), Predicts(SimpleNamespace(sample=answer))
    assert torch.equal(predict(wrapped, x0, t), answer.float())
    for loss in (noise_loss, image_losses):
        assert torch.equal(loss(wrapped, x0, noise, t), loss(bare, x0, noise, t))


@pytest.mark.parametrize(("answer", "got"), [
    (torch.zeros(2, 2, 4, 4), r"\(2, 2, 4, 4\)"), (SimpleNamespace(sample=torch.zeros(2, 2, 4, 4)), r"\(2, 2, 4, 4\)"),
    ((torch.zeros(2, 1, 4, 4),), "a tuple"), ({"sample": torch.zeros(2, 1, 4, 4)}, "a dict"),
])
def test_an_output_that_is_not_the_noise_is_refused(answer, got):
    """Twice the channels, for a learned variance, would be broadcast in a loss and in a sampler's last step."""
    x0, t = images(2, 1, 4, 4), torch.tensor([10, 990])
    for use in (lambda net: predict(net, x0, t), lambda net: noise_loss(net, x0, x0, t)):
        with pytest.raises(ValueError, match=rf"Predicts must put out the noise .*\(2, 1, 4, 4\).* puts out {got}"):
            use(Predicts(answer))


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 8), (3, 3, 2, 4, 4)])
def test_every_sample_gets_its_own_noise_level_however_many_axes_it_has(shape):
    """Three samples of three channels, at which a level on the wrong axis would broadcast without an error."""
    x0, noise, t = torch.randn(shape), torch.randn(shape), torch.tensor([0, 500, 999])
    alone = torch.cat([add_noise(x0[i : i + 1], noise[i : i + 1], t[i : i + 1]) for i in range(3)])
    assert torch.equal(add_noise(x0, noise, t), alone)
    a = SCHEDULE.alpha_bar[500].double().item()
    by_hand = math.sqrt(a) * x0[1].double() + math.sqrt(1 - a) * noise[1].double()
    torch.testing.assert_close(alone[1].double(), by_hand, rtol=1e-6, atol=1e-6)
