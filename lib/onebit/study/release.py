"""Results as they are committed: the same names, keys and numbers in fewer bytes, with checksums of their own.

    teachers          model.safetensors in float32: students start from these very bits (but for the one with group
                      norms, for the sake of bytes)
    1-bit students    model.packed: bits, and everything else in float32, so that they compute what they computed;
                      latent weights only of the one run whose a notebook shows.  Likewise the rivals of notebook 08,
                      and later seeds of the strict 1-bit arms: the first seed's latent weights are for whoever wants
                      to go on from them
    other networks    kernels and matrices in float16, moved by a last place where a quantizer's code would change;
                      vectors (biases, statistics, steps, scales) in float32
    no weights at all networks on one or two classes, on few images, of other widths or trained longer, and later seeds
                      that source 000's networks alone have, that are rivals of equal bytes, or that are of a recipe
                      with a part changed: results were made from them, and nothing else ever will be
    averaged weights  of the first seed of the strictly 1-bit U-Net
    arrays            the same, compressed by LZMA where that is shorter; np.load reads both
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import paths, recipes
from ..files import replacing
from ..layers import quantized_layers
from ..packing import save_packed
from ..packing.packed import half
from ..quantizers import WeightRule
from . import ablations, cache, golden, longer, narrow, results, scaling, scarce
from .arrays import load_arrays
from .run import Run
from .study import Study

FORM = 1  # +1 whenever a result would be released as other files
LARGEST = 8_000_000  # bytes of a file
LATENT = "binarydm-w1a32"  # the recipe of the undistilled student whose latent weights notebook 01 shows
MOSTLY_BITS = "strict-1bit"  # of the plain arms' recipes; packed, the published one would be larger than in float16
LEFT_OUT = cache.LEFT_OUT
SMALLEST = 2.0**-24  # above zero, in float16
ROUNDS = 50  # of moving weights by a last place; one or two do
DAY = (1980, 1, 1, 0, 0, 0)  # the same arrays give the same bytes


@dataclass(frozen=True)
class Kept:
    """How a training is released: its run, "float32", "float16", "packed" or "left out", and with or without averaged
    weights."""

    run: Run
    weights: str
    averaged: bool

    @property
    def wanted(self) -> dict[str, str]:
        """What the manifest says of a network released so."""
        return {results.PACKED if self.weights == "packed" else "model.safetensors": self.weights}


def released(study: Study) -> Iterator[Path]:
    """Copy what the study's notebooks read, and the golden run, into data/released/; yields the folders.

    They take the forms above.  What only other results were made from (Job.shown) stays in data/runs/.

    Raises    FileNotFoundError for a result that is nowhere; ValueError for a file above LARGEST.
    """
    plan = trainings(study)
    for job in (job for job in study.jobs() if job.shown):
        cache.recover(paths.RELEASED / job.entry.name)
        folder, kept = cache.find(job.entry, computed=True) or cache.find(job.entry), plan.get(job.entry.name)
        if folder is None:
            raise FileNotFoundError(f"{job.entry.name} is not computed yet; run make train first")
        yield cache.release(folder, partial(convert, kept=kept), FORM, kept.wanted if kept else None)
    again = results.training(golden.RUN, progress=False)
    yield cache.release(again, partial(convert, kept=Kept(golden.RUN, "float16", False)), FORM)


def trainings(study: Study) -> dict[str, Kept]:
    """How each of the study's trainings is released, by the name of its result."""
    students = [run for _, run in ablations.trained(study)]
    own = ablations.own_teachers(study)
    teachers = {run.teacher for run in students} - {*own}
    averaged = [run for run in study.unet(recipes=(MOSTLY_BITS,)) if run.seed == 0]
    rivals = [narrow.plain(study), narrow.scaled(study), *narrow.four_bit(study), narrow.three_bit(study)]
    small = narrow.runs(study) + [group[0].trained for group in rivals]
    plan = {results.training_entry(run).name: Kept(run, _form(run, teachers), run in averaged)
            for run in [*study.all_runs, *small, *own, *students] if run == run.trained}
    extra = [run for run in study.resunet() if run.seed not in study.profile.resunet_seeds]
    classes = [run for run in study.all_runs if study.subset(run.dataset)]
    rest = [run.trained for group in (narrow.runs(study), *rivals) for run in group[1:]]  # of the first: its size
    changed = [run for run in students if run.seed and " " in run.recipe]  # a row with a part changed
    widths = [run for run in scaling.runs(study) if results.training_entry(run).name not in plan]
    unread = [*extra, *classes, study.memorizer, *scarce.runs(study), *longer.runs(study), *widths, *rest, *changed]
    return plan | {results.training_entry(run).name: Kept(run, LEFT_OUT, False) for run in unread
                   if run == run.trained}


