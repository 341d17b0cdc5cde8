"""Samplers against float64 implementations of the papers' equations; images that depend on nothing else."""

import copy
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from onebit import nets, sampling
from onebit.diffusion import SCHEDULE, noise_loss
from onebit.errors import Diverged
from onebit.objective import Objective
from onebit.recipes import quantize
from onebit.sampling import SAMPLERS, generators, sample, scheduler
from onebit.train import Settings, train

SHAPE = (1, 4, 4)
BETA = np.linspace(1e-4, 0.02, 1000)
ALPHA_BAR = np.cumprod(1 - BETA)


class Toy(nn.Module):
    """The exact noise predictor of Gaussian data, sd 0.4, plus a bend that no sampler treats exactly."""

    def __init__(self, variance=0.16):
        super().__init__()
        self.variance = nn.Parameter(torch.tensor(variance))

    def forward(self, x, timestep):
        bar = torch.from_numpy(ALPHA_BAR)[timestep].to(x.dtype)[:, None, None, None]
        exact = (1 - bar).sqrt() * x / (bar * self.variance + 1 - bar)
        return exact + 0.3 * bar.sqrt() * (1 - bar).sqrt() * torch.sin(2 * x)


def eps(x, t, variance=0.16):
    bar = ALPHA_BAR[t]
    return np.sqrt(1 - bar) * x / (bar * variance + 1 - bar) + 0.3 * np.sqrt(bar * (1 - bar)) * np.sin(2 * x)


def draws(seed, index, n):
    """The first n standard normal images of one image's own generator, as float64."""
    (generator,) = generators(seed, [index])
    return [torch.randn(SHAPE, generator=generator).double().numpy() for _ in range(n)]


def grid(steps):
    """Trailing spacing: T-1, T-1-c, ..., c-1 for c = T / steps."""
    return np.arange(1000, 0, -1000 / steps).round().astype(int) - 1


def ddpm(steps, seed, index):
    """DDPM (arXiv:2006.11239) Alg. 2 with sigma_t^2 = beta_t; needs the full grid, where t - 1 follows t."""
    noise = draws(seed, index, steps)
    x = noise[0]
    for i, t in enumerate(range(999, -1, -1)):
        z = noise[i + 1] if t else 0.0
        x = (x - BETA[t] / np.sqrt(1 - ALPHA_BAR[t]) * eps(x, t)) / np.sqrt(1 - BETA[t]) + np.sqrt(BETA[t]) * z
    return x


def ddim(steps, seed, index):
    """DDIM (arXiv:2010.02502) Eq. 12 with eta = 0; alpha_bar = 1 after the last step."""
    (x,), ts = draws(seed, index, 1), grid(steps)
    for i, t in enumerate(ts):
        after = ALPHA_BAR[ts[i + 1]] if i + 1 < len(ts) else 1.0
        e = eps(x, t)
        x0 = (x - np.sqrt(1 - ALPHA_BAR[t]) * e) / np.sqrt(ALPHA_BAR[t])
        x = np.sqrt(after) * x0 + np.sqrt(1 - after) * e
    return x


def ddim_eta1(steps, seed, index):
    """DDIM Eq. 12 with the sigma of Eq. 16 at eta = 1: fresh noise in every step but the last, where sigma is 0."""
    noise, ts = draws(seed, index, steps), grid(steps)
    x, bar = noise[0], [*ALPHA_BAR[ts], 1.0]
    for i, t in enumerate(ts):
        sigma = np.sqrt((1 - bar[i + 1]) / (1 - bar[i])) * np.sqrt(1 - bar[i] / bar[i + 1])
        e = eps(x, t)
        x0 = (x - np.sqrt(1 - bar[i]) * e) / np.sqrt(bar[i])
        x = np.sqrt(bar[i + 1]) * x0 + np.sqrt(np.maximum(1 - bar[i + 1] - sigma**2, 0)) * e
        x = x + (sigma * noise[i + 1] if i + 1 < steps else 0.0)
    return x


