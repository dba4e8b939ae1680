"""Errors that a user can mend, and the checks that raise them."""

import math
from collections.abc import Collection, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class MinimodelError(ValueError):
    """What a user can mend: one line that says what came, what was expected and how to mend it.

    The command line prints the line and exits with code 2. Any other exception is a bug and keeps its traceback.
    """


def choose(what: str, name: str, known: Mapping[str, Value]) -> Value:
    """The value that ``name`` stands for among ``known``; a MinimodelError that lists the choices if there is none."""
    check_choice(what, name, known)
    return known[name]


def check_choice(what: str, name: str, known: Collection[str]) -> None:
    """Raise a MinimodelError that lists the choices if ``name`` isn't among them."""
    if name not in known:
        raise MinimodelError(f"unknown {what} {name!r}: there are {', '.join(known)}")


def check_positive(config: object, *names: str) -> None:
    """Raise a MinimodelError for the first of these settings that is given and not a finite number above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:  # this way round, what isn't a number is refused, too
            raise MinimodelError(f"--{name.replace('_', '-')} is {value}: expected more than 0, and finite")
