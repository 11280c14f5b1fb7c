"""How a command ends: the one place where an error becomes a line on stderr and an exit status."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable

from kimiajax.errors import UserError
from kimiajax.runtime import streams
from kimiajax.runtime.signals import Interrupted
from kimiajax.text import first_line, visible

USER_ERROR, BUG, INTERRUPTED = 2, 1, 130
# What the disk, or the system, refuses, whichever file it is; other errors without a file's name are nobody's but ours.
REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE}
BREAKS = r"\s*\n\s*"  # of lines, with what is around them


def ended(work: Callable[[], int], debug: bool = False, *, program: str = "kimiajax", fresh: bool = False) -> int:
    """The exit status of some work: its own, 2 for what a user can mend, 1 for a bug, 130 and 143 for signals.

    Args:
        work: what a command does.
        debug: show where an error comes from.
        program: what its line begins with.
        fresh: it was told to begin anew, which must not be repeated after an interruption.
    """

    def told(error: BaseException, line: str, status: int) -> int:
        if debug:
            traceback.print_exception(error)
        streams.tell(f"{program}: {visible(re.sub(BREAKS, ' ', line))}")
        return status

    def done() -> int:
        status = work()
        error = streams.flush(sys.stdout)
        if error is not None and not isinstance(error, BrokenPipeError):
            raise UserError(f"standard output: {error.strerror}; give it another place, and run the command again")
        return status

    streams.settle()
    try:
        return done()
    except BrokenPipeError:  # whoever read the output has seen enough
        return 0
    except Interrupted as interrupted:
        without = ", without --fresh," if fresh else ""
        return told(interrupted, f"{interrupted}; the same command{without} goes on from here", interrupted.status)
    except KeyboardInterrupt as error:
        return told(error, "interrupted", INTERRUPTED)
    except UserError as error:
        return told(error, str(error), USER_ERROR)
    except Exception as error:
        line = _of_the_machine(error)
        return told(error, _bug(error), BUG) if line is None else told(error, line, USER_ERROR)
    finally:  # or Python tries once more when it ends, and fails
        streams.flush(sys.stdout)
        streams.flush(sys.stderr)


def _of_the_machine(error: Exception) -> str | None:
    """What is wrong with the machine, where that is what an error says."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        error = MemoryError(error.strerror)
    if isinstance(error, OSError) and error.errno and (error.filename is not None or error.errno in REFUSED):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}{error.strerror}; check the path, its permissions and space"
    kind, text = type(error), str(error)
    if isinstance(error, MemoryError) or (kind.__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in text):
        return f"out of memory ({first_line(text)}); use a smaller --image-size or --batch-size, or --feed stream"
    module = _raised_in(error)
    if module == "jax._src.xla_bridge" or text.startswith("Unable to initialize backend"):
        asked = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        return (
            f"{asked}: JAX finds no such device ({first_line(text) or kind.__name__}); install the package's extra "
            "for it (cuda, tpu), or unset JAX_PLATFORMS"
        )
    if module in ("jax._src.config", "flax.configurations"):
        names = [name for name in os.environ if name.startswith(("JAX_", "FLAX_"))]
        given = ", ".join(f"{name}={os.environ[name]}" for name in names)
        why = first_line(text)
        return f"a variable has a value that JAX or Flax does not take ({why}): {given}; correct or unset it"
    return None


def _bug(error: Exception) -> str:
    return (
        f"this is a bug, not your input: {type(error).__name__}: {first_line(error)}; please report it where you "
        "have kimiajax from, with the output of `kimiajax --version --verbose` and of the same command with --debug"
    )


def _raised_in(error: Exception) -> str | None:
    """The module that raised an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__") if frames else None
