"""Taps and distillation losses against loops, singular values and autograd of the definitions."""

import copy
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from onebit import bench_distill, nets
from onebit.distill import DISTILLATIONS, L2, LRM, SPD, Taps, distillation
from onebit.gram_distance import GramDistance, Loops, Products, cut


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradients(loss, student, teacher):
    student = [f.clone().requires_grad_() for f in student]
    return torch.autograd.grad(loss(student, teacher), student)


def tiny():
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))


class Halves(nn.Module):
    """Runs its children against the order of registration; `b` puts out a tuple."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), Pair()

    def forward(self, x):
        return self.a(self.b(x)[0])


class Pair(nn.Module):
    def forward(self, x):
        return 2 * x, 3 * x


# taps ----------------------------------------------------------------------------------------------------------------


def test_taps_record_in_the_order_of_execution_and_the_first_of_a_tuple():
    model, x = Halves(), gaussian(1, 2, dtype=torch.float32)
    with Taps(model, ("a", "b")) as taps:
        out = model(x)
    assert taps.names == ["b", "a"]
    assert torch.equal(taps.features[0], 2 * x) and torch.equal(taps.features[1], out)


def test_taps_hold_the_last_call_until_cleared_and_nothing_after():
    model = tiny()
    with Taps(model, ("0", "2")) as taps:
        for seed in (0, 1):
            out = model(gaussian(1, 2, seed=seed, dtype=torch.float32))
        assert len(taps.features) == 2 and torch.equal(taps.features[1], out)
        taps.clear()
        assert taps.features == []
        model(torch.zeros(1, 2))
        assert len(taps.features) == 2
    model(torch.ones(1, 2))
    assert not torch.equal(taps.features[0], model[0](torch.ones(1, 2)))


def test_taps_take_their_hooks_along_when_an_exception_passes():
    model = tiny()
    with pytest.raises(ZeroDivisionError), Taps(model, ("*",)):
        raise ZeroDivisionError
    assert all(not m._forward_hooks for m in model.modules())


def test_taps_ignore_a_copy_of_the_tapped_model():
    """A copy made in the middle of training (for averaged weights, say) runs without being recorded."""
    model = tiny()
    with Taps(model, ("0", "2")) as taps:
        out = model(torch.ones(1, 2))
        copy.deepcopy(model)(torch.zeros(1, 2))
        assert torch.equal(taps.features[1], out)


def test_patterns_that_match_nothing_are_refused_with_the_names_there_are():
    model = nn.ModuleDict({"down": nn.ModuleList([tiny()]), "mid": nn.ReLU()})
    with pytest.raises(ValueError, match=r"patterns conv\*, \*\.x match no module; names: down, down\.0, mid$"):
        Taps(model, ("conv*", "*.x"))


@pytest.mark.parametrize(("name", "blocks"), [
    ("unet", ["down.0", "down.1", "mid", "up.0", "up.1", "up.2"]),
    ("resunet", ["down.0", "down.1", "up.0", "up.1"]),
])
def test_the_default_taps_are_the_blocks_and_not_their_layers(name, blocks):
    model = nets.build(name, 4)
    with Taps(model) as taps, torch.no_grad():
        model(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))
    assert taps.names == blocks and all(f.ndim == 4 for f in taps.features)


# L2 ------------------------------------------------------------------------------------------------------------------


def test_l2_is_the_mean_over_blocks_of_the_mean_square():
    """Blocks of 4 and 1 entries weigh the same: (1/2) (mean(1, 4, 9, 16) + 25) = 16.25."""
    student = [torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2), torch.full((1, 1, 1, 1), 5.0)]
    assert L2()(student, [torch.zeros_like(f) for f in student]).item() == 16.25


@pytest.mark.parametrize("text", DISTILLATIONS)
def test_no_loss_sends_a_gradient_to_the_teacher(text):
    student, teacher = ([gaussian(2, 4, 8, 8, seed=s).requires_grad_()] for s in (0, 1))
    distillation(text)(student, teacher).backward()
    assert student[0].grad.abs().sum() > 0 and teacher[0].grad is None


@pytest.mark.parametrize("text", DISTILLATIONS)
def test_features_that_do_not_fit_together_are_refused(text):
    loss, one, other = distillation(text), torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 2)
    for student, teacher in (([one], [other]), ([one], [one, one]), ([], []), ([one[0]], [one[0]])):
        with pytest.raises(ValueError, match="one feature"):
            loss(student, teacher)


def test_a_student_that_was_compiled_before_its_taps_is_named_with_the_mend():
    net = lambda: nn.Sequential(OrderedDict(mid=nn.Conv2d(1, 2, 1), out=nn.Conv2d(2, 1, 1)))  # noqa: E731
    student, teacher, x = torch.compile(net(), backend="eager"), net(), torch.ones(2, 1, 4, 4)
    student(x)

    def loss():
        with Taps(student) as seen, Taps(teacher) as taught:
            student(x), teacher(x)
        return distillation("l2")(seen.features, taught.features)

    with pytest.raises(ValueError, match=r"no block of the student .* torch\._dynamo\.reset\(\)"):
        loss()
    torch._dynamo.reset()
    assert loss().isfinite()


@pytest.mark.parametrize("text", [*DISTILLATIONS, "lrm:axis=width", "spd:gram=spatial,norm=batch"])
def test_half_features_are_compared_in_float32_under_autocast(text):
    student, teacher = ([gaussian(2, 4, 8, 8, seed=s, dtype=torch.bfloat16)] for s in (0, 1))
    want = distillation(text)([f.float() for f in student], [f.float() for f in teacher])
    with torch.autocast("cpu", torch.bfloat16):
        got = distillation(text)(student, teacher)
    assert got.dtype == torch.float32 and torch.equal(got, want)


# LRM -----------------------------------------------------------------------------------------------------------------


def low_rank(student, teacher, kept, channel=True, center=False):
    """mean((X E - X^fp E)^2) with E from numpy's singular value decomposition of X^fp, not from X^T X."""
    a, b = (f.numpy() for f in (student, teacher))
    a, b = (np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]) if channel else x.reshape(-1, x.shape[3]) for x in (a, b))
    basis = np.linalg.svd(b - b.mean(0) if center else b, full_matrices=False)[2][:kept].T
    return np.mean((a @ basis - b @ basis) ** 2)


