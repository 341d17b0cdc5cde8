"""Slerp against rotations, walks against plain samples, the two calibrating walks against what they claim to be."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from onebit import data
from onebit.data import to_uint8
from onebit.interpolation import cross_fade, latent_pairs, slerp, transport_morph, walk
from onebit.sampling import sample

SHAPE = (1, 4, 4)
T5 = torch.linspace(0, 1, 5)


class Toy(nn.Module):
    """A smooth noise predictor."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.9))

    def forward(self, x, timestep):
        return self.gain * x + 0.1 * torch.sin(3 * x)


def watched():
    """A toy, and a list of all that it and its copies are shown."""
    model, seen = Toy(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    return model, seen


def gaussians(n, shape=SHAPE, seed=0, dtype=torch.float64):
    return torch.randn(2, n, *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def blank(*marks, size=12):
    """A black image with the given (row, column, level) marks."""
    image = torch.zeros(1, 1, size, size, dtype=torch.uint8)
    for row, column, level in marks:
        image[0, 0, row, column] = level
    return image


# slerp ---------------------------------------------------------------------------------------------------------------


def test_slerp_by_hand():
    """a = (1, 0), b = (0, 2) at a third of the way: sin 60 a + sin 30 b."""
    a, b = (torch.tensor(v, dtype=torch.float64).reshape(1, 1, 1, 2) for v in ([1.0, 0.0], [0.0, 2.0]))
    got = slerp(a, b, torch.tensor([1 / 3], dtype=torch.float64)).flatten()
    np.testing.assert_allclose(got, [math.sqrt(3) / 2, 1.0], rtol=1e-12)


def test_slerp_of_equal_norms_is_the_rotation_in_their_plane():
    """x_t = expm(t w (v u^T - u v^T)) a, u = a / |a|, v the part of b across it: a rotation by the share t of w."""
    a, b = gaussians(3)
    b *= (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1))[:, None, None, None]
    path = slerp(a, b, T5)
    assert path.shape == (3, 5, *SHAPE)
    for p in range(3):
        x, y = a[p].flatten().numpy(), b[p].flatten().numpy()
        u = x / np.linalg.norm(x)
        across = y - (y @ u) * u
        angle, v = np.arccos(y @ u / np.linalg.norm(y)), across / np.linalg.norm(across)
        for f, t in enumerate(T5.tolist()):
            turned = scipy.linalg.expm(t * angle * (np.outer(v, u) - np.outer(u, v))) @ x
            np.testing.assert_allclose(path[p, f].flatten(), turned, atol=1e-12)


def test_slerp_begins_and_ends_at_its_latents_bit_for_bit():
    a, b = gaussians(4, dtype=torch.float32)
    path = slerp(a, b, T5)
    assert path.dtype == torch.float32
    assert torch.equal(path[:, 0], a) and torch.equal(path[:, -1], b)


def test_slerp_stays_where_gaussians_lie_and_a_straight_line_does_not():
    """784 dimensions: the middle of a chord has standard deviation 1 / sqrt(2), the middle of an arc 1."""
    a, b = gaussians(20, (1, 28, 28))
    middle = slerp(a, b, torch.tensor([0.5]))
    assert middle.std().item() == pytest.approx(1, abs=0.02)
    assert ((a + b) / 2).std().item() == pytest.approx(math.sqrt(0.5), abs=0.02)


def test_a_pair_is_interpolated_by_itself():
    a, b = gaussians(3)
    assert torch.equal(slerp(a, b, T5)[1:2], slerp(a[1:2], b[1:2], T5))


@pytest.mark.parametrize("angle", [0.0, 1e-12, 9e-5, 1.1e-4, 1e-2, 1.0, 3.0])
def test_the_arc_is_met_at_every_angle(angle):
    """3 (cos tw, sin tw), to 1e-9 of it where lerp takes over; at 0 the sines alone would give 0 / 0."""
    a, b = (torch.zeros(1, 1, 1, 2, dtype=torch.float64) for _ in range(2))
    a[..., 0], b[..., 0], b[..., 1] = 3.0, 3 * math.cos(angle), 3 * math.sin(angle)
    arc = 3 * torch.stack([torch.cos(T5.double() * angle), torch.sin(T5.double() * angle)], dim=1)
    torch.testing.assert_close(slerp(a, b, T5)[0, :, 0, 0], arc, atol=4e-9 if angle < 1e-4 else 1e-12, rtol=0)


def test_slerp_of_different_norms_in_one_direction_is_the_straight_line():
    a, _ = gaussians(1)
    torch.testing.assert_close(slerp(a, 2 * a, T5), (1 + T5.double())[None, :, None, None, None] * a[:, None])


@pytest.mark.parametrize("wobble", [0.0, 1e-7])
def test_opposite_latents_are_refused(wobble):
    a, noise = gaussians(2)
    with pytest.raises(ValueError, match="opposite pair"):
        slerp(a, -2 * a + wobble * noise, T5)


@pytest.mark.parametrize(("change", "message"), [
    ({"a": torch.ones(2, *SHAPE)}, "float latents"), ({"a": torch.ones(4, 4), "b": torch.ones(4, 4)}, "float latents"),
    ({"a": torch.ones(1, *SHAPE, dtype=torch.int64)}, "float latents"),
    ({"a": torch.zeros(1, *SHAPE)}, "a holds a latent that is zero"),
    ({"b": torch.full((1, *SHAPE), torch.nan)}, "b holds a latent that is zero or not finite"),
    ({"t": torch.tensor([-0.1])}, r"in \[0, 1\]"), ({"t": torch.tensor([1.1])}, r"in \[0, 1\]"),
    ({"t": torch.tensor([torch.nan])}, r"in \[0, 1\]"), ({"t": torch.tensor(0.5)}, r"positions \(F,\)"),
])
def test_what_slerp_cannot_join_is_refused(change, message):
    arguments = {"a": torch.ones(1, *SHAPE), "b": torch.rand(1, *SHAPE), "t": T5} | change
    with pytest.raises(ValueError, match=message):
        slerp(**arguments)


# start latents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "pndm", "dpm-solver++"])
def test_sampling_from_the_noise_it_would_have_drawn_changes_no_bit(sampler):
    options = dict(shape=SHAPE, sampler=sampler, steps=5)
    model, seen = watched()
    drawn = sample(model, [4, 9, 2], seed=3, **options)
    noise = seen[0]
    kept = noise.clone()
    for seed in (3, 77):  # with a start nothing is drawn, so that the seed does not matter
        assert torch.equal(sample(Toy(), 3, seed=seed, start=noise, **options), drawn)
    assert torch.equal(noise, kept), "the caller's latents were overwritten"


def test_rows_of_start_keep_their_order_in_any_batch():
    start = gaussians(1, (7, 4, 4))[0].reshape(7, *SHAPE)
    whole = sample(Toy(), 7, shape=SHAPE, sampler="ddim", steps=5, start=start)
    torch.testing.assert_close(sample(Toy(), 7, shape=SHAPE, sampler="ddim", steps=5, start=start, batch=3), whole)
    torch.testing.assert_close(sample(Toy(), 1, shape=SHAPE, sampler="ddim", steps=5, start=start[5:6]), whole[5:6])
    assert (whole[0] - whole[1]).abs().max() > 0.01 and whole.dtype == torch.float32


@pytest.mark.parametrize(("start", "options", "message"), [
    (torch.ones(3, *SHAPE), {}, "one row per index"), (torch.ones(2, 1, 5, 4), {}, "one row per index"),
    (torch.ones(2, *SHAPE, dtype=torch.int64), {}, "must be floats"),
    (torch.full((2, *SHAPE), torch.inf), {}, "NaN or infinity"),
])
def test_a_start_that_cannot_be_followed_is_refused(start, options, message):
    with pytest.raises(ValueError, match=message):
        sample(Toy(), 2, shape=SHAPE, sampler="ddim", start=start, **options)


# walks ---------------------------------------------------------------------------------------------------------------


def test_latent_pairs_are_the_starts_of_images_2p_and_2p_plus_1():
    model, seen = watched()
    sample(model, 6, shape=SHAPE, sampler="ddim", steps=1, seed=5)
    a, b = latent_pairs(3, SHAPE, seed=5)
    assert torch.equal(a, seen[0][0::2]) and torch.equal(b, seen[0][1::2])


def test_more_pairs_leave_the_first_ones_as_they_are_and_seeds_differ():
    few, many, other = (latent_pairs(n, SHAPE, seed) for n, seed in ((2, 0), (5, 0), (2, 1)))
    assert all(torch.equal(x, y[:2]) for x, y in zip(few, many, strict=True))
    assert not any(torch.equal(x, y) for x in few for y in other) and not torch.equal(*few)


def test_a_walk_ends_at_the_plain_samples_and_passes_through_those_of_the_arc():
    got = walk(Toy(), 3, 5, SHAPE, steps=8, seed=2)
    assert got.shape == (3, 5, *SHAPE) and got.dtype == torch.uint8
    ends = to_uint8(sample(Toy(), 6, shape=SHAPE, sampler="ddim", steps=8, seed=2))
    assert torch.equal(got[:, 0], ends[0::2]) and torch.equal(got[:, -1], ends[1::2])
    a, b = latent_pairs(3, SHAPE, seed=2)
    middle = (a + b) / (2 * torch.cos(torch.acos(torch.cosine_similarity(a.flatten(1), b.flatten(1))) / 2))[
        :, None, None, None]  # the bisector of the angle: an independent form of t = 1/2
    at_half = to_uint8(sample(Toy(), 3, shape=SHAPE, sampler="ddim", steps=8, start=middle))
    assert (got[:, 2].int() - at_half.int()).abs().max() <= 1
    assert (got[:, 2].int() - (ends[0::2].int() + ends[1::2].int()) // 2).abs().max() > 5, "the toy only fades"


def test_a_walk_does_not_depend_on_its_batches():
    whole, parts = (walk(Toy(), 2, 4, SHAPE, steps=4, batch=n) for n in (250, 3))
    assert (whole.int() - parts.int()).abs().max() <= 1


@pytest.mark.parametrize(("pairs", "frames", "message"), [(0, 5, "n_pairs must be"), (2, 1, "frames must be at least")])
def test_a_walk_of_nothing_is_refused(pairs, frames, message):
    with pytest.raises(ValueError, match=message):
        walk(Toy(), pairs, frames, SHAPE)


# the walk that fades -------------------------------------------------------------------------------------------------


def test_a_cross_fade_by_hand():
    got = cross_fade(blank((0, 0, 200), (1, 1, 8)), blank((0, 0, 100), (2, 2, 40)), 5)
    assert got[0, :, 0, 0, 0].tolist() == [200, 175, 150, 125, 100]
    assert got[0, :, 0, 1, 1].tolist() == [8, 6, 4, 2, 0]
    assert got[0, :, 0, 2, 2].tolist() == [0, 10, 20, 30, 40]


def test_a_cross_fade_ends_at_its_images(images):
    a, b = images[:6], images[6:12]
    got = cross_fade(a, b, 4)
    assert got.shape == (6, 4, 1, 16, 16) and got.dtype == torch.uint8
    assert torch.equal(got[:, 0], a) and torch.equal(got[:, -1], b)
    exact = (2 * a.double() + b.double()) / 3
    assert (got[:, 1].double() - exact).abs().max() <= 0.5


# the walk that moves -------------------------------------------------------------------------------------------------


def centroid(frames):
    """Mean row and column of the ink, (..., 2)."""
    x = frames.double()[..., 0, :, :]
    row, column = torch.arange(x.shape[-2]).double(), torch.arange(x.shape[-1]).double()
    ink = x.sum((-2, -1))
    return torch.stack([(x.sum(-1) @ row) / ink, (x.sum(-2) @ column) / ink], dim=-1)


def digits(n):
    images = data.load("digits").draw(2 * n).images
    return images[:n], images[n:]


@pytest.mark.parametrize(("a", "b", "halfway"), [
    ([(2, 2), (2, 8)], [(8, 8), (10, 2)], [(6, 2), (5, 8)]),  # straight down: 64 + 36; crossing over: 72 + 100
    ([(1, 6), (5, 3)], [(1, 6), (5, 9)], [(1, 6), (5, 6)]),  # one stays: 0 + 36; both move: 25 + 25, less in 6th powers
    ([(6, 2), (6, 6)], [(6, 6), (8, 10)], [(6, 4), (7, 8)]),  # both move: 16 + 20; one stays: 0 + 68, less in lengths
])
def test_two_dots_move_along_the_matching_of_least_squares(a, b, halfway):
    got = transport_morph(*(blank(*((*dot, 240) for dot in dots)) for dots in (a, b)), 3, particles=50)
    middle = got[0, 1, 0].double()
    for row, column in halfway:
        assert middle[row - 1 : row + 2, column - 1 : column + 2].sum() == pytest.approx(240, rel=0.03)


def test_the_centre_of_ink_moves_on_a_straight_line_and_ink_is_interpolated():
    a, b = blank((3, 2, 200), (4, 2, 200), (4, 3, 100)), blank((8, 9, 90), (9, 9, 60), (9, 8, 120), (2, 3, 30))
    got = transport_morph(a, b, 5, particles=300)[0]
    t = torch.linspace(0, 1, 5).double()
    line = (1 - t)[:, None] * centroid(a)[0] + t[:, None] * centroid(b)[0]
    torch.testing.assert_close(centroid(got), line, atol=0.1, rtol=0)
    torch.testing.assert_close(got.double().sum((1, 2, 3)), 500 - 200 * t, atol=6, rtol=0)


def test_a_shifted_image_is_morphed_by_shifting_it():
    """Optimal transport between an image and its translate is the translation; here by 4 pixels in 5 frames."""
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    image[..., 4:10, 3:6] = torch.randint(100, 200, (6, 3), generator=torch.Generator().manual_seed(0)).byte()
    got = transport_morph(image, image.roll(4, dims=3), 5, particles=400)[0].double()
    for f in range(5):
        error = (got[f] - image.roll(f, dims=3)[0].double()).norm() / image.double().norm()
        assert error < 0.2, f"frame {f}"
        assert (got[f] - image[0].double()).norm() / image.double().norm() > 0.5 or f == 0


def test_end_frames_resemble_their_images():
    a, b = digits(6)
    got = transport_morph(a, b, 3)
    for end, image in ((got[:, 0], a), (got[:, -1], b)):
        error = (end.double() - image.double()).flatten(1).norm(dim=1) / image.double().flatten(1).norm(dim=1)
        assert error.max() < 0.25
        other = (end.double() - image.roll(1, dims=0).double()).flatten(1).norm(dim=1)
        assert (other / image.double().flatten(1).norm(dim=1)).min() > 0.4, "any digit would pass"


def test_a_morph_is_a_function_of_its_pair_and_its_seed():
    a, b = digits(3)
    whole = transport_morph(a, b, 4, particles=60)
    assert torch.equal(transport_morph(a, b, 4, particles=60), whole)
    assert torch.equal(transport_morph(a[1:2], b[1:2], 4, particles=60), whole[1:2])
    assert not torch.equal(transport_morph(a, b, 4, particles=60, seed=1), whole)


def test_a_crisp_morph_has_the_grey_levels_of_its_ends_in_the_same_places():
    """Sorted levels are interpolated level by level: exactly the ends' own at the ends, and no ink is cut or lost."""
    a, b = digits(3)
    soft, crisp = (transport_morph(a, b, 3, particles=100, crisp=flag) for flag in (False, True))
    low, high = (x.flatten(1).sort(dim=1).values.double() for x in (a, b))
    levels = crisp.flatten(3).sort(dim=3).values[:, :, 0].double()
    assert torch.equal(levels[:, 0], low) and torch.equal(levels[:, 2], high)
    assert (levels[:, 1] - (low + high) / 2).abs().max() <= 0.5
    for s, c in zip(soft.flatten(0, 1).flatten(1).double(), crisp.flatten(0, 1).flatten(1).double(), strict=True):
        order = s.argsort()
        ties = s[order].diff() == 0
        assert (c[order].diff()[~ties] >= 0).all(), "a brighter pixel became the darker one"


@pytest.mark.parametrize("make", [cross_fade, transport_morph])
@pytest.mark.parametrize(("a", "b", "message"), [
    (blank((1, 1, 9)).float(), blank((1, 1, 9)), "a must be uint8"),
    (blank((1, 1, 9))[0], blank((1, 1, 9)), "a must be"),
    (blank((1, 1, 9)), blank((1, 1, 9)).expand(2, 1, 12, 12), "b must be uint8 images"),
    (blank((1, 1, 9)).expand(1, 3, 12, 12), blank((1, 1, 9)).expand(1, 3, 12, 12), "a must be"),
    (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), torch.zeros(0, 1, 4, 4, dtype=torch.uint8), "a must be"),
])
def test_ends_that_are_no_grey_images_are_refused(make, a, b, message):
    with pytest.raises(ValueError, match=message):
        make(a, b, 5)
    with pytest.raises(ValueError, match="frames must be at least 2"):
        make(blank((1, 1, 9)), blank((1, 1, 9)), 1)


@pytest.mark.parametrize(("a", "b", "options", "message"), [
    (blank(), blank((1, 1, 9)), {}, "hold ink"), (blank((1, 1, 9)), blank(), {}, "hold ink"),
    (blank((0, 0, 9), size=1), blank((0, 0, 9), size=1), {}, "2 x 2"),
    (blank((1, 1, 9)), blank((1, 1, 9)), {"particles": 0}, "particles must be"),
])
def test_what_cannot_be_transported_is_refused(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        transport_morph(a, b, 5, **options)
