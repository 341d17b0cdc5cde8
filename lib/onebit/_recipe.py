"""One recipe and the text that spells it; `recipes`, which names some and carries them out, is where to import from."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from .connections import CONNECTIONS
from .errors import unknown
from .quantizers import ACTIVATION_RULES, OUTPUT_RULES, WEIGHT_RULES
from .quantizers import spec as specs

POST_TRAINING = ("none", "start", "nearest", "calibrated")
ENDS = {"quantized": None, "float": None, "int8": "lsq:8"}  # of the first and last layer
TUPLES = {"at": '(("down.*", "ebb"),)', "outputs": '("shortcut",)', "only": '("down.*",)', "keep": '("down.*",)'}


@dataclass(frozen=True)
class Recipe:
    """One way to quantize a network.  `str(recipe)` spells it out, and `recipe(text)` reads that back.

    A name pattern (as fnmatch's, case counts) stands for the whole name of a layer.  One that matches none is tried
    behind any prefix, so that "time_mlp*" is found in a wrapper too, as "unet.time_mlp".  A layer that a network
    holds under several names is reached by each of them.

    weights         weight rule ("xnor", "lsq:2", ...; "none": leave the network alone)
    at              (name pattern, weight rule) pairs for layers that get another rule; the first match counts
    activations     activation rule of every quantized layer ("lsq:4", "bidm", ...; "none": inputs stay as they are)
    outputs         what follows each quantized layer: "shortcut", "rprelu"
    connections     "none", or "tbs" with its options ("tbs:up.1+up.2,initial=0.0"; no names: every up block): mix
                    block outputs with those of the previous timestep
    ends            first and last layer (in the order of registration, `keep` set aside): "quantized" like the others,
                    "float", or "int8" (8-bit LSQ; of the input only where `activations` quantizes inputs)
    only            name patterns of the layers to quantize; () means all
    keep            name patterns of layers that stay float whatever `only` says
    drop_bias       remove the bias of quantized layers, as the published code does
    post_training   train in float and quantize afterwards: "start" leaves the rules as they start, "nearest" and
                    "calibrated" have them fitted to the weights or to inputs (`post_training.fit`); "none": as usual

    White space within rules does not count.

    Raises    ValueError for a rule, option or word that there is none of, parts that contradict each other, or a
              pattern that text cannot spell: with white space, "|" or (in `at`) "->".
    """

    weights: str = "none"
    at: tuple[tuple[str, str], ...] = ()
    activations: str = "none"
    outputs: tuple[str, ...] = ()
    connections: str = "none"
    ends: str = "quantized"
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    drop_bias: bool = False
    post_training: str = "none"

    def __post_init__(self):
        _check_types(self)
        _check_tuples(self)
        _check_patterns(self)
        self._compact()
        if self.weights != "none":
            specs.lookup("weight rule", WEIGHT_RULES, self.weights)
        for _, rule in self.at:  # "none" is for all or nothing: `keep` leaves some layers float
            specs.lookup("weight rule", WEIGHT_RULES, rule)
        if self.activations != "none":
            specs.lookup("activation rule", ACTIVATION_RULES, self.activations)
        for output in self.outputs:
            specs.lookup("output rule", OUTPUT_RULES, output)
        specs.lookup("connections", CONNECTIONS, self.connections)
        if self.ends not in ENDS:
            unknown("ends", self.ends, ENDS)
        if self.weights == "none" and any(getattr(self, f.name) != f.default for f in fields(self)):
            raise ValueError("a recipe with weights=none leaves the network alone: give it no other part")
        if self.post_training not in POST_TRAINING:
            unknown("post_training", self.post_training, POST_TRAINING)
        if self.post_training != "none" and (self.activations, self.outputs, self.connections) != ("none", (), "none"):
            raise ValueError("a post-training recipe has no training to learn activations, outputs or connections in")

    def _compact(self) -> None:
        """Rules without white space, which would end a part of the recipe's text."""
        rules = {name: _without_space(getattr(self, name)) for name in ("weights", "activations", "connections")}
        rules |= {"at": tuple((pattern, _without_space(rule)) for pattern, rule in self.at),
                  "outputs": tuple(_without_space(rule) for rule in self.outputs)}
        for name, value in rules.items():
            object.__setattr__(self, name, value)  # frozen, like what it is set on

    def __str__(self) -> str:
        parts = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        return " ".join(f"{name}={_spell(value)}" for name, value in parts) or "weights=none"


def changes(parts: Iterable[str]) -> dict[str, str | bool | tuple]:
    """What the parts of a recipe's text, "ends=int8", say of its fields.

    Raises    ValueError for a part that is none of a recipe, or whose value cannot be read.
    """
    told = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name not in Recipe.__dataclass_fields__:
            unknown("part of a recipe", name, Recipe.__dataclass_fields__)
        told[name] = _read(name, value)
    return told


def _check_types(how: Recipe) -> None:
    """"False" would count as true, and None has no text."""
    if not isinstance(how.drop_bias, bool):
        raise ValueError(f"drop_bias must be True or False, got {how.drop_bias!r}")
    for name in ("weights", "activations", "connections"):
        if not isinstance(getattr(how, name), str):
            raise ValueError(f"{name} must be a word, such as 'none', got {getattr(how, name)!r}")


def _check_tuples(how: Recipe) -> None:
    """A string would be taken letter by letter, its "*" for every layer; a list would be no key of a cache."""
    for name, example in TUPLES.items():
        if not isinstance(getattr(how, name), tuple):
            raise ValueError(f"{name} must be a tuple, such as {example}, got {getattr(how, name)!r}")
        for item in getattr(how, name) if name != "at" else ():
            if not isinstance(item, str):
                raise ValueError(f"{name} must hold words, such as {example}, got {item!r}")
    for item in how.at:
        if not isinstance(item, tuple) or len(item) != 2 or not all(part and isinstance(part, str) for part in item):
            spelt = "->".join(item) if isinstance(item, tuple) and all(isinstance(x, str) for x in item) else item
            raise ValueError(f"at: {spelt!r} is no pattern->rule, such as down.0.*->ebb")


def _check_patterns(how: Recipe) -> None:
    """A recipe is saved as its text, which has to be read back as the same recipe."""
    patterns = {"only": how.only, "keep": how.keep, "at": [pattern for pattern, _ in how.at]}
    for name, pattern in ((name, pattern) for name, given in patterns.items() for pattern in given):
        if "|" in pattern or _without_space(pattern) != pattern or (name == "at" and "->" in pattern):
            raise ValueError(f"{name}: the pattern {pattern!r} cannot be spelt in a recipe's text; write ? for each "
                             "character that is white space, | or part of ->")


def _without_space(rule: str) -> str:
    return "".join(rule.split())


def _spell(value: str | bool | tuple) -> str:
    if isinstance(value, tuple):
        return "|".join("->".join(item) if isinstance(item, tuple) else item for item in value)
    return str(value)


def _read(name: str, text: str) -> str | bool | tuple:
    kind = {f.name: f.default for f in fields(Recipe)}[name]
    if isinstance(kind, bool):
        if text not in ("True", "False"):
            unknown(name, text, ["True", "False"])
        return text == "True"
    if isinstance(kind, tuple):
        items = tuple(text.split("|"))
        if name == "outputs" and "" in items:
            raise ValueError(f"outputs={text} names an empty output rule; valid: {', '.join(OUTPUT_RULES)}, or leave "
                             "the part out")
        return tuple(tuple(item.split("->", 1)) for item in items) if name == "at" else items
    return text
