"""Races: contenders that do the same work, each in a process of its own, take turns; outputs are judged before times.

A turn lasts a second at least, and while one runs the others are stopped (SIGSTOP): no thread of theirs spins. The
ratio of two contenders is the median over rounds of the ratio of their neighbouring turns.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kimiajax.runtime import allocator

from .interleaved import module_named, quartiles

ROOT = Path(__file__).parents[1 + __package__.count(".")]  # the folder from which this package is imported
PEERS = ROOT / ".peers"
OURS = "kimiajax"
TURN = 1.0  # seconds that a turn fills at least
ROUNDS_OF_ALL, FAR = 2, 1.3  # after so many rounds, peers so many times slower than the fastest peer take no more turns
SETTLED = 0.2  # of a run's time: if the outputs take longer than that to arrive, the run was not awaited

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Contender:
    """Who takes part.

    Attributes:
        name: as it is printed.
        module: the module that prepares and serves it, see `module_named`.
        environment: the peer environment that it runs in; None for the project's own.
        options: what of the job is its own, such as flags.
        variables: of the process environment.
    """

    name: str
    module: str
    environment: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.environment is None else PEERS / self.environment / "bin" / "python"

    @property
    def present(self) -> bool:
        return self.python.exists()


@dataclass(frozen=True)
class Case:
    """The work of one race.

    Attributes:
        workload: the name of its module.
        settings: what the work is, as every contender is told.
        amount: of `unit` in one run.
        unit: what is counted.
        contenders: ours first; others whose names begin like ours are no peers.
        tolerance: of each output by name: the largest error over the largest absolute value of the judge's.
        write: puts the inputs into a folder.
        judge: computes the outputs that are right, in another way than any contender.
        shared: what contenders are told besides.
        target: the least ratio to the best peer; None where none is set.
        once: whether a fresh process does the work once each round, all of it from its start on; others take turns.
        against: the one peer that the target is about, where it is not the best.
        most_rounds: turns that a contender takes at most, where the work is long.
        full_only: peers that "all" means in the full form alone.
    """

    workload: str
    settings: dict[str, Any]
    amount: float
    unit: str
    contenders: tuple[Contender, ...]
    tolerance: dict[str, float]
    write: Callable[[Path], None]
    judge: Contender
    shared: dict[str, Any] = field(default_factory=dict)
    target: float | None = None
    against: str | None = None
    once: bool = False
    most_rounds: int | None = None
    full_only: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return " ".join([self.workload, *(_said(key, value) for key, value in self.settings.items())])


def _said(key: str, value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{key} {value}"


@dataclass
class Showing:
    """How a contender did: what it said of itself, every sample, and whether its outputs are the reference's."""

    name: str
    state: str = "absent"  # absent | failed | INVALID | valid
    why: str = ""
    error: dict[str, float] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    turns: list[list[float]] = field(default_factory=list)  # seconds a run, by round
    settling: list[list[float]] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def seconds(self) -> list[float]:
        """Of a run, by round: the median of the turn."""
        return [statistics.median(turn) for turn in self.turns]


class _Process:
    """A contender's process."""

    def __init__(self, contender: Contender, case: Case, folder: Path):
        self.path = folder / f"outputs of {contender.name.replace('/', ' on ')}.npz"
        self.log = self.path.with_suffix(".log")
        job = {**case.settings, **case.shared, **dict(contender.options)}
        job |= {"workload": case.workload, "folder": str(folder), "outputs": str(self.path)}
        command = [str(contender.python), "-m", module_named(contender.module), json.dumps(job)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **allocator.settings(), **dict(contender.variables)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def outputs(self) -> Outputs:
        """Of its first run."""
        with np.load(self.path) as arrays:
            return dict(arrays)

    def answer(self) -> dict[str, Any] | None:
        """The next answer; None where the process has ended without one."""
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def turn(self, seconds: float) -> dict[str, Any] | None:
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        answer = self.answer()
        self.pause()
        return answer

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def finish(self) -> dict[str, Any] | None:
        self.process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        answer = self.answer()
        self.process.wait()
        self.process.stdout.close()
        return answer

    def kill(self) -> None:
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(("For simplicity, JAX", "---"))]
        return lines[-1][:300] if lines else f"ended with status {self.process.poll()}"


Begin = Callable[[Contender], _Process | None]


