"""Folders that all processes of a test run share: the first that asks makes one, and nobody changes it afterwards."""

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path

MADE = ".made"


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Returns the folder, after it was made by this process or another one of the same test run.

    Args:
        folder: where to.
        make: fills it, and is called with it, in one process alone. Where it fails, the next who asks tries anew.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / MADE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / MADE).write_text(json.dumps(_state(folder)))
    return folder


def assert_untouched(root: Path) -> None:
    """Asserts that no test wrote to a folder that `once` made below this one."""
    for made in root.glob(f"*/{MADE}"):
        before, now = json.loads(made.read_text()), _state(made.parent)
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        assert not changed, f"a test changed {', '.join(changed)} in {made.parent}, which all tests share"


def _state(folder: Path) -> dict[str, list[int]]:
    """The size and time of each file but our own, and of locks, which are taken in order to read."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (MADE, ".lock"))
    return {str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