def transfer(x, e, t, s):
    """phi of PNDM (arXiv:2202.09778) Eq. 11: from alpha_bar t to alpha_bar s."""
    factor = (s - t) / (np.sqrt(t) * (np.sqrt((1 - s) * t) + np.sqrt((1 - t) * s)))
    return np.sqrt(s / t) * x - factor * e


def pndm(steps, seed, index):
    """PLMS: Adams-Bashforth on eps (Eq. 12), started by one Heun-like repetition of the first step."""
    (x,), ts = draws(seed, index, 1), grid(steps)
    bar = [*ALPHA_BAR[ts], 1.0]
    first = eps(x, ts[0])
    guess = transfer(x, first, bar[0], bar[1])
    x = transfer(x, (first + eps(guess, ts[1])) / 2, bar[0], bar[1])
    history = [first]
    for i in range(1, steps):
        history.append(eps(x, ts[i]))
        weights = {2: [3, -1], 3: [23, -16, 5]}.get(len(history), [55, -59, 37, -9])
        e = sum(w * h for w, h in zip(weights, history[::-1], strict=False)) / sum(weights)
        x = transfer(x, e, bar[i], bar[i + 1])
    return x


def dpm_solver(steps, seed, index):
    """DPM-Solver++(2M) (arXiv:2211.01095) Alg. 2, its first and last step of first order, sigma = 0 at the end."""
    (x,), ts = draws(seed, index, 1), grid(steps)
    alpha, sigma = np.sqrt(ALPHA_BAR[ts]), np.sqrt(1 - ALPHA_BAR[ts])
    lam = np.log(alpha / sigma)
    before = None
    for i, t in enumerate(ts):
        x0 = (x - sigma[i] * eps(x, t)) / alpha[i]
        if i + 1 == len(ts):
            return x0  # alpha = 1, sigma = 0: the first-order step lands on the prediction
        h, data = lam[i + 1] - lam[i], x0
        if before is not None:
            r = (lam[i] - lam[i - 1]) / h
            data = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h) * data
        before = x0
    return x


def sde_dpm_solver(steps, seed, index):
    """SDE-DPM-Solver++(2M) (arXiv:2211.01095 Sec. 6): the exact solution of the SDE for a prediction of x0 that is
    constant over a step and extrapolated from the last two; of first order at either end, sigma = 0 at the last."""
    noise, ts = draws(seed, index, steps), grid(steps)
    alpha, sigma = np.sqrt(ALPHA_BAR[ts]), np.sqrt(1 - ALPHA_BAR[ts])
    lam = np.log(alpha / sigma)
    x, before = noise[0], None
    for i, t in enumerate(ts):
        x0 = (x - sigma[i] * eps(x, t)) / alpha[i]
        if i + 1 == len(ts):
            return x0
        h, data = lam[i + 1] - lam[i], x0
        if before is not None:
            data = x0 + (x0 - before) * h / (2 * (lam[i] - lam[i - 1]))
        decay = np.exp(-2 * h)
        x = sigma[i + 1] / sigma[i] * np.exp(-h) * x + alpha[i + 1] * (1 - decay) * data
        x = x + sigma[i + 1] * np.sqrt(1 - decay) * noise[i + 1]
        before = x0
    return x


