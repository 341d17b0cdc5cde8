"""The panel's judges against scikit-learn and brute force, on the embedded digits and on images made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from onebit import data
from onebit.data import Dataset
from onebit.panel import ITERATIONS, fit_logistic, knn_labels, logistic_probabilities


@pytest.fixture(scope="module")
def train():
    return data.load("digits", "train")


@pytest.fixture(scope="module")
def test():
    return data.load("digits", "test")


@pytest.fixture(scope="module")
def fitted(train):
    return fit_logistic(train)


def few(grey, labels):
    """A data set of 1 x 1 images with these grey levels."""
    images = torch.tensor(grey, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Dataset("digits", "train", images, torch.tensor(labels))


def only(dataset, *classes):
    keep = torch.isin(dataset.labels, torch.tensor(classes))
    return replace(dataset, images=dataset.images[keep], labels=dataset.labels[keep])


# logistic regression -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_probabilities_are_scikit_learns(train, test, fitted):
    model = LogisticRegression(max_iter=ITERATIONS).fit(train.images.flatten(1).numpy() / 255, train.labels.numpy())
    want = model.predict_proba(test.images.flatten(1).numpy() / 255)
    np.testing.assert_allclose(logistic_probabilities(test.images, *fitted), want, rtol=1e-9, atol=1e-15)


def test_probabilities_by_hand():
    """One pixel of ink 102 / 255 = 0.4: logits 0.4 w + b with w = (5, 0, ...), b = (0, 2, ...): two equal classes."""
    w, b = np.zeros((10, 1)), np.full(10, -np.inf)
    w[0], b[0], b[1] = 5.0, 0.0, 2.0
    p = logistic_probabilities(np.array([102, 255], dtype=np.uint8).reshape(2, 1, 1, 1), w, b)
    np.testing.assert_allclose(p[:, :2], [[0.5, 0.5], [1 / (1 + np.exp(-3)), 1 / (1 + np.exp(3))]], rtol=1e-12)
    assert (p[:, 2:] == 0).all()


def test_logistic_regression_reads_digits_it_has_not_seen(test, fitted):
    said = logistic_probabilities(test.images, *fitted).argmax(axis=1)
    assert (said == test.labels.numpy()).mean() > 0.9


def test_the_fit_is_a_minimum_of_its_stated_loss():
    """Summed cross-entropy + |w|^2 / 2, by autograd, on 1 x 1 images: both gradients vanish where the fit stops."""
    dataset = few([0, 40, 90, 120, 180, 255, 200, 30], [0, 0, 1, 1, 2, 2, 1, 1])
    w, b = fit_logistic(dataset)
    w, b = (torch.tensor(part[:3], requires_grad=True) for part in (w, b))
    x = dataset.images.flatten(1).double() / 255
    loss = torch.nn.functional.cross_entropy(x @ w.T + b, dataset.labels, reduction="sum") + w.square().sum() / 2
    for part in torch.autograd.grad(loss, (w, b)):
        torch.testing.assert_close(part, torch.zeros_like(part), atol=2e-3, rtol=0)


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize("classes", [(3, 8), (1, 4, 7)])
def test_a_class_the_data_set_lacks_has_probability_zero(train, test, classes):
    """Two classes are a case of their own: scikit-learn keeps one row for them."""
    some, other = only(train, *classes), only(test, *classes)
    p = logistic_probabilities(other.images, *fit_logistic(some))
    model = LogisticRegression(max_iter=ITERATIONS).fit(some.images.flatten(1).numpy() / 255, some.labels.numpy())
    want = np.zeros_like(p)
    want[:, classes] = model.predict_proba(other.images.flatten(1).numpy() / 255)
    np.testing.assert_allclose(p, want, rtol=1e-9, atol=1e-15)


def test_a_single_class_is_refused(train):
    with pytest.raises(ValueError, match="digits has 1 class: nothing to tell apart"):
        fit_logistic(only(train, 5))


@pytest.mark.parametrize(("w", "b", "message"), [
    (np.zeros((9, 256)), np.zeros(10), r"need coefficients \(10, D\)"),
    (np.zeros(256), np.zeros(10), r"need coefficients \(10, D\)"),
    (np.zeros((10, 256)), np.zeros(9), r"intercepts \(10,\), got \(10, 256\) and \(9,\)"),
    (np.full((10, 256), np.nan), np.zeros(10), "hold NaN, infinity"),
    (np.full((10, 256), np.inf), np.zeros(10), "hold NaN, infinity"),
    (np.zeros((10, 256)), np.array([np.nan] + [0] * 9), "hold NaN, infinity"),
    (np.zeros((10, 256)), np.array([np.inf] + [0] * 9), "hold NaN, infinity"),
    (np.zeros((10, 256)), np.full(10, -np.inf), "no class at all"),
    (np.zeros((10, 784)), np.zeros(10), r"need uint8 images \(N, 1, 28, 28\)"),
])
def test_coefficients_that_are_no_judge_are_refused(images, w, b, message):
    with pytest.raises(ValueError, match=message):
        logistic_probabilities(images, w, b)


# nearest neighbours --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4, 5])
def test_the_vote_by_brute_force(train, test, k):
    """All distances as whole numbers, the k smallest, the most votes, of equals the smallest class."""
    some, asked = train.head(300), test.head(60)
    a, b = (d.images.flatten(1).numpy().astype(np.int64) for d in (asked, some))
    distance = ((a[:, None] - b[None]) ** 2).sum(axis=2)
    nearest = some.labels.numpy()[np.argsort(distance, axis=1, kind="stable")[:, :k]]
    want = [np.bincount(votes).argmax() for votes in nearest]
    assert knn_labels(asked.images, some, k).tolist() == want


def test_the_vote_by_hand():
    """Asked for grey 100, k = 3: 90, 110 and 115 vote 7, 2, 2; asked for 10: 0, 20, 90 vote 1, 3, 7, a tie for 1."""
    dataset = few([0, 20, 90, 110, 115, 250], [1, 3, 7, 2, 2, 9])
    asked = few([100, 10], [0, 0]).images
    assert knn_labels(asked, dataset, k=3).tolist() == [2, 1]
    assert knn_labels(asked, dataset, k=1).tolist() in ([7, 1], [2, 1], [7, 3], [2, 3])  # two are equally near
    assert knn_labels(asked[:1] + 2, dataset, k=1).tolist() == [2]


def test_distances_are_exact():
    """Squared distances of 50 million that differ by 1: the same number in float32, where the first would win."""
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    images[:, 0, 0, 0] = 247
    images[0, 0, 0, 1], images[1, 0, 0, 1] = 254, 255  # from white: 8^2 + 1^2 against 8^2 + 0^2
    white = torch.full((1, 1, 28, 28), 255, dtype=torch.uint8)
    dataset = Dataset("digits", "train", images, torch.tensor([3, 7]))
    assert knn_labels(white, dataset, k=1).tolist() == [7]


def test_nearest_neighbours_read_digits_they_have_not_seen(train, test):
    assert (knn_labels(test.images, train) == test.labels.numpy()).mean() > 0.9


def test_a_training_image_is_its_own_nearest_neighbour(train):
    assert knn_labels(train.images[:50], train, k=1).tolist() == train.labels[:50].tolist()


@pytest.mark.parametrize("k", [0, -1, 41])
def test_a_number_of_neighbours_that_cannot_be_filled_is_refused(train, k):
    with pytest.raises(ValueError, match="k must be 1 to 40, the images of digits"):
        knn_labels(train.images[:3], train.head(40), k)


# both ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [
    lambda x: x.float() / 127.5 - 1, lambda x: x.long(), lambda x: x[:, 0], lambda x: x[:, :, :, :15],
    lambda x: x.expand(-1, 3, -1, -1), lambda x: torch.nn.functional.pad(x, (6, 6, 6, 6)), lambda x: x[:0],
    lambda x: x.flatten(1), lambda x: x.reshape(-1, 1, 8, 32),
])
def test_images_the_panel_cannot_see_are_refused(train, fitted, images, bad):
    """Floats, other integers, no channel, 16 x 15, three channels, 28 x 28, none, flat, the same pixels in 8 x 32."""
    for judge in (lambda x: logistic_probabilities(x, *fitted), lambda x: knn_labels(x, train)):
        with pytest.raises(ValueError, match=r"need uint8 images \(N, 1, 16, 16\), at least one, got"):
            judge(bad(images))


def test_the_fit_is_a_function_of_its_data_and_touches_no_global_generator(train):
    torch.manual_seed(1), np.random.seed(1)
    want = torch.rand(2), np.random.random(2)
    torch.manual_seed(1), np.random.seed(1)
    first, again = fit_logistic(train.head(200)), fit_logistic(train.head(200))
    assert torch.equal(torch.rand(2), want[0]) and np.array_equal(np.random.random(2), want[1])
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_judges_agree_on_digits_and_not_on_shuffled_pixels(train, test, fitted):
    """A control: the same grey levels at shuffled places are no digits, and two kinds of judges read them apart."""
    def read(images):
        return logistic_probabilities(images, *fitted).argmax(axis=1), knn_labels(images, train)

    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    shuffled = test.images.flatten(1)[:, order].reshape(test.images.shape)
    digits, noise = (read(images) for images in (test.images, shuffled))
    assert (digits[0] == digits[1]).mean() > 0.85
    assert (noise[0] == noise[1]).mean() < 0.5
