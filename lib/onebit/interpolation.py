"""Walks between two latents, and the two artificial walks that calibrate them: pure fading and pure transport."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .data import to_uint8
from .sampling import generators, sample

PARALLEL = 1e-4  # radians: below it slerp divides by a sine that is nearly 0, and lerp differs by less than 1e-9
SPREAD = 0.5  # pixels: particles fill the middle of their pixel, enough for them not to march in step


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    r"""Spherical interpolation of latents: the path turns at constant speed, and stays as far out as Gaussians lie.

        x_t = (sin((1 - t) w) a + sin(t w) b) / sin w,    cos w = <a, b> / (|a| |b|)

    A straight line would pass a latent of norm |a| / sqrt(2), where no model was trained.

    Shapes    a, b (P, C, H, W), one pair per row; t (F,) -> (P, F, C, H, W), dtype of a.  w is the angle of the whole
              latent.  Frames with t = 0 and t = 1 are a and b, bit for bit.
    Raises    ValueError for other shapes, integers, t outside [0, 1], a latent that is zero or not finite, or an
              opposite pair, which many great circles join.  Nearly parallel pairs are interpolated linearly.
    Source    Shoemake 1985 (Slerp); for Gaussian latents White 2016 (arXiv:1609.04468).
    """
    _check_latents(a, b, t)
    x, y, t = a.double().flatten(1), b.double().flatten(1), t.double()[:, None]
    angle = _angle(x, y)[:, None, None]  # (P, 1, 1)
    if (torch.pi - angle < PARALLEL).any():
        raise ValueError("a and b hold an opposite pair: no shortest path between them; draw other latents")
    near = angle < PARALLEL
    sine = torch.where(near, torch.ones_like(angle), angle.sin())
    from_a = torch.where(near, 1 - t, ((1 - t) * angle).sin() / sine)  # (P, F, 1)
    from_b = torch.where(near, t, (t * angle).sin() / sine)
    path = from_a * x[:, None] + from_b * y[:, None]
    return path.reshape(len(a), len(t), *a.shape[1:]).to(a.dtype)


def _angle(x: Tensor, y: Tensor) -> Tensor:
    """Angles of rows, by half-angle differences: the arc cosine loses half the digits near 0 and pi."""
    u, v = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
    return 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))


def _check_latents(a: Tensor, b: Tensor, t: Tensor) -> None:
    if a.ndim != 4 or a.shape != b.shape or not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError(f"a and b must be float latents (P, C, H, W), got {a.dtype} {tuple(a.shape)} and "
                         f"{b.dtype} {tuple(b.shape)}")
    if t.ndim != 1 or not ((t >= 0) & (t <= 1)).all():
        raise ValueError(f"t must be positions (F,) in [0, 1], got {t}")
    for name, x in (("a", a), ("b", b)):
        if not x.isfinite().all() or not x.flatten(1).any(dim=1).all():
            raise ValueError(f"{name} holds a latent that is zero or not finite, which has no direction")


def latent_pairs(n_pairs: int, shape: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor]:
    """The ends of walks: pair p is what images 2p and 2p + 1 of `sampling.sample` start from, for every model.

    Shapes    shape (C, H, W) -> two tensors (n_pairs, C, H, W) float32.
    Raises    ValueError for no pairs.
    """
    if n_pairs < 1:
        raise ValueError(f"n_pairs must be at least 1, got {n_pairs}")
    draws = [torch.randn(shape, generator=g, dtype=torch.float32) for g in generators(seed, range(2 * n_pairs))]
    both = torch.stack(draws)
    return both[0::2], both[1::2]


def walk(
    model: nn.Module,
    n_pairs: int,
    frames: int,
    shape: tuple[int, int, int],
    steps: int = 50,
    seed: int = 0,
    *,
    batch: int | None = None,
) -> Tensor:
    """Images along slerp paths between latents, by DDIM with eta = 0: a path is a function of its latents alone.

    The end frames are images 2p and 2p + 1 of `sampling.sample` with the same sampler, steps and seed.

    Shapes    shape (C, H, W) -> (n_pairs, frames, C, H, W) uint8 on the CPU.
    Raises    ValueError for no pairs, fewer than two frames, or steps that `sampling.scheduler` refuses.
    Source    DDIM (arXiv:2010.02502) section 5.3 interpolates this way; source 000 does not say how it walks.
    """
    t = _positions(frames)
    path = slerp(*latent_pairs(n_pairs, shape, seed), torch.from_numpy(t)).flatten(0, 1)
    images = sample(model, len(path), shape=shape, sampler="ddim", steps=steps, batch=batch, start=path)
    return to_uint8(images).unflatten(0, (n_pairs, frames))


def cross_fade(a: Tensor, b: Tensor, frames: int) -> Tensor:
    """The walk that only fades: x_t = (1 - t) a + t b, pixel by pixel, rounded to grey levels.

    Shapes    a, b (P, 1, H, W) uint8 -> (P, frames, 1, H, W) uint8; its end frames are a and b.
    Raises    ValueError for images that are not uint8 of this shape, or fewer than two frames.
    """
    t = torch.from_numpy(_positions(frames))[:, None, None, None]
    _check_images(a, b)
    return ((1 - t) * a[:, None].double() + t * b[:, None].double()).round().to(torch.uint8)


def transport_morph(
    a: Tensor, b: Tensor, frames: int, particles: int = 400, seed: int = 0, *, crisp: bool = False,
) -> Tensor:
    r"""The walk that only moves ink: displacement interpolation under the optimal plan between the two images.

        x_t = ink_t / n  sum_i splat((1 - t) p_i + t q_s(i)),   s = argmin sum_i |p_i - q_s(i)|^2,
        ink_t = (1 - t) |a|_1 + t |b|_1

    Each image's ink becomes n particles of equal mass, which move on straight lines and are drawn by bilinear
    weights.  No ink fades, but where a stroke is stretched it turns grey, as mass is conserved and area is not;
    `crisp` redraws every frame in the interpolated grey levels of the ends, brightest pixels first, which calibrates
    `mid_grey` but moves ink off its shortest way.  The cheapest plan tears strokes: neither calibrates topology.

    Shapes    a, b (P, 1, H, W) uint8 -> (P, frames, 1, H, W) uint8.  `particles` per image; time grows as their cube.
    Error     End frames are drawn from particles too, so that they are no sharper than the others: between MNIST
              images they differ from a and b by 13 % in L2 norm (correlation 0.99) with 400 particles, by 9 % with
              800.  Crowded pixels are cut at 255, which loses 0.5 % of the ink, at most 5 %; none where crisp.
    Raises    ValueError for images that are not uint8 of this shape, have no ink or are narrower than 2 pixels, fewer
              than two frames, or no particles.
    Source    McCann 1997 (displacement interpolation); the plan by scipy's linear_sum_assignment.
    """
    times = _positions(frames)
    _check_images(a, b)
    if min(a.shape[2:]) < 2 or not all(x.flatten(1).any(dim=1).all() for x in (a, b)):
        raise ValueError("a and b must hold ink in every image, on at least 2 x 2 pixels: nothing to transport")
    if particles < 1:
        raise ValueError(f"particles must be at least 1, got {particles}")
    rng = np.random.default_rng(seed)
    shifts = rng.random((2, 2))  # the same for all pairs: a pair's morph does not depend on its neighbours
    paths = []
    for x, y in zip(a[:, 0].numpy(), b[:, 0].numpy(), strict=True):
        path = _morph(x, y, times, particles, shifts)
        paths.append(_recolour(path, x, y, times) if crisp else path)
    return torch.from_numpy(np.stack(paths).clip(0, 255).round().astype(np.uint8))[:, :, None]


def _morph(a: NDArray, b: NDArray, times: NDArray, particles: int, shifts: NDArray) -> NDArray[np.float64]:
    p, q = (_particles(image, particles, shift) for image, shift in zip((a, b), shifts, strict=True))
    cost = ((p[:, None] - q[None]) ** 2).sum(axis=2)
    q = q[linear_sum_assignment(cost)[1]]
    ink = (1 - times) * a.sum() + times * b.sum()
    return np.stack([m * _splat((1 - t) * p + t * q, a.shape) / particles for t, m in zip(times, ink, strict=True)])


def _recolour(path: NDArray, a: NDArray, b: NDArray, times: NDArray) -> NDArray[np.float64]:
    """The k-th darkest pixel of frame t gets the level (1 - t) a_(k) + t b_(k) of the sorted ends."""
    flat = path.reshape(len(path), -1)
    levels = np.outer(1 - times, np.sort(a, axis=None)) + np.outer(times, np.sort(b, axis=None))
    crisp = np.empty_like(flat)
    np.put_along_axis(crisp, flat.argsort(axis=1, kind="stable"), levels, axis=1)
    return crisp.reshape(path.shape)


def _particles(image: NDArray, n: int, shift: NDArray) -> NDArray[np.float64]:
    """n positions (row, column) at the quantiles (k + 1/2) / n of the ink, read row by row.

    A pixel gets its share of particles, rounded up or down; the R2 sequence spreads them within their pixels.
    """
    ink = image.cumsum(dtype=np.float64)
    pixel = np.searchsorted(ink, (np.arange(n) + 0.5) / n * ink[-1])
    plastic = 1.32471795724474602596  # real root of x^3 = x + 1; R2 steps by 1/x and 1/x^2 (Roberts 2018)
    inside = (np.arange(n)[:, None] / [plastic, plastic**2] + shift) % 1 - 0.5
    return np.stack(np.divmod(pixel, image.shape[1]), axis=1) + SPREAD * inside


def _splat(positions: NDArray, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Particles of mass 1 on a grid, by bilinear weights; outside the outermost pixel centres they stay on them."""
    highest = np.array(shape) - 1
    positions = positions.clip(0, highest)
    corner = np.minimum(positions.astype(np.int64), highest - 1)
    down, right = (positions - corner).T
    grid = np.zeros(shape)
    for row, column, weight in ((0, 0, (1 - down) * (1 - right)), (0, 1, (1 - down) * right),
                                (1, 0, down * (1 - right)), (1, 1, down * right)):
        np.add.at(grid, (corner[:, 0] + row, corner[:, 1] + column), weight)
    return grid


def _positions(frames: int) -> NDArray[np.float64]:
    if frames < 2:
        raise ValueError(f"frames must be at least 2, the two ends, got {frames}")
    return np.linspace(0, 1, frames)


def _check_images(a: Tensor, b: Tensor) -> None:
    for name, x in (("a", a), ("b", b)):
        if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] != 1 or x.shape != a.shape or min(x.shape) < 1:
            raise ValueError(f"{name} must be uint8 images (P, 1, H, W), as many as the other end, got {x.dtype} "
                             f"{tuple(x.shape)}")