@pytest.mark.parametrize(("c", "k", "kept"), [(8, 4, 2), (7, 4, 2), (1, 4, 1), (6, 2, 3), (5, 8, 1)])
def test_lrm_projects_on_the_teachers_first_directions(c, k, kept):
    """BinaryDM Eq. 12-14: ceil(c/k) right singular vectors of X, the eigenvectors of X^T X."""
    student, teacher = gaussian(3, c, 4, 5), gaussian(3, c, 4, 5, seed=1) + 1
    loss = LRM(k)
    assert loss([student], [teacher]).item() == pytest.approx(low_rank(student, teacher, kept), rel=1e-9)
    assert loss.bases()[0].shape == (c, kept)


@pytest.mark.parametrize(("w", "kept"), [(12, 3), (7, 2), (1, 1)])
@pytest.mark.parametrize("center", [None, False])
def test_lrm_over_the_width_is_the_released_principal_component_analysis(w, kept, center):
    """BinaryDM ddpm_ours.py 1068-1074: centred PCA of image rows, max(2, W // 4) components; W = 1 has but one."""
    student, teacher = gaussian(2, 3, 5, w), gaussian(2, 3, 5, w, seed=1) + torch.arange(w)
    got = LRM(axis="width", center=center)([student], [teacher]).item()
    assert got == pytest.approx(low_rank(student, teacher, kept, False, center is None), rel=1e-9)
    if w > 1:
        assert got != pytest.approx(low_rank(student, teacher, kept, False, center is not None), rel=1e-6)


def test_lrm_that_keeps_everything_is_the_mean_square_in_value_and_gradient():
    """k = 1: E is orthogonal, so |X E| = |X|."""
    student, teacher = ([gaussian(2, 6, 4, 4, seed=s), gaussian(2, 3, 2, 2, seed=s + 1)] for s in (0, 5))
    torch.testing.assert_close(LRM(1)(student, teacher), L2()(student, teacher))
    for ours, want in zip(gradients(LRM(1), student, teacher), gradients(L2(), student, teacher), strict=True):
        torch.testing.assert_close(ours, want)


def test_lrm_keeps_the_first_basis_or_renews_it_when_told_to():
    batches = [[gaussian(2, 8, 4, 4, seed=s)] for s in range(5)]
    frozen, renewed = LRM(), LRM(update=2)
    bases = {loss: [] for loss in (frozen, renewed)}
    for batch in batches:
        for loss, seen in bases.items():
            loss([torch.zeros_like(batch[0])], batch)
            seen.append(loss.bases()[0])
    assert all(torch.equal(b, bases[frozen][0]) for b in bases[frozen])
    same = [torch.equal(a, b) for a, b in zip(bases[renewed], bases[renewed][1:], strict=False)]
    assert same == [True, False, True, False]


