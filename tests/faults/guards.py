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
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_suffix(".toml")
COPIED = ("kimiajax", "weights_convert", "benchmarks", "tests", "docs", "examples", "pyproject.toml", "README.md")


class Guard(NamedTuple):
    """What a piece of the program guards against.

    Attributes:
        against: the fault.
        file: where the guard stands.
        old: its text, which is there once.
        new: what disables it.
        group: of tests, the folder GROUP or test_faults_of_GROUP.py.
        tests: words of the tests' names, as pytest's -k takes them.
    """

    against: str
    file: str
    old: str
    new: str
    group: str
    tests: str


class Outcome(NamedTuple):
    """What came of taking a guard away: the tests that fell, or why none could."""

    fell: list[str]
    problem: str = ""


def all_guards() -> list[Guard]:
    """Those of guards.toml, group by group."""
    groups = tomllib.loads(LIST.read_text(encoding="utf-8"))
    return [Guard(group=group, **about) for group, guards in groups.items() for about in guards]


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
    with tempfile.TemporaryDirectory(prefix="kimiajax-guards-") as copy:
        tree = Path(copy)
        for name in COPIED:
            source = ROOT / name
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__")) if source.is_dir() else (
                shutil.copy(source, tree / name)
            )
        try:
            disable(guard, tree)
        except (OSError, ValueError, SyntaxError) as error:
            return Outcome([], str(error))
        folder = Path("tests/faults", guard.group)
        where = folder if (tree / folder).is_dir() else folder.with_name(f"test_faults_of_{guard.group}.py")
        command = [sys.executable, "-m", "pytest", str(where), "-m", "faults and not slow", "-k", guard.tests]
        command += ["-p", "no:cacheprovider", "--tb=no", "-rfE"]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=900)
    fell = re.findall(r"^(?:FAILED|ERROR) \S+?::(.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1):
        return Outcome(fell, f"pytest ended with {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}")
    return Outcome(fell, "" if fell else "no test fell")


def main(words: list[str]) -> int:
    chosen = [guard for guard in all_guards() if all(word in " ".join(guard) for word in words)]
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
