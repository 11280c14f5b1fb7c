"""Progress of long work: a bar on a terminal, a line now and then where output is piped."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
EVERY = 15.0  # seconds between two lines, where there is no terminal


class Silent:
    """Shows nothing: the default of every library function."""

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, unit: str = "", step: int = 1
    ) -> Iterable[T]:
        """Passes `items` on. Each stands for `step` of `total` units, the last perhaps for fewer."""
        return items

    def say(self, text: str) -> None:
        """Tells one line."""


class Lines(Silent):
    """Plain lines on stderr: every 15 s with rate and time left, and when work ends."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, unit: str = "", step: int = 1
    ) -> Iterator[T]:
        started = said = time.monotonic()
        done = 0
        for item in items:
            yield item
            done = min(done + step, total or done + step)
            now = time.monotonic()
            if now - said >= EVERY and done != total:
                rate = done / (now - started)
                left = f", {(total - done) / rate:.0f} s left" if total else ""
                self.say(f"{description}: {done} of {total or '?'} {unit}, {rate:.1f}/s{left}")
                said = now
        seconds = time.monotonic() - started
        self.say(f"{description}: {done} {unit} in {seconds:.1f} s, {done / max(seconds, 1e-6):.1f}/s")


class Bars(Lines):
    """rich's progress bars on stderr, with rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def track(
        self, items: Iterable[T], description: str, total: int | None = None, unit: str = "", step: int = 1
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
            bar = bars.add_task(description, total=total, unit=unit, rate="")
            done = 0
            for item in items:
                yield item
                done = min(done + step, total or done + step)
                elapsed = bars.tasks[0].elapsed or 0
                bars.update(bar, completed=done, rate=f", {done / elapsed:.1f}/s" if elapsed else "")


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


@contextlib.contextmanager
def timer() -> Iterator[list[float]]:
    """Yields a list that holds the seconds of the block once it has ended."""
    seconds: list[float] = []
    started = time.perf_counter()
    try:
        yield seconds
    finally:
        seconds.append(time.perf_counter() - started)


def for_terminal() -> Lines:
    """Bars where stderr is a terminal, lines elsewhere."""
    return Bars() if sys.stderr.isatty() else Lines()
