"""What a loss is called in a checkpoint: a name that no other function has, nor the same with other values."""

import hashlib
from functools import partial
from types import CodeType, FunctionType

PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))


def told(value: object, within: tuple[object, ...] = ()) -> str:
    """A module's own word (`told`), a function of this package by name, any other by name and a digest of what it does:
    its code, defaults and closure; a partial with its arguments; plain values themselves, others by their type.

    `within` are the functions whose closure is being told, of which one may hold itself.
    """
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(told(item, within) for item in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(told(item, within) for item in value))}}}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{told(key, within)}: {told(item, within)}' for key, item in value.items())}}}"
    if isinstance(value, partial):
        given = [told(item, within) for item in value.args]
        given += [f"{name}={told(item, within)}" for name, item in sorted(value.keywords.items())]
        return f"{told(value.func, within)}({', '.join(given)})"
    if isinstance(value, CodeType):
        return _digest(repr(value.co_code), repr(value.co_names), told(value.co_consts, within))
    value = getattr(value, "__func__", value)  # of a bound method
    if isinstance(value, FunctionType) and value not in within and not _ours(value):
        inside = (*within, value)
        parts = [value.__code__, value.__defaults__, value.__kwdefaults__, _closure(value)]
        return f"{value.__name__} {_digest(*(told(part, inside) for part in parts))}"
    return getattr(value, "told", getattr(value, "__name__", type(value).__name__))


def _ours(function: FunctionType) -> bool:
    """What our functions compute is told by `train.VERSION`; checkpoints call them by name."""
    return function.__module__.partition(".")[0] == __package__ and function.__qualname__ == function.__name__


def _closure(function: FunctionType) -> list[object]:
    """What its free variables are, in the order of their names; one that is not set yet is left out."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue
    return found


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]
