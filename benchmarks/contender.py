"""A contender's side of a race: it prepares its work, says so, and runs it when it is told to.

Needs the standard library and NumPy only, since peers run in environments of their own. The line is JSON, one object at
a time: the process is started with its job as its only argument and answers {"ready": ...}; to each number that it is
then sent, of seconds to fill, it answers {"seconds": [...], "settling": [...]}; at the end of its input it answers
{"peak_bytes": ...}.
"""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STARTED = time.perf_counter()


class Work(NamedTuple):
    """What a contender has prepared.

    Attributes:
        run: does the work once and returns when it is done; what it gives is handed to `fetch`.
        fetch: the outputs by name, as NumPy arrays; what is compared with the other contenders.
        phases: seconds of preparation that the contender took itself, such as of compiling.
        about: versions, flags and devices, and whatever else belongs in the record.
    """

    run: Callable[[], Any]
    fetch: Callable[[Any], dict[str, np.ndarray]]
    phases: dict[str, float] = {}  # noqa: RUF012
    about: dict[str, Any] = {}  # noqa: RUF012


def serve(prepare: Callable[[dict[str, Any]], Work]) -> None:
    """Answers for one job, the process's argument, until its input ends.

    Raises:
        RuntimeError: a second job in this process, which would find caches and pools of the first.
    """
    if "served" in globals():
        raise RuntimeError("a process measures one configuration; start another for the next")
    globals()["served"] = True
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a framework prints is not an answer

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")

    job, clock = json.loads(sys.argv[1]), [STARTED, time.perf_counter()]
    work = prepare(job)
    clock.append(time.perf_counter())
    output = work.run()
    clock.append(time.perf_counter())
    np.savez(job["outputs"], **work.fetch(output))
    imported, prepared, first = np.diff(clock)
    phases = {"import": imported, "prepare": prepared - sum(work.phases.values()), **work.phases, "first_run": first}
    answer(ready={"phases": phases, "about": {**work.about, "numpy": np.__version__, "pid": os.getpid()}})
    for line in sys.stdin:
        seconds, settling, end = [], [], time.perf_counter() + float(line)
        while not seconds or time.perf_counter() < end:
            begun = time.perf_counter()
            output = work.run()
            done = time.perf_counter()
            work.fetch(output)  # takes no time, if the run was awaited
            seconds.append(done - begun)
            settling.append(time.perf_counter() - done)
        answer(seconds=seconds, settling=settling)
    answer(peak_bytes=peak())


def _end_with_parent() -> None:
    """Asks Linux to kill this process when its parent has ended, since a stopped one would stay for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def peak() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not tell.

    `getrusage` would count that of the process that started this one.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)
