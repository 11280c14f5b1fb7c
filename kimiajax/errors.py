"""The one error that is the user's to mend."""

from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and what to do; the command line prints it as one line."""


class UsageError(UserError):
    """A wish that cannot be met, or a package that is absent: nothing is wrong with the data."""


def check_known(kind: str, name: Any, known: Iterable[str]) -> None:
    """Raises UserError, with those that there are, for a name that is none of them."""
    known = list(known)
    if name not in known:
        raise UserError(f"no {kind} {name!r}; choose from {', '.join(known)}")
