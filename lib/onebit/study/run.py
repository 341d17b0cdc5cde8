"""A training run as a value: everything that decides its weights, and nothing that does not."""

from dataclasses import asdict, dataclass, fields, replace

from .. import data, recipes
from ..errors import unknown
from ..nets import NETS
from ..train import VERSION, Settings


@dataclass(frozen=True)
class Run:
    """One trained network.  Paths, devices, thread counts and log rates are absent on purpose: they are provenance.

    dataset   name for `data.load`, subset included ("mnist", "mnist:01")
    net       "resunet" or "unet";  width: its base width
    recipe    name in `recipes.RECIPES`
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

    def __post_init__(self):
        data.parse(self.dataset)
        if self.net not in NETS:
            unknown("net", self.net, NETS)
        recipes.recipe(self.recipe)
        self.settings  # noqa: B018 - validates the rest

    @property
    def settings(self) -> Settings:
        """The part of the run that the training loop needs."""
        return Settings(**{f.name: getattr(self, f.name) for f in fields(Settings)})

    @property
    def spec(self) -> dict:
        """All fields and the version of the training code: what the key is a hash of."""
        return asdict(self) | {"version": VERSION}

    @property
    def label(self) -> str:
        """For people; the key, not the label, tells runs apart."""
        dataset = self.dataset.replace(":", "-").replace("@", "-only")
        return f"{dataset}-{self.net}{self.width}-{self.recipe}-s{self.seed}"

    @property
    def trained(self) -> "Run":
        """The run that is actually trained: itself, or for post-training recipes its float control."""
        return replace(self, recipe="fp16") if recipes.recipe(self.recipe).post_training else self
