"""Distillation losses on block outputs of a float teacher and its quantized student: L2, LRM, SPD."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import unknown
from .gram_distance import GramDistance, Loops, Products, cut
from .quantizers import spec
from .taps import BLOCKS, Taps

__all__ = ["BLOCKS", "DISTILLATIONS", "L2", "LRM", "SPD", "Distillation", "Taps", "distillation"]


class Distillation(nn.Module):
    """Mean over the tapped blocks of `block(i, student, teacher)`, in float32 or wider whatever autocast does.

    Shapes    student, teacher: as many features (B, C, H, W) as blocks, pairwise of the same shape -> scalar.
    Backward  to the student's features; the teacher's are held constant.
    Raises    ValueError for features that do not fit together.
    """

    def __init__(self):  # no options: what `distillation` says of a loss that has none
        super().__init__()

    def block(self, i: int, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of block i."""
        raise NotImplementedError

    def prepare(self, teacher: list[Tensor]) -> None:
        """Told the teacher's features before the blocks are compared."""

    def forward(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        _check(student, teacher)
        with torch.autocast(student[0].device.type, enabled=False):
            pairs = [_wide(_SameLayout.apply(s), t.detach()) for s, t in zip(student, teacher, strict=True)]
            self.prepare([t for _, t in pairs])
            return torch.stack([self.block(i, *pair) for i, pair in enumerate(pairs)]).mean()


def _other_than(loss: Distillation, **defaults: object) -> str:
    """A loss's options that are not the default ones: checkpoints tell by them which loss they were made under."""
    return ", ".join(f"{name}={getattr(loss, name)}" for name, default in defaults.items()
                     if getattr(loss, name) != default)


def _check(student: list[Tensor], teacher: list[Tensor]) -> None:
    if not student and teacher:
        raise ValueError("no block of the student was seen to run: if torch.compile made it, it leaves out hooks that "
                         "were not there in its first call; call torch._dynamo.reset() and go on, or distill the "
                         "network that was compiled (student._orig_mod)")
    shapes = [[tuple(f.shape) for f in features] for features in (student, teacher)]
    if not student or shapes[0] != shapes[1] or any(len(shape) != 4 for shape in shapes[0]):
        raise ValueError("student and teacher need one feature (B, C, H, W) per block, of the same shapes; got "
                         f"{shapes[0]} and {shapes[1]}")


class _SameLayout(torch.autograd.Function):
    """x itself; its gradient in x's memory layout, or the whole backward pass below would go on in another one."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if last else torch.contiguous_format
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.contiguous(memory_format=ctx.layout)


def _wide(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their types, at least float32."""
    dtype = torch.promote_types(torch.promote_types(s.dtype, t.dtype), torch.float32)
    return s.to(dtype), t.to(dtype)


class L2(Distillation):
    r"""Mean squared difference of the features: what LRM and SPD are compared with.

        L = 1/M sum_i mean((F_i - F_i^fp)^2)

    Shapes, Backward, Raises    as Distillation.
    Units     squared feature units.
    Source    BinaryDM (arXiv:2404.05662) and BiDM (arXiv:2412.05926), the "MSE" and "L2" rows of their ablations.
    """

    def block(self, i: int, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(student, teacher)


class LRM(Distillation):
    r"""Low-rank representation mimicking: the difference as seen in the teacher's leading principal directions.

        C = X^T X,  E = its first ceil(c/k) eigenvectors, largest first,    L_i = mean((X E - X^fp E)^2)

    X holds a feature's pixels in rows, (B H W, c).  E belongs to a block, comes from the teacher's features in the
    first call, and stays; with `update` it is taken anew every so many calls.  It is part of the state.
    `axis="width"` is the released code's: rows of X are image rows, (B C H, w), their mean is removed for E, and E
    keeps max(2, w // k) directions.  `center` overrides the removal; the projections' difference has no mean to lose.

    Shapes    as Distillation.
    Units     squared feature units; with k=1 exactly L2.
    Backward  dL_i/dX = 2 (X - X^fp) E E^T / (B H W ceil(c/k)).
    Raises    as Distillation; ValueError for k < 1, update < 0, an unknown axis, or features other than E was made for.
    Source    BinaryDM (arXiv:2404.05662) Eq. 11-14; k = 4 and update = 0 are its defaults.
    DIFFERS   Eq. 11 prints F F^T, which has the wrong shape for Eq. 12; Eq. 14 prints a norm and describes the MSE.
              The released code finds E by randomized PCA; ours is exact and needs no seed.
    """

    def __init__(self, k: int = 4, axis: str = "channel", center: bool | None = None, update: int = 0):
        super().__init__()
        if axis not in ("channel", "width"):
            unknown("axis", axis, ("channel", "width"))
        if not (isinstance(k, int) and isinstance(update, int) and k >= 1 and update >= 0):
            raise ValueError(f"k must be a whole number >= 1 and update one >= 0, got {k!r} and {update!r}")
        self.k, self.axis, self.update = k, axis, update
        self.center = axis == "width" if center is None else center
        self.register_buffer("calls", torch.tensor(0))

    def extra_repr(self) -> str:
        return _other_than(self, k=4, axis="channel", center=self.axis == "width", update=0)

    def bases(self) -> list[Tensor]:
        """One E (c, r) per block, empty before the first call."""
        return [self.get_buffer(f"basis{i}") for i in range(len(self._buffers) - 1)]  # all buffers but `calls`

    @torch.no_grad()
    def prepare(self, teacher: list[Tensor]) -> None:
        bases = self.bases()
        if not bases or (self.update and int(self.calls) % self.update == 0):
            for i, feature in enumerate(teacher):
                self.register_buffer(f"basis{i}", self._basis(feature))
        elif [len(b) for b in bases] != [self._rows(t).shape[-1] for t in teacher]:
            raise ValueError(f"the bases were made for {[len(b) for b in bases]} {self.axis} entries per block, the "
                             f"features are {[tuple(t.shape) for t in teacher]}; use a new LRM for other blocks")
        self.calls += 1

    def _rows(self, feature: Tensor) -> Tensor:
        """Feature with the compressed axis last."""
        return feature.movedim(1, -1) if self.axis == "channel" else feature

    def _basis(self, feature: Tensor) -> Tensor:
        x = self._rows(feature).flatten(0, -2).double()  # (rows, c)
        x = x - x.mean(0) if self.center else x
        c = x.shape[1]
        kept = -(-c // self.k) if self.axis == "channel" else min(c, max(2, c // self.k))
        return torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :kept].to(feature.dtype).contiguous()

    def block(self, i: int, student: Tensor, teacher: Tensor) -> Tensor:
        difference = self._rows(student - teacher)  # projections are linear: one serves both
        return (difference @ self.get_buffer(f"basis{i}").to(difference)).square().mean()

    def _load_from_state_dict(self, state: dict, prefix: str, *args) -> None:
        """Bases are made by the first call: take as many, and of such shapes, as the state has."""
        for i in range(len(self.bases())):
            delattr(self, f"basis{i}")
        for key in [key for key in state if key.startswith(f"{prefix}basis")]:
            self.register_buffer(key[len(prefix):], state[key].detach().clone().to(self.calls.device))
        super()._load_from_state_dict(state, prefix, *args)


class SPD(Distillation):
    r"""Space patched distillation: differences of normalised attention within patches, scale left out of account.

        A_ij = P_ij P_ij^T,    L_m = 1/p^2 sum_ij | A_ij / |A_ij| - A_ij^fp / |A_ij^fp| |_2    (not squared)

    P_ij is patch (i, j) of p x p; patches start at floor(i H / p) and are H // p high (columns alike), so that where
    p does not divide H some rows are in no patch, as in the released code.
    patches   p, or "auto": the largest of 4, 2, 1 that divides height and width (28, 14, 7 -> 4, 2, 1; this work's).
    gram      "row": one Gram matrix of image rows per channel, as both released codes;  "spatial": one (N, N) matrix
              over the patch's N pixels, channels summed, as in Real-to-Binary networks.
    norm      "sample": |.| spans one image's A, and the loss is averaged over images;  "batch": it spans the batch,
              which couples its images.

    Shapes    as Distillation.  A is (C, H/p, H/p) per patch and image, or (N, N).
    Units     none, 0 .. sqrt(2); unchanged if a feature is multiplied by a constant, while |A| > 1e-12.
    Backward  dL/dP = 2 (D - S <S, D>) P / (|D| |A|), with S = A / |A| and D = S - S^fp; zero where D or P is zero.
    Raises    as Distillation; ValueError for unknown options, or more patches than rows or columns.
    Speed     gram="row" on a CPU runs compiled loops over the feature as it lies; all else, torch's products.
    Source    BiDM (arXiv:2412.05926) Eq. 13-16; p = 4 in the paper.  Real-to-Binary (arXiv:2003.11535).
    DIFFERS   norm="batch" is the released code; Eq. 15 is per feature, which we read as per image.
    """

    def __init__(self, patches: int | str = "auto", gram: str = "row", norm: str = "sample"):
        super().__init__()
        if patches != "auto" and not (isinstance(patches, int) and patches >= 1):
            raise ValueError(f"patches must be a number per side >= 1 or 'auto', got {patches!r}")
        if gram not in ("row", "spatial"):
            unknown("gram", gram, ("row", "spatial"))
        if norm not in ("sample", "batch"):
            unknown("norm", norm, ("sample", "batch"))
        self.patches, self.gram, self.norm = patches, gram, norm

    def extra_repr(self) -> str:
        return _other_than(self, patches="auto", gram="row", norm="sample")

    def block(self, i: int, student: Tensor, teacher: Tensor) -> Tensor:
        p, batch = self._patches(*student.shape[-2:]), self.norm == "batch"
        if self.gram == "row" and student.device.type == "cpu" and student.dtype == torch.float32:
            return GramDistance.apply(student, teacher, Loops(p, student.shape[2]), batch)
        return GramDistance.apply(self._matrices(student, p), self._matrices(teacher, p), Products, batch)

    def _patches(self, height: int, width: int) -> int:
        if self.patches == "auto":
            return next(p for p in (4, 2, 1) if height % p == 0 and width % p == 0)
        if self.patches > min(height, width):
            raise ValueError(f"patches={self.patches} per side on a {height} x {width} feature; use patches='auto'")
        return self.patches

    def _matrices(self, x: Tensor, p: int) -> Tensor:
        """Matrices M whose M M^T is A: (B, p^2, C, H/p, W/p), or (B, p^2, 1, N, C)."""
        m = cut(x, p)
        return (m.flatten(3).mT[:, :, None] if self.gram == "spatial" else m).contiguous()


DISTILLATIONS: dict[str, type[Distillation]] = {"l2": L2, "lrm": LRM, "spd": SPD}


def distillation(text: str) -> Distillation:
    """The loss of that name ("lrm"), with options if it has some ("spd:patches=4,norm=batch").

    Raises    ValueError for an unknown name or option, or a value the loss refuses.
    """
    return spec.build("distillation", DISTILLATIONS, text)
