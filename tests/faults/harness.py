"""What a fault's test asks of a command: how it ended, what it said, and whether it left anything behind."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from kimiajax.cli.main import main


class Ended(NamedTuple):
    """A command that ended: its exit status, and what it wrote to stderr and to stdout."""

    status: int
    said: str
    shown: str


def ask(*arguments: object) -> Ended:
    """`kimiajax ARGUMENTS`, in this process."""
    shown, said = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
        status = main([str(argument) for argument in arguments])
    return Ended(status, *(stream.buffer.getvalue().decode() for stream in (said, shown)))


def start(*arguments: object, limits: str = "", before: str = "", **options: object) -> subprocess.Popen:
    """The same as a process of its own.

    Args:
        limits: of bash's `ulimit`, "-f 100" say.
        before: Python that runs in that process before the command does.
        options: of the process.
    """
    code = f"{before}\nimport sys\nfrom kimiajax.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    if limits:
        command = ["bash", "-c", f'ulimit {limits}; exec "$@"', "bash", *command]
        # JAX would leave truncated programs in the cache that all tests share.
        options["env"] = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(process: subprocess.Popen, seconds: float = 200) -> Ended:
    """Waits for a process that `start` started."""
    shown, said = process.communicate(timeout=seconds)
    return Ended(process.returncode, said, shown)


def alone(*arguments: object, **options: object) -> Ended:
    """`start` and `finish`."""
    return finish(start(*arguments, **options))


def refused(ended: Ended, *words: object, status: int = 2) -> str:
    """Asserts that a command ended badly and well: with its status and one line, which holds these words.

    Args:
        words: the file, and the remedy.

    Returns:
        The line.
    """
    assert ended.status == status, ended
    assert "Traceback" not in ended.said + ended.shown, ended.said
    lines = ended.said.splitlines()
    assert lines[-1].startswith("kimiajax: "), ended.said
    assert [line for line in lines if line.startswith("kimiajax: ")] == lines[-1:], ended.said
    for word in words:
        assert str(word) in lines[-1], (word, lines[-1])
    return lines[-1]


def files_of(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, by the digest of what it holds; locks apart, which hold nothing."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in found}


@contextlib.contextmanager
def nothing_changes(*folders: Path) -> Iterator[None]:
    """Asserts that afterwards these folders hold the same files with the same content, and no others; or none still."""
    before = [files_of(folder) if folder.exists() else None for folder in folders]
    yield
    for folder, files in zip(folders, before):
        now = files_of(folder) if folder.exists() else {}
        assert now == (files or {}), now.items() ^ (files or {}).items()
