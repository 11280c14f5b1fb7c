"""What a child process does to itself at a named point of the program: it dies there, without a word."""

import importlib
import os
import signal
from pathlib import Path

HERE = Path(__file__).parent


def kill_at(where: str, nth: int = 1, when: str = "before", match: str = "", number: int = signal.SIGKILL) -> None:
    """Has this process killed at a call of a function.

    Args:
        where: "package.module:function", or "package.module:Class.method".
        nth: which call it is.
        when: "before" the call, or "after" it.
        match: count only calls with this text among their arguments.
        number: of the signal.
    """
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    function, calls = getattr(owner, name), []

    def struck(*args, **options):
        if match in str(args):
            calls.append(None)
        strikes = len(calls) == nth and match in str(args)
        if strikes and when == "before":
            os.kill(os.getpid(), number)
        result = function(*args, **options)
        if strikes:
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, struck)


def killing(*arguments: object) -> str:
    """Python that a child runs before its command, so that `kill_at(*arguments)` strikes there."""
    return f"import sys; sys.path.insert(0, {str(HERE)!r}); from striking import kill_at; kill_at(*{arguments!r})"


def forbidding(*names: str, error: str = "OSError(18, 'Invalid cross-device link')") -> str:
    """Python after which these functions of `os` fail, as on a file system that does not know them."""
    lines = ["import os", f"def no(*a, **k): raise {error}", *(f"os.{name} = no" for name in names)]
    return "\n".join(lines)
