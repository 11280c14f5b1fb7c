"""One writer at a time: a folder that a process holds, which says who it is, and which is taken over from a dead one.

Where the operating system keeps locks, it alone says whether the holder lives, and lets go when it dies, however it
dies. What the file says besides is for a reader, and for file systems whose locks hold on one machine only: there a
holder elsewhere is alive while it touches the file. No two clocks are compared, so none may be wrong.
"""

import contextlib
import datetime
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from kimiajax.errors import UserError

LOCK = ".lock"
BEAT = 10.0  # seconds between two touches
PATIENCE = 45.0  # seconds without one, after which a holder on another machine is taken for dead
SETTLE = 1.0  # seconds in which two that take a folder at once, where the system keeps no locks, see one another


def host() -> str:
    """This machine's name, of letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


@dataclass(frozen=True)
class Owner:
    """A process that holds a folder.

    Attributes:
        host: the machine it runs on.
        pid: its number there.
        since: when it took the folder, by its clock, for a reader.
        born: when it began, in ticks since the machine's start, which tells it from a later one of the same number;
            None where that is unknown.
    """

    host: str
    pid: int
    since: str
    born: int | None

    @classmethod
    def me(cls) -> "Owner":
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return cls(host(), os.getpid(), now, _born(os.getpid()))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def lives(self) -> bool:
        """Whether this process runs here."""
        return is_alive(self.pid) and _born(self.pid) == self.born


@contextlib.contextmanager
def only_writer(
    folder: Path, other: str = "another --out", say: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Holds a folder for this process alone.

    Args:
        folder: made where it is needed.
        other: what to choose in its place, for the message.
        say: is told of a dead holder, from whom it is taken over.

    Raises:
        UserError: a living process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("ab", buffering=0) as file:  # or what finds no room would be written again when it is closed
        kept = _lock(file)
        holder = _read(path)
        if kept is False or (holder and _holds(holder, path, kept is not None, say)):
            who = holder or "another process"
            raise UserError(f"{folder}: another run writes there ({who}); wait for it, or choose {other}")
        if holder:
            say(f"{folder}: taken over from {holder}, which ended without letting go")
        me = Owner.me()
        try:
            _write(file, json.dumps(asdict(me)))
        except OSError as error:
            error.filename = str(path)
            raise
        if kept is None:
            time.sleep(SETTLE)
            if (other_one := _read(path)) != me:
                raise UserError(f"{folder}: another run took it at the same time ({other_one}); choose {other}")
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(path, me, ended), name="lock", daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            with contextlib.suppress(OSError):  # the folder may be gone, or the disk full
                if _read(path) == me:  # while this process was suspended another one may have taken it over
                    _write(file, "")


def is_alive(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _lock(file: IO[bytes]) -> bool | None:
    """Whether the operating system gave the lock; None where it knows none."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _holds(holder: Owner, path: Path, locked: bool, say: Callable[[str], None]) -> bool:
    """Whether whom the file names still holds the folder, though the operating system did not say so."""
    if holder.host == host():
        return not locked and holder.lives()
    say(f"{path.parent}: {holder} held it; watching for {PATIENCE:.0f} seconds whether that process lives")
    before, until = _touched(path), time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(PATIENCE / 45)
        if _touched(path) != before:
            return True
    return False


def _touched(path: Path) -> int:
    """When a file was touched; opened for it, since file systems over a network look at files anew then."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _beat(path: Path, me: Owner, ended: threading.Event) -> None:
    """Touches the file while it names this process."""
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            if _read(path) == me:
                os.utime(path)


def _read(path: Path) -> Owner | None:
    """Whom a lock names; nobody where it was let go, or where its writer died while it wrote."""
    try:
        owner = Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None
    return owner if isinstance(owner.pid, int) else None


def _write(file: IO[bytes], text: str) -> None:
    file.truncate(0)
    file.write(text.encode())


def _born(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[19])