def _form(run: Run, teachers: set[Run | None]) -> str:
    if run in teachers:
        return "float32"
    student = run.teacher and recipes.recipe(run.recipe).weights != "none"
    latent_shown = run.recipe == LATENT and run.distill == "none" and run.seed == 0
    later_seed = run.recipe == MOSTLY_BITS and run.seed > 0
    rival = run.recipe in (narrow.PLAIN, narrow.SCALED)
    return "packed" if later_seed or rival or (student and not latent_shown) else "float16"


def convert(folder: Path, kept: Kept | None = None) -> dict:
    """Rewrite the files of a result as they are released; returns what its manifest says of its weights."""
    for path in folder.glob("*.npz"):
        recompress(path)
    if kept and not kept.averaged:
        (folder / "ema.safetensors").unlink(missing_ok=True)
    stored = {}
    if kept and kept.weights == LEFT_OUT:
        (folder / results.PACKED).unlink(missing_ok=True)
        stored = dict(kept.wanted)
    for path in sorted(folder.glob("*.safetensors")):
        form = kept.weights if kept and path.name == "model.safetensors" else "float16"
        stored |= _rewrite(path, form, results.new_model(kept.run) if kept else None)
    for path in folder.iterdir():
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{folder.name.lstrip('.')}/{path.name} has {path.stat().st_size:,} bytes, released files "
                             f"at most {LARGEST:,}: fewer samples, or a narrower network")
    return {"weights": stored} if stored else {}


def _rewrite(path: Path, form: str, model: nn.Module | None) -> dict[str, str]:
    """File name -> form, of what stands in `path`'s place afterwards."""
    tensors = load_file(path)
    if model is not None:
        model.load_state_dict(tensors)
    if form == LEFT_OUT:
        path.unlink()
    if form == "packed":
        save_packed(model.eval(), path.with_name(results.PACKED), exact=True)
        path.unlink()
        return {results.PACKED: form}
    if form == "float16":
        with replacing(path) as part:
            save_file(narrowed(tensors, model), part)
    return {path.name: form}


def narrowed(tensors: dict[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
    """A network's tensors with kernels and matrices in half precision; `model` holds them and knows its rules."""
    narrow = {name: halved(x) for name, x in tensors.items()}
    if model is not None:
        model.to(memory_format=torch.channels_last)  # as it is used: means that are thresholds depend on the order
        for name, layer in quantized_layers(model).items():
            weight = layer.weight.detach()
            narrow[f"{name}.weight"] = same_codes(layer.rule, weight, halved(weight)).contiguous()
    return narrow


def halved(x: Tensor) -> Tensor:
    """x in half precision: to 2^-11 of its largest value, no sign lost; as it is where that fails, or x is a vector.

    A value too small for half precision becomes the smallest one of its sign.  Error: at most 2^-11 max |x|.
    """
    if not x.is_floating_point() or x.numel() <= max(x.shape, default=1):
        return x
    narrow = half(x)
    vanished = (narrow == 0) & (x != 0)
    return torch.where(vanished, torch.where(x < 0, -SMALLEST, SMALLEST).to(narrow.dtype), narrow)


@torch.no_grad()
def same_codes(rule: WeightRule, w: Tensor, narrow: Tensor) -> Tensor:
    """`narrow` with a few weights moved by a last place, until the rule makes of them the codes it makes of w.

    Rounding alone would not do: latent weights gather at their thresholds, and one in a hundred changes its code.
    Returns w itself if no movement helps.
    """
    wanted = rule.codes(w).view(-1, *w.shape)  # (planes, *w.shape), the first weighs most
    places = 4.0 ** -torch.arange(len(wanted)).view(-1, *[1] * w.ndim)
    for _ in range(ROUNDS):
        gap = ((wanted - rule.codes(narrow.to(w.dtype)).view_as(wanted)) * places).sum(0)
        if not gap.any():
            return narrow
        there = np.where(gap > 0, np.inf, -np.inf).astype(narrow.numpy().dtype)
        narrow = torch.where(gap == 0, narrow, torch.from_numpy(np.nextafter(narrow.numpy(), there)))
    return w


def recompress(path: Path) -> None:
    """Rewrite an .npz by LZMA if that makes it smaller; the arrays are the same."""
    arrays = load_arrays(path)
    before = path.stat().st_size
    with replacing(path) as part:
        with zipfile.ZipFile(part, "w") as archive:
            for name, array in arrays.items():
                info = zipfile.ZipInfo(f"{name}.npy", DAY)
                info.compress_type = zipfile.ZIP_LZMA
                with archive.open(info, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
        if part.stat().st_size >= before:
            part.write_bytes(path.read_bytes())