def test_lrm_takes_its_basis_from_the_teacher_alone():
    teacher, losses = [gaussian(2, 8, 4, 4)], (LRM(), LRM())
    for seed, loss in enumerate(losses):
        loss([gaussian(2, 8, 4, 4, seed=seed + 1)], teacher)
    assert torch.equal(losses[0].bases()[0], losses[1].bases()[0])


def test_a_resumed_lrm_goes_on_with_the_saved_bases_and_count():
    """Twelve blocks, saved in alphabetical order as safetensors does: basis10 comes before basis2."""
    first, second = ([gaussian(2, c, 2, 2, seed=s + c) for c in range(1, 13)] for s in (0, 50))
    loss = LRM(2, update=3)
    loss(first, second)
    fresh = LRM(2, update=3)
    fresh.load_state_dict(dict(sorted(loss.state_dict().items())))
    for _ in range(3):  # the third of these renews
        assert torch.equal(fresh(second, first), loss(second, first))
    assert all(torch.equal(a, b) for a, b in zip(fresh.bases(), loss.bases(), strict=True))
    loss.load_state_dict(LRM().state_dict())  # one that has seen nothing
    assert loss.bases() == [] and int(loss.calls) == 0


def test_lrm_in_a_larger_module_survives_saving_and_copying():
    outer = nn.ModuleDict({"loss": LRM()})
    student, teacher = [gaussian(2, 8, 4, 4)], [gaussian(2, 8, 4, 4, seed=1)]
    want = outer["loss"](student, teacher)
    fresh = nn.ModuleDict({"loss": LRM()})
    fresh.load_state_dict(outer.state_dict())
    for other in (fresh, copy.deepcopy(outer)):
        assert torch.equal(other["loss"](student, teacher), want)
        other["loss"].basis0.zero_()  # it shares no memory
    assert outer["loss"](student, teacher) == want


def test_lrm_refuses_features_its_bases_were_not_made_for():
    loss = LRM()
    loss([torch.zeros(1, 4, 2, 2)], [gaussian(1, 4, 2, 2)])
    for shapes in ([(1, 5, 2, 2)], [(1, 4, 2, 2)] * 2):
        with pytest.raises(ValueError, match="use a new LRM"):
            loss([torch.zeros(s) for s in shapes], [torch.zeros(s) for s in shapes])


# SPD -----------------------------------------------------------------------------------------------------------------


