"""Checks of what a user gives, with errors of one line."""

import math


def choose(what: str, name: str, known):
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}: there are {', '.join(known)}")
    return known[name] if isinstance(known, dict) else name


def check_positive(config: object, *names: str) -> None:
    """Raise a ValueError for the first of these settings that is given and not a finite number above 0."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:  # this way round, what isn't a number is refused, too
            raise ValueError(f"--{name.replace('_', '-')} is {value}: expected more than 0, and finite")
