"""Errors that a user can mend, and the checks that raise them."""

import math
from collections.abc import Collection, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class MinimodelError(ValueError):
    """An error that a user can mend: one line with what came, what was expected and how to mend it.

    The command line prints the line and exits with code 2. Any other exception is a bug and keeps its traceback.
    """


def choose(what: str, name: str, known: Mapping[str, Value]) -> Value:
    """Look ``name`` up in ``known``; an unknown name raises a `MinimodelError` that lists the choices."""
    check_choice(what, name, known)
    return known[name]


def check_choice(what: str, name: str, known: Collection[str]) -> None:
    """Raise a MinimodelError that lists the choices if ``name`` isn't among them."""
    if name not in known:
        raise MinimodelError(f"unknown {what} {name!r}: there are {', '.join(known)}")


def check_positive(config: object, *names: str) -> None:
    """Raise a `MinimodelError` for the first of these settings that is neither None nor a finite number above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:  # in this order NaN is refused, too
            raise MinimodelError(f"--{name.replace('_', '-')} is {value}: expected more than 0, and finite")
