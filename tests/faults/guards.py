"""Which tests fall when a guard is taken away: `python tests/faults/guards.py [WORD ...]`, of guards with these words.

One guard at a time is disabled in a copy of the source tree, by replacing a piece of its text, and the tests that
should notice are run there. A guard that no test misses, or whose text is not there once, makes the exit status 1.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("kimiajax", "weights_convert", "benchmarks", "tests", "pyproject.toml", "README.md")


class Guard(NamedTuple):
    """What a piece of the program guards against.

    Attributes:
        against: the fault.
        file: where the guard stands.
        old: its text, which is there once.
        new: what disables it.
        tests: the file of tests without its beginning, and words of the tests' names as pytest's -k takes them.
    """

    against: str
    file: str
    old: str
    new: str
    tests: tuple[str, str]


GUARDS = (
    Guard(
        "two runs on one folder",
        "kimiajax/locks.py",
        "        if kept is False or (",
        "        if False and (",
        ("storage", "second_run_is_refused"),
    ),
    Guard(
        "a live holder on another machine",
        "kimiajax/locks.py",
        "        if _touched(path) != before:\n            return True",
        "        if _touched(path) != before:\n            return False",
        ("storage", "another_machine"),
    ),
    Guard(
        "a dead holder that nobody hears of",
        "kimiajax/locks.py",
        '            say(f"{folder}: taken over from',
        '            str(f"{folder}: taken over from',
        ("storage", "second_run_is_refused or another_machine"),
    ),
    Guard(
        "arrays in the cache that are not those that were kept",
        "kimiajax/cache.py",
        'if sha256_file(folder / f"{name}.npy") != digests[name]]',
        "if False]",
        ("storage", "damaged_array"),
    ),
    Guard(
        "features of another precision in the cache",
        "kimiajax/features.py",
        '        "precision": precision,\n    }\n    return f"{backbone.name}',
        '    }\n    return f"{backbone.name}',
        ("storage", "another_precision"),
    ),
    Guard(
        "features of another version in the cache",
        "kimiajax/features.py",
        '"code": [VERSION, __version__, ',
        '"code": [',
        ("storage", "another_version"),
    ),
    Guard(
        "a file that is written in its place",
        "kimiajax/files.py",
        "    aside = _aside(path)\n    try:\n        yield aside\n        with",
        "    aside = path\n    try:\n        yield aside\n        with",
        ("storage", "cannot_write or full_when_a_file_is_settled"),
    ),
    Guard(
        "a folder that is written in its place",
        "kimiajax/files.py",
        "    aside = _aside(path)\n    aside.mkdir()",
        "    aside = path\n    aside.mkdir(exist_ok=True)",
        ("storage", "cannot_write or killed_writer"),
    ),
    Guard(
        "what a killed writer left",
        "kimiajax/files.py",
        "        if match and match",
        "        if False and match",
        ("storage", "killed_writer"),
    ),
    Guard(
        "a cache without room, found after the work",
        "kimiajax/cache.py",
        "                os.posix_fallocate(",
        "                str((",
        ("storage", "find_no_room_in_the_cache"),
    ),
    Guard(
        "an error of the disk that passes for a bug",
        "kimiajax/ending.py",
        "(error.filename is not None or error.errno in REFUSED)",
        "False",
        ("storage", "cannot_write"),
    ),
    Guard(
        "a state that cannot be written ends the training",
        "kimiajax/finetune/checkpoints.py",
        '        except Exception as error:\n            self._say(f"{self.folder}: no checkpoint',
        '        except ZeroDivisionError as error:\n            self._say(f"{self.folder}: no checkpoint',
        ("storage", "goes_on_without_states"),
    ),
    Guard(
        "a state with a bit turned",
        "kimiajax/finetune/checkpoints.py",
        "            if wrong:\n",
        "            if False:\n",
        ("training", "damaged_state or no_state_is_sound"),
    ),
    Guard(
        "a state that cannot be read",
        "kimiajax/finetune/checkpoints.py",
        "            except Exception as error:  # whatever a damaged file makes Orbax raise",
        "            except ZeroDivisionError as error:",
        ("training", "damaged_state"),
    ),
    Guard(
        "a state of another training",
        "kimiajax/finetune/checkpoints.py",
        "            if changes:\n                raise UserError(",
        "            if changes:\n                UserError(",
        ("training", "state_of_another_training"),
    ),
    Guard(
        "a state that a killed save left",
        "kimiajax/finetune/checkpoints.py",
        '            elif "orbax-checkpoint-tmp" in path.name:',
        "            elif False:",
        ("training", "killed_save_left"),
    ),
    Guard(
        "a run of other settings or data in the folder",
        "kimiajax/resume.py",
        '    if changes:\n        raise UserError(f"{out}: holds another run',
        '    if False:\n        raise UserError(f"{out}: holds another run',
        ("training", "other_settings or other_patches or order_of_classes"),
    ),
    Guard(
        "a finished row whose files are changed",
        "kimiajax/resume.py",
        "        if damage:\n",
        "        if False:\n",
        ("results", "again"),
    ),
    Guard(
        "training that goes on after a loss of NaN",
        "kimiajax/finetune/loop.py",
        "    if problem:\n        raise _NotFiniteError(problem)",
        "    if False:\n        raise _NotFiniteError(problem)",
        ("training", "loss_that_is_not_finite"),
    ),
    Guard(
        "states that are saved before an epoch is whole",
        "kimiajax/finetune/loop.py",
        '"sums": sums, "seconds": self.seconds}',
        '"sums": [[], [], []], "seconds": self.seconds}',
        ("training", "named_point and (saved or epoch)"),
    ),
    Guard(
        "features that are the same for every patch",
        "kimiajax/svm.py",
        "    if (features == features[:1]).all():",
        "    if False:",
        ("training", "same_for_every_patch"),
    ),
    Guard(
        "a row that says one scan for everything",
        "kimiajax/table.py",
        '            run.note(f"{row.approach} predicts one and the same scan',
        '            str(f"{row.approach} predicts one and the same scan',
        ("training", "one_scan_for_everything"),
    ),
    Guard(
        "an accelerator that is absent",
        "kimiajax/ending.py",
        '    if _raised_in(error) == "jax._src.xla_bridge":',
        "    if False:",
        ("training", "accelerator"),
    ),
    Guard(
        "memory that is not there",
        "kimiajax/ending.py",
        "    if isinstance(error, MemoryError) or (",
        "    if False and (",
        ("training", "memory_that_is_not_there"),
    ),
    Guard(
        "a signal in the middle of training",
        "kimiajax/table.py",
        "            interruption=interruption,\n        )\n\n    return checkpoints",
        "        )\n\n    return checkpoints",
        ("training", "a_signal_saves"),
    ),
    Guard(
        "a bug that passes for bad input",
        "kimiajax/ending.py",
        "return told(error, _bug(error), BUG) if line is None else",
        "return told(error, str(error), USER_ERROR) if line is None else",
        ("bugs", "nobody_foresaw"),
    ),
)


class Outcome(NamedTuple):
    """What came of taking a guard away: the tests that fell, or why none could."""

    fell: list[str]
    problem: str = ""


def disable(guard: Guard, tree: Path) -> None:
    """Takes a guard away from a copy of the source tree."""
    file = tree / guard.file
    text = file.read_text(encoding="utf-8")
    if text.count(guard.old) != 1:
        raise ValueError(f"{guard.file} holds the guard {text.count(guard.old)} times; write anew what it looks like")
    file.write_text(text.replace(guard.old, guard.new), encoding="utf-8")
    compile(file.read_text(encoding="utf-8"), guard.file, "exec")


def tests_that_fall(guard: Guard) -> Outcome:
    """Runs the tests that should notice, without the guard."""
    with tempfile.TemporaryDirectory(prefix="kimiajax-guards-") as folder:
        tree = Path(folder)
        for name in COPIED:
            source = ROOT / name
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__")) if source.is_dir() else (
                shutil.copy(source, tree / name)
            )
        try:
            disable(guard, tree)
        except (OSError, ValueError, SyntaxError) as error:
            return Outcome([], str(error))
        file, words = guard.tests
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "faults and not slow",
            f"tests/faults/test_faults_of_{file}.py",
        ]
        command += ["-k", words, "-p", "no:cacheprovider", "--tb=no", "-rfE"]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=900)
    fell = re.findall(r"^(?:FAILED|ERROR) \S+?::(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1):
        return Outcome(fell, f"pytest ended with {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}")
    return Outcome(fell, "" if fell else "no test fell")


def main(words: list[str]) -> int:
    chosen = [guard for guard in GUARDS if all(word in f"{guard.against} {guard.file} {guard.tests}" for word in words)]
    started, unnoticed = time.monotonic(), 0
    with ThreadPoolExecutor(2) as pool:
        for guard, outcome in zip(chosen, pool.map(tests_that_fall, chosen)):
            unnoticed += bool(outcome.problem)
            print(f"{guard.against} ({guard.file})", flush=True)
            for test in outcome.fell:
                print(f"    {test}")
            if outcome.problem:
                print(f"    NOT NOTICED: {outcome.problem}")
    noticed = len(chosen) - unnoticed
    print(
        f"\n{len(chosen)} guards taken away one at a time: {noticed} missed by a test, {unnoticed} not; "
        f"{time.monotonic() - started:.0f} seconds"
    )
    return 1 if unnoticed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
