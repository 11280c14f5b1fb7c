"""Several processes of one run, on one machine or on many: JAX's own runtime, and what the processes must agree on.

All of them run the same program, and the first alone writes. Where there is one process, nothing here does anything.
"""

import contextlib
import itertools
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from kimiajax.errors import UserError
from kimiajax.runtime import streams

A_DAY = 24 * 3600 * 1000  # milliseconds
_WAITS = itertools.count()
_STARTED: list[bool] = []  # whether this process has joined others
LOST = 75  # exit status, EX_TEMPFAIL: the same command may succeed later
_LOST = "another process of this run was lost; start it again, with as many processes as there are, and it goes on"


def start(coordinator: str | None, count: int | None, number: int | None, timeout: int) -> None:
    """Joins the other processes; before anything else asks JAX for devices.

    Args:
        coordinator: HOST:PORT where the first process listens; by default what the cluster says (SLURM, Kubernetes,
            Open MPI, a TPU pod).
        count: of processes, likewise.
        number: of this one, from 0, likewise.
        timeout: seconds without a sign of life after which a process counts as lost.

    Raises:
        UserError: no cluster says what is not given, or the others cannot be reached.
    """
    import jax

    try:
        jax.distributed.initialize(coordinator, count, number, heartbeat_timeout_seconds=timeout)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"--distributed: no cluster is found that says what is not given ({error}); give --coordinator HOST:PORT, "
            "--processes N and --process K"
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"--distributed: the other processes cannot be reached ({str(error).splitlines()[0]})"
        ) from error
    _STARTED.append(True)


def count() -> int:
    """How many there are."""
    import jax

    return jax.process_count()


def number() -> int:
    """Which this one is, from 0."""
    import jax

    return jax.process_index()


def is_first() -> bool:
    """Whether this is the one that writes."""
    return number() == 0


def of_first(work: Callable[[], Any]) -> Any:
    """What `work` gives in the first process, in all of them; it is called nowhere else.

    Raises:
        UserError: what it raised there, in all of them.
    """
    if count() == 1:
        return work()
    good, value = True, None
    if is_first():
        try:
            value = work()
        except UserError as error:
            good, value = False, str(error)
    good, value = _from_first((good, value))
    if not good:
        raise UserError(value)
    return value


def check_same(what: str, value: Any) -> None:
    """Raises UserError in all processes where a value is not the same in all."""
    if count() == 1:
        return
    same = gathered([value == _from_first(value)])
    if not all(part[0] for part in same):
        others = ", ".join(str(process) for process, part in enumerate(same) if not part[0])
        raise UserError(
            f"processes {others} see other {what} than process 0; give all the same command and the same files"
        )


def agree(value: bool) -> bool:
    """Whether it is true in all processes."""
    wait("an agreement")
    return all(part[0] for part in gathered([value]))


def gathered(tree: Any) -> list[Any]:
    """Each process's arrays, or numbers, of the same shapes, in the order of processes."""
    if count() == 1:
        return [tree]
    import jax
    from jax.experimental import multihost_utils

    leaves, structure = jax.tree.flatten(multihost_utils.process_allgather(tree))
    return [structure.unflatten([leaf[process] for leaf in leaves]) for process in range(count())]


@contextlib.contextmanager
def first_goes_first(name: str) -> Iterator[None]:
    """The block runs in the first process, and then in the others: they find what it kept."""
    if not is_first():
        wait(name)
    yield
    if is_first():
        wait(name)


def wait(name: str) -> None:
    """Waits until all processes are here, for a day if need be: waits between devices end after seconds."""
    if count() == 1:
        return
    from jax._src import distributed  # as Orbax does it; jax.experimental waits by devices only

    client = distributed.global_state.client
    assert client is not None
    client.wait_at_barrier(f"{name} {next(_WAITS)}", A_DAY)


def asked_to_end(step: int) -> bool:
    """Whether a process received SIGTERM, and all are at the step at which all learn of it.

    Args:
        step: rises from call to call, equally in all processes.
    """
    if count() == 1:
        return False
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def finish(status: int, together: bool) -> int:
    """Ends this process's part: with the others, where all end so, or at once."""
    if _STARTED:
        import jax

        if together:
            try:
                jax.distributed.shutdown()
            except jax.errors.JaxRuntimeError:
                say_lost()
                return LOST
        else:  # the others would be waited for
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return status


def is_loss(error: Exception) -> bool:
    """Whether an error says that another process is gone."""
    import jax

    if count() == 1 or not isinstance(error, jax.errors.JaxRuntimeError):
        return False
    return not str(error).startswith("RESOURCE_EXHAUSTED")


def supervised(work: Callable[[], int]) -> int:
    """Runs `work` in a child process and returns the status with which it ends.

    Where a process is lost, JAX's runtime ends the others from within, past Python: someone must be left who says what
    happened. Signals go on to the child, and it does not outlive this process.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        threading.Thread(target=lambda: (os.read(reading, 1), os._exit(LOST)), daemon=True).start()
        status = 1
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(reading)
    asked = itertools.count()

    def pass_on(number: int, frame: Any) -> None:
        """The second time for good: JAX's runtime only takes note of SIGTERM."""
        os.kill(child, number if next(asked) == 0 else signal.SIGKILL)

    before = signal.signal(signal.SIGTERM, pass_on)
    interrupt = signal.signal(signal.SIGINT, lambda number, frame: None)  # a terminal tells the child itself
    try:
        _, ended = os.waitpid(child, 0)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)
        os.close(writing)
    status = os.waitstatus_to_exitcode(ended)
    if status == -signal.SIGABRT:
        say_lost()
        return LOST
    return status if status >= 0 else 128 - status


def say_lost() -> None:
    """Says on stderr that a process was lost."""
    streams.tell(f"kimiajax: {_LOST}")


def _from_first(value: Any) -> Any:
    """The first process's value; pickled, since it comes from this very program."""
    import numpy as np
    from jax.experimental import multihost_utils

    wait("a value of the first process")  # work that only that one did may take longer than devices wait
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = content if is_first() else np.zeros(size, np.uint8)
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())
