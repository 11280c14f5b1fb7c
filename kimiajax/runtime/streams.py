"""The three streams that a command gets from its shell: closed, full or of few letters, they end no work."""

import contextlib
import io
import os
import sys
from typing import Any


def settle() -> None:
    """Opens what is closed of stdin, stdout and stderr on the null device, for a command to call first.

    A file that is opened later would take the free number, and what C libraries tell would be written into it. And a
    letter that a stream's encoding lacks is replaced, whatever prints it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        mode, flags = ("r", os.O_RDONLY) if number == 0 else ("w", os.O_WRONLY)
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(_opened(flags, number), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="replace", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")


def _opened(flags: int, number: int) -> int:
    """The null device under a number, the lowest free one perhaps."""
    opened = os.open(os.devnull, flags)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    return number


def in_utf8() -> None:
    """Begins this process anew where Python would take the names of files for ASCII, as the locale C asks it to.

    Libraries that are written in C++ take no name that Python could not decode.
    """
    if sys.getfilesystemencoding().lower() not in ("utf-8", "utf8"):
        command = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONUTF8": "1"})


def tell(text: str) -> None:
    """Writes a line to stderr, where somebody or something takes it."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)
    flush(sys.stderr)


def flush(stream: Any) -> OSError | None:
    """Passes on what a stream holds; where that fails, it and all that follows goes to the null device.

    Returns:
        Why it failed.
    """
    try:
        stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError):  # it may be no file
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
            stream.flush()
        return error
    return None
