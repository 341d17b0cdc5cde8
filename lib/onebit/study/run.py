"""A training run as a value: everything that decides its weights, and nothing that does not."""

import re
from dataclasses import dataclass, fields, replace

from .. import data, recipes
from ..errors import unknown
from ..nets import NETS
from ..train import VERSION, Settings
from . import cache

LATER = ("teacher", "distill", "distill_weight")


@dataclass(frozen=True)
class Run:
    """One trained network.  Paths, devices, thread counts and log rates are absent on purpose: they are provenance.

    dataset   name for `data.load`, subset included ("mnist", "mnist:01")
    net       one of `nets.NETS`;  width: its base width
    recipe    name in `recipes.RECIPES`, or any recipe spelt out
    teacher   a float run of the same net and data, whose weights this one starts from and is distilled from; None:
              training starts from scratch
    distill   name of the distillation loss in `distill.DISTILLATIONS`, with options; distill_weight: its lambda
    the rest  see `train.Settings`
    """

    dataset: str = "mnist"
    net: str = "resunet"
    width: int = 64
    recipe: str = "fp16"
    steps: int = 9_360
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 0
    decay: str = "constant"
    ema: float = 0.0
    seed: int = 0
    precision: str = "auto"
    teacher: "Run | None" = None
    distill: str = "none"
    distill_weight: float = 0.0

    def __post_init__(self):
        data.parse(self.dataset)
        if self.net not in NETS:
            unknown("net", self.net, NETS)
        recipes.recipe(self.recipe)
        self.settings  # noqa: B018 - validates the rest
        if (self.distill == "none") != (self.distill_weight == 0):
            raise ValueError(f"distill={self.distill!r} and distill_weight={self.distill_weight} contradict each other")
        if self.distill != "none":
            from ..distill import distillation

            distillation(self.distill)
        self._check_teacher()

    def _check_teacher(self) -> None:
        if self.teacher is None:
            if self.distill != "none":
                raise ValueError(f"distill={self.distill!r} needs a teacher")
            return
        for name in ("dataset", "net", "width"):
            if getattr(self.teacher, name) != getattr(self, name):
                raise ValueError(f"teacher and student differ in {name}: {self.teacher.label} and {self.label}")
        if self.teacher.recipe != "fp16":
            raise ValueError(f"a teacher is a float run (recipe fp16), got {self.teacher.recipe}")

    @property
    def settings(self) -> Settings:
        """The part of the run that the training loop needs."""
        return Settings(**{f.name: getattr(self, f.name) for f in fields(Settings)})

    @property
    def spec(self) -> dict:
        """All fields, as `cache.described`, and the version of the training code: what the key is a hash of."""
        values = cache.described(self, *LATER)
        if self.teacher is not None:
            values["teacher"] = self.teacher.spec
        return values | {"version": VERSION}

    @property
    def label(self) -> str:
        """For people; the key, not the label, tells runs apart."""
        dataset = self.dataset.replace(":", "-").replace("@", "-only")
        how = self.recipe + (f" {self.distill}" if self.distill != "none" else "")
        how = re.sub(r"[^\w.]+", "-", how).strip("-")[:80]
        return f"{dataset}-{self.net}{self.width}-{how}-s{self.seed}"

    @property
    def trained(self) -> "Run":
        """The run that is actually trained: itself, or for post-training recipes its float control."""
        return replace(self, recipe="fp16") if recipes.recipe(self.recipe).post_training != "none" else self