@pytest.mark.parametrize(("name", "oracle", "steps"), [
    ("ddpm", ddpm, 1000), ("ddim", ddim, 50), ("ddim", ddim, 8), ("pndm", pndm, 20), ("dpm-solver++", dpm_solver, 12),
    ("dpm-solver++", dpm_solver, 20), ("sde-dpm-solver++", sde_dpm_solver, 12),
    ("sde-dpm-solver++", sde_dpm_solver, 20), ("ddim-eta1", ddim_eta1, 50), ("ddim-eta1", ddim_eta1, 8),
])
def test_a_whole_trajectory_follows_the_papers_equations(name, oracle, steps):
    got = sample(Toy(), [3, 8], shape=SHAPE, sampler=name, steps=steps, seed=5).double().numpy()
    for row, index in zip(got, (3, 8), strict=True):
        expected = oracle(steps, 5, index)
        assert (np.abs(expected) < 1).mean() > 0.5, "clamped nearly everywhere: nothing would be compared"
        np.testing.assert_allclose(row, expected.clip(-1, 1), atol=2e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_grid_starts_where_training_ended(name):
    steps = 1000 if name == "ddpm" else 10
    visited = scheduler(name, steps).timesteps
    assert visited[0] == 999
    assert len(visited) == steps + (name == "pndm")


def test_the_noise_schedule_is_ours_in_every_scheduler():
    for name in SAMPLERS:
        np.testing.assert_allclose(scheduler(name, 10).alphas_cumprod.double().numpy(), ALPHA_BAR, rtol=2e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_is_the_same_alone_and_in_any_batch(name):
    torch.manual_seed(0)
    model = nets.build("unet", 4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))  # its zero-initialised layers would hide a leak between images
    options = dict(shape=(1, 16, 16), sampler=name, steps=5, seed=2)
    together = sample(model, 7, batch=7, **options)
    for batch in (1, 3):
        torch.testing.assert_close(sample(model, 7, batch=batch, **options), together, atol=1e-4, rtol=0)
    torch.testing.assert_close(sample(model, [5], **options)[0], together[5], atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_all_models_start_from_the_same_noise_and_seeds_differ():
    seen = []

    class Spy(Toy):
        def forward(self, x, timestep):
            seen.append(x.clone())
            return super().forward(x, timestep)

    for variance, seed in ((0.1, 0), (0.9, 0), (0.1, 1)):
        sample(Spy(variance), 2, shape=SHAPE, sampler="ddim", steps=1, seed=seed)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    torch.testing.assert_close(seen[0][1].double().numpy(), draws(0, 1, 1)[0])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_evaluated_in_eval_mode_and_given_back_as_it_was(training):
    class Mode(Toy):
        def forward(self, x, timestep):
            assert not self.training
            if timestep[0] < 500:
                raise RuntimeError("boom")
            return super().forward(x, timestep)

    model = Mode().train(training)
    sample(model, 1, shape=SHAPE, sampler="ddim", steps=1)
    assert model.training is training
    with pytest.raises(RuntimeError, match="boom"):
        sample(model, 1, shape=SHAPE, sampler="ddim", steps=4)
    assert model.training is training


@pytest.mark.parametrize(("options", "message"), [
    ({"sampler": "euler"}, "dpm-solver"), ({"steps": 0}, "1..1000"), ({"steps": 1001}, "1..1000"),
    ({"steps": 2.5}, "whole number in 1..1000, got 2.5"), ({"sampler": "ddim", "steps": 7}, "divide 1000"),
    ({"sampler": "pndm", "steps": 30}, "divide 1000"),
    ({"batch": 0}, "batch must be a whole number of at least 1 image, or None"),
    ({"batch": -5}, "batch must be .* got -5"),
    ({"shape": (28, 28)}, r"shape must be \(C, H, W\), .*such as \(1, 28, 28\), got \(28, 28\)"),
    ({"shape": (1, 0, 28)}, "three positive sizes"),
    ({"precision": "half"}, "float32.*bfloat16"),
    ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
])
def test_bad_requests_name_what_is_valid(options, message):
    with pytest.raises(ValueError, match=message):
        sample(Toy(), 1, **{"shape": SHAPE, **options})


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float64, 1e-5), (torch.float16, 0.02), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("recipe", ["fp16", "strict-1bit", "binarydm-w1a32"])
@pytest.mark.parametrize("net", ["unet", "resunet"])
def test_a_network_of_another_precision_is_trained_and_sampled_in_its_own(net, recipe, dtype, apart):
    """Its losses are float32's up to its own rounding, which of random weights grows little over two steps."""
    torch.manual_seed(0)
    model = nets.build(net, 4)
    quantize(model, recipe)
    other = copy.deepcopy(model).to(dtype)
    x0, noise, t = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8), torch.tensor([0, 300, 700, 999])
    ours, theirs = noise_loss(model, x0, noise, t), noise_loss(other, x0, noise, t)
    theirs.backward()
    assert theirs.dtype == torch.float32 and {p.grad.dtype for p in other.parameters() if p.grad is not None} == {dtype}
    assert abs(ours - theirs) < apart
    how = {"shape": (1, 8, 8), "sampler": "ddim", "steps": 2}
    drawn = [sample(network, [torch.tensor(3), 5], **how) for network in (model, other)]
    assert drawn[1].dtype == torch.float32 and (drawn[0] - drawn[1]).abs().mean() < apart


