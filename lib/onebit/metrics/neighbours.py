"""Exact nearest neighbours by brute force: float32 products propose, float64 differences decide."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .estimate import check_layout

SPARE = 8  # candidates kept beyond k; more than a few are rarely needed, and any number is correct
ROWS = 4096  # references converted at once
BLOCK = 2**23  # float64 differences held at once: 64 MiB


def nearest(
    queries: ArrayLike | Tensor,
    references: ArrayLike | Tensor,
    k: int = 1,
    chunk: int = 512,
    device: torch.device | str = "cpu",
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The k nearest references of each query, nearest first; equally near ones in the order of their indices.

    Exact: the indices are those of comparing all squared distances in float64, which for uint8 images are integers
    without rounding.  A query that is among the references finds itself, or a twin of lower index, at distance 0.

    Shapes    queries (N, ...), references (M, ...): both uint8 images, flattened, or both float features (N, D)
              -> distances (N, k) float64, indices (N, k) int64.
    Units     Euclidean; images in pixels of [0, 1] (grey levels / 255), features in their own units.
    Memory    about 4 chunk M bytes for products and 4 M D for the references, on `device`.  Chunk and device change
              speed and nothing else.
    Raises    ValueError for inputs that are empty, NaN, of other types, of different sizes or
              axes; k not in 1..M; chunk < 1.
    """
    q, r = _vectors(queries, "queries"), _vectors(references, "references")
    check_layout(queries, references, "queries and references")
    if q.dtype.is_floating_point != r.dtype.is_floating_point or q.shape[1] != r.shape[1]:
        raise ValueError(f"queries and references differ: {q.dtype} {tuple(q.shape)}, {r.dtype} {tuple(r.shape)}; "
                         f"give both as uint8 images of one size or both as features (N, D)")
    if not 1 <= k <= len(r) or chunk < 1:
        raise ValueError(f"need 1 <= k <= {len(r)} references and chunk >= 1, got k = {k}, chunk = {chunk}")
    coarse = _Coarse(q, r, torch.device(device))
    parts = [_nearest_of_chunk(part, r, k, coarse) for part in q.split(chunk)]
    squared, indices = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return np.sqrt(squared) / (1 if q.dtype.is_floating_point else 255), indices


class _Coarse:
    r"""Squared distances less |q|^2, in float32, and how far they can be from the truth.

        score(q, r) = |r|^2 - 2 q.r,    |error| <= gamma (|q| + R)^2,    gamma = m u / (1 - m u),

    u = 2^-24, R the largest |r|, m = D + 10 roundings at most on the way of one term through the sum, in any order:
    the D products and additions, that of |r|^2, and those of the operands.  Centring makes |q| and R small (distances
    do not change); the common scale keeps squares in the range of float32, down to the smallest, which is added.

    Source    Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """

    def __init__(self, q: Tensor, r: Tensor, device: torch.device):
        self.device = device
        self.centre = sum(part.double().sum(0) for part in r.split(ROWS)) / len(r)
        self.scale = max(float(x.abs().max()) for x in (q, r)) or 1.0
        self.r, self.r_square = torch.empty(r.shape, device=device), torch.empty(len(r), device=device)
        self.reach = 0.0
        for start in range(0, len(r), ROWS):
            part, norms = self._centred(r[start : start + ROWS])
            self.r[start : start + ROWS], self.r_square[start : start + ROWS] = part, norms.square()
            self.reach = max(self.reach, norms.max().item())
        m = r.shape[1] + 10
        self.gamma, self.smallest = m * 2.0**-24 / (1 - m * 2.0**-24), m * 2.0**-124

    def scores(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (n, M) float32 on the device; |q|^2 (n,) and the bound of the error (n,), float64."""
        centred, norms = self._centred(q)
        with _full_float32():
            scores = torch.addmm(self.r_square, centred.float().to(self.device), self.r.T, alpha=-2)
        return scores, norms.square(), self.gamma * (norms + self.reach).square() + self.smallest

    def _centred(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (n, D) as the products see them and their norms (n,), still in float64."""
        centred = (x.double() - self.centre).div_(self.scale)
        return centred, centred.norm(dim=1)


def _nearest_of_chunk(q: Tensor, r: Tensor, k: int, coarse: _Coarse) -> tuple[Tensor, Tensor]:
    """Squared distances (n, k) and indices (n, k), exact.

    The k-th exact distance among the candidates bounds the true one from above.  A reference left out has a score no
    smaller than the last candidate's: if that exceeds this distance by more than the error, rounding hides nobody.
    Where it does not, every reference whose score could belong to a neighbour becomes a candidate.
    """
    scores, q_square, error = coarse.scores(q)
    rough, candidates = scores.topk(min(k + SPARE, len(r)), largest=False)
    squared, indices = _closest(q, r, candidates.cpu(), k)
    limit = squared[:, -1] / coarse.scale**2 - q_square + error
    unsure = (rough[:, -1].cpu().double() <= limit) & (candidates.shape[1] < len(r))
    for row in unsure.nonzero().flatten().tolist():
        possible = (scores[row].cpu().double() <= limit[row]).nonzero().T  # (1, C)
        squared[row], indices[row] = _closest(q[row : row + 1], r, possible, k)
    return squared, indices


def _closest(q: Tensor, r: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of the candidates (n, C) by squared differences in float64; the lower index wins ties."""
    candidates = candidates.sort(dim=1).values  # a stable sort by distance then keeps equals in the order of indices
    width = max(1, BLOCK // q.numel())
    squared = torch.cat([(r[part].double() - q.double()[:, None]).square_().sum(-1)
                         for part in candidates.split(width, dim=1)], dim=1)  # (n, C)
    order = squared.argsort(dim=1, stable=True)[:, :k]
    return squared.gather(1, order), candidates.gather(1, order)


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 or bfloat16 products, whose rounding is coarser than the bound assumes."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _vectors(x: ArrayLike | Tensor, name: str) -> Tensor:
    """x as a tensor (N, D) on the CPU, of its own type."""
    x = x.detach().cpu() if isinstance(x, Tensor) else torch.from_numpy(np.require(x, requirements="CW"))
    images, features = x.dtype == torch.uint8 and x.ndim >= 2, x.dtype.is_floating_point and x.ndim == 2
    if not (images or features) or not x.numel():
        raise ValueError(f"{name}: need uint8 images (N, ...) or float features (N, D), at least one, "
                         f"got {x.dtype} {tuple(x.shape)}")
    if features and not x.isfinite().all():
        raise ValueError(f"{name} hold NaN or infinity")
    return x.flatten(1)
