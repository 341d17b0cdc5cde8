"""Feature taps: what the blocks of a network put out, by name, while the network runs as it always does."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import Tensor, nn

# our networks' blocks, then diffusers'; [0-9] and not *, which would take the blocks' own layers too
NUMBERS = ("[0-9]", "[0-9][0-9]")
UP_BLOCKS = tuple(f"{name}.{number}" for name in ("up", "up_blocks") for number in NUMBERS)
BLOCKS = ("mid", "mid_block", *UP_BLOCKS, *(f"{name}.{n}" for name in ("down", "down_blocks") for n in NUMBERS))


def reached(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match any of the fnmatch patterns, in their order; where none does, those that match behind a
    prefix: "unet.up.0" is reached by "up.[0-9]", for a network inside a wrapper."""
    names, patterns = list(names), list(patterns)
    found = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    return found or [name for name in names if any(fnmatchcase(name, f"*.{pattern}") for pattern in patterns)]


def matching(model: nn.Module, patterns: Iterable[str]) -> dict[str, nn.Module]:
    """Modules whose names the patterns reach, see `reached`, in the order of registration.

    Raises    ValueError if there are none, with the names of the two upper levels.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    modules = dict(model.named_modules())
    found = {name: modules[name] for name in reached(modules, patterns)}
    if not found:
        names = [name for name in modules if name and name.count(".") < 2]
        raise ValueError(f"patterns {', '.join(patterns) or '()'} match no module; names: {', '.join(names) or 'none'}")
    return found


def first(output: Tensor | tuple) -> Tensor:
    """The feature in a module's output: itself, the first of a tuple (diffusers' down blocks add their skips), or the
    `sample` of an output object (its networks')."""
    output = output[0] if isinstance(output, tuple) else output
    return getattr(output, "sample", output)


class Taps:
    """`with Taps(teacher) as taps: ...` records the outputs of the modules whose names match.

    Features stand in the order in which their modules first ran since the last `clear()`; a module that runs again
    replaces its feature, so one step after the other needs no `clear()`, but holds the step before in memory.
    Hooks go when the block is left, by an exception too.  A copy of a tapped model is not tapped.

    Shapes    features: as the modules' outputs, with their gradient; of a tuple, the first.
    Raises    ValueError for patterns that match nothing; RuntimeError, when features are asked for, if one of them has
              been changed in place by what came after its module.
    """

    def __init__(self, model: nn.Module, patterns: Iterable[str] = BLOCKS):
        self._names = {module: name for name, module in matching(model, patterns).items()}
        self._handles: list = []
        self._features: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}

    @property
    def features(self) -> list[Tensor]:
        """The features recorded since the last `clear()`."""
        for name, version in self._versions.items():
            if self._features[name]._version != version:
                raise RuntimeError(f"what {name} put out was changed in place by what follows it, such as "
                                   "SiLU(inplace=True): its features are lost; let it work out of place")
        return list(self._features.values())

    @property
    def names(self) -> list[str]:
        """The names of their modules, in the same order."""
        return list(self._features)

    def clear(self) -> None:
        """Forget the features, and with them the graph they hold."""
        self._features.clear()
        self._versions.clear()

    def __enter__(self) -> "Taps":
        self._handles = [module.register_forward_hook(self._record) for module in self._names]
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _record(self, module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        if module in self._names:  # not so for a copy's modules, which keep this hook
            name, feature = self._names[module], first(output)
            if feature.is_inference():  # which nobody counts the changes of
                self._features[name] = feature.clone()
            else:
                self._features[name], self._versions[name] = feature, feature._version

    def __deepcopy__(self, memo: dict) -> "Taps":
        return self  # reached through the hooks of a model being copied
