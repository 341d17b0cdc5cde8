"""Bars against scipy's component counts at every threshold; changes along a path by hand."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from onebit import data
from onebit.metrics.topology import betti, betti_curve, persistence, topology_changes

NUMBERS = ["component_births", "component_deaths", "hole_opens", "hole_closes", "fragmentation"]


def picture(*rows, **levels):
    """An image from its rows: '.' is 0, '#' is 255, other letters as named."""
    known = {".": 0, "#": 255} | levels
    return np.array([[known[c] for c in row] for row in rows], dtype=np.uint8)


def counted(image, level):
    """Components and holes of {x >= level}, by scipy alone."""
    ink = image >= level
    parts = scipy.ndimage.label(ink, np.ones((3, 3)))[1]
    empty, n = scipy.ndimage.label(~np.pad(ink, 2))
    return parts, len(set(range(1, n + 1)) - {empty[0, 0]})


def alive(bars, level):
    return int(((bars[:, 1] * 255 < level - 1e-6) & (level <= bars[:, 0] * 255 + 1e-6)).sum())


def random_images():
    """Few levels (ties, plateaus, diagonal contacts), many levels, sparse ones, narrow ones, and one without a zero."""
    rng = np.random.default_rng(0)
    for levels in (2, 3, 5, 256):
        for shape in ((6, 6), (9, 7), (1, 8), (8, 1), (1, 1)):
            for _ in range(6):
                steps = np.linspace(0, 255, levels).astype(np.uint8)
                yield steps[rng.integers(0, levels, shape)]
    for _ in range(6):
        yield (rng.integers(0, 256, (12, 12)) * (rng.random((12, 12)) < 0.5)).astype(np.uint8)
        yield rng.integers(1, 5, (8, 8), dtype=np.uint8)


def test_the_bars_alive_at_every_threshold_are_the_components_and_holes_of_scipy():
    seen = 0
    for image in [*random_images(), *data.load("digits").draw(4).images.numpy()[:, 0]]:
        components, holes = persistence(image)
        for level in np.unique(image[image > 0]):  # between two levels present nothing changes
            assert (alive(components, level), alive(holes, level)) == counted(image, level), (image, level)
            seen += 1
    assert seen > 1000


def test_betti_counts_what_persistence_holds_alive():
    for image in data.load("digits").draw(4, seed=1).images.numpy()[:, 0]:
        diagram = persistence(image)
        for level in range(1, 256, 7):
            for threshold in (level / 255, (level - 0.5) / 255):
                bars = [((b[:, 1] < threshold) & (threshold <= b[:, 0])).sum() for b in diagram]
                assert betti(image, threshold) == tuple(bars) == counted(image, level)


RING = picture(".....", ".###.", ".#.#.", ".###.", ".....")
DOTS = picture("....", ".#..", "...#")
EIGHT = picture("###", "#.#", "###", "#.#", "###")


@pytest.mark.parametrize(("image", "expected"), [
    (RING, (1, 1)), (DOTS, (2, 0)), (EIGHT, (1, 2)), (np.zeros((4, 4), np.uint8), (0, 0)),
    (np.full((4, 4), 255, np.uint8), (1, 0)),
    (picture("#..", ".#.", "..#"), (1, 0)),  # diagonal ink is connected
    (picture(".#.", "#.#", ".#."), (1, 1)),  # and closes: the inside does not leak between its corners
    (picture("##.", "#.#", "###"), (1, 1)),  # not even at a diagonal gap at the border
    (picture("#.#", "#.#", "###"), (1, 0)),  # open to the border: no hole
    (picture("#####", "#...#", "#.#.#", "#...#", "#####"), (2, 1)),  # an island in a lake
])
def test_hand_cases(image, expected):
    assert betti(image) == expected
    assert betti(image[None]) == betti(torch.from_numpy(image)[None]) == expected
    assert tuple(len(bars) for bars in persistence(image)) == expected


def test_bars_of_a_ring_with_a_faint_side_and_a_grey_floor():
    """Ink 250, one side at 100: closed from 100 down, filled at the floor's 30, where its speck of 60 ends."""
    image = picture(".......", ".#####.", ".#fff#.", ".#fsf#.", ".#fff#.", ".##a##.", ".......", f=30, s=60, a=100)
    image[image == 255] = 250
    components, holes = persistence(image)
    np.testing.assert_allclose(components * 255, [[250, 0], [60, 30]])
    np.testing.assert_allclose(holes * 255, [[100, 30]])


