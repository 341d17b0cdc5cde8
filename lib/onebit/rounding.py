"""Rounding to a scale times integer codes so that a quadratic error is small."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST = 0.08  # of the scales that are tried, over the one that reaches the largest weight
TRIED, TRIED_BLINDLY = 16, 128  # how many of them; with H = I they cost next to nothing
SWEEPS = 20
BLOCK = 16  # columns whose errors reach the later ones in one product


@dataclass(frozen=True)
class Fitted:
    """Integer codes (out, n), and their scales (out, 1), > 0."""

    codes: Tensor
    scale: Tensor

    @property
    def weight(self) -> Tensor:
        return self.scale * self.codes


def fit_rows(w: Tensor, hessian: Tensor | None, levels: Sequence[int]) -> Fitted:
    r"""Codes and scale of every row w of a matrix with a small error

        E(s, q) = (w - s q)^T H (w - s q),    q_i in `levels`, evenly spaced; H = I for None.

    For each of several scales, codes are rounded one after the other, each error made up for by the weights that are
    still to come (`feedback`); the best scale of each row is kept.  Then codes are changed one at a time, and s set to
    its best value q^T H w / q^T H q, until nothing improves: E never rises on the way.

    Shapes    w (out, n), H (n, n) symmetric and positive definite; both float64.
    Raises    torch's LinAlgError for an H that is not positive definite.
    Source    GPTQ (arXiv:2210.17323) section 3; one code at a time as in QuantEase (arXiv:2309.01885).
    """
    largest = w.abs().amax(1, keepdim=True).clamp_min(1e-12) / max(levels)
    tried = TRIED_BLINDLY if hessian is None else TRIED
    scales = largest * torch.logspace(math.log10(SMALLEST), 0, tried).to(w).view(-1, 1, 1)
    codes = feedback(w, hessian, scales, levels)
    best = error(w, hessian, scales * codes).argmin(0)
    rows = torch.arange(len(w), device=w.device)
    codes, scale = codes[best, rows], scales[best, rows]
    for _ in range(SWEEPS):
        scale = best_scale(w, hessian, codes, scale)
        before, codes = codes, sweep(w, hessian, codes, scale, levels)
        if torch.equal(before, codes):
            break
    return Fitted(codes, best_scale(w, hessian, codes, scale))


def error(w: Tensor, hessian: Tensor | None, quantized: Tensor) -> Tensor:
    """E of each row: (..., out, n) -> (..., out)."""
    far = w - quantized
    return (_weighed(far, hessian) * far).sum(-1)


def _weighed(x: Tensor, hessian: Tensor | None) -> Tensor:
    return x if hessian is None else x @ hessian


def nearest(v: Tensor, levels: Sequence[int]) -> Tensor:
    """The nearest of evenly spaced levels, the higher one of two that are as near: sign(0) = +1."""
    low, high = min(levels), max(levels)
    gap = (high - low) / (len(levels) - 1)
    return ((v - low) / gap + 0.5).floor().mul(gap).add(low).clamp(low, high)


def feedback(w: Tensor, hessian: Tensor | None, scale: Tensor, levels: Sequence[int]) -> Tensor:
    r"""Codes (..., out, n), rounded in the order of falling H_ii, errors made up for by the weights that follow.

    With H^-1 = U^T U, U upper triangular, rounding weight j to q changes those after it by
    -(w_j - s q) / U_jj U_j,j+1.., which is what minimizes E with the weights up to j held.

    Shapes    w (out, n), scale (..., out, 1).
    Source    GPTQ (arXiv:2210.17323) Eq. 2-3 and section 3, step 3.
    """
    if hessian is None:  # no error can be made up for by another weight
        return nearest(w / scale, levels)
    order = hessian.diagonal().argsort(descending=True)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian[order][:, order]), upper=True)
    left = w[:, order].expand(*scale.shape[:-1], w.shape[1]).clone()
    codes, scale = torch.empty_like(left), scale[..., 0]
    for start, end in blocks(w.shape[1]):
        missed = torch.empty_like(left[..., start:end])
        for j in range(start, end):
            codes[..., j] = nearest(left[..., j] / scale, levels)
            missed[..., j - start] = (left[..., j] - scale * codes[..., j]) / factor[j, j]
            left[..., j:end] -= missed[..., j - start, None] * factor[j, j:end]
        left[..., end:] -= missed @ factor[start:end, end:]
    return codes[..., order.argsort()]


def blocks(n: int) -> Iterator[tuple[int, int]]:
    """First and one past the last of BLOCK columns at a time."""
    return ((start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


def sweep(w: Tensor, hessian: Tensor | None, codes: Tensor, scale: Tensor, levels: Sequence[int]) -> Tensor:
    """Each code in turn at its best value with all others held: E(s, q) is a parabola in it."""
    if hessian is None:
        return nearest(w / scale, levels)
    codes, step = codes.clone(), scale[:, 0]
    pull = (w - scale * codes) @ hessian  # minus half the gradient of E by the quantized weights
    for start, end in blocks(w.shape[1]):
        changed = codes[:, start:end].clone()
        for j in range(start, end):
            before = codes[:, j].clone()
            wanted = before + pull[:, j] / (hessian[j, j] * step)
            rounded = nearest(wanted, levels)
            better = (rounded - wanted).abs() < (before - wanted).abs() - 1e-9  # a tie stays: sweeps come to an end
            codes[:, j] = torch.where(better, rounded, before)
            pull[:, j:end] -= (step * (codes[:, j] - before))[:, None] * hessian[j, j:end]
        pull[:, end:] -= (scale * (codes[:, start:end] - changed)) @ hessian[start:end, end:]
    return codes


def best_scale(w: Tensor, hessian: Tensor | None, codes: Tensor, scale: Tensor) -> Tensor:
    """q^T H w / q^T H q, where that is positive; else the scale as it is."""
    weighed = _weighed(codes, hessian)
    best = (weighed * w).sum(1, keepdim=True) / (weighed * codes).sum(1, keepdim=True).clamp_min(1e-300)
    return torch.where(best > 0, best, scale)
