"""Quantizers by name with options in one string: "lsq:4", "ternary:threshold=0.7", "xnor:detach_scale=True"."""

import ast
import inspect
from collections.abc import Mapping
from functools import cache
from typing import get_args

from ..errors import unknown


def parse(spec: str) -> tuple[str, list, dict]:
    """Name, positional and named options of "name:value,key=value".  Values are Python literals, else plain words."""
    name, _, rest = spec.partition(":")
    positional, named = [], {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if equals:
            named[key.strip()] = _literal(value)
        else:
            positional.append(_literal(part))
    return name.strip(), positional, named


def build(kind: str, table: Mapping[str, type], spec: str, *arguments):
    """`table[name](*arguments, *positional, **named)`.

    Raises    ValueError for a name that is not in the table, options its class does not take, or values it refuses.
    """
    maker, positional, named = lookup(kind, table, spec)
    return maker(*arguments, *positional, **named)


def lookup(kind: str, table: Mapping[str, type], spec: str) -> tuple[type, list, dict]:
    """The class of a spec and its options, checked against the class's signature without building it.

    Raises    ValueError for an unknown name or option, or a value of another type than the option's.
    """
    name, positional, named = parse(spec)
    if name not in table:
        unknown(kind, name, table)
    signature = _signature(table[name])
    first = list(signature.parameters)[: _given(signature)]
    try:
        signature.bind(*first, *positional, **named)
    except TypeError as error:
        options = [str(p) for p in list(signature.parameters.values())[_given(signature):]]
        raise ValueError(f"{kind} {spec!r}: {error}; options: {', '.join(options) or 'none'}") from None
    for option, value in signature.bind(*first, *positional, **named).arguments.items():
        if option not in first:
            _check_type(f"{kind} {spec!r}", signature.parameters[option], value)
    return table[name], positional, named


def _check_type(where: str, parameter: inspect.Parameter, value) -> None:
    """A word where a number belongs would otherwise fail late, and 'false' for a switch would be true."""
    valid = _types(parameter)
    fits = type(value) in valid or (type(value) is int and float in valid)
    if valid and not fits:
        names = " or ".join(VALID[kind] for kind in valid)
        raise ValueError(f"{where}: {parameter.name} must be {names}, got {value!r}")


VALID = {bool: "True or False", int: "an integer", float: "a number", str: "a word", type(None): "None"}


def _types(parameter: inspect.Parameter) -> tuple[type, ...]:
    """What an option may be: as annotated, else of its default's type; () where that is nothing a spec can spell."""
    annotated = get_args(parameter.annotation) or (parameter.annotation,)
    kinds = annotated if all(kind in VALID for kind in annotated) else (type(parameter.default),)
    return kinds if all(kind in VALID for kind in kinds) else ()


_signature = cache(inspect.signature)  # a quarter of a millisecond, for every layer of a network


def _given(signature: inspect.Signature) -> int:
    """How many leading parameters the caller supplies: those without a default, and `out_dim`."""
    names = [p.name for p in signature.parameters.values() if p.default is p.empty or p.name == "out_dim"]
    return len(names)


def _literal(text: str):
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()
