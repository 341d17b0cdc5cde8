"""Rounding under a quadratic error: against the definition, closed forms and exhaustive search."""

from itertools import product

import numpy as np
import pytest
import torch

from onebit.rounding import best_scale, error, feedback, fit_rows, nearest, sweep

BINARY, TWO_BITS, FOUR_BITS = range(-1, 2, 2), range(-2, 2), range(-8, 8)


def problem(rows, n, seed=0):
    """Weights (rows, n) and the second moments (n, n) of correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * n, n)) @ rng.normal(size=(n, n))
    return torch.from_numpy(rng.normal(size=(rows, n))), torch.from_numpy(x.T @ x / len(x))


@pytest.mark.parametrize("levels, given, rounded", [
    (BINARY, [-9.0, -0.1, 0.0, 0.3], [-1, -1, 1, 1]),  # sign(0) = +1
    (TWO_BITS, [-9.0, -1.5, -0.5, 0.49, 0.5, 7.0], [-2, -1, 0, 0, 1, 1]),
])
def test_the_nearest_level_and_of_two_the_higher(levels, given, rounded):
    assert nearest(torch.tensor(given), levels).tolist() == rounded


@pytest.mark.parametrize("levels", [BINARY, TWO_BITS])
def test_feedback_rounds_weight_after_weight_with_the_best_of_the_rest(levels):
    """The definition: with those before held at their codes, the others are at the minimum of E, solved for anew."""
    w, hessian = problem(5, 40)  # more columns than a block has
    scale = w.abs().mean(1, keepdim=True)
    h, order = hessian.numpy(), np.argsort(-hessian.diagonal().numpy())
    found = np.zeros(w.shape)
    for row, (own, s) in enumerate(zip(w.numpy(), scale[:, 0].numpy(), strict=True)):
        done = []
        for j in order:
            rest = [i for i in order if i not in done]
            best = own[rest]
            if done:
                missed = (own - s * found[row])[done]
                best = best + np.linalg.solve(h[np.ix_(rest, rest)], h[np.ix_(rest, done)] @ missed)
            found[row, j] = min(levels, key=lambda level: (abs(best[0] / s - level), -level))
            done.append(j)
    assert np.array_equal(feedback(w, hessian, scale, levels).numpy(), found)


def test_several_scales_at_once_are_as_each_alone():
    w, hessian = problem(4, 24)
    scales = torch.stack([w.abs().mean(1, keepdim=True) * c for c in (0.5, 1.0)])
    both = feedback(w, hessian, scales, TWO_BITS)
    assert all(torch.equal(both[i], feedback(w, hessian, scales[i], TWO_BITS)) for i in (0, 1))


def test_no_single_code_and_no_scale_can_be_changed_for_the_better():
    w, hessian = problem(6, 20)
    fitted = fit_rows(w, hessian, TWO_BITS)
    least = error(w, hessian, fitted.weight)
    for j, level in product(range(20), TWO_BITS):
        other = fitted.codes.clone()
        other[:, j] = level
        assert (error(w, hessian, fitted.scale * other) >= least - 1e-9).all()
    for factor in (0.99, 1.01):
        assert (error(w, hessian, factor * fitted.weight) > least).all()


def test_it_comes_near_the_optimum_that_exhaustive_search_finds():
    """All 2^8 signs with their best scales; plain rounding is several times as far."""
    w, hessian = problem(30, 8)
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=8)), dtype=torch.float64)
    weighed = signs @ hessian
    gains = (weighed @ w.T) ** 2 / (weighed * signs).sum(1, keepdim=True)
    optimum = ((w @ hessian) * w).sum(1) - gains.amax(0)
    found, plain = (error(w, hessian, fit_rows(w, h, BINARY).weight) for h in (hessian, None))
    assert (found >= optimum - 1e-9).all()
    assert (found / optimum).log().mean().exp() < 1.3 < (plain / optimum).log().mean().exp()


def test_sweeps_and_scales_never_raise_the_error():
    w, hessian = problem(6, 40, seed=1)
    scale = w.abs().mean(1, keepdim=True)
    codes = nearest(w / scale, TWO_BITS)
    swept = sweep(w, hessian, codes, scale, TWO_BITS)
    rescaled = best_scale(w, hessian, swept, scale)
    errors = [error(w, hessian, s * q) for s, q in ((scale, codes), (scale, swept), (rescaled, swept))]
    assert (errors[1] < errors[0]).all() and (errors[2] <= errors[1] + 1e-12).all()


def test_without_inputs_one_bit_is_the_mean_magnitude():
    """XNOR-Net Eq. 6: the closest s sign(w) has s = mean |w|."""
    w, _ = problem(7, 30)
    fitted = fit_rows(w, None, BINARY)
    assert torch.equal(fitted.codes, torch.where(w >= 0, 1.0, -1.0).double())
    assert torch.allclose(fitted.scale, w.abs().mean(1, keepdim=True))


@pytest.mark.parametrize("levels", [TWO_BITS, FOUR_BITS])
def test_without_inputs_no_scale_of_a_fine_grid_is_much_better(levels):
    w, _ = problem(9, 200)
    found = error(w, None, fit_rows(w, None, levels).weight)
    scales = torch.linspace(0.01, 1, 2_000, dtype=torch.float64).view(-1, 1, 1) * w.abs().amax(1, keepdim=True)
    assert (found <= 1.02 * error(w, None, scales * nearest(w / scales, levels)).amin(0)).all()


@pytest.mark.parametrize("levels", [BINARY, TWO_BITS])
def test_uncorrelated_inputs_of_one_size_are_as_none(levels):
    w, _ = problem(5, 40)
    scale, codes = w.abs().mean(1, keepdim=True), torch.ones_like(w)
    for hessian in (None, 3 * torch.eye(40, dtype=torch.float64)):
        for found in (feedback(w, hessian, scale, levels), sweep(w, hessian, codes, scale, levels)):
            assert torch.equal(found, nearest(w / scale, levels))


def test_a_row_of_zeros_stays_next_to_zero():
    assert fit_rows(torch.zeros(2, 5, dtype=torch.float64), None, BINARY).weight.abs().max() < 1e-9
