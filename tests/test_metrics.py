"""Fréchet distance and the judge against closed forms, scipy's square root and hand computation."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onebit import metrics
from onebit.data import Dataset
from onebit.judge import FEATURES, Judge, accuracy, look, look_spatially, train_judge
from onebit.metrics import Gaussian, frechet, frechet_distance, kernel_scale, kid, manifold, vendi


def random_gaussian(dim, seed, rank=None):
    """A Gaussian whose covariance has the given rank, full by default."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(dim, rank or dim))
    return Gaussian(rng.normal(size=dim), factor @ factor.T, 1000)


def textbook(a, b):
    """FID Eq. 6 as usually coded: |m|^2 + tr(C_a + C_b - 2 sqrtm(C_a C_b))."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    return np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance) - 2 * np.trace(root).real


# Fréchet distance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 5, 32])
@pytest.mark.parametrize("seed", [0, 1])
def test_frechet_distance_is_the_textbook_form_with_scipys_matrix_root(dim, seed):
    a, b = random_gaussian(dim, seed), random_gaussian(dim, seed + 100)
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-7)


def test_frechet_distance_of_diagonal_gaussians_is_a_sum_over_coordinates():
    """Dowson & Landau 1982: |m|^2 + sum (sqrt(a_i) - sqrt(b_i))^2 = (1 + 4 + 0) + (1 + 9 + 4)."""
    a = Gaussian(np.array([0.0, 2.0, 5.0]), np.diag([1.0, 16.0, 0.0]), 10)
    b = Gaussian(np.array([1.0, 0.0, 5.0]), np.diag([4.0, 1.0, 4.0]), 10)
    assert frechet_distance(a, b) == pytest.approx(19.0, rel=1e-12)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.01, 9), st.floats(0.01, 9))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_frechet_distance_in_one_dimension_is_that_of_means_and_deviations(m, k, s, t):
    """N(m, s^2), N(k, t^2): (m - k)^2 + (s - t)^2."""
    a, b = (Gaussian(np.array([u]), np.array([[v * v]]), 10) for u, v in ((m, s), (k, t)))
    assert frechet_distance(a, b) == pytest.approx((m - k) ** 2 + (s - t) ** 2, rel=1e-9, abs=1e-9)


def test_frechet_distance_of_shifted_features_is_the_squared_shift():
    x = np.random.default_rng(0).normal(size=(200, 4))
    assert frechet_distance(Gaussian.fit(x), Gaussian.fit(x + np.array([3, 0, -4, 0]))) == pytest.approx(25.0, rel=1e-9)


def test_frechet_distance_to_itself_is_zero_and_it_is_symmetric():
    for seed in range(5):
        a, b = random_gaussian(16, seed), random_gaussian(16, seed + 50)
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * np.trace(a.covariance))
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
        assert frechet_distance(a, b) > 1


@pytest.mark.parametrize("metric", [
    lambda x, y: frechet(x, Gaussian.fit(y)), kid, manifold, lambda x, y: vendi(x, kernel_scale(y)),
])
@pytest.mark.parametrize("form", [torch.Tensor.bfloat16, torch.Tensor.half, torch.Tensor.requires_grad_])
def test_features_straight_out_of_a_network_are_taken(metric, form):
    x, y = (form(torch.randn(60, 4, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1))
    assert metric(x, y) == metric(x.detach().double().numpy(), y.detach().double().numpy())


@pytest.mark.parametrize("form", [torch.Tensor.bfloat16, torch.Tensor.requires_grad_])
def test_logits_straight_out_of_a_network_are_taken(form):
    labels = torch.arange(60) % 4
    logits = form(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(4)[labels])
    given = logits.detach().double().numpy()
    p = metrics.softmax(logits)
    assert np.array_equal(p, metrics.softmax(given))
    assert metrics.fit_temperature(logits, labels) == metrics.fit_temperature(given, labels.numpy())
    assert metrics.bootstrap(logits[:, 0], "") == metrics.bootstrap(given[:, 0], "")
    distances = np.abs(given[:, :2]).cumsum(1)
    assert metrics.distance_ratio(torch.tensor(distances, requires_grad=True)) == metrics.distance_ratio(distances)


def test_frechet_distance_of_rank_one_covariances_by_hand():
    """C_a = u u^T, C_b = v v^T: the cross term is |u.v|, so d = |u|^2 + |v|^2 - 2 |u.v| = 9 + 9 - 2 * 8."""
    u, v, zero = np.array([1.0, 2.0, 2.0]), np.array([2.0, 1.0, 2.0]), np.zeros(3)
    a, b = Gaussian(zero, np.outer(u, u), 10), Gaussian(zero, np.outer(v, -v) * -1, 10)
    assert frechet_distance(a, b) == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("ranks", [(2, 2), (1, 6), (3, 5)])
def test_frechet_distance_of_rank_deficient_covariances_stays_finite_and_symmetric(ranks):
    """Where sqrtm(C_a C_b) is a complex or failing root.  Limit of full rank: add 1e-12 I and compare."""
    a, b = random_gaussian(6, 0, ranks[0]), random_gaussian(6, 1, ranks[1])
    near_a, near_b = (Gaussian(g.mean, g.covariance + 1e-10 * np.eye(6), g.n) for g in (a, b))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(textbook(near_a, near_b), rel=1e-3)


def test_frechet_distance_to_a_point_is_the_mean_squared_distance():
    """C_b = 0: |m_a - m_b|^2 + tr C_a, the mean of |x - m_b|^2."""
    a = random_gaussian(4, 0)
    b = Gaussian(np.ones(4), np.zeros((4, 4)), 10)
    want = np.sum((a.mean - 1) ** 2) + np.trace(a.covariance)
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-12)


def test_frechet_distance_is_unchanged_by_a_rotation_and_quadratic_in_the_unit():
    a, b = random_gaussian(5, 0), random_gaussian(5, 1)
    turn = scipy.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0]
    turned, scaled = [], []
    for g in (a, b):
        turned.append(Gaussian(turn @ g.mean, turn @ g.covariance @ turn.T, g.n))
        scaled.append(Gaussian(3 * g.mean, 9 * g.covariance, g.n))
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(*scaled) == pytest.approx(9 * frechet_distance(a, b), rel=1e-9)


def test_fit_takes_the_mean_and_the_unbiased_covariance():
    """Four points by hand: deviations (-1, -1), (1, -1), (-1, 1), (1, 1) of (1, 2); sums 4 over N - 1 = 3."""
    g = Gaussian.fit([[0, 1], [2, 1], [0, 3], [2, 3]])
    assert g.mean.tolist() == [1.0, 2.0] and g.n == 4
    np.testing.assert_allclose(g.covariance, [[4 / 3, 0], [0, 4 / 3]], rtol=1e-15)


def test_fit_works_in_float64_whatever_it_is_given():
    """Float32 features around 10,000: their variance 1 is lost if it is computed in float32."""
    x = (np.random.default_rng(0).normal(size=(500, 3)) + 10_000).astype(np.float32)
    g = Gaussian.fit(torch.from_numpy(x))
    assert g.mean.dtype == g.covariance.dtype == np.float64
    np.testing.assert_allclose(g.covariance, np.cov(x.astype(np.float64).T), rtol=1e-9)


def test_fit_accepts_features_of_one_dimension():
    """The covariance of (N, 1) features is a 1 x 1 matrix: d = (1 - 11)^2 + (1 - 2)^2."""
    a, b = Gaussian.fit([[0.0], [1.0], [2.0]]), Gaussian.fit([[9.0], [11.0], [13.0]])
    assert a.covariance.shape == (1, 1)
    assert frechet_distance(a, b) == pytest.approx(101.0)


def test_gaussians_of_different_dimensions_have_no_distance():
    a, b = Gaussian(np.zeros(2), np.eye(2), 9), Gaussian(np.zeros(3), np.eye(3), 9)
    with pytest.raises(ValueError, match="need Gaussians of one dimension, got 2 and 3"):
        frechet_distance(a, b)


@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (0, 2), (4,), (4, 2, 1)])
def test_features_that_are_too_few_or_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"need features \(N, D\) with N > D, got \("):
        Gaussian.fit(np.ones(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(value):
    x = np.ones((5, 2))
    x[3, 1] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        Gaussian.fit(x)


# the judge -----------------------------------------------------------------------------------------------------------


def grey(n, size=16, seed=0):
    return torch.randint(0, 256, (n, 1, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture
def judge():
    torch.manual_seed(0)
    return Judge(16).eval()


@pytest.mark.parametrize(("size", "count"), [(28, 1_199_882), (16, 315_146)])
def test_the_judges_size_by_hand(size, count):
    """conv 1-32, conv 32-64 (3x3, no padding), pool by 2, fully connected to 128 and to 10, all with biases."""
    side = (size - 2 - 2) // 2
    by_hand = (9 * 32 + 32) + (9 * 32 * 64 + 64) + (64 * side * side * 128 + 128) + (128 * 10 + 10)
    assert sum(p.numel() for p in Judge(size).parameters()) == by_hand == count


def by_formula(judge, x):
    """Features and logits of x, as float64 matrix products on image patches."""

    def conv(layer, h):
        weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
        patches = h.unfold(2, 3, 1).unfold(3, 3, 1)  # (B, C, H-2, W-2, 3, 3)
        return torch.einsum("bchwij,ocij->bohw", patches, weight) + bias[:, None, None]

    h = conv(judge.conv2, conv(judge.conv1, x.double()).clamp(min=0)).clamp(min=0)
    h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)).reshape(len(x), -1)
    features = h @ judge.fc1.weight.detach().double().T + judge.fc1.bias.detach().double()
    return features, features.clamp(min=0) @ judge.fc2.weight.detach().double().T + judge.fc2.bias.detach().double()


def test_the_judge_computes_its_docstring_and_its_features_precede_the_relu(judge):
    """Source 000's features are the first fully connected layer's outputs before the ReLU: some are negative."""
    x = grey(3).float() / 127.5 - 1
    features, logits = by_formula(judge, x)
    with torch.no_grad():
        torch.testing.assert_close(judge.features(x).double(), features, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(judge(x).double(), logits, atol=1e-5, rtol=1e-4)
        assert torch.equal(judge(x), judge.classify(judge.features(x)))
    assert features.shape == (3, FEATURES) and (features < 0).any()


def test_look_gives_features_and_softmax_of_images_scaled_to_minus_one_and_one(judge):
    images = grey(5)
    features, logits = by_formula(judge, images.double() / 255 * 2 - 1)
    seen, probabilities = look(judge, images)
    torch.testing.assert_close(seen.double(), features, atol=1e-5, rtol=1e-4)
    exp = torch.exp(logits)
    torch.testing.assert_close(probabilities.double(), exp / exp.sum(1, keepdim=True), atol=1e-6, rtol=1e-4)
    assert seen.dtype == probabilities.dtype == torch.float32 and not probabilities.requires_grad


def test_spatial_features_are_the_pooled_maps_averaged_over_channels(judge):
    images = grey(3)
    with torch.no_grad():
        maps = judge.maps(images.float() / 127.5 - 1)
    assert maps.shape == (3, 64, 6, 6)
    torch.testing.assert_close(look_spatially(judge, images, batch=2), maps.sum(1).flatten(1) / 64)
    with pytest.raises(ValueError, match="need uint8 images"):
        look_spatially(judge, grey(2, size=28))


def test_look_does_not_depend_on_its_batch_size(judge):
    images = grey(7)
    for whole, parts in zip(look(judge, images), look(judge, images, batch=3), strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("images", [
    grey(2).float(), grey(2).long(), grey(2, size=28), grey(2)[:, 0], grey(2).expand(2, 3, 16, 16),
])
def test_images_the_judge_cannot_see_are_refused(judge, images):
    """Floats (which scale?), other integers, another size, no channel axis, three channels."""
    with pytest.raises(ValueError, match=r"need uint8 images \(N, 1, 16, 16\), got torch"):
        look(judge, images)


class FirstPixel(Judge):
    """Classifies an image by the grey level of its first pixel."""

    def __init__(self):
        super().__init__(16)

    def features(self, images):
        return ((images[:, 0, 0, 0] + 1) * 127.5)[:, None]

    def classify(self, features):
        return torch.nn.functional.one_hot(features[:, 0].round().long(), 10).float()


def test_accuracy_is_the_share_of_right_answers():
    """First pixels 3, 1, 4, 1, 5 against labels 3, 1, 4, 2, 6: three of five."""
    images = torch.zeros(5, 1, 16, 16, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([3, 1, 4, 1, 5])
    labels = torch.tensor([3, 1, 4, 2, 6])
    assert accuracy(FirstPixel(), Dataset("digits", "test", images, labels)) == pytest.approx(0.6, rel=1e-15)


def test_a_judge_is_a_function_of_its_seed_and_leaves_the_global_generator_alone():
    """Two trainings agree bit for bit; the caller's random stream goes on as if nothing had happened."""
    dataset = Dataset("digits", "train", grey(160), torch.arange(160) % 10)
    torch.manual_seed(5)
    untouched = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (train_judge(dataset, 1, seed, progress=False) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), untouched)
    assert torch.equal(first.fc1.weight, again.fc1.weight)
    assert not torch.equal(first.fc1.weight, other.fc1.weight)
    assert not first.training


def test_a_judge_learns_two_patterns():
    """Left half bright is 0, right half bright is 1; chance is 1/2, and a constant answer would get just that."""
    images = torch.zeros(256, 1, 16, 16, dtype=torch.uint8)
    images[::2, :, :, :8], images[1::2, :, :, 8:] = 200, 200
    dataset = Dataset("digits", "train", images, torch.arange(256) % 2)
    judge = train_judge(dataset, 3, 0, progress=False)
    assert accuracy(judge, dataset) == 1.0
    assert look(judge, images)[1].max(1).values.mean() > 0.5
    assert math.isfinite(judge.fc2.bias.sum().item())


def test_gaussians_are_compared_as_objects():
    one = Gaussian.fit(np.random.default_rng(0).normal(size=(9, 2)))
    assert one == one and one != Gaussian.fit(np.random.default_rng(0).normal(size=(9, 2)))
