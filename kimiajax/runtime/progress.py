"""Progress of long work: a bar on a terminal, a line now and then where output is piped."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from kimiajax.runtime import streams

T = TypeVar("T")
EVERY = 15.0  # seconds between two lines, where there is no terminal


class Silent:
    """Shows nothing: the default of every library function."""

    def track(
        self,
        items: Iterable[T],
        description: str,
        total: int | None = None,
        unit: str = "",
        step: int = 1,
        done: int = 0,
    ) -> Iterable[T]:
        """Passes `items` on. Each is `step` of `total` units, the last perhaps fewer; `done` units went before."""
        return items

    def say(self, text: str) -> None:
        """Tells one line."""


class Lines(Silent):
    """Plain lines on stderr: every 15 s with rate and time left, and when work ends."""

    def say(self, text: str) -> None:
        streams.tell(text)

    def track(
        self,
        items: Iterable[T],
        description: str,
        total: int | None = None,
        unit: str = "",
        step: int = 1,
        done: int = 0,
    ) -> Iterator[T]:
        started = said = time.monotonic()
        before = done
        for item in items:
            yield item
            done = min(done + step, total or done + step)
            now = time.monotonic()
            if now - said >= EVERY and done != total:
                left = f", {(total - done) * (now - started) / (done - before):.0f} s left" if total else ""
                self.say(f"{description}: {done} of {total or '?'} {unit}, {speed(done - before, now - started)}{left}")
                said = now
        if done == before > 0:
            return  # all was done earlier
        seconds = time.monotonic() - started
        self.say(f"{description}: {done - before} {unit} in {seconds:.1f} s, {speed(done - before, seconds)}")


class Bars(Lines):
    """rich's progress bars on stderr, with rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, emoji=False)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def track(
        self,
        items: Iterable[T],
        description: str,
        total: int | None = None,
        unit: str = "",
        step: int = 1,
        done: int = 0,
    ) -> Iterator[T]:
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[unit]}{task.fields[rate]}"),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=self._console) as bars:
            bar = bars.add_task(description, total=total, completed=done, unit=unit, rate="")
            before = done
            for item in items:
                yield item
                done = min(done + step, total or done + step)
                bars.update(bar, completed=done, rate=f", {speed(done - before, bars.tasks[0].elapsed or 0)}")


def speed(done: int, seconds: float) -> str:
    """Units a second, or seconds a unit where these are the larger."""
    if not done or not seconds:
        return "-"
    return f"{done / seconds:.1f}/s" if done >= seconds else f"{seconds / done:.1f} s each"


class Download:
    """What pooch wants of a progress bar: an attribute `total`, and `update`, `reset`, `close`."""

    def __init__(self, progress: Silent, description: str):
        self._progress, self._description = progress, description
        self.total = 0
        self._received = self._said = 0

    def update(self, size: int) -> None:
        self._received += size
        if self._received - self._said >= 32 * 2**20 or self._said < self._received == self.total:
            self._said = self._received
            self._progress.say(f"{self._description}: {self._received / 2**20:.0f} of {self.total / 2**20:.0f} MiB")

    def reset(self) -> None:
        """Called at the end, before the whole is reported once more."""
        self._received = 0

    def close(self) -> None:
        pass


def for_terminal() -> Lines:
    """Bars where stderr is a terminal, lines elsewhere."""
    return Bars() if sys.stderr.isatty() else Lines()