def test_the_elder_lives_on_where_two_meet():
    """Peaks 200, 120, 160 with saddles 50 and 90: the 120 dies at 90 into the 160, the 160 at 50 into the 200."""
    components, holes = persistence(np.array([[200, 50, 120, 90, 160]], np.uint8))
    np.testing.assert_allclose(components * 255, [[200, 0], [160, 50], [120, 90]])
    assert holes.shape == (0, 2)


def test_the_darker_of_two_lakes_lives_on_where_they_meet():
    """Basins 10 and 40 behind a wall of 200, parted by a ridge of 120: as the water rises from 0, 40 ends at 120."""
    image = np.full((3, 5), 200, np.uint8)
    image[1, 1:4] = 10, 120, 40
    _, holes = persistence(image)
    np.testing.assert_allclose(holes * 255, [[200, 10], [120, 40]])


def test_dots_on_black_both_last_to_the_end():
    components, _ = persistence(picture("#..", "...", "..a", a=51))
    np.testing.assert_allclose(components, [[1, 0], [0.2, 0]])


def test_bars_are_of_the_kind_promised():
    components, holes = persistence(data.load("digits").images[0])
    for bars in (components, holes, *persistence(np.zeros((5, 5), np.uint8))):
        assert bars.dtype == np.float64 and bars.ndim == 2 and bars.shape[1] == 2
        assert (bars[:, 0] > bars[:, 1]).all() and (np.diff(bars[:, 0] - bars[:, 1]) <= 0).all()


def test_features_below_the_floor_do_not_count():
    """A speck of 140 on ink-free 100 persists by 40 of 255; a hole of 90 in 160 by 70; both are alive at 1/2."""
    image = np.full((7, 12), 100, np.uint8)
    image[3, 2] = 140
    image[1:6, 6:11], image[3, 8] = 160, 90
    frames = image[None, None]
    for floor, expected in ((0, [2, 1]), (40 / 255, [2, 1]), (0.17, [1, 1]), (0.27, [1, 1]), (0.28, [1, 0])):
        assert betti_curve(frames, persistence_at_least=floor).tolist() == [[expected]]
    assert betti_curve(frames, threshold=0.3, persistence_at_least=0).tolist() == [[[1, 1 if 0.3 * 255 > 90 else 0]]]


def test_a_feature_is_alive_from_its_birth_level_down_to_just_above_its_death_level():
    """Peaks 255 and 153 that meet at 102: two of them at t = 153/255 and until, not at, 102/255."""
    frames = np.array([[255, 102, 153]], np.uint8)[None, None]
    for threshold, expected in ((154 / 255, 1), (153 / 255, 2), (102.5 / 255, 2), (102 / 255, 1)):
        assert betti_curve(frames, threshold, persistence_at_least=0)[0, 0, 0] == expected
    faint = np.array([[51, 0]], np.uint8)[None, None]
    assert betti_curve(faint, 0.1, persistence_at_least=0.2)[0, 0, 0] == 1, "the floor itself is enough"


def test_without_a_floor_the_curve_is_betti_of_every_frame():
    frames = data.load("digits").draw(6).images.reshape(2, 3, 1, 16, 16)
    got = betti_curve(frames, 0.4, persistence_at_least=0)
    assert got.shape == (2, 3, 2)
    for p in range(2):
        for f in range(3):
            assert tuple(got[p, f]) == betti(frames[p, f], 0.4)


DISC = picture("#####", "#####", "#####", "#####", "#####")[None]
HOLE = picture("#####", "#...#", "#...#", "#...#", "#####")[None]
HALVES = picture("##.##", "##.##", "##.##", "##.##", "##.##")[None]
CORNERS = picture("#...#", ".....", ".....", ".....", "#...#")[None]


