"""Nearest neighbours against integer and float64 brute force and scikit-learn, where float32 alone goes wrong."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from onebit.metrics import neighbours
from onebit.metrics.neighbours import nearest


def brute_force(queries, references, k):
    """Squared int64 (uint8 input) or float64 distances to every reference; a stable sort puts lower indices first."""
    kind = np.int64 if queries.dtype == np.uint8 else np.float64
    q, r = (x.reshape(len(x), -1).astype(kind) for x in (queries, references))
    squared = np.stack([((x - r) ** 2).sum(1) for x in q])
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    unit = 255 if kind is np.int64 else 1
    return np.sqrt(np.take_along_axis(squared, order, 1).astype(np.float64)) / unit, order


def grey(n, side=9, low=0, high=256, seed=0):
    return np.random.default_rng(seed).integers(low, high, (n, 1, side, side), dtype=np.uint8)


def crowd(n, side=28, seed=0):
    """Two clusters of nearly equal images, one dark, one bright: squared distances 0, 1, 2, .. at norms of 10^7."""
    rng = np.random.default_rng(seed)
    base = np.stack([rng.integers(0, 40, side * side), rng.integers(210, 250, side * side)])
    x = np.repeat(base, n // 2, axis=0)
    for i in range(len(x)):
        x[i, rng.integers(0, side * side, 3)] += rng.integers(0, 2, 3)
    return x.astype(np.uint8).reshape(-1, 1, side, side)


def assert_same(got, want):
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_allclose(got[0], want[0], rtol=1e-14, atol=0)


def test_neighbours_on_a_line_by_hand():
    """Points 0, 3, 7 and queries 2, 6, 100; pixels count in units of 255."""
    distances, indices = nearest(np.array([[2.0], [6.0], [100.0]]), np.array([[0.0], [3.0], [7.0]]), k=2)
    assert distances.tolist() == [[1, 2], [1, 3], [93, 97]] and indices.tolist() == [[1, 0], [2, 1], [2, 1]]
    distances, _ = nearest(np.array([[0, 0]], np.uint8), np.array([[3 * 51, 4 * 51]], np.uint8))
    assert distances.item() == pytest.approx(1.0, rel=1e-15)  # 3-4-5, times 51 / 255


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("levels", [2, 256])
def test_random_images_have_the_neighbours_of_integer_brute_force(k, levels):
    """With two grey levels on 9 pixels nearly every distance is tied and many images are duplicates."""
    side = 3 if levels == 2 else 9
    q, r = grey(40, side, high=levels), grey(300, side, high=levels, seed=1)
    got = nearest(q, r, k)
    assert_same(got, brute_force(q, r, k))
    assert got[0].shape == got[1].shape == (40, k) and got[0].dtype == np.float64 and got[1].dtype == np.int64


@pytest.mark.parametrize("k", [1, 3])
def test_near_ties_that_float32_cannot_tell_apart_are_resolved(k):
    """The premise is checked too: ranking by float32 products alone picks other neighbours."""
    q, r = crowd(20), crowd(200, seed=0)
    rng = np.random.default_rng(1)
    r = r[rng.permutation(len(r))]
    assert_same(nearest(q, r, k), brute_force(q, r, k))
    flat_q, flat_r = (torch.from_numpy(x).flatten(1).float() for x in (q, r))
    by_float32 = (flat_r.square().sum(1) - 2 * flat_q @ flat_r.T).topk(k, largest=False).indices
    assert (by_float32.numpy() != nearest(q, r, k)[1]).any()


def test_more_duplicates_than_candidates_come_in_the_order_of_their_indices():
    """50 copies of the nearest image, scattered among others: the k lowest indices win."""
    r = grey(200, seed=3)
    places = np.sort(np.random.default_rng(0).choice(200, 50, replace=False))
    r[places] = r[0]
    distances, indices = nearest(r[places[:1]], r, k=5)
    lowest = sorted({0, *places.tolist()})[:5]
    assert indices.tolist() == [lowest] and not distances.any()


def test_the_answer_does_not_depend_on_how_many_candidates_are_kept(monkeypatch):
    q, r = crowd(10), crowd(120, seed=2)
    want = brute_force(q, r, 2)
    for spare in (0, 1, 1000):
        monkeypatch.setattr(neighbours, "SPARE", spare)
        assert_same(nearest(q, r, 2), want)


def test_the_answer_does_not_depend_on_chunks_or_on_the_kind_of_array(monkeypatch):
    q, r = grey(23), grey(100, seed=1)
    want = nearest(q, r, 3)
    for chunk in (1, 7, 1000):
        assert_same(nearest(q, r, 3, chunk=chunk), want)
    assert_same(nearest(torch.from_numpy(q), torch.from_numpy(r), 3), want)
    monkeypatch.setattr(neighbours, "ROWS", 16)
    monkeypatch.setattr(neighbours, "BLOCK", 5000)
    assert_same(nearest(q, r, 3), want)


def test_the_bound_holds_for_every_pair():
    """|score - (|r|^2 - 2 q.r)| against float64, in the centred units; and it is not vacuous: 1 % of |q|^2 at most."""
    q, r = (torch.from_numpy(x).flatten(1) for x in (grey(30, 28), grey(300, 28, seed=1)))
    coarse = neighbours._Coarse(q, r, torch.device("cpu"))
    scores, square, error = coarse.scores(q)
    centre = r.double().mean(0)
    a, b = ((x.double() - centre) / 255 for x in (q, r))
    truth = b.square().sum(1) - 2 * a @ b.T
    assert ((scores.double() - truth).abs() <= error[:, None]).all()
    np.testing.assert_allclose(square, a.square().sum(1), rtol=1e-12)
    assert (error < 0.01 * square).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 3000.0])
def test_features_have_the_neighbours_of_float64_brute_force(dtype, offset):
    """An offset far larger than the spread would drown the differences in float32 products."""
    rng = np.random.default_rng(0)
    q, r = ((rng.normal(size=(n, 16)) + offset).astype(dtype) for n in (30, 400))
    assert_same(nearest(q, r, 3), brute_force(q, r, 3))


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_features_beyond_the_range_of_float32_squares_are_compared_correctly(scale):
    rng = np.random.default_rng(0)
    q, r = rng.normal(size=(10, 4)) * scale, rng.normal(size=(50, 4)) * scale
    assert_same(nearest(q, r, 2), brute_force(q, r, 2))


@pytest.mark.parametrize("huge", ["query", "reference"])
def test_tiny_differences_beside_a_huge_outlier_are_compared_correctly(huge):
    """In the common scale the squares of 1e-30 vanish in float32; only the exact comparison sees them."""
    r = np.random.default_rng(0).normal(size=(40, 2)) * 1e-30
    q, outlier = r[:5] * 1.01, np.array([[1e10, 0]])
    q, r = (np.append(q, outlier, axis=0), r) if huge == "query" else (q, np.append(r, outlier, axis=0))
    assert_same(nearest(q, r, 2), brute_force(q, r, 2))


def test_equal_references_leave_nothing_to_scale_by():
    distances, indices = nearest(np.zeros((2, 3)), np.zeros((4, 3)), k=4)
    assert not distances.any() and indices.tolist() == [[0, 1, 2, 3]] * 2


def test_neighbours_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    q, r = rng.normal(size=(50, 20)), rng.normal(size=(500, 20))
    want = NearestNeighbors(n_neighbors=4, algorithm="kd_tree").fit(r).kneighbors(q)
    distances, indices = nearest(q, r, 4)
    np.testing.assert_array_equal(indices, want[1])
    np.testing.assert_allclose(distances, want[0], rtol=1e-12)


def test_an_image_among_the_references_finds_itself_first():
    r = grey(30)
    distances, indices = nearest(r, r, k=2)
    assert indices[:, 0].tolist() == list(range(30)) and not distances[:, 0].any() and (distances[:, 1] > 0).all()


def test_coarse_products_are_switched_off_and_the_callers_choice_is_restored():
    """With "medium" some processors multiply in bfloat16, which no bound here covers."""
    before, seen = torch.get_float32_matmul_precision(), []
    torch.set_float32_matmul_precision("medium")
    try:
        with neighbours._full_float32():
            seen.append(torch.get_float32_matmul_precision())
        q, r = crowd(10), crowd(60, seed=2)
        assert_same(nearest(q, r), brute_force(q, r, 1))
        seen.append(torch.get_float32_matmul_precision())
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest", "medium"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_same_answer():
    q, r = crowd(20), crowd(200, seed=0)
    assert_same(nearest(q, r, 3, device="cuda"), brute_force(q, r, 3))


@pytest.mark.parametrize(("queries", "message"), [
    (np.zeros((2, 4), np.int64), "queries: need uint8 images"),
    (np.zeros(4), "queries: need uint8 images"),
    (np.zeros(4, np.uint8), "queries: need uint8 images"),
    (np.zeros((2, 2, 2)), r"float features \(N, D\)"),
    (np.zeros((0, 4)), r"at least one, got torch.float64 \(0, 4\)"),
    (np.array([[0, 0, np.nan, 0]]), "queries hold NaN or infinity"),
    (np.array([[0, 0, np.inf, 0]]), "queries hold NaN or infinity"),
    (np.zeros((2, 5)), "queries and references differ"),
    (np.zeros((2, 4), np.uint8), "queries and references differ: torch.uint8"),
])
def test_queries_that_cannot_be_compared_are_refused(queries, message):
    with pytest.raises(ValueError, match=message):
        nearest(queries, np.zeros((3, 4)))


def test_references_that_are_not_finite_are_refused_by_their_name():
    with pytest.raises(ValueError, match="references hold NaN"):
        nearest(np.zeros((2, 1)), np.array([[np.nan], [1.0]]))


@pytest.mark.parametrize(("k", "chunk"), [(0, 1), (4, 1), (1, 0)])
def test_impossible_counts_are_refused(k, chunk):
    with pytest.raises(ValueError, match=f"need 1 <= k <= 3 references and chunk >= 1, got k = {k}, chunk = {chunk}"):
        nearest(np.zeros((2, 1)), np.zeros((3, 1)), k, chunk)


def test_images_of_another_order_of_axes_are_refused():
    first = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 6), dtype=np.uint8)
    with pytest.raises(ValueError, match="queries and references differ in size or in the order of their axes"):
        nearest(np.ascontiguousarray(first.transpose(0, 2, 3, 1)), first)
    assert not nearest(first[:, 0], first[:, :1])[0].any()