@pytest.mark.parametrize("threads", [1, 2])
def test_in_bfloat16_layers_are_rounded_and_the_sampler_is_not(threads, one_thread):
    """As the textbook loop that calls the network under autocast and keeps x in float32."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 1, 3, padding=1)).eval()

    class Timeless(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.seen = model, []

        def forward(self, x, timestep):
            return self.layers(x)

    drawn = {precision: sample(Timeless(), 16, shape=SHAPE, sampler="ddim", steps=5, precision=precision)
             for precision in ("float32", "bfloat16")}
    x = torch.stack([torch.randn(SHAPE, generator=g) for g in generators(0, range(16))])
    alpha_bar = [*SCHEDULE.alpha_bar[[999, 799, 599, 399, 199]].tolist(), 1.0]
    for now, after in itertools.pairwise(alpha_bar):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            noise = model(x)
        assert noise.dtype == torch.bfloat16
        x0 = (x - (1 - now) ** 0.5 * noise.float()) / now**0.5
        x = after**0.5 * x0 + (1 - after) ** 0.5 * noise.float()
    apart = (drawn["bfloat16"] - x.clamp(-1, 1)).abs()
    assert apart.median() < 1e-5 and apart.mean() < 0.1 * (drawn["float32"] - drawn["bfloat16"]).abs().mean()


def test_the_default_is_the_cheapest_sampler_that_does_as_well_as_the_published_one():
    how = {"shape": SHAPE, "seed": 4}
    assert torch.equal(sample(Toy(), 3, **how), sample(Toy(), 3, sampler="sde-dpm-solver++", steps=20, **how))


def test_a_count_out_of_numpy_is_a_count():
    counted, again = (sample(Toy(), n, shape=SHAPE, sampler="ddim", steps=1) for n in (3, np.int64(3)))
    assert torch.equal(counted, again)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_that_is_not_finite_is_no_black_one(name, bad):
    class Broken(Toy):
        def forward(self, x, timestep):
            noise = super().forward(x, timestep)
            noise[1:, 0, 2, 2] = bad
            return noise

    with pytest.raises(Diverged, match="1 of 2 samples hold NaN or infinity, image 7 first"):
        sample(Broken(), [4, 7], shape=SHAPE, sampler=name, steps=2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_network_that_predicts_a_variance_too_is_refused(name):
    class Both(Toy):
        def forward(self, x, timestep):
            return super().forward(x, timestep).repeat(1, 2, 1, 1)

    with pytest.raises(ValueError, match="Both must put out the noise"):
        sample(Both(), 2, shape=SHAPE, sampler=name, steps=1)


def test_an_error_in_one_thread_ends_the_others_and_gives_the_threads_back():
    before, calls = torch.get_num_threads(), []

    class Fails(Toy):
        def forward(self, x, timestep):
            calls.append(len(x))
            raise RuntimeError("boom")

    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="boom"):
            sample(Fails(), 100, shape=SHAPE, sampler="ddim", steps=1, batch=1)
        assert torch.get_num_threads() == 2 and len(calls) < 100
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("n", "threads", "sizes"), [
    (250, 1, [63, 63, 63, 61]), (250, 2, [63, 63, 63, 61]), (10, 2, [5, 5]), (8, 2, [8]), (130, 3, [44, 44, 42]),
    (2_000, 64, [63] * 31 + [47]),
])
def test_batches_come_out_even_over_the_threads(n, threads, sizes, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    workers = sampling._workers(Toy(), n)
    batch = sampling._batch(Toy(), n, workers)
    assert [min(batch, n - i) for i in range(0, n, batch)] == sizes and workers <= min(threads, sampling.WORKERS)


@pytest.mark.parametrize("indices", [0, [], [-1], [2.5], 2.5])
def test_a_request_of_no_images_or_of_no_numbers_is_refused(indices):
    with pytest.raises(ValueError, match="image numbers"):
        sample(Toy(), indices, shape=SHAPE, sampler="ddim")


@pytest.mark.parametrize(("name", "steps"), [("ddpm", 1000), ("ddim", 50), ("ddim-eta1", 50), ("pndm", 1),
                                             ("dpm-solver++", 1)])
def test_the_last_step_lands_on_the_implied_image_however_bright_it_is(name, steps):
    """alpha_bar = 1 after the last step, so x is the implied x0 = 4, unclipped (DDIM Eq. 9)."""
    made = scheduler(name, steps)
    bar = ALPHA_BAR[int(made.timesteps[-1])]
    noise = torch.full((1, *SHAPE), 0.5)
    x = np.sqrt(bar) * 4 + np.sqrt(1 - bar) * noise
    torch.testing.assert_close(made.step(noise, made.timesteps[-1], x).prev_sample, torch.full_like(x, 4.0), rtol=1e-4,
                               atol=0)


@pytest.mark.parametrize("steps", [10, 100])
def test_ancestral_sampling_on_a_short_grid_adds_no_noise_in_its_last_step(steps):
    """DDPM Alg. 2 with alpha_t = alpha_bar_t / alpha_bar_s for the next timestep s; z = 0 in the last step."""
    noise, ts = draws(5, 3, steps), grid(steps)
    x, bar = noise[0], [*ALPHA_BAR[ts], 1.0]
    for i, t in enumerate(ts):
        alpha = bar[i] / bar[i + 1]
        z = noise[i + 1] if i + 1 < steps else 0.0
        x = (x - (1 - alpha) / np.sqrt(1 - bar[i]) * eps(x, t)) / np.sqrt(alpha) + np.sqrt(1 - alpha) * z
    got = sample(Toy(), [3], shape=SHAPE, sampler="ddpm", steps=steps, seed=5)[0].double().numpy()
    np.testing.assert_allclose(got, x.clip(-1, 1), atol=2e-4)


@pytest.mark.parametrize("name", [
    "ddim",
    "ddim-eta1",
    "pndm",
    "ddpm",
    "dpm-solver++",
])
def test_every_number_of_steps_is_refused_or_has_a_sound_grid(name):
    """From T-1 down to a timestep >= 0, as many distinct ones as asked for; PLMS visits its second one twice."""
    for steps in range(1, 1001):
        try:
            visited = scheduler(name, steps).timesteps.tolist()
        except ValueError:
            continue
        assert visited[0] == 999 and min(visited) >= 0 and len(set(visited)) == steps, f"{steps} steps"
        twice = [t for t, n in Counter(visited).items() if n > 1]
        assert twice == (visited[1:2] if name == "pndm" else []), f"{steps} steps"


def test_no_two_seeds_share_an_image():
    """Seed 0's image 1 must not be seed 1's image 0, as it would be if the two numbers were added."""
    first = {(seed, i): draws(seed, i, 1)[0].tobytes() for seed in range(6) for i in range(6)}
    assert len(set(first.values())) == 36


def test_the_noise_of_an_image_is_pinned():
    """Another derivation of the generators means other pictures for every seed: it must not change unnoticed."""
    word = int(np.random.SeedSequence([5, 3]).generate_state(1, np.uint64)[0]) % 2**63
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(word))
    np.testing.assert_array_equal(draws(5, 3, 1)[0], expected.double().numpy())


@pytest.mark.parametrize("recipe", ["strict-1bit", "bidm-w1a1"])
def test_a_quantized_network_of_diffusers_is_trained_and_sampled(recipe, tmp_path, images):
    """Its output is an object; samples do not depend on the batch, to rounding."""
    torch.manual_seed(0)
    model = UNet2DModel(sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16),
                        norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"),
                        up_block_types=("UpBlock2D", "UpBlock2D"))
    quantize(model, recipe, (torch.randn(2, 1, 16, 16), torch.tensor([3, 700])))
    settings = Settings(steps=3, batch=8, ema=0.9, precision="float32")
    train(model, images, settings, tmp_path, progress=False, objective=Objective())
    one, two = (sample(model, 2, shape=(1, 16, 16), sampler="ddim", steps=4, batch=batch) for batch in (1, 2))
    assert one.isfinite().all() and one.std() > 0
    torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


# entered halfway -----------------------------------------------------------------------------------------------------


def gaussian_start(n=2):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1))


def watching():
    model, seen = Toy(), []
    model.register_forward_pre_hook(lambda module, args: seen.append((args[0].clone(), int(args[1][0]))))
    return model, seen


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddim-eta1"])
def test_the_last_steps_alone_are_those_of_the_whole_trajectory(name):
    """Handed x_t as the whole trajectory had it, the rest of it follows; with noise on the way, up to that noise."""
    model, seen = watching()
    options = dict(shape=SHAPE, sampler=name, steps=10, seed=5)
    whole = sampling.sample_batch(model, [3, 8], SHAPE, name, 10, 5)
    assert [t for _, t in seen] == grid(10).tolist()
    x, _ = seen[6]
    again = sample(Toy(), [3, 8], start=x, remaining=4, **options)
    assert torch.allclose(again, whole, atol=1e-5) == (name == "ddim")
    model, seen = watching()
    sampling.sample_batch(model, [3, 8], SHAPE, name, 10, 5, start=x, remaining=4)
    assert [visited for _, visited in seen] == grid(10)[-4:].tolist() and torch.equal(seen[0][0], x)


def test_a_start_of_a_stochastic_sampler_leaves_its_noise_to_the_image():
    start = gaussian_start()
    one, same, other = (sample(Toy(), n, shape=SHAPE, sampler="ddim-eta1", steps=10, seed=seed, start=start)
                        for n, seed in (([3, 8], 5), ([3, 8], 5), ([3, 8], 6)))
    assert torch.equal(one, same) and not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(("options", "message"), [
    ({"remaining": 0}, "1..steps = 1..10, got 0"), ({"remaining": 11}, "got 11"),
    ({"start": None}, "needs a start"),
    ({"sampler": "pndm"}, "pndm cannot be entered halfway"), ({"sampler": "dpm-solver++"}, "cannot be entered halfway"),
])
def test_steps_that_cannot_be_taken_alone_are_refused(options, message):
    asked = dict(shape=SHAPE, sampler="ddim", steps=10, start=gaussian_start(), remaining=2) | options
    with pytest.raises(ValueError, match=message):
        sample(Toy(), 2, **asked)


def test_the_noise_does_not_depend_on_the_default_dtype():
    net = nets.build("unet", 4).eval()
    expected = sample(net, 2, shape=(1, 16, 16), sampler="ddim", steps=2)
    torch.set_default_dtype(torch.float64)
    try:
        found = sample(net, 2, shape=(1, 16, 16), sampler="ddim", steps=2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"shape": (1, 8.0, 8)}, "three positive sizes"), ({"seed": 1.5}, "seed must be a whole number"),
    ({"batch": 1.5}, "batch must be a whole number"), ({"remaining": 1.5}, "remaining must be in 1..steps"),
    ({"start": np.zeros((1, 1, 8, 8), dtype=np.float32)}, "torch.from_numpy makes one")])
def test_numbers_and_starts_of_another_kind_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        sample(nets.build("unet", 4), 1, **{"shape": (1, 8, 8), "sampler": "ddim", "steps": 2} | wrong)