def test_changes_along_a_path_by_hand():
    """Components 1 1 4 2 1, holes 0 1 0 0 0: births 3, deaths 2 + 1; one hole opens and closes; excess (0 + 3 + 1) / 3
    over the larger end, 1."""
    got = topology_changes(np.stack([DISC, HOLE, CORNERS, HALVES, DISC]))
    assert {k: v.tolist() for k, v in got.items()} == dict(zip(NUMBERS, ([3], [3], [1], [1], [4 / 3]), strict=True))


def test_fragments_count_beyond_the_larger_end():
    """Between one and two components, 1 and 4 inside: max(1 - 2, 0) and 4 - 2."""
    got = topology_changes(np.stack([DISC, DISC, CORNERS, HALVES]))
    assert got["fragmentation"].tolist() == [1.0]
    backwards = topology_changes(np.stack([HALVES, CORNERS, DISC, DISC]))
    assert backwards["fragmentation"].tolist() == [1.0]
    assert backwards["component_births"] == got["component_deaths"] and backwards["component_deaths"] == 3


def test_a_solid_that_moves_scores_nothing_and_one_that_is_torn_does():
    image = np.pad(DISC[0], 4)
    moving = np.stack([np.roll(image, k, axis=1)[None] for k in range(-3, 4)])
    torn = moving.copy()
    torn[3, 0, 6] = 0
    still, broken = topology_changes(moving), topology_changes(torn)
    assert all(still[k] == 0 for k in NUMBERS)
    assert broken["component_births"] == broken["component_deaths"] == 1
    assert broken["fragmentation"] == pytest.approx(1 / 5)


def test_paths_of_a_batch_do_not_mix():
    one, two = np.stack([DISC, HOLE, CORNERS]), np.stack([HALVES, HALVES, DISC])
    both, alone = topology_changes(np.stack([one, two])), topology_changes(two)
    for name in NUMBERS:
        assert both[name].shape == (2,) and both[name].dtype == np.float64
        assert both[name][1] == alone[name][0]
    assert both["component_births"].tolist() == [3, 0]


@pytest.mark.parametrize("image", [np.ones((4, 4)), np.ones((2, 4, 4), np.uint8), np.ones(4, np.uint8),
                                   np.ones((0, 4), np.uint8), np.ones((4, 4), np.int64)])
@pytest.mark.parametrize("call", [betti, persistence])
def test_what_is_no_grey_image_is_refused(call, image):
    with pytest.raises(ValueError, match=r"image must be uint8 \(H, W\)"):
        call(image)


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1, float("nan")])
def test_thresholds_without_meaning_are_refused(threshold):
    for call in (lambda: betti(DISC, threshold), lambda: betti_curve(DISC[None], threshold)):
        with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\]"):
            call()


def test_frames_and_floors_without_meaning_are_refused():
    with pytest.raises(ValueError, match="persistence_at_least"):
        betti_curve(DISC[None], persistence_at_least=1.5)
    for frames in (DISC[None].astype(float), DISC, np.ones((3, 2, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="frames must be uint8"):
            betti_curve(frames)
    with pytest.raises(ValueError, match="F >= 3"):
        topology_changes(np.stack([DISC, HOLE]))


@pytest.mark.parametrize("base", [0, 51, 102, 187])
def test_a_floor_counts_whole_grey_levels_however_bright_the_picture(base):
    """Two dots, one of them exactly 51 levels (a fifth of 255) above its surroundings, then 50."""
    image = np.full((9, 9), base, np.uint8)
    image[4, 1], image[4, 7] = base + 60, base + 51
    threshold = (base + 45) / 255
    assert betti_curve(image[None, None], threshold, persistence_at_least=0.2)[0, 0, 0] == 2
    image[4, 7] = base + 50
    assert betti_curve(image[None, None], threshold, persistence_at_least=0.2)[0, 0, 0] == 1