def by_hand(student, teacher, p, gram, norm):
    """The definition over patches, images and channels, entry by entry in numpy."""
    a, b = student.numpy(), teacher.numpy()
    n, _, height, width = a.shape
    tops, lefts = ([int(x) for x in np.linspace(0, side, p + 1)[:-1]] for side in (height, width))  # as released

    def attention(image, top, left):
        patch = image[:, top : top + height // p, left : left + width // p]
        if gram == "row":
            return np.stack([channel @ channel.T for channel in patch]).ravel()
        pixels = patch.reshape(len(patch), -1)
        return (pixels.T @ pixels).ravel()

    distances = []
    for top in tops:
        for left in lefts:
            maps = [[attention(image, top, left) for image in f] for f in (a, b)]
            if norm == "batch":
                maps = [[np.concatenate(m)] for m in maps]
            distances += [np.linalg.norm(x / np.linalg.norm(x) - y / np.linalg.norm(y))
                          for x, y in zip(*maps, strict=True)]
    assert len(distances) == p * p * (1 if norm == "batch" else n)
    return np.mean(distances)


@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("gram", ["row", "spatial"])
@pytest.mark.parametrize(("p", "height", "width"), [(4, 28, 28), (4, 14, 14), (4, 7, 7), (2, 6, 9), (1, 5, 3)])
def test_spd_is_its_definition_patch_by_patch(p, height, width, gram, norm):
    """BiDM Eq. 13-15.  14 / 4: rows 0-2, 3-5, 7-9, 10-12; 7 / 4: rows 0, 1, 3, 5."""
    student, teacher = gaussian(3, 2, height, width), gaussian(3, 2, height, width, seed=1) * 3
    want = by_hand(student, teacher, p, gram, norm)
    assert SPD(p, gram, norm)([student], [teacher]).item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("options", ["", "patches=2,norm=batch", "patches=2,gram=spatial", "patches=2,norm=sample"])
def test_spds_gradient_is_that_of_finite_differences(options):
    teacher, loss = [gaussian(2, 2, 5, 4, seed=1)], distillation(f"spd:{options}")
    torch.autograd.gradcheck(lambda x: loss([x], teacher), gaussian(2, 2, 5, 4).requires_grad_())


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("channels", [5, 16, 19])  # the loops take eight at a time, and what is left one by one
@pytest.mark.parametrize(("p", "height", "width"), [(4, 28, 28), (4, 14, 14), (4, 7, 7), (2, 6, 9), (1, 5, 3)])
def test_compiled_loops_and_torchs_products_agree_in_value_and_gradient(p, height, width, channels, batch):
    """SPD takes the loops for float32 on a CPU, the products elsewhere: one number, one gradient."""
    s, t = (gaussian(3, channels, height, width, seed=seed) for seed in (1, 2))
    x, y = s.float().requires_grad_(), s.requires_grad_()
    here = GramDistance.apply(x, t.float(), Loops(p, height), batch)
    there = GramDistance.apply(cut(y, p).contiguous(), cut(t, p).contiguous(), Products, batch)
    assert here.item() == pytest.approx(there.item(), rel=1e-6)
    slope, want = (torch.autograd.grad(loss, z)[0] for loss, z in ((here, x), (there, y)))
    torch.testing.assert_close(slope.double(), want, rtol=1e-4, atol=1e-5 * want.abs().max().item())


def test_spd_takes_the_loops_for_float32_on_a_cpu(monkeypatch):
    taken = []
    monkeypatch.setattr("onebit.distill.Loops", lambda *args: taken.append(args) or Loops(*args))
    features = gaussian(2, 4, 8, 8)
    for dtype in (torch.float64, torch.float32):
        SPD()([features.to(dtype)], [features.to(dtype) + 1])
    assert taken == [(4, 8)]


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_spd_and_the_loop_it_is_timed_against_agree_in_value_and_gradient(norm):
    size = bench_distill.Size(width=2, batch=3)
    student, teacher = ([f.double() for f in size.features()] for _ in range(2))
    ours = SPD(4, norm=norm)
    torch.testing.assert_close(ours(student, teacher), bench_distill.by_patches(student, teacher, 4, norm))
    want = gradients(lambda s, t: bench_distill.by_patches(s, t, 4, norm), student, teacher)
    for a, b in zip(gradients(ours, student, teacher), want, strict=True):
        torch.testing.assert_close(a, b)


def test_every_timed_row_runs_both_sides():
    def once(ours, theirs, seconds):
        return tuple(len(side()) for side in (ours, theirs))

    rows = bench_distill.rows(once, bench_distill.Size(width=1, batch=1))
    assert len({name for name, _, _ in rows}) == 2
    assert all(unit == "1/s" and measure(0.0) == (6, 6) for _, unit, measure in rows)


@pytest.mark.parametrize("norm", ["sample", "batch"])
def test_spd_of_equal_or_zero_features_is_finite_with_its_gradient(norm):
    """0 where the features agree; where one vanishes the other's normalised attention has length 1."""
    x, zero = gaussian(2, 3, 8, 8, dtype=torch.float32), torch.zeros(2, 3, 8, 8)
    for student, teacher, want in ((x, x, 0.0), (zero, x, 1.0), (x, zero, 1.0), (zero, zero, 0.0)):
        loss = SPD(2, norm=norm)
        assert loss([student], [teacher]).item() == pytest.approx(want, abs=1e-6)
        (gradient,) = gradients(loss, [student], [teacher])
        assert gradient.isfinite().all()
        assert want == 1.0 or not gradient.any()


@given(seed=st.integers(0, 9), p=st.integers(1, 3), side=st.integers(3, 9), scale=st.floats(-3, 3))
@settings(max_examples=25, deadline=None)
def test_spd_lies_between_0_and_the_root_of_2_and_knows_no_scale(seed, p, side, scale):
    """Gram matrices are positive semi-definite, so their inner product is never negative."""
    student, teacher = gaussian(2, 1, side, side, seed=seed), gaussian(2, 1, side, side, seed=99)
    loss = SPD(p)([student], [teacher]).item()
    assert 0 <= loss <= math.sqrt(2) + 1e-12
    if abs(scale) > 0.1:
        assert SPD(p)([scale * student], [teacher]).item() == pytest.approx(loss, rel=1e-9)


def test_spd_reaches_the_root_of_2_for_features_that_share_nothing():
    student, teacher = torch.zeros(2, 1, 1, 4, 4)
    student[..., 0, :], teacher[..., 3, :] = 1, 1  # only the first row; only the last row
    assert SPD(1)([student], [teacher]).item() == pytest.approx(math.sqrt(2))


def test_only_the_batch_norm_couples_the_images():
    """methods 9.8: per image, the loss of a batch is the mean of the images' losses, however large one of them is."""
    student, teacher = gaussian(3, 2, 8, 8), gaussian(3, 2, 8, 8, seed=1)
    student[0] *= 10
    alone = {norm: torch.stack([SPD(norm=norm)([s[None]], [t[None]]) for s, t in zip(student, teacher, strict=True)])
             for norm in ("sample", "batch")}
    torch.testing.assert_close(alone["sample"], alone["batch"])
    torch.testing.assert_close(SPD()([student], [teacher]), alone["sample"].mean())
    assert SPD(norm="batch")([student], [teacher]).item() != pytest.approx(alone["batch"].mean().item(), rel=1e-2)


@pytest.mark.parametrize(("height", "width", "p"), [(28, 28, 4), (14, 14, 2), (7, 7, 1), (8, 6, 2), (32, 32, 4)])
def test_auto_takes_the_most_patches_that_divide_the_feature(height, width, p):
    student, teacher = [gaussian(1, 1, height, width)], [gaussian(1, 1, height, width, seed=1)]
    assert torch.equal(SPD()(student, teacher), SPD(p)(student, teacher))


def test_the_layout_in_memory_changes_nothing():
    student, teacher = gaussian(2, 3, 14, 14), gaussian(2, 3, 14, 14, seed=1)
    last = [f.contiguous(memory_format=torch.channels_last) for f in (student, teacher)]
    for text in DISTILLATIONS:
        torch.testing.assert_close(distillation(text)([last[0]], [last[1]]), distillation(text)([student], [teacher]))


# by name -------------------------------------------------------------------------------------------------------------


def test_losses_are_built_by_name_with_the_papers_defaults():
    lrm, spd = distillation("lrm"), distillation("spd:4,norm=batch")
    assert (lrm.k, lrm.axis, lrm.center, lrm.update) == (4, "channel", False, 0)
    assert (spd.patches, spd.gram, spd.norm) == (4, "row", "batch")
    assert isinstance(distillation("l2"), L2) and distillation("spd").norm == "sample"


@pytest.mark.parametrize(("text", "shown"), [
    ("l2", "L2()"), ("lrm", "LRM()"), ("lrm:4,update=0", "LRM()"), ("lrm:axis='width',center=True", "LRM(axis=width)"),
    ("lrm:2,center=True,update=100", "LRM(k=2, center=True, update=100)"), ("spd", "SPD()"),
    ("spd:4,gram=spatial,norm=batch", "SPD(patches=4, gram=spatial, norm=batch)"),
])
def test_a_loss_shows_the_options_that_are_not_the_default_ones(text, shown):
    assert str(distillation(text)) == shown


@pytest.mark.parametrize(("text", "match"), [
    ("kd", "unknown distillation 'kd'; valid: l2, lrm, spd"),
    ("l2:k=3", "options: none"),
    ("lrm:rank=3", "options: k"),
    ("lrm:k=0", "k must be"),
    ("lrm:k=2.5", "k must be"),
    ("lrm:update=-1", "update"),
    ("lrm:axis=height", "unknown axis 'height'; valid: channel, width"),
    ("spd:patches=0", "patches must be"),
    ("spd:patches=half", "patches must be"),
    ("spd:gram=column", "unknown gram"),
    ("spd:norm=l1", "unknown norm"),
    ("lrm:center=false", "center must be True or False or None, got 'false'"),
    ("spd:patches=2.5", "patches must be an integer or a word, got 2.5"),
])
def test_a_loss_refuses_what_it_does_not_know(text, match):
    with pytest.raises(ValueError, match=match):
        distillation(text)


def test_more_patches_than_rows_are_refused_with_the_mend():
    with pytest.raises(ValueError, match=r"patches=4 per side on a 3 x 8 feature; use patches='auto'"):
        SPD(4)([torch.zeros(1, 1, 3, 8)], [torch.zeros(1, 1, 3, 8)])


def test_a_tapped_network_may_put_out_an_object():
    class Output:
        def __init__(self, sample):
            self.sample = sample

    class Net(nn.Module):
        def forward(self, x):
            return Output(2 * x)

    model = nn.ModuleDict({"inner": Net()})
    with Taps(model, ("inner",)) as taps:
        model["inner"](torch.ones(1, 1, 2, 2))
    assert torch.equal(taps.features[0], torch.full((1, 1, 2, 2), 2.0))