def race(case: Case, rounds: int, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Runs one case.

    Args:
        case: the work and who does it.
        rounds: turns that each contender takes.
        say: is told what goes on.

    Returns:
        What the record holds of it: every sample of every contender, the errors of their outputs, and the verdict.
    """
    rounds = min(rounds, case.most_rounds or rounds)
    showings = {contender.name: Showing(contender.name) for contender in case.contenders}
    present = [contender for contender in case.contenders if contender.present]
    with tempfile.TemporaryDirectory(prefix="kimiajax-bench-") as name:
        folder = Path(name)
        case.write(folder)
        say(f"{case.name}: the judge computes")
        reference = prepare_apart(case.judge, case, folder)

        def begin(contender: Contender) -> _Process | None:
            say(f"{case.name}: {contender.name} prepares")
            return _begin(case, contender, folder, reference, showings[contender.name])

        (_run_anew if case.once else _take_turns)(present, showings, rounds, begin)
    for showing in showings.values():
        _check_awaited(showing)
    return _result(case, list(showings.values()))


def _take_turns(present: Sequence[Contender], showings: dict[str, Showing], rounds: int, begin: Begin) -> None:
    """Prepares every contender, and lets each run in its turn."""
    running: dict[str, _Process] = {}
    try:
        for contender in present:
            process = begin(contender)
            if process is not None:
                running[contender.name] = process
        for number in range(rounds):
            for name in _still_racing(showings, running, number):
                given = running[name].turn(TURN)
                if given is None:
                    _fail(showings[name], running.pop(name))
                    continue
                showings[name].turns.append(given["seconds"])
                showings[name].settling.append(given["settling"])
        for name, process in running.items():
            showings[name].peak_bytes = (process.finish() or {}).get("peak_bytes")
    finally:
        for process in running.values():
            process.kill()


def _still_racing(showings: dict[str, Showing], running: dict[str, _Process], number: int) -> list[str]:
    """Who takes a turn in this round: ours, and the peers that can still be the best."""
    if number < ROUNDS_OF_ALL:
        return list(running)
    seconds = {name: statistics.median(showings[name].seconds) for name in running if not name.startswith(OURS)}
    return [name for name in running if name not in seconds or seconds[name] <= FAR * min(seconds.values())]


def _run_anew(present: Sequence[Contender], showings: dict[str, Showing], rounds: int, begin: Begin) -> None:
    """Every contender's whole process, one after the other; the time is that of all its phases."""
    for _ in range(rounds):
        for contender in present:
            showing, process = showings[contender.name], begin(contender)
            if process is not None:
                showing.turns.append([sum(showing.phases.values())])
                showing.peak_bytes = (process.finish() or {}).get("peak_bytes")


def prepare_apart(contender: Contender, case: Case, folder: Path) -> Outputs:
    """The outputs of a contender's first run, after which it ends.

    Raises:
        SystemExit: it failed.
    """
    process = _Process(contender, case, folder)
    try:
        if process.answer() is None:
            raise SystemExit(f"{case.name}: the {contender.name} failed: {process.last_words()}")
        return process.outputs()
    finally:
        process.kill()


def _begin(case: Case, contender: Contender, folder: Path, reference: Outputs, showing: Showing) -> _Process | None:
    """Starts a contender and judges its first outputs; one that is not valid does not run on."""
    process = _Process(contender, case, folder)
    try:
        first = process.answer()
        if first is None:
            _fail(showing, process)
            return None
        process.pause()
        showing.phases, showing.about = first["ready"]["phases"], first["ready"]["about"]
        showing.error, problem = errors_of(process.outputs(), reference, case.tolerance)
        showing.state, showing.why = ("INVALID", problem) if problem else ("valid", "")
    except BaseException:
        process.kill()
        raise
    if problem:
        process.kill()
        return None
    return process


def _fail(showing: Showing, process: _Process) -> None:
    process.kill()
    showing.state, showing.why = "failed", process.last_words()


def errors_of(outputs: Outputs, reference: Outputs, tolerance: dict[str, float]) -> tuple[dict[str, float], str]:
    """The largest error of each output over the reference's largest absolute value, and what is wrong, if anything."""
    errors, problem = {}, ""
    for name, expected in reference.items():
        found = outputs.get(name)
        if found is None:
            return errors, f"no output {name!r}"
        if found.shape[0] < expected.shape[0] or found.shape[1:] != expected.shape[1:]:
            return errors, f"{name} has shape {found.shape}, not {expected.shape}"
        found = found[: len(expected)]
        if not np.isfinite(found).all():
            return errors, f"{name} is not finite"
        scale = np.abs(expected).max()
        apart = np.abs(found.astype(np.float64) - expected).max()
        errors[name] = float(apart / scale) if scale else float(apart)
        if errors[name] > tolerance[name] and not problem:
            problem = f"{name} is {errors[name]:.1e} from the judge's; at most {tolerance[name]:.0e} is right"
    return errors, problem


def _check_awaited(showing: Showing) -> None:
    if showing.state != "valid" or not showing.settling:
        return
    run = statistics.median(s for turn in showing.turns for s in turn)
    settling = statistics.median(s for turn in showing.settling for s in turn)
    if settling > SETTLED * run:
        showing.state = "INVALID"
        showing.why = f"its outputs arrived {settling:.2g} s after it said that it was done: the run was not awaited"


def _result(case: Case, showings: Sequence[Showing]) -> dict[str, Any]:
    """A case's entry in the record."""
    ours, peers = showings[0], [each for each in showings if not each.name.startswith(OURS)]
    valid = [peer for peer in peers if peer.state == "valid" and case.against in (None, peer.name)]
    best = min(valid, key=lambda peer: statistics.median(peer.seconds), default=None)
    ratio = ratio_of(ours, best) if best and ours.state == "valid" else None
    if ours.state != "valid" or any(peer.state == "INVALID" for peer in peers):
        verdict = "INVALID"
    elif case.target is None or ratio is None:
        verdict = "no target" if case.target is None else "no peer"
    else:
        verdict = "ok" if ratio["median"] >= case.target else "below target"
    return {
        "name": case.name,
        "workload": case.workload,
        "settings": case.settings,
        "unit": case.unit,
        "amount": case.amount,
        "tolerance": case.tolerance,
        "contenders": [asdict(showing) for showing in showings],
        "best_peer": best and best.name,
        "ratio": ratio,
        "target": case.target,
        "verdict": verdict,
    }


def ratio_of(ours: Showing, peer: Showing) -> dict[str, float]:
    """How many times as fast ours is: the median over rounds, and the quartiles."""
    ratios = [theirs / own for theirs, own in zip(peer.seconds, ours.seconds)]
    low, middle, high = quartiles(ratios)
    return {"median": middle, "low": low, "high": high}


def seconds_of(showing: dict[str, Any]) -> list[float]:
    """Of a run of a contender in a record, by round: the median of the turn."""
    return [statistics.median(turn) for turn in showing["turns"]]
